"""Paths of images as somebody gives them -> paths of single images.

In: files, folders, patterns. Out: single files in a fixed order. It opens none of them.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator

from clipmole.errors import ImageNotFound
from clipmole.images.formats import IMAGE_EXTENSIONS
from clipmole.plumbing.text import escaped


def find_images(paths: Iterable[str]) -> Iterator[str | ImageNotFound]:
    """Paths of single images: files as given, folders searched in depth, patterns expanded, in sorted order.

    In folders only files with a known image extension (any case) count; files given by name always do. What
    matches nothing comes out as an `ImageNotFound`. Folders that are links are not followed.
    """
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
                yield ImageNotFound(
                    escaped(path), "no images in this folder; name the files if their extensions are unusual"
                )
        elif not os.path.lexists(path) and glob.has_magic(path):
            matches = sorted(glob.glob(path, recursive=True))
            yield from (
                find_images(matches) if matches else [ImageNotFound(escaped(path), "nothing matches this pattern")]
            )
        else:
            yield path
