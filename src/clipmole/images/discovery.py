"""Paths of images as somebody gives them -> paths of single images.

In: files, folders, patterns. Out: single files in a fixed order, and what is not there or cannot be searched. It opens
none of them.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from clipmole.errors import ImageError, ImageNotFound, ImageNotRead
from clipmole.images.formats import IMAGE_EXTENSIONS
from clipmole.plumbing.progress import Say, silent
from clipmole.plumbing.text import escaped

LEFTOVERS = ("__MACOSX", ".ipynb_checkpoints", "@eaDir")  # of archivers, notebooks and network drives: previews, copies
RESOURCE_FORK = "._"  # begins the name of what macOS keeps of a file where the disk cannot: no image


def leftover(name: str) -> str | None:
    """Which kind of leftover a file or folder of this name is, that a program put beside images; None: it is none."""
    return f"{RESOURCE_FORK}*" if name.startswith(RESOURCE_FORK) else name if name in LEFTOVERS else None


def find_images(paths: Iterable[str], say: Say = silent) -> Iterator[str | ImageError]:
    """Paths of single images: files as given, folders searched in depth, patterns expanded, in sorted order.

    In folders only files with a known image extension (any case) count; files given by name always do. Leftovers of
    programs are passed over. Folders that are links are searched, unless they lead to what is searched anyway.

    Args:
        say: is told once, in the end, what was passed over.

    Yields:
        Paths; an `ImageNotFound` for what matches nothing, and for a folder that may not be searched; an `ImageNotRead`
        for one that cannot be, since it or its disk has gone.
    """
    passed_over: Counter[str] = Counter()
    yield from _found(paths, passed_over)
    say_passed_over(passed_over, say)


def say_passed_over(passed_over: Mapping[str, int], say: Say) -> None:
    """Say how many leftovers of each kind were passed over, if any were."""
    if passed_over:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(passed_over.items()))
        say(f"passed over, since programs leave them beside images: {kinds}; give one by its name to have it scored")


def _found(paths: Iterable[str], passed_over: Counter[str]) -> Iterator[str | ImageError]:
    for path in paths:
        if os.path.isdir(path):
            yield from _below(path, passed_over)
        elif not os.path.lexists(path) and glob.has_magic(path):
            matches = sorted(glob.glob(path, recursive=True))
            yield from (
                _found(matches, passed_over)
                if matches
                else [ImageNotFound(escaped(path), "nothing matches this pattern")]
            )
        else:
            yield path


def _below(root: str, passed_over: Counter[str]) -> Iterator[str | ImageError]:
    """Images in a folder."""
    found = False
    failed: list[OSError] = []
    followed = [os.path.realpath(root)]
    for folder, subfolders, names in os.walk(root, onerror=failed.append, followlinks=True):
        for each in [*subfolders, *names]:
            if kind := leftover(each):
                passed_over[kind] += 1
        subfolders[:] = sorted(name for name in subfolders if not leftover(name) and _enters(folder, name, followed))
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS and not leftover(name):
                found = True
                yield os.path.join(folder, name)
        while failed:
            found = True
            yield _unsearched(failed.pop())
    yield from map(_unsearched, failed)
    if not found and not failed:
        yield ImageNotFound(escaped(root), "no images in this folder; name the files if their extensions are unusual")


def _enters(folder: str, name: str, followed: list[str]) -> bool:
    """Whether to search a folder: any but a link to what is searched anyway, or to what holds `followed[0]`."""
    path = os.path.join(folder, name)
    if not os.path.islink(path):
        return True
    target = os.path.realpath(path)
    if _lies_in(followed[0], target) or any(_lies_in(target, other) for other in followed):
        return False
    followed.append(target)
    return True


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))


def _unsearched(error: OSError) -> ImageError:
    source, reason = escaped(os.fsdecode(error.filename)), f"cannot be searched: {error.strerror}"
    return (ImageNotFound if isinstance(error, PermissionError) else ImageNotRead)(source, reason)
