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
from clipmole.images.formats import has_image_extension
from clipmole.plumbing.progress import Say, silent
from clipmole.plumbing.text import escaped

# Folders of previews and copies, which archivers, notebooks and network drives leave behind.
LEFTOVERS = ("__MACOSX", ".ipynb_checkpoints", "@eaDir")
# macOS keeps attributes that a disk cannot hold in files whose names begin like this; they are not images.
RESOURCE_FORK = "._"
NAME_IT = "; give one by its name to have it scored"
_PARTS = re.compile(r"[/\\]")
_EVERYWHERE = re.compile(r"(?<![^/\\])\*\*(?:[/\\]+|$)")  # a part of a pattern that means any folders, or none


def leftover(name: str) -> str | None:
    """The kind of leftover that a file or folder with this name is, such as "._*"; None if it is not a leftover.

    Leftovers are what programs put beside images: previews, copies, attributes.
    """
    return f"{RESOURCE_FORK}*" if name.startswith(RESOURCE_FORK) else name if name in LEFTOVERS else None


def leftover_in(path: str, given: str = "") -> str | None:
    """The kind of leftover that a path is, or lies in; None if neither.

    Args:
        given: the path or pattern that the user gave; what it names itself does not count as a leftover.
    """
    named = set(_PARTS.split(given))
    return next(filter(None, (leftover(part) for part in _PARTS.split(path) if part not in named)), None)


def find_images(paths: Iterable[str], say: Say = silent) -> Iterator[str | ImageError]:
    """Paths of single images: files as given, folders with all that is below them, and what patterns match, sorted.

    In folders only files with a known image extension (in any case) count; a file given by name always does. Leftovers
    of programs are skipped. A link to a folder is followed, unless that folder is searched anyway.

    Args:
        paths: files, folders, and patterns of `glob`.
        say: is told once, at the end, what was skipped.

    Yields:
        Paths; an `ImageNotFound` for a pattern that matches nothing, and for a folder that may not be searched; an
        `ImageNotRead` for one that cannot be, because it or its disk is gone.
    """
    passed_over: Counter[str] = Counter()
    yield from _found(paths, passed_over)
    say_passed_over(passed_over, say, NAME_IT)


def say_passed_over(passed_over: Mapping[str, int], say: Say, cure: str = "") -> None:
    """Say how many leftovers of each kind were skipped, if any were; `cure` tells the user how to include them."""
    if passed_over:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(passed_over.items()))
        say(f"passed over, since programs leave them beside images: {kinds}{cure}")


def _found(paths: Iterable[str], passed_over: Counter[str]) -> Iterator[str | ImageError]:
    for path in paths:
        if os.path.isdir(path):
            yield from _below(path, passed_over)
        elif not os.path.lexists(path) and glob.has_magic(path):
            matches = matches_of(path)
            kinds = [leftover_in(match, path) for match in matches]
            passed_over.update(filter(None, kinds))
            named = (match for match, kind in zip(matches, kinds, strict=True) if kind is None)
            given: set[str] = set()  # a pattern may match an image and a folder that it lies in
            for found in _found(named, passed_over):
                if isinstance(found, ImageError) or found not in given:
                    yield found
                if isinstance(found, str):
                    given.add(found)
            if not matches:
                yield ImageNotFound(escaped(path), "nothing matches this pattern")
        else:
            yield path


def matches_of(pattern: str) -> list[str]:
    """What a pattern of `glob` matches, sorted.

    `**` stands for folders without a leading dot, as in `glob`; but of several links that lead to one folder it follows
    one, and none in a circle. `**/*` and a last `**` match files alone: all folders are searched for them anyway.
    """
    everywhere = _EVERYWHERE.search(pattern)
    if everywhere is None:
        return sorted(glob.glob(pattern))
    head, rest = pattern[: everywhere.start()], pattern[everywhere.end() :] or "*"
    found: set[str] = set()
    for root in glob.glob(head) if head else [os.curdir]:
        for folder, _, names in _walk(root, _hidden, lambda _error: None):
            inside = folder if head else os.path.normpath(folder).removeprefix(os.curdir)
            if rest == "*":
                found.update(os.path.join(inside, name) for name in names if not _hidden(name))
            else:
                found.update(matches_of(os.path.join(glob.escape(inside), rest)))
    return sorted(found)


def _hidden(name: str) -> bool:
    return name.startswith(".")


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
    root: str,
    passed_over: Counter[str],
    failed: Callable[[OSError], object],
    *,
    once: bool = True,
    wanted: Callable[[str], object] = has_image_extension,
) -> Iterator[str]:
    """Paths of the images, or of other `wanted` files, in a folder and all folders below it, sorted.

    Links to folders are followed.

    Args:
        root: the folder.
        passed_over: counts the leftovers of programs, by kind.
        failed: is told of each folder that cannot be searched.
        once: if several links lead to one folder, search it only once. False: search it once for each link, but never
            in a circle.
        wanted: whether a file of this name is taken.
    """

    def skipped(name: str) -> bool:
        kind = leftover(name)
        passed_over.update([kind] if kind else [])
        return kind is not None

    for folder, _, names in _walk(root, skipped, failed, once=once):
        yield from (os.path.join(folder, name) for name in sorted(names) if not skipped(name) and wanted(name))


def _walk(
    root: str, skipped: Callable[[str], bool], failed: Callable[[OSError], object], *, once: bool = True
) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` that follows links as `walk_images` does, sorted, without the folders whose names are `skipped`."""
    followed = [os.path.realpath(root)]

    def enters(folder: str, name: str) -> bool:
        path = os.path.join(folder, name)
        if not os.path.islink(path):
            return True
        return _is_new(path, followed) if once else not _is_circle(path, root)

    for folder, subfolders, names in os.walk(root, onerror=failed, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not skipped(name) and enters(folder, name))
        yield folder, subfolders, names


def _is_new(link: str, followed: list[str]) -> bool:
    """Whether a link leads to a folder that is not searched anyway, and not to one above the root, `followed[0]`.

    If so, its target is added to `followed`.
    """
    target = os.path.realpath(link)
    if _lies_in(followed[0], target) or any(_lies_in(target, other) for other in followed):
        return False
    followed.append(target)
    return True


def _is_circle(link: str, root: str) -> bool:
    """Whether a link leads to a folder on the way from `root` to the link itself, or above one, all links resolved."""
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
