"""preprocess.py: where the crops lie, and that they are the image's own pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from clipmole.config import PreprocessConfig
from clipmole.images.crops import JPEG_BLOCK, crop_boxes, preprocess
from clipmole.images.transforms import pad_to

CENTRE = PreprocessConfig(mode="center_crop")
TILES = PreprocessConfig()

sides = st.one_of(st.integers(1, 600), st.integers(1, 40_000))
sizes = st.one_of(st.sampled_from([224, 32, 28]), st.integers(1, 300))


def image_of(width: int, height: int) -> tuple[Image.Image, NDArray[np.uint8]]:
    """Pixels that name their own place: (x, y, x + y) modulo 251."""
    y, x = np.mgrid[0:height, 0:width]
    array = (np.stack([x, y, x + y], axis=-1) % 251).astype(np.uint8)
    return Image.fromarray(array), array


def torchvision_center(height: int, width: int, size: int) -> tuple[int, int]:
    """(top, left) of torchvision 0.20, transforms/functional.py: center_crop, for an image not below `size`."""
    return int(round((height - size) / 2.0)), int(round((width - size) / 2.0))  # noqa: RUF046


def test_defaults_are_those_of_the_protocol() -> None:
    assert (TILES.crop_size, TILES.max_tiles) == (224, 9)


@given(st.integers(224, 40_000), st.integers(224, 40_000))
def test_center_crop_is_where_torchvision_puts_it(width: int, height: int) -> None:
    ((left, top),) = crop_boxes(width, height, CENTRE)
    assert (top, left) == torchvision_center(height, width, 224)


def test_center_crop_rounds_halves_to_even() -> None:
    assert crop_boxes(229, 231, CENTRE) == [(2, 4)]  # 2.5 -> 2, 3.5 -> 4


@given(sides, sides, sizes, st.integers(1, 16))
@settings(max_examples=400)
def test_tiles_lie_in_the_image_and_are_few(width: int, height: int, size: int, most: int) -> None:
    config = PreprocessConfig(crop_size=size, max_tiles=most)
    boxes = crop_boxes(width, height, config)
    wide, high = max(width, size), max(height, size)
    assert 1 <= len(boxes) <= min(most, -(-wide // size) * -(-high // size))
    assert len(set(boxes)) == len(boxes)
    assert boxes == sorted(boxes, key=lambda box: (box[1], box[0]))  # row by row
    assert all(0 <= left <= wide - size and 0 <= top <= high - size for left, top in boxes)
    columns, rows = sorted({box[0] for box in boxes}), sorted({box[1] for box in boxes})
    assert len(boxes) == len(columns) * len(rows)  # a full grid
    assert boxes == crop_boxes(width, height, config)
    if len(boxes) == 1:
        assert boxes == crop_boxes(width, height, config.model_copy(update={"mode": "center_crop"}))
        return
    assert all(left % JPEG_BLOCK == 0 and top % JPEG_BLOCK == 0 for left, top in boxes)
    for starts, length in ((columns, wide), (rows, high)):
        if len(starts) > 1:  # from corner to corner, evenly
            assert starts[0] == 0
            assert length - size - starts[-1] < JPEG_BLOCK
            steps = np.diff(starts)
            assert steps.max() - steps.min() <= 2 * JPEG_BLOCK


@given(sides, sides)
def test_everything_is_seen_where_the_tiles_suffice(width: int, height: int) -> None:
    boxes = crop_boxes(width, height, PreprocessConfig(max_tiles=100_000))
    wide, high = max(width, 224), max(height, 224)
    for starts, length in ((sorted({b[0] for b in boxes}), wide), (sorted({b[1] for b in boxes}), high)):
        if len(starts) == 1:
            assert length <= 256  # 16 pixels on either side
        else:
            assert np.diff(starts).max() <= 224
            assert length - starts[-1] - 224 < JPEG_BLOCK


@pytest.mark.parametrize("size", [(224, 224), (230, 225), (256, 256), (100, 256), (1, 1)])
def test_about_one_crop_is_the_centre_crop(size: tuple[int, int]) -> None:
    image, _ = image_of(*size)
    np.testing.assert_array_equal(preprocess(image, TILES), preprocess(image, CENTRE))


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((257, 256), (1, 2)),
        ((448, 448), (2, 2)),
        ((512, 512), (3, 3)),
        ((1024, 1024), (3, 3)),
        ((4000, 3000), (3, 3)),
        ((3000, 4000), (3, 3)),
        ((4000, 2000), (2, 4)),
        ((2000, 4000), (4, 2)),
        ((30_000, 4000), (1, 9)),
        ((30_000, 1), (1, 9)),
        ((1, 30_000), (9, 1)),
        ((600, 100), (1, 3)),
    ],
)
def test_the_grid_follows_the_shape(size: tuple[int, int], grid: tuple[int, int]) -> None:
    boxes = crop_boxes(*size, TILES)
    assert (len({box[1] for box in boxes}), len({box[0] for box in boxes})) == grid


def test_a_grid_by_hand() -> None:
    boxes = crop_boxes(600, 500, PreprocessConfig(max_tiles=4))
    assert boxes == [(0, 0), (376, 0), (0, 272), (376, 272)]  # 500 - 224 = 276, down to 8 x 34


@pytest.mark.parametrize("mode", ["center_crop", "tiles"])
@pytest.mark.parametrize("size", [(300, 500), (701, 230), (1, 700), (40, 30), (1, 1), (2000, 37)])
def test_crops_are_the_pixels_of_the_image(size: tuple[int, int], mode: str) -> None:
    config = PreprocessConfig.model_validate({"mode": mode, "crop_size": 56, "max_tiles": 5})
    image, array = image_of(*size)
    tiles = preprocess(image, config)
    boxes = crop_boxes(*size, config)
    assert (tiles.shape, tiles.dtype) == ((len(boxes), 3, 56, 56), np.uint8)
    assert tiles.flags.c_contiguous
    padded = pad_to(array, 56)  # the whole image mirrored first: the same crops
    for tile, (left, top) in zip(tiles, boxes, strict=True):
        np.testing.assert_array_equal(tile.transpose(1, 2, 0), padded[top : top + 56, left : left + 56])


def test_a_small_image_is_mirrored_and_not_blackened() -> None:
    (tile,) = preprocess(Image.new("RGB", (10, 10), (7, 8, 9)), CENTRE)
    assert (tile == np.array([7, 8, 9]).reshape(3, 1, 1)).all()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_other_modes_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match=f"mode RGB, not {mode}; load_image"):
        preprocess(Image.new(mode, (300, 300)), TILES)
