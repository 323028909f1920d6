"""From what somebody typed to single images: files, folders, patterns, list files, stdin."""

from __future__ import annotations

import glob
import io
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from clipmole.errors import ImageError, ImageNotFound

if TYPE_CHECKING:
    from clipmole.images import ImageSource


def find_images(paths: Iterable[str]) -> Iterator[str | ImageNotFound]:
    """Paths of single images: files as given, folders searched in depth, patterns expanded, in sorted order.

    In folders only files with a known image extension (any case) count; files given by name always do. What
    matches nothing comes out as an `ImageNotFound`. Folders that are links are not followed.
    """
    from clipmole.images import IMAGE_EXTENSIONS

    for path in paths:
        if os.path.isdir(path):
            found = False
            for folder, subfolders, names in os.walk(path):
                subfolders.sort()
                for name in sorted(names):
                    if os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS:
                        found = True
                        yield os.path.join(folder, name)
            if not found:
                yield ImageNotFound(path, "no images in this folder; name the files if their extensions are unusual")
        elif not os.path.lexists(path) and glob.has_magic(path):
            matches = sorted(glob.glob(path, recursive=True))
            yield from (find_images(matches) if matches else [ImageNotFound(path, "nothing matches this pattern")])
        else:
            yield path


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
    for path in find_images(paths):
        yield _stdin().read() if path == "-" else path
    if list_file == "-":
        for path in find_images(listed_on_stdin()):
            yield ImageNotFound(path, "stdin is the list itself; name a file") if path == "-" else path
