"""RGB image -> the views that a detector looks at: crops at native resolution, and perhaps a view of the whole.

In: an RGB `PIL.Image.Image` or array and a `PreprocessConfig`. Out: `Crops`, the pixels of the crops with their boxes.
The crops are not resized or interpolated, because that destroys the traces that the detector looks for. Normalisation
belongs to the tower, combining the logits to the detector. This module knows nothing of files or models.

In mode `center_crop` there is one crop, the middle S x S pixels, at exactly the position of torchvision's CenterCrop:
UnivFD's protocol (arXiv 2302.10174). A smaller image is mirrored at its borders. torchvision would add black, and so an
edge that no camera made and that training, which mirrors too (`transforms.random_crop`), never shows.

In mode `tiles` the crops form a grid:
- It never has more rows and columns than are needed to cover the image, and only one along a side of up to `SINGLE`
  crop sizes.
- It has at most `max_tiles` crops, from corner to corner, as long as no pixel is then further than a crop size from a
  crop. The grid follows the image's shape: 3 x 3 for a photo, 1 x 9 for a panorama.
- In a larger image the crops lie in the middles of the cells of a grid, so that none touches the border, and their
  number grows with the square root of the area, up to `GROWTH` times `max_tiles`.
- (left, top) of each crop is rounded down to the grid of JPEG's blocks, so that every crop sees the blocks of a file in
  the same phase. For that, up to 7 pixels at the right and the lower edge stay unseen. (A file with an EXIF orientation
  is turned first; its blocks may then start elsewhere, but at the same offset in every crop.)
- A grid of one crop is the centre crop: for images of the benchmarks' size both modes give the same numbers.

With `whole_weight` above 0 there is one more view, the view of the whole: the middle square of the image, or of the
region that was asked for, resized to S x S by `shrink`.

Memory: one crop at a time; the image is never copied.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmole.config import PreprocessConfig
from clipmole.images.content import no_content
from clipmole.images.transforms import JPEG_BLOCK, pad_to, shrink

Box = tuple[int, int, int, int]
SINGLE = 8 / 7  # a side of up to this many crop sizes gets one crop: 256 pixels, as in the benchmarks, for crops of 224
GROWTH = 4  # a large image has at most this many times `max_tiles` crops
GROWN = 7  # the number of crops grows from images of this many crop sizes squared


@dataclass(frozen=True)
class Crops:
    """The n crops of one image, and perhaps a view of the whole.

    Attributes:
        pixels: (n, 3, S, S) uint8, C-contiguous; (n + 1, 3, S, S) with the view of the whole, which comes last.
        windows: (left, top, right, bottom) of the area that each crop shows, pixels of the image. Where the image was
            mirrored, they reach beyond its borders.
        boxes: the part of each window that lies within the image, or within the region that was asked for.
        width, height: of the image, pixels.
        no_content: why the image cannot be judged by these crops, a clause for people; None: it can be.
    """

    pixels: NDArray[np.uint8]
    windows: tuple[Box, ...]
    boxes: tuple[Box, ...]
    width: int
    height: int
    no_content: str | None = None

    def __len__(self) -> int:
        """Number of views in `pixels`, including the view of the whole."""
        return len(self.pixels)

    @property
    def coverage(self) -> float:
        """Share of the image's pixels that lie in at least one crop, in (0, 1]."""
        return covered(self.boxes) / (self.width * self.height)


def cut_crops(
    image: Image.Image | NDArray[np.uint8],
    config: PreprocessConfig,
    *,
    max_tiles: int | None = None,
    region: Box | None = None,
) -> Crops:
    """Cut the crops that `crop_windows` places.

    Args:
        image: an RGB image or an array (H, W, 3) uint8 of any strides, as from `load_pixels`.
        config: mode, size and number of the crops.
        max_tiles, region: as in `crop_windows`.

    Raises `ValueError` if the image has another mode, shape or dtype, or if `region` does not lie in it.
    """
    if isinstance(image, Image.Image):
        if image.mode != "RGB":
            raise ValueError(f"cut_crops takes an image of mode RGB, not {image.mode}; load_image gives one")
        width, height = image.size
    else:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"cut_crops takes an array (H, W, 3) of uint8, not {image.shape} of {image.dtype}")
        height, width = image.shape[:2]
    size = config.crop_size
    windows = tuple(crop_windows(width, height, config, max_tiles=max_tiles, region=region))
    x, y, end, foot = region or (0, 0, width, height)
    boxes = tuple((max(x, w[0]), max(y, w[1]), min(end, w[2]), min(foot, w[3])) for w in windows)
    whole = config.whole_weight > 0

    def part(box: Box) -> NDArray[np.uint8]:
        if isinstance(image, Image.Image):
            return np.asarray(image.crop(box))
        return image[box[1] : box[3], box[0] : box[2]]

    pixels = np.empty((len(windows) + whole, 3, size, size), dtype=np.uint8)
    for crop, box in zip(pixels, boxes, strict=False):
        crop[...] = pad_to(part(box), size).transpose(2, 0, 1)  # (S, S, 3) -> (3, S, S)
    if whole:
        pixels[-1] = shrink(part(_middle_square(x, y, end, foot)), size).transpose(2, 0, 1)
    shown = sum((box[2] - box[0]) * (box[3] - box[1]) for box in boxes) // len(boxes)
    return Crops(pixels, windows, boxes, width, height, no_content(pixels[: len(windows)], shown))


def _middle_square(left: int, top: int, right: int, bottom: int) -> Box:
    """The largest square in the middle of a box, rounded towards the box's upper left corner."""
    side = min(right - left, bottom - top)
    left, top = left + (right - left - side) // 2, top + (bottom - top - side) // 2
    return left, top, left + side, top + side


def region_box(text: str) -> Box:
    """(left, top, right, bottom) of a region written "x,y,w,h", pixels of the upright image.

    Raises `ValueError` unless these are four whole numbers, x and y 0 or more, w and h 1 or more.
    """
    try:
        x, y, width, height = (int(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"region {text!r}: give four whole numbers, x,y,w,h") from None
    if min(x, y) < 0 or min(width, height) < 1:
        raise ValueError(f"region {text!r}: x and y are 0 or more, w and h 1 or more")
    return x, y, x + width, y + height


def crop_windows(
    width: int, height: int, config: PreprocessConfig, *, max_tiles: int | None = None, region: Box | None = None
) -> list[Box]:
    """(left, top, right, bottom) of each crop, S x S pixels, row by row.

    A side of under S pixels is mirrored: the window then reaches beyond the image at both of its ends.

    Args:
        width, height: of the image, pixels.
        config: mode, size and number of the crops.
        max_tiles: largest number of crops, whatever the image's size. None: it follows from `config.max_tiles` and
            the image's size.
        region: (left, top, right, bottom) of the part of the image to look at; None: all of it.

    Raises `ValueError` if `region` is empty or reaches beyond the image.
    """
    x, y, right, bottom = region or (0, 0, width, height)
    if not (0 <= x < right <= width and 0 <= y < bottom <= height):
        raise ValueError(f"region {x},{y} to {right},{bottom} does not lie in the image of {width} x {height} pixels")
    size = config.crop_size
    wide, high = max(right - x, size), max(bottom - y, size)
    x, y = x - (wide - (right - x)) // 2, y - (high - (bottom - y)) // 2  # of the mirrored region
    if config.mode == "center_crop":
        columns = rows = 1
        inside = False
    else:
        rows, columns, inside = _grid(wide, high, config, max_tiles)
    lefts, tops = _spread(x, wide, size, columns, inside), _spread(y, high, size, rows, inside)
    if len(lefts) == len(tops) == 1:
        lefts, tops = [x + _middle(wide, size)], [y + _middle(high, size)]
    return [(left, top, left + size, top + size) for top in tops for left in lefts]


def most_crops(config: PreprocessConfig) -> int:
    """The largest number of views that an image of any size has, unless more crops are asked for."""
    return (1 if config.mode == "center_crop" else GROWTH * config.max_tiles) + (config.whole_weight > 0)


def covered(boxes: Sequence[Box]) -> int:
    """Pixels that lie in at least one of the boxes."""
    xs = sorted({x for box in boxes for x in (box[0], box[2])})
    ys = sorted({y for box in boxes for y in (box[1], box[3])})
    inside = np.zeros((len(ys) - 1, len(xs) - 1), dtype=bool)
    for left, top, right, bottom in boxes:
        inside[bisect_left(ys, top) : bisect_left(ys, bottom), bisect_left(xs, left) : bisect_left(xs, right)] = True
    return int(np.diff(ys) @ inside @ np.diff(xs))


def _middle(length: int, size: int) -> int:
    """torchvision.transforms.functional.center_crop: int(round((H - S) / 2.0)), halves to even."""
    return round((length - size) / 2)


def _needed(length: int, size: int) -> int:
    """Number of crops that cover `length` >= `size` pixels; 1 for up to `SINGLE` crop sizes."""
    return 1 if length <= size * SINGLE else -(-length // size)


def _grid(width: int, height: int, config: PreprocessConfig, max_tiles: int | None) -> tuple[int, int, bool]:
    """(rows, columns, inside): the grid, and whether its crops lie in the middles of cells instead of at the border."""
    size, most = config.crop_size, max_tiles or config.max_tiles
    rows, columns, farthest = _nearest(width, height, size, most, _from_corner_to_corner)
    if farthest <= size:
        return rows, columns, False
    if max_tiles is None:
        grown = most * math.sqrt(width * height) / (GROWN * size)
        most = min(max(most, int(grown)), most_crops(config))
    return *_nearest(width, height, size, most, _in_cells)[:2], True


def _from_corner_to_corner(length: int, size: int, count: int) -> float:
    """The largest distance of a pixel from the nearest of `count` crops, with the outer ones at the borders."""
    return (length - size) / 2 if count == 1 else max(0.0, (length - count * size) / (count - 1) / 2)


def _in_cells(length: int, size: int, count: int) -> float:
    """The largest distance of a pixel from the nearest of `count` crops, each in the middle of its cell."""
    return max(0.0, (length / count - size) / 2)


def _nearest(
    width: int, height: int, size: int, most: int, farthest: Callable[[int, int, int], float]
) -> tuple[int, int, float]:
    """The grid of at most `most` crops with the smallest distance from any pixel to a crop: (rows, columns, distance).

    Of grids with the same distance it is the one with the smaller sum over both axes, which has more crops.
    """
    best, choice = (math.inf, math.inf), (1, 1)
    for rows in range(1, min(_needed(height, size), most) + 1):
        columns = min(_needed(width, size), most // rows)
        across, down = farthest(width, size, columns), farthest(height, size, rows)
        if (max(across, down), across + down) < best:
            best, choice = (max(across, down), across + down), (rows, columns)
    return *choice, best[0]


def _spread(start: int, length: int, size: int, count: int, inside: bool) -> list[int]:
    """Starts of `count` crops, evenly spread over `length` pixels from `start`, on the JPEG grid, all different."""
    room = length - size
    if count == 1:
        offsets = [_middle(length, size)]
    elif inside:
        offsets = [length * (2 * i + 1) // (2 * count) - size // 2 for i in range(count)]
    else:
        offsets = [room * i // (count - 1) for i in range(count)]
    found = {start + offset - (start + offset) % JPEG_BLOCK for offset in offsets}
    return sorted({each if each >= start else min(each + JPEG_BLOCK, start + room) for each in found})
