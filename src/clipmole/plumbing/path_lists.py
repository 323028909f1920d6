"""Text files written by people and programs -> their encoding, and the paths in a list.

In: a file with one path per line, or paths separated by NUL, in UTF-8, in UTF-16 as Windows' shell writes it, or of any
bytes. Out: the paths, one at a time. It knows nothing of what is at these paths.
"""

from __future__ import annotations

import codecs
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from clipmole.errors import DataError

HEAD = 65536  # bytes from which the encoding of a file is told
MOST_BYTES = 2**20  # of a path; no system allows more than a few thousand
MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))

# How images, archives, Parquet and PDF begin, and hardly any list of paths.
_NO_LIST = re.compile(rb"\xff\xd8\xff|\x89PNG\r|GIF8[79]a|RIFF.{4}WEBP|.{4}ftyp|PK\x03\x04|PAR1\x15|%PDF-\d", re.DOTALL)


def check_list(head: bytes, name: str) -> None:
    """Raise `DataError` if what begins with `head` is no list but a file of its own, such as an image."""
    if _NO_LIST.match(head):
        raise DataError(f"{name}: is not a list of paths but a file itself; name it without --list")


def text_encoding(head: bytes) -> str | None:
    """The encoding of a text file that begins with `head`: "utf-8-sig", "utf-16" or, without a mark, "utf-16-le" or
    "utf-16-be" where every other byte is zero; None: none of these.
    """
    for mark, encoding in MARKS:
        if head.startswith(mark):
            return encoding
    even, odd = head[: len(head) & ~1 : 2], head[1::2]
    if len(odd) > 2 and any(even) and not any(odd) and all(even):
        return "utf-16-le"
    if len(odd) > 2 and any(odd) and not any(even) and all(odd):
        return "utf-16-be"
    return None


def listed_paths(path: str | Path) -> Iterator[str]:
    """The paths of a list file as `os.fsdecode` gives them: one a line, or separated by NUL if the file holds any.

    Empty lines are left out. It holds one path at a time, however long the list is. Raises `DataError` if the file
    cannot be read, is not in the encoding that its first bytes announce, or is not a list.
    """
    try:
        with open(path, "rb", buffering=HEAD) as file:
            head = cast("io.BufferedReader", file).peek(HEAD)
            check_list(head, str(path))
            encoding = text_encoding(head)
            if encoding == "utf-8-sig":
                file.read(len(codecs.BOM_UTF8))
            if encoding in (None, "utf-8-sig"):
                end = b"\0" if b"\0" in head else b"\n"
                yield from (os.fsdecode(line) for line in _pieces(file, end, path))
                return
            with io.TextIOWrapper(file, encoding=encoding) as text:
                while line := text.readline(MOST_BYTES):
                    _check_length(path, line)
                    if line.strip():
                        yield line.rstrip("\n")
    except UnicodeError as error:
        raise DataError(f"{path}: is a list in UTF-16 that is cut short or damaged: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _pieces(file: IO[bytes], end: bytes, path: str | Path) -> Iterator[bytes]:
    """The pieces between the separators, without empty ones; lines also lose a carriage return."""
    rest = b""
    while block := file.read(HEAD):
        *whole, rest = (rest + block).split(end)
        _check_length(path, rest)
        yield from (piece if end == b"\0" else piece.rstrip(b"\r") for piece in whole if piece.strip())
    if rest.strip():
        yield rest if end == b"\0" else rest.rstrip(b"\r")


def _check_length(path: str | Path, piece: str | bytes) -> None:
    if len(piece) >= MOST_BYTES:
        raise DataError(f"{path}: is not a list of paths: it has a line of more than {MOST_BYTES:,} bytes")
