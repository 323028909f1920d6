"""Paths of images as a user gives them -> paths of single images.

In: files, folders, patterns. Out: single files in a fixed order, and errors for paths that are not there or cannot be
searched. It opens none of them.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from clipmole.errors import ImageError, ImageNotFound, ImageNotRead
from clipmole.images.formats import IMAGE_EXTENSIONS
from clipmole.plumbing.progress import Say, silent
from clipmole.plumbing.text import escaped

LEFTOVERS = ("__MACOSX", ".ipynb_checkpoints", "@eaDir")  # of archivers, notebooks and network drives: previews, copies
NAME_IT = "; give one by its name to have it scored"
_PARTS = re.compile(r"[/\\]")
RESOURCE_FORK = (
    "._"  # begins the names of files in which macOS keeps attributes that the disk cannot hold; they are not images
)


def leftover(name: str) -> str | None:
    """The kind of leftover, put beside images by a program, that a file or folder of this name is; None: it is not
    one."""
    return f"{RESOURCE_FORK}*" if name.startswith(RESOURCE_FORK) else name if name in LEFTOVERS else None


def leftover_in(path: str, given: str = "") -> str | None:
    """The kind of leftover that a path is, or lies in; what the path `given`, or a pattern, names itself is none."""
    named = set(_PARTS.split(given))
    return next(filter(None, (leftover(part) for part in _PARTS.split(path) if part not in named)), None)


def find_images(paths: Iterable[str], say: Say = silent) -> Iterator[str | ImageError]:
    """Paths of single images: files as given, folders searched in depth, patterns expanded, in sorted order.

    In folders only files with a known image extension (any case) count; files given by name always do. Leftovers of
    programs are skipped. Folders that are links are searched, unless they lead to a folder that is searched anyway.

    Args:
        say: is told once, at the end, what was skipped.

    Yields:
        Paths; an `ImageNotFound` for a pattern that matches nothing, and for a folder that may not be searched; an
        `ImageNotRead` for one that cannot be, because it or its disk is gone.
    """
    passed_over: Counter[str] = Counter()
    yield from _found(paths, passed_over)
    say_passed_over(passed_over, say, NAME_IT)


def say_passed_over(passed_over: Mapping[str, int], say: Say, cure: str = "") -> None:
    """Say how many leftovers of each kind were passed over, if any were, and what would have them looked at."""
    if passed_over:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(passed_over.items()))
        say(f"passed over, since programs leave them beside images: {kinds}{cure}")


def _found(paths: Iterable[str], passed_over: Counter[str]) -> Iterator[str | ImageError]:
    for path in paths:
        if os.path.isdir(path):
            yield from _below(path, passed_over)
        elif not os.path.lexists(path) and glob.has_magic(path):
            matches = sorted(glob.glob(path, recursive=True))
            kinds = [leftover_in(match, path) for match in matches]
            passed_over.update(filter(None, kinds))
            yield from (
                _found((match for match, kind in zip(matches, kinds, strict=True) if kind is None), passed_over)
                if matches
                else [ImageNotFound(escaped(path), "nothing matches this pattern")]
            )
        else:
            yield path


def _below(root: str, passed_over: Counter[str]) -> Iterator[str | ImageError]:
    """Images in a folder, and what of it cannot be searched."""
    found = False
    failed: list[OSError] = []
    for path in walk_images(root, passed_over, failed.append):
        found = True
        yield path
        while failed:
            yield _unsearched(failed.pop(0))
    yield from map(_unsearched, failed)
    if not found and not failed:
        yield ImageNotFound(escaped(root), "no images in this folder; name the files if their extensions are unusual")


def walk_images(
    root: str, passed_over: Counter[str], failed: Callable[[OSError], object], *, once: bool = True
) -> Iterator[str]:
    """Paths of a folder's files with an image's extension, in depth and sorted; links to folders are followed.

    Args:
        passed_over: counts the leftovers of programs, by kind.
        failed: is told what cannot be searched.
        once: search a folder to which several links lead once; else as often as they do, but never in a circle.
    """
    followed = [os.path.realpath(root)]

    def enters(folder: str, name: str) -> bool:
        path = os.path.join(folder, name)
        if not os.path.islink(path):
            return True
        return _is_new(path, followed) if once else not _is_circle(path, root)

    for folder, subfolders, names in os.walk(root, onerror=failed, followlinks=True):
        for each in [*subfolders, *names]:
            if kind := leftover(each):
                passed_over[kind] += 1
        subfolders[:] = sorted(name for name in subfolders if not leftover(name) and enters(folder, name))
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS and not leftover(name):
                yield os.path.join(folder, name)


def _is_new(link: str, followed: list[str]) -> bool:
    """Whether a link leads to what is not searched anyway, nor to what holds `followed[0]`; if so, it is followed."""
    target = os.path.realpath(link)
    if _lies_in(followed[0], target) or any(_lies_in(target, other) for other in followed):
        return False
    followed.append(target)
    return True


def _is_circle(link: str, root: str) -> bool:
    """Whether a link leads to a folder in which it lies itself, or from which a link on the way to it led here."""
    target, folder = os.path.realpath(link), os.path.dirname(link)
    while len(folder) > len(root):
        if _lies_in(os.path.realpath(folder), target):
            return True
        folder = os.path.dirname(folder)
    return _lies_in(os.path.realpath(root), target)


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))


def _unsearched(error: OSError) -> ImageError:
    source, reason = escaped(os.fsdecode(error.filename)), f"cannot be searched: {error.strerror}"
    return (ImageNotFound if isinstance(error, PermissionError) else ImageNotRead)(source, reason)
