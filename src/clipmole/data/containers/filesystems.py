"""A path or an address -> its bytes, or what lies below it.

In: local paths, and addresses of any file system that fsspec knows (s3://, gs://, hdfs://, memory://, https://, ...).
Out: bytes, open files, listings. Local paths go through the standard library alone. It knows nothing of images.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, Any, cast

from clipmole.errors import (
    ClipmoleError,
    DataError,
    ImageNotFound,
    ImageNotRead,
    ImageTooLarge,
    ImageUnreadable,
    MissingDependency,
)
from clipmole.images.loading import DEFAULT_LIMITS
from clipmole.plumbing.files import read_at_most
from clipmole.plumbing.text import first_line

MODIFIED = ("mtime", "LastModified", "last_modified", "updated", "created")  # what file systems call it


@dataclass(frozen=True)
class File:
    """A file: its path or address, its size in bytes, and when it was last changed; None: not known.

    Attributes:
        there: False if a file that was named does not exist, or may not be accessed.
    """

    location: str
    size: int | None
    modified: datetime | None
    there: bool = True


def is_address(location: str) -> bool:
    """Whether fsspec reads it."""
    return "://" in location


def file_system(location: str) -> tuple[Any, str, str]:
    """The file system of an address, the path on it, and what makes a path of it an address again.

    Raises `MissingDependency` without fsspec, `DataError` if it lacks the library for a protocol, `ValueError` if it
    does not know the protocol.
    """
    try:
        import fsspec
    except ImportError as error:
        raise MissingDependency("fsspec", "scan") from error
    protocol = location.partition("://")[0]
    try:
        # A cache of listings would keep every name of a bucket in memory.
        fs, path = fsspec.core.url_to_fs(location, **({} if protocol == "memory" else {"use_listings_cache": False}))
    except ImportError as error:
        raise DataError(f"{location}: cannot be opened: {first_line(error)}") from error
    return fs, path, protocol


def open_location(location: str) -> IO[bytes]:
    """An open file. Raises `OSError` and whatever the file system's library raises."""
    if not is_address(location):
        return open(location, "rb")
    fs, path, _ = file_system(location)
    return cast("IO[bytes]", fs.open(path, "rb"))


@contextmanager
def reading(location: str, kind: str = "", damage: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn what libraries raise while a file is read into errors of that file.

    Args:
        kind: of file, such as "tar file".
        damage: what its library raises where the content is at fault, not the reading; of local files also an
            `OSError` without a number, which is no system's.

    Raises `ImageUnreadable` for damage, `ImageNotFound`, or `ImageNotRead` for all else; clipmole's own pass.
    """
    try:
        yield
    except ClipmoleError:
        raise
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise ImageNotFound(location, "no such file, or it may not be read; check the path") from error
    except Exception as error:  # of disks and networks: each library has its own
        no_system = kind and isinstance(error, OSError) and error.errno is None and not is_address(location)
        if no_system or isinstance(error, damage):
            raise ImageUnreadable(
                location, f"damaged or truncated {kind}: {first_line(error)}; fetch it again"
            ) from error
        raise ImageNotRead(location, f"cannot be read: {first_line(error)}") from error


def read_location(location: str, size: int | None = None) -> bytes:
    """All bytes of a file.

    Args:
        size: that it was listed with; a larger one than can be an image is not fetched. None: not known.

    Raises `ImageNotFound`, `ImageTooLarge`, `ImageUnreadable` (not a file) or `ImageNotRead`.
    """
    if size is not None and size > DEFAULT_LIMITS.max_bytes:
        raise too_large(location, size)
    with reading(location):
        if is_address(location):
            fs, path, _ = file_system(location)
            if size is not None:
                return bytes(fs.cat_file(path))
            with fs.open(path, "rb") as file:  # it may be endless
                data = read_at_most(file, DEFAULT_LIMITS.max_bytes + 1)
            if len(data) > DEFAULT_LIMITS.max_bytes:
                raise too_large(location, len(data))
            return data
        if "\0" in location:
            raise ImageNotFound(location, "no file can have such a name; check the path")
        with open(location, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageUnreadable(location, "is a device or a pipe; save its content to a file first")
            if status.st_size > DEFAULT_LIMITS.max_bytes:
                raise too_large(location, status.st_size)
            return file.read()


def _without_waiting(file: str, flags: int) -> int:  # a FIFO must not hang
    return os.open(file, flags | getattr(os, "O_NONBLOCK", 0))


def too_large(location: str, size: int) -> ImageTooLarge:
    """The error for a file of more bytes than an image may have."""
    return ImageTooLarge(location, f"{size:,} bytes, over the limit of {DEFAULT_LIMITS.max_bytes:,}")


def files_below(location: str) -> Iterator[File]:
    """Files that a file's or folder's address, or a pattern, names; folders in depth, in sorted order.

    Holds the names of one folder (of a pattern: of all that it matches) at a time. Raises `DataError` if there is
    nothing, or it cannot be listed.
    """
    try:
        fs, path, protocol = file_system(location)
        if glob.has_magic(path):
            found: Mapping[str, Any] = fs.glob(path, detail=True)
            below: Iterator[Mapping[str, Any]] = (found[name] for name in sorted(found))
        else:
            info = fs.info(path)
            below = _walk(fs, path) if info["type"] == "directory" else iter([info])
        count = 0
        for info in below:
            if info["type"] == "file":
                count += 1
                yield File(_address(fs, protocol, info["name"]), info.get("size"), modified(info))
    except FileNotFoundError as error:
        raise DataError(f"{location}: there is no such file or folder") from error
    except (DataError, MissingDependency):
        raise
    except Exception as error:  # of networks and credentials: each library has its own
        raise DataError(f"{location}: cannot be listed: {first_line(error)}") from error
    if not count:
        raise DataError(f"{location}: there is nothing; check the address")


def _walk(fs: Any, folder: str) -> Iterator[Mapping[str, Any]]:
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        there = sorted(fs.ls(here, detail=True), key=lambda info: str(info["name"]))
        yield from (info for info in there if info["type"] != "directory")
        below = [info["name"] for info in there if info["type"] == "directory"]
        waiting += [name for name in reversed(below) if name.rstrip("/") != here.rstrip("/")]


def _address(fs: Any, protocol: str, name: str) -> str:
    if protocol in ("http", "https"):
        return name
    return f"{protocol}://{fs._strip_protocol(name).lstrip('/') if protocol != 'file' else name}"


def modified(info: Mapping[str, Any]) -> datetime | None:
    """When a listed file was last changed; None if its file system does not say."""
    value = next((info[key] for key in MODIFIED if info.get(key) is not None), None)
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def local_file(path: str) -> File:
    """Size and time of a local file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return File(path, None, None, there=False)
    return File(path, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))


def file_at(location: str) -> File:
    """Size and time of one file, local or remote. Raises `DataError` if its file system cannot be asked."""
    if not is_address(location):
        return local_file(location)
    try:
        fs, path, _ = file_system(location)
        info = fs.info(path)
    except (FileNotFoundError, PermissionError):
        return File(location, None, None, there=False)
    except (DataError, MissingDependency):
        raise
    except Exception as error:  # of networks and credentials: each library has its own
        raise DataError(f"{location}: cannot be looked up: {first_line(error)}") from error
    return File(location, info.get("size"), modified(info))
