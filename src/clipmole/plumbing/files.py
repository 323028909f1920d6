"""Files and directories that are written whole or not at all, and that replace nothing that is not clipmole's.

In: paths, and functions that fill them. Out: files; and what a stream that may have no end gives, up to a limit. It
knows nothing of their content.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import IO

CHECKSUMS = "checksums.json"
SCRATCH = ".write-"  # begins the name of a directory of files that are not complete yet
LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}  # what file managers leave in any directory


def is_odd_file(path: Path) -> bool:
    """Whether the path is neither a file nor a directory: a pipe, for example, would keep a reader waiting forever."""
    return path.exists() and not path.is_file() and not path.is_dir()


def read_at_most(file: IO[bytes], most: int) -> bytes:
    """The bytes of a file or a stream up to its end, and no more than `most`."""
    pieces: list[bytes] = []
    while most and (piece := file.read(min(most, 2**20))):
        pieces.append(piece)
        most -= len(piece)
    return b"".join(pieces)


def cache_folder(kind: str) -> Path:
    """`$CLIPMOLE_CACHE/KIND`, else `~/.cache/clipmole/KIND`: a folder for files that can be made again."""
    return Path(os.environ.get("CLIPMOLE_CACHE") or Path.home() / ".cache" / "clipmole") / kind


def nearest_existing(path: Path) -> Path:
    """`path` itself if it exists, else the nearest folder above it that does; absolute, without symbolic links."""
    return next(each for each in (path.resolve(), *path.resolve().parents) if each.exists())


def why_not_replaceable(folder: Path, kind: str, files: Mapping[str, Callable[[Path], object] | None]) -> str | None:
    """Why a command may not replace `folder` with a new directory; None if it may.

    It may if there is nothing, or an empty directory, or if everything there is clipmole's own: every file is known
    by its name, and those that identify the directory can be read as their format. It also tries to write there, so
    that long work does not fail at its end.

    Args:
        folder: the directory to be written.
        kind: what it will be, in words for a message, such as "an adapter directory".
        files: name of each file of such a directory -> a function that reads it, and raises an error if the format is
            wrong; None: the name is enough. The first one must be there. A name may be a pattern.

    Returns:
        A sentence without its subject, which names the first file that stands in the way.
    """
    try:
        str(folder.resolve()).encode()
    except UnicodeEncodeError:
        return "has a name that is not UTF-8, which libraries cannot read; name another folder"
    if folder.is_dir():
        if Path.cwd().is_relative_to(folder.resolve()):
            return "is the current directory or holds it, and would be replaced under you; name another folder"
        if reason := _obstacle(folder, kind, files):
            return f"{reason}; name another folder"
    elif folder.exists() or folder.is_symlink():
        return "exists and is not a directory; name another folder"
    parent = nearest_existing(folder.resolve().parent)
    try:
        tempfile.TemporaryDirectory(prefix=".try-", dir=parent).cleanup()
    except OSError as error:
        return f"cannot be written: {parent}: {error.strerror}; name another folder"
    return None


def _obstacle(folder: Path, kind: str, files: Mapping[str, Callable[[Path], object] | None]) -> str | None:
    """Why an existing directory must not be replaced; None if it may be. Arguments as in `why_not_replaceable`."""
    names = sorted({path.name for path in folder.iterdir()} - LITTER)
    sign = next(iter(files))
    if names and sign not in names:
        return f"exists and is not {kind}: it has no {sign}, and holds {names[0]}"
    for name in names:
        known = next((pattern for pattern in files if fnmatch(name, pattern)), None)
        if known is None or not (folder / name).is_file():
            return f"holds {name}, which does not belong to {kind} and would be lost"
        try:
            if read := files[known]:
                read(folder / name)
        except Exception as error:  # readers raise errors of their own
            return f"exists and is not {kind}: {error}"
    return "is a mount point, which cannot be replaced" if os.path.ismount(folder) else None


def foreign_file(folder: Path, files: Mapping[str, Callable[[Path], object]]) -> Path | None:
    """What `folder` holds first that would be replaced and is not a file of clipmole's; None if there is nothing.

    Args:
        files: name of a file that will be written -> a function that reads it, and raises an error if the format is
            wrong.
    """
    for name, read in files.items():
        path = folder / name
        try:
            if is_odd_file(path):
                return path
            if path.exists() or path.is_symlink():
                read(path)
        except Exception:  # readers raise errors of their own
            return path
    return None


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """An empty directory to be filled; when the block ends without an error, it replaces `folder` as a whole.

    After any interruption, such as an error, Ctrl-C or a full disk, `folder` is as it was. A process that is
    killed while the two change places leaves both on the disk. The old content of `folder` is deleted, so ask
    `why_not_replaceable` first. A symbolic link to a directory is followed.

    Raises `OSError`.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    new, old = scratch / "new", scratch / "old"
    try:
        new.mkdir()
        yield new
        for path in [*new.rglob("*"), new]:
            to_disk(path)
        if not folder.exists():
            new.rename(folder)
        elif not _exchange(new, folder):
            folder.rename(old)
            new.rename(folder)
        to_disk(folder.parent)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def replacing_files(folder: Path) -> Iterator[Path]:
    """A directory to write files in; when the block ends without an error, each is moved to `folder`, over an older
    one.

    All are complete and on the disk before the first is moved; they are moved in the order of their names.

    Raises `OSError`; older files of these names are then still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder, ignore_cleanup_errors=True) as scratch:
        yield Path(scratch)
        paths = sorted(Path(scratch).iterdir())
        for path in paths:
            to_disk(path)
        for path in paths:
            os.replace(path, folder / path.name)
    to_disk(folder)


def remove_scratch(folder: Path) -> None:
    """Delete what `replacing_files` left in `folder` when it was killed; nobody else may be writing there."""
    for left in folder.glob(f"{SCRATCH}*"):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write bytes to; when the block ends without an error, it replaces `path` as in `replacing_files`."""
    with replacing_files(path.parent) as scratch, (scratch / path.name).open("wb") as file:
        yield file


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write text files as `replacing_files` does.

    Args:
        texts: file name -> its text, UTF-8, its line ends as they are.

    Raises `OSError`; older files of these names are then still there.
    """
    with replacing_files(folder) as scratch:
        for name, text in texts.items():
            (scratch / name).write_text(text, encoding="utf-8", newline="")


def sha256_of(path: Path) -> str:
    """sha256 of a file's content, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path) -> None:
    """Write down the sha256 of each file directly in `folder`, for `is_sealed`. Raises `OSError`."""
    write_texts(folder, {CHECKSUMS: json.dumps(_checksums(folder), indent=1) + "\n"})


def is_sealed(folder: Path) -> bool:
    """Whether the files in `folder` are those that `seal` found, bit for bit; if not, a cache must be made again."""
    try:
        return bool(json.loads((folder / CHECKSUMS).read_bytes()) == _checksums(folder))
    except (OSError, ValueError, RecursionError):
        return False


def _checksums(folder: Path) -> dict[str, str]:
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and p.name != CHECKSUMS and p.suffix != ".lock"]
    return {path.name: sha256_of(path) for path in files}


def to_disk(path: Path) -> None:
    """Wait until a file, or the list of a directory's files, is on the disk and not only in a buffer."""
    if os.name == "nt":
        return  # Windows cannot sync what is open for reading only
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two directories in one step; False if the system cannot.

    Linux can (renameat2(2) with RENAME_EXCHANGE), on most of its file systems.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0  # type: ignore[no-any-return]


def why_no_room(folder: Path, size: int) -> str | None:
    """Why files of `size` bytes cannot be written below `folder`, which need not exist; None if they can.

    A small file is written and deleted again, where `folder` is or will be, and the free space is checked.

    Returns:
        A sentence without its subject.
    """
    there = nearest_existing(folder)
    try:
        with tempfile.TemporaryFile(prefix=".try-", dir=there) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(there).free
    except OSError as error:
        return f"cannot be written: {there}: {error.strerror}; free some space or name another folder"
    if free < size:
        needed = f"{size / 2**20:,.1f} MiB are needed"
        return f"has room for {free / 2**20:,.1f} MiB, and {needed}; free some space or name another folder"
    return None
