"""A tar file, compressed or not, local or remote -> its members.

`tarfile` takes a damaged header, or the end of the file, for the end of the archive. Here the archive ends at its end
marker, and no data may follow it.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from clipmole.data.containers.filesystems import is_address, open_location, reading

TAR = re.compile(r"\.(tar|tar\.gz|tgz)$", re.IGNORECASE)
GZIP = b"\x1f\x8b"
MOST_HEADER = 2**20  # bytes of a header that only describes the next one: a long name, pax records
MOST_PADDING = 2**20  # bytes of zeros after the end marker; writers fill up a record of 10 KiB, or of another size
_DESCRIBE = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip
DAMAGE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)


class _Member(tarfile.TarInfo):
    """A member whose header is an error where it is damaged or missing, or would keep `tarfile` busy for ever."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros
            raise
        except tarfile.HeaderError as error:
            reason = "it ends without an end marker" if str(error) == "empty header" else str(error)
            raise tarfile.ReadError(reason) from error

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        if self.type in _DESCRIBE and self.size > MOST_HEADER:
            raise tarfile.InvalidHeaderError(f"a header of {self.size:,} bytes")  # type: ignore[attr-defined]
        return super()._proc_member(tar)  # type: ignore[misc]

    def _block(self, count: int) -> Any:
        """The size of a member's data in whole blocks; a negative one would lead back to its header (CVE-2025-8194)."""
        if count < 0:
            raise tarfile.InvalidHeaderError(f"a size of {count:,} bytes")  # type: ignore[attr-defined]
        return super()._block(count)  # type: ignore[misc]


def is_in_place(location: str) -> bool:
    """Whether the members' bytes lie in a local file as they are, so that each can be read by itself."""
    if is_address(location):
        return False
    with reading(location), open(location, "rb") as file:
        return file.read(len(GZIP)) != GZIP


def tar_members(location: str) -> Iterator[tuple[tarfile.TarInfo, Callable[[], bytes]]]:
    """The regular files of a tar in their order, each with what reads its bytes before the next is asked for.

    One that is in place is read by its headers: a member's bytes are `size` from `offset_data` on in the file. Any
    other is read from beginning to end, once.

    Raises:
        ImageUnreadable: after the last whole member: a header is damaged, the file ends early or without an end
            marker, or goes on behind it.
        ImageNotFound, ImageNotRead, MissingDependency, DataError: as `reading` and `open_location` do.
    """
    in_place = is_in_place(location)
    with reading(location, "tar file", DAMAGE), open_location(location) as raw:
        file: Any = raw if in_place else io.BufferedReader(raw, 2**20)
        if not in_place and file.peek(len(GZIP)).startswith(GZIP):
            file = gzip.GzipFile(fileobj=file)  # it checks its sums, as tarfile's own reader does not
        mode: Any = "r:" if in_place else "r|*"
        with tarfile.open(fileobj=file, mode=mode, tarinfo=_Member) as tar:
            while (member := tar.next()) is not None:
                vars(tar)["members"] = []  # else it keeps every header
                if member.isfile():
                    yield member, partial(_content, location, tar, member)
            _check_end(tar.fileobj)


def _content(location: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    with reading(location, "tar file", DAMAGE):
        file = tar.extractfile(member)
        return file.read() if file else b""


def _check_end(file: Any) -> None:
    """Read what follows the end marker."""
    padding = 0
    while block := file.read(2**16):
        if block.strip(b"\0"):
            raise tarfile.ReadError("data come after its end marker, as where one tar was put behind another")
        padding += len(block)
    if padding > MOST_PADDING:
        raise tarfile.ReadError(f"{padding:,} bytes of zeros follow its end marker, as where a download stopped")
