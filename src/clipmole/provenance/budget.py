"""How much of a file's metadata is read: one limit for all of its parts together.

In: the size of each part, before it is read. Out: whether it may be read, and what was left out. It knows nothing of
what the parts hold.
"""

from __future__ import annotations

import zlib

MAX_BYTES = 2**23  # of one file, after decompression; prompts and workflows of 2 MB exist
_PART = 1024  # bytes that every part costs beside its content: what it takes to hold and judge a short text
_WORK = 4  # times the limit: most bytes that are decompressed, including parts that turn out to be too large


class Budget:
    """Bytes of metadata that may still be read of one file.

    Args:
        limit: bytes in all.

    Attributes:
        left: bytes that may still be read.
        work: bytes that may still be decompressed.
        left_out: names of the parts that were not read, one for each part.
    """

    def __init__(self, limit: int = MAX_BYTES) -> None:
        self.limit = self.left = limit
        self.work = _WORK * limit
        self.left_out: list[str] = []

    def admits(self, size: int, part: str) -> bool:
        """Whether `part`, of `size` bytes, may be read; if so, its size is subtracted from what is left."""
        if size + _PART > self.left:
            self.left_out.append(part)
            return False
        self.left -= size + _PART
        return True

    def inflated(self, data: bytes, part: str, wbits: int = zlib.MAX_WBITS) -> bytes | None:
        """The content of a compressed part; b"" if it is damaged, None if it is too large.

        Args:
            data: the compressed bytes.
            part: the name of the part.
            wbits: `zlib.MAX_WBITS` for zlib's format, 31 for gzip's.
        """
        most = min(self.left - _PART, self.work)
        if most <= 0:
            self.left_out.append(part)
            return None
        try:
            content = zlib.decompressobj(wbits).decompress(data, most + 1)
        except zlib.error:
            self.work -= min(len(data), self.work)
            return b""
        self.work -= min(len(content), self.work)
        if len(content) > most:
            self.left_out.append(part)
            return None
        self.left -= len(content) + _PART
        return content

    def remark(self) -> str | None:
        """One line that says what was left out; None if nothing was."""
        if not self.left_out:
            return None
        names = ", ".join(dict.fromkeys(self.left_out[:1000]))
        parts = f"{len(self.left_out):,} part{'s' if len(self.left_out) > 1 else ''}"
        return f"{parts} of the metadata left out, to read no more than {self.limit / 2**20:g} MiB of it: {names}"
