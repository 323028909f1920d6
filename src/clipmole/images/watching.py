"""A folder that others write into -> paths of its new images, each once it is complete.

In: a folder. Out: paths, until somebody asks to stop. It opens none of the files. It looks at the folder at intervals,
so it needs no service of the operating system, works on network drives, and sees every change however it was made.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator

from clipmole.errors import DataError
from clipmole.images.discovery import leftover
from clipmole.images.formats import has_image_extension
from clipmole.plumbing.progress import never
from clipmole.plumbing.text import escaped

Signature = tuple[int, int, int]  # size, time of the last change in ns, inode
PATIENCE = 1.0  # seconds between two questions whether to stop


def new_images(
    folder: str,
    *,
    interval: float = 1.0,
    settle: float = 2.0,
    existing: bool = False,
    stopping: Callable[[], bool] = never,
) -> Iterator[str]:
    """Paths of the images that arrive in a folder, or in one below it, from this call on.

    A file is complete when neither its size nor its time of change has changed for `settle` seconds; an empty file
    never is. A file that changes afterwards is given again. Ignored are names that begin with a dot, which programs
    use for unfinished files, leftovers as in `find_images`, and links to folders.

    Args:
        folder: the folder to watch, with all folders below it.
        interval: seconds between two looks.
        settle: seconds without a change.
        existing: also give the images that are there at the start.
        stopping: asked before each look, after each path and every second; the iterator ends once it is true.

    Raises `DataError` if the folder is not there or cannot be searched, also later. One below it that cannot be
    searched for a while, because a network drive fails, is taken to be as it was.
    """
    there = images_in(folder, [])
    return _changes(folder, {} if existing else there, interval, settle, stopping)


def _changes(
    folder: str, seen: dict[str, Signature], interval: float, settle: float, stopping: Callable[[], bool]
) -> Iterator[str]:
    """The paths of files that are new or changed; `seen` holds the files that do not count, or have been given."""
    changed: dict[str, tuple[Signature, float]] = {}
    while not stopping():
        failed: list[str] = []
        there, now = images_in(folder, failed), time.monotonic()
        away = tuple(os.path.join(each, "") for each in failed)
        seen = {path: signature for path, signature in seen.items() if path in there or path.startswith(away)}
        changed = {path: known for path, known in changed.items() if path in there}
        for path in sorted(there):
            signature = there[path]
            if seen.get(path) == signature:
                changed.pop(path, None)
            elif path not in changed or changed[path][0] != signature:
                changed[path] = (signature, now)
            elif now - changed[path][1] >= settle and signature[0]:
                seen[path] = signature
                del changed[path]
                yield path
                if stopping():
                    return
        steps = math.ceil(interval / PATIENCE)
        for _ in range(steps):
            time.sleep(interval / steps)
            if stopping():
                return


def images_in(folder: str, failed: list[str]) -> dict[str, Signature]:
    """Path -> signature of each file with an image's extension in a folder and all folders below it.

    Args:
        failed: the folders below it that cannot be searched are added here.

    Raises `DataError` if the folder itself is not there or cannot be searched.
    """

    def fail(error: OSError) -> None:
        if error.filename == folder:
            reason = f"cannot be searched: {error.strerror}; watch a folder that you may read"
            raise DataError(f"{escaped(folder)}: {reason}") from error
        failed.append(error.filename)

    if not os.path.isdir(folder):
        raise DataError(f"{escaped(folder)}: there is no such folder to watch")
    found: dict[str, Signature] = {}
    for current, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".") and not leftover(name)]
        for name in names:
            if not name.startswith(".") and has_image_extension(name):
                path = os.path.join(current, name)
                try:
                    status = os.stat(path)
                except OSError:  # gone since, or a link to nothing
                    continue
                found[path] = (status.st_size, status.st_mtime_ns, status.st_ino)
    return found
