"""From what somebody typed to single images: files, folders, patterns, list files, stdin."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from clipmole.errors import ImageError, ImageNotFound

if TYPE_CHECKING:
    from clipmole.images.loading import ImageSource


def read_list(file: str) -> list[str]:
    """Paths of a list file, one a line, or separated by NUL if there is one."""
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{file}: cannot be read: {error.strerror}", param_hint="--list") from error
    lines = data.split(b"\0") if b"\0" in data else data.splitlines()
    return [os.fsdecode(line) for line in lines if line.strip()]


def _stdin() -> io.FileIO:
    """stdin without a buffer: a process cannot end while one of its threads waits in the buffer of `sys.stdin`."""
    return io.FileIO(sys.stdin.fileno(), closefd=False)


def listed_on_stdin() -> Iterator[str]:
    """Paths on stdin, each as soon as it is there; separated by NUL if the first ones that arrive are, else lines."""
    rest = separator = b""
    stdin = _stdin()
    while chunk := stdin.read(2**16):
        rest += chunk
        separator = separator or next((each for each in (b"\0", b"\n") if each in rest), b"")
        if separator:
            *lines, rest = rest.split(separator)
            yield from (os.fsdecode(line.removesuffix(b"\r")) for line in lines if line.strip())
    if rest.strip():
        yield os.fsdecode(rest.removesuffix(b"\r"))


def sources(paths: Iterable[str], list_file: str | None = None) -> Iterator[ImageSource | ImageError]:
    """What `find_images` finds, '-' replaced by the bytes on stdin; after it what the list names ('-': on stdin)."""
    from clipmole.images.discovery import find_images

    for path in find_images(paths):
        yield _stdin().read() if path == "-" else path
    if list_file == "-":
        for path in find_images(listed_on_stdin()):
            yield ImageNotFound(path, "stdin is the list itself; name a file") if path == "-" else path
