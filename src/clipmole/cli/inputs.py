"""From what somebody typed to single images: files, folders, patterns, list files, stdin."""

from __future__ import annotations

import glob
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
    """Paths of a list file ('-': stdin), one a line, or separated by NUL if there is one."""
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{file}: cannot be read: {error.strerror}", param_hint="--list") from error
    lines = data.split(b"\0") if b"\0" in data else data.splitlines()
    return [os.fsdecode(line) for line in lines if line.strip()]


def sources(paths: Iterable[str]) -> Iterator[ImageSource | ImageError]:
    """What `find_images` finds, '-' replaced by the bytes on stdin."""
    for path in find_images(paths):
        yield sys.stdin.buffer.read() if path == "-" else path
