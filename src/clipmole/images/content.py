"""Crops -> whether they show anything by which a detector could judge.

In: the crops of one image. Out: a reason in words, or None. It knows nothing of files, models or verdicts.

A detector gives a firm probability for any image, even for a black rectangle or a page of text. Photographs and
generated images are full of shades and textures. In a page of text or a line drawing, nearly every block of 8 x 8
pixels is either even, or holds two tones with a sharp edge between them. So this module counts the blocks that are
neither. The limits below are this project's choice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK = 8  # side of a block, pixels; JPEG's blocks have it too, and its errors stay within a block
EVEN = 5  # of 255: a block whose brightness varies by less than this is even
SHARP = 64  # of 255: in a block of two tones the brightness varies by at least this much
BETWEEN = 0.4  # and less than this share of its pixels lies between the two tones
LEAST = 0.02  # smallest share of blocks with shades or texture by which an image can be judged
SMALL = 1 / 4  # share of a crop's pixels: where the image fills less, a crop is mostly its own mirror image


def no_content(crops: NDArray[np.uint8], shown: int) -> str | None:
    """Why an image cannot be judged by its crops, as a clause for people; None: it can be.

    Args:
        crops: (n, 3, S, S) uint8.
        shown: pixels of the image in a crop, on average; the others are its mirror image.
    """
    size = crops.shape[-1]
    if shown < SMALL * size**2:
        return f"the image has only {shown:,} pixels to look at in a crop, which takes {size} x {size}"
    ranges, between = _blocks(crops)
    even = ranges < EVEN
    if even.mean() > 1 - LEAST:
        return "the image shows nothing but even areas"
    two_tones = (ranges >= SHARP) & (between < BETWEEN)
    if (even | two_tones).mean() > 1 - LEAST:
        return "the image shows nothing but even areas and sharp edges, as text and line art do"
    return None


def _blocks(crops: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Of each block (m,): its range of brightness, and the share of its pixels in the middle half of that range.

    Brightness is (R + 2 G + B) / 4, 0..255. Pixels beyond the last whole block of a crop are left out.
    """
    wide = crops.astype(np.uint16)
    luma = ((wide[:, 0] + 2 * wide[:, 1] + wide[:, 2]) >> 2).astype(np.uint8)
    side = max(1, luma.shape[-1] // BLOCK) * BLOCK
    luma = luma[:, :side, :side]
    rows = luma.reshape(len(luma), -1, min(BLOCK, luma.shape[1]), luma.shape[2])
    blocks = np.stack(np.split(rows, range(BLOCK, luma.shape[2], BLOCK), axis=-1), axis=2)
    blocks = blocks.reshape(-1, blocks.shape[-2] * blocks.shape[-1])
    low, high = blocks.min(axis=1), blocks.max(axis=1)
    quarter = (high - low) >> 2
    between = (blocks > (low + quarter)[:, None]) & (blocks < (high - quarter)[:, None])
    return high - low, between.mean(axis=1)
