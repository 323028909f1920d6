"""JPEG bytes -> RGB array with simplejpeg (extra `fast`): the same pixels as Pillow's, in about two thirds of the time.

In: the bytes of a JPEG file. Out: its pixels as stored, or None if Pillow has to read it. It knows nothing of
orientations, limits or errors.

Both libraries use libjpeg-turbo, but not always the same version, and a decoder may be built to round
differently. So the two are compared once in each process, on small images of every kind that is decoded here, and
simplejpeg is used only if all pixels are equal. It is told to be strict: any warning gives None, so Pillow alone
decides which files are damaged. The whole image is decoded at full size.
"""

from __future__ import annotations

import functools
import io
import types

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def decode(data: bytes, width: int, height: int) -> NDArray[np.uint8] | None:
    """RGB pixels (height, width, 3) uint8 of a JPEG file; None if Pillow has to decode it.

    That is so if simplejpeg is not installed, does not give Pillow's pixels, or refuses this file. Safe to call from
    several threads at once.

    Args:
        data: the file's bytes.
        width, height: what Pillow read in its header, pixels.
    """
    library = matching_simplejpeg()
    return None if library is None else _decoded(library, data, width, height)


def _decoded(library: types.ModuleType, data: bytes, width: int, height: int) -> NDArray[np.uint8] | None:
    try:
        pixels: NDArray[np.uint8] = library.decode_jpeg(
            data, "RGB", fastdct=False, fastupsample=False, min_factor=1, strict=True
        )
    except (ValueError, MemoryError, OverflowError):
        return None
    return pixels if pixels.shape == (height, width, 3) else None


@functools.cache
def matching_simplejpeg() -> types.ModuleType | None:
    """simplejpeg, if it is installed and decodes as Pillow does."""
    try:
        import simplejpeg
    except ImportError:
        return None
    same = all(_same(simplejpeg, options) for options in _KINDS)
    return simplejpeg if same else None


_KINDS: tuple[dict[str, int | bool], ...] = tuple(
    {"quality": quality, "subsampling": subsampling, "progressive": progressive}
    for quality, progressive in ((60, False), (92, True))
    for subsampling in (0, 1, 2)  # 4:4:4, 4:2:2, 4:2:0
)


def _same(library: types.ModuleType, options: dict[str, int | bool]) -> bool:
    """Whether both libraries decode the same image alike: one of noise and edges, whose sides no block divides."""
    picture = np.random.default_rng(0).integers(0, 256, (77, 91, 3), dtype=np.uint8)
    picture[20:60, 10:50] = (200, 30, 90)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", **options)
    with Image.open(file) as image:
        theirs = np.asarray(image.convert("RGB"))
    ours = _decoded(library, file.getvalue(), 91, 77)
    return ours is not None and np.array_equal(ours, theirs)
