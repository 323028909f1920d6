"""From the arguments that a user typed to single images: files, folders, patterns, list files, stdin."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from clipmole.cli.options import remark
from clipmole.errors import DataError, ImageError, ImageNotFound
from clipmole.plumbing.files import read_at_most
from clipmole.plumbing.path_lists import check_list, text_encoding
from clipmole.plumbing.progress import Say, silent

if TYPE_CHECKING:
    from clipmole.images.loading import ImageSource


def _stdin() -> io.FileIO:
    """stdin without a buffer: a process cannot end while one of its threads waits in the buffer of `sys.stdin`."""
    return io.FileIO(sys.stdin.fileno(), closefd=False)


def listed_on_stdin() -> Iterator[str]:
    """Paths on stdin, each as soon as it arrives; separated by NUL if the first ones are, else by line ends.

    The first bytes tell the encoding, as in a list file. Raises `DataError` if the rest is not in that encoding, or if
    it is no list.
    """
    rest = separator = b""
    stdin, decoder = _stdin(), None
    chunk = stdin.read(2**16) or b""
    check_list(chunk, "the list on stdin")
    if encoding := text_encoding(chunk):
        decoder = codecs.getincrementaldecoder(encoding)("surrogateescape" if encoding == "utf-8-sig" else "strict")
    while chunk:
        try:
            rest += os.fsencode(decoder.decode(chunk)) if decoder else chunk
        except UnicodeError as error:
            raise DataError(f"the list on stdin is not in {encoding}, as it begins: {error}") from error
        separator = separator or next((each for each in (b"\0", b"\n") if each in rest), b"")
        if separator:
            *lines, rest = rest.split(separator)
            yield from (os.fsdecode(line.removesuffix(b"\r")) for line in lines if line.strip())
        chunk = stdin.read(2**16) or b""
    if rest.strip():
        yield os.fsdecode(rest.removesuffix(b"\r"))


def existing_images(paths: Iterable[str], say: Say = silent) -> Iterator[str]:
    """The images that `find_images` finds, one by one. Raises the error of the first that is not there."""
    from clipmole.images.discovery import find_images

    for path in find_images(paths, say):
        if isinstance(path, ImageError):
            raise path
        yield path


def sources(paths: Iterable[str], list_file: str | None = None) -> Iterator[ImageSource | ImageError]:
    """The images that `find_images` finds, '-' replaced by the bytes on stdin, then those of the list ('-': stdin)."""
    from clipmole.images.discovery import find_images
    from clipmole.images.loading import DEFAULT_LIMITS

    most = DEFAULT_LIMITS.max_bytes + 1  # one more than is accepted
    for path in find_images(paths, remark):
        yield read_at_most(_stdin(), most) if path == "-" else path
    if list_file == "-":
        for path in find_images(listed_on_stdin()):
            yield ImageNotFound(path, "stdin is the list itself; name a file") if path == "-" else path
