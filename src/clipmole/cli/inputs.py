"""From what somebody typed to single images: files, folders, patterns, list files, stdin."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from clipmole.errors import ImageError

if TYPE_CHECKING:
    from clipmole.images import ImageSource


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
    from clipmole.inputs import find_images

    for path in find_images(paths):
        yield sys.stdin.buffer.read() if path == "-" else path
