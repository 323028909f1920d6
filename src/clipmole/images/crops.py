"""RGB image -> native-resolution crops, by a configuration that is saved with the weights.

In: an RGB `PIL.Image.Image` or array and a `PreprocessConfig`. Out: uint8 (tiles, 3, S, S), S the crop size. Nothing
is resized or interpolated, since that destroys the traces that are looked for. Normalisation belongs to the
tower, combining the logits of the tiles to the detector. It knows nothing of files or models.

`center_crop` is UnivFD's protocol (arXiv 2302.10174): the middle S x S, placed exactly as torchvision's
CenterCrop places it. An image that is smaller is mirrored at its borders; torchvision would add black, an
edge that no camera made and that training, which mirrors too (`augment.random_crop`), has never shown.

`tiles` is a grid of such crops, at most `max_tiles`, evenly spread from corner to corner:
- never more rows and columns than are needed to cover the image; one alone up to `SINGLE` crop sizes;
- all of them if `max_tiles` allows; else the grid that leaves no pixel far from a tile, which follows the
  image's shape: 3 x 3 for a photo, 1 x 9 for a panorama;
- (left, top) rounded down to the JPEG grid, so every tile sees the blocks of a file in the same phase. At
  most 7 pixels at the right and the lower edge stay unseen for that. (A file with an EXIF orientation is
  turned first; its blocks may start elsewhere, but still alike for every tile.)
- a grid of one tile is the centre crop: for images of benchmark size both modes give the same numbers.

Memory: one crop at a time; the image is never copied.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmole.config import PreprocessConfig
from clipmole.images.transforms import JPEG_BLOCK, pad_to

SINGLE = 8 / 7  # an axis of up to so many crops gets one tile: 256 for 224, the benchmarks' size


def crop_boxes(width: int, height: int, config: PreprocessConfig) -> list[tuple[int, int]]:
    """(left, top) of each crop, row by row, in an image of max(width, S) x max(height, S) pixels.

    A side below S counts as S: it is mirrored to S, and every crop then starts at 0 along it.
    """
    size = config.crop_size
    width, height = max(width, size), max(height, size)
    centre = [(_middle(width, size), _middle(height, size))]
    if config.mode == "center_crop":
        return centre
    rows, columns = _grid(width, height, size, config.max_tiles)
    boxes = [(left, top) for top in _spread(height, size, rows) for left in _spread(width, size, columns)]
    return boxes if len(boxes) > 1 else centre


def size_of(image: Image.Image | NDArray[np.uint8]) -> tuple[int, int]:
    """(width, height) of an image or of an array (H, W, 3)."""
    return image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])


def preprocess(image: Image.Image | NDArray[np.uint8], config: PreprocessConfig) -> NDArray[np.uint8]:
    """Cut the crops: (tiles, 3, S, S) uint8, C-contiguous, in the order of `crop_boxes`.

    `image` is an RGB image or an array (H, W, 3) uint8 of any strides: what `images.load_pixels` gives. Raises
    `ValueError` if it is neither.
    """
    if isinstance(image, Image.Image):
        if image.mode != "RGB":
            raise ValueError(f"preprocess takes an image of mode RGB, not {image.mode}; load_image gives one")
    elif image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"preprocess takes an array (H, W, 3) of uint8, not {image.shape} of {image.dtype}")
    size, (width, height) = config.crop_size, size_of(image)
    boxes = crop_boxes(width, height, config)
    tiles = np.empty((len(boxes), 3, size, size), dtype=np.uint8)
    for tile, (left, top) in zip(tiles, boxes, strict=True):
        right, bottom = min(left + size, width), min(top + size, height)
        if isinstance(image, Image.Image):
            crop = np.asarray(image.crop((left, top, right, bottom)))
        else:
            crop = image[top:bottom, left:right]
        tile[...] = pad_to(crop, size).transpose(2, 0, 1)  # (S, S, 3) -> (3, S, S)
    return tiles


def _middle(length: int, size: int) -> int:
    """torchvision.transforms.functional.center_crop: int(round((H - S) / 2.0)), halves to even."""
    return round((length - size) / 2)


def _needed(length: int, size: int) -> int:
    """Crops that cover `length` >= `size` pixels; one if little more than one would be seen twice."""
    return 1 if length <= size * SINGLE else -(-length // size)


def _grid(width: int, height: int, size: int, max_tiles: int) -> tuple[int, int]:
    """(rows, columns) with rows * columns <= max_tiles whose farthest pixel is nearest to a tile.

    Of grids that are equal in that, the one whose rows and columns together leave less; it has more tiles.
    """

    def unseen(length: int, count: int) -> float:  # the farthest a pixel is from a tile along one axis
        if count == 1:
            return (length - size) / 2
        return max(0.0, (length - count * size) / (count - 1) / 2)

    best, choice = (float("inf"), float("inf")), (1, 1)
    for rows in range(1, min(_needed(height, size), max_tiles) + 1):
        columns = min(_needed(width, size), max_tiles // rows)
        across, down = unseen(width, columns), unseen(height, rows)
        if (max(across, down), across + down) < best:
            best, choice = (max(across, down), across + down), (rows, columns)
    return choice


def _spread(length: int, size: int, count: int) -> list[int]:
    """`count` starts from 0 to length - size, evenly spread, rounded down to the JPEG grid; no two alike."""
    room = length - size
    starts = [room * i // (count - 1) for i in range(count)] if count > 1 else [_middle(length, size)]
    return sorted({start - start % JPEG_BLOCK for start in starts})
