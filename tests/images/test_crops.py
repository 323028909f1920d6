"""Where the crops lie, and that they are the image's own pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from clipmole.config import PreprocessConfig
from clipmole.images.crops import GROWN, GROWTH, JPEG_BLOCK, Box, covered, crop_windows, cut_crops, most_crops
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


def corners(width: int, height: int, config: PreprocessConfig, **options: Any) -> list[tuple[int, int]]:
    """(left, top) of each crop, counted from the corner of the mirrored image where a side is below a crop's."""
    left, top = max(0, config.crop_size - width) // 2, max(0, config.crop_size - height) // 2
    return [(x + left, y + top) for x, y, _, _ in crop_windows(width, height, config, **options)]


@given(st.integers(224, 40_000), st.integers(224, 40_000))
def test_center_crop_is_where_torchvision_puts_it(width: int, height: int) -> None:
    ((left, top),) = corners(width, height, CENTRE)
    assert (top, left) == torchvision_center(height, width, 224)


def test_center_crop_rounds_halves_to_even() -> None:
    assert crop_windows(229, 231, CENTRE) == [(2, 4, 226, 228)]  # 2.5 -> 2, 3.5 -> 4


@given(sides, sides, sizes, st.integers(1, 16))
@settings(max_examples=400)
def test_tiles_lie_in_the_image_and_are_few(width: int, height: int, size: int, most: int) -> None:
    config = PreprocessConfig(crop_size=size, max_tiles=most)
    found = corners(width, height, config)
    wide, high = max(width, size), max(height, size)
    assert 1 <= len(found) <= min(most_crops(config), -(-wide // size) * -(-high // size))
    assert len(set(found)) == len(found)
    assert found == sorted(found, key=lambda corner: (corner[1], corner[0]))  # row by row
    assert all(0 <= left <= wide - size and 0 <= top <= high - size for left, top in found)
    columns, rows = sorted({left for left, _ in found}), sorted({top for _, top in found})
    assert len(found) == len(columns) * len(rows)  # a full grid
    if len(found) == 1:
        assert found == corners(width, height, config.model_copy(update={"mode": "center_crop"}))
        return
    assert all(left % JPEG_BLOCK == 0 and top % JPEG_BLOCK == 0 for left, top in found)
    for starts, length in ((columns, wide), (rows, high)):
        if len(starts) > 1:  # evenly, and as far from one border as from the other
            steps = np.diff(starts)
            assert steps.max() - steps.min() <= 2 * JPEG_BLOCK
            assert -JPEG_BLOCK < length - size - starts[-1] - starts[0] < 2 * JPEG_BLOCK


def as_before(width: int, height: int, config: PreprocessConfig) -> tuple[list[tuple[int, int]], float]:
    """The crops from corner to corner, at most `max_tiles`, and how far a pixel lies from one, written apart."""
    size = config.crop_size

    def unseen(length: int, count: int) -> float:
        return (length - size) / 2 if count == 1 else max(0.0, (length - count * size) / (count - 1) / 2)

    def spread(length: int, count: int) -> list[int]:
        room = length - size
        starts = [room * i // (count - 1) for i in range(count)] if count > 1 else [round(room / 2)]
        return sorted({start - start % 8 for start in starts})

    needed = [1 if length <= size * 8 / 7 else -(-length // size) for length in (width, height)]
    grids = []
    for rows in range(1, min(needed[1], config.max_tiles) + 1):
        columns = min(needed[0], config.max_tiles // rows)
        far = unseen(width, columns), unseen(height, rows)
        grids.append((max(far), sum(far), rows, columns))
    farthest, _, rows, columns = min(grids)
    found = [(left, top) for top in spread(height, rows) for left in spread(width, columns)]
    middle = [(round((width - size) / 2), round((height - size) / 2))]
    return found if len(found) > 1 else middle, farthest


@given(st.integers(224, 1568), st.integers(224, 1568))
@settings(max_examples=300)
def test_images_of_common_sizes_are_cut_as_ever(width: int, height: int) -> None:
    """Calibrations and published numbers rest on these crops."""
    before, farthest = as_before(width, height, TILES)
    if farthest <= 224:  # no gap is wider than two crops
        assert corners(width, height, TILES) == before


USUAL = [(256, 300), (512, 512), (800, 600), (1024, 1024), (1344, 768), (768, 1344), (1536, 1024), (1568, 1568)]


@pytest.mark.parametrize("size", USUAL)
def test_generators_usual_sizes_are_cut_as_ever(size: tuple[int, int]) -> None:
    assert corners(*size, TILES) == as_before(*size, TILES)[0]


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ((1920, 1080), 8),
        ((2048, 2048), 9),
        ((4000, 3000), 18),
        ((6000, 4000), 28),
        ((9000, 6700), 35),
        ((30_000, 4000), 36),
    ],
)
def test_large_images_get_more_crops_and_none_at_the_border(size: tuple[int, int], count: int) -> None:
    windows = crop_windows(*size, TILES)
    assert len(windows) == count <= GROWTH * 9
    grown = 9 * np.sqrt(size[0] * size[1]) / (GROWN * 224)
    assert count <= max(9, grown)
    for left, top, right, bottom in windows:
        assert min(left, top, size[0] - right, size[1] - bottom) > 100


def test_the_number_of_crops_can_be_given() -> None:
    assert len(crop_windows(9000, 6700, TILES, max_tiles=4)) == 4
    assert len(crop_windows(9000, 6700, TILES, max_tiles=100)) == 99
    everything = crop_windows(9000, 6700, TILES, max_tiles=5000)
    assert covered(everything) >= (9000 - 7) * (6700 - 7)
    assert crop_windows(300, 300, TILES, max_tiles=1) == crop_windows(300, 300, CENTRE)


def test_a_region_is_cut_as_an_image_of_its_own() -> None:
    whole = crop_windows(1200, 900, TILES)
    assert crop_windows(5000, 4000, TILES, region=(0, 0, 1200, 900)) == whole
    moved = crop_windows(5000, 4000, TILES, region=(800, 400, 2000, 1300))
    assert moved == [(x + 800, y + 400, r + 800, b + 400) for x, y, r, b in whole]
    off = crop_windows(5000, 4000, TILES, region=(803, 401, 2003, 1301))  # the blocks of the file stay where they are
    assert all(x % 8 == y % 8 == 0 and x >= 803 and y >= 401 and r <= 2003 and b <= 1301 for x, y, r, b in off)


def test_a_region_below_a_crop_is_mirrored_and_not_continued() -> None:
    image, array = image_of(400, 300)
    crops = cut_crops(image, CENTRE, region=(100, 50, 260, 290))
    assert (crops.windows, crops.boxes) == (((68, 58, 292, 282),), ((100, 58, 260, 282),))
    part = pad_to(array[50:290, 100:260], 224)
    np.testing.assert_array_equal(crops.pixels[0].transpose(1, 2, 0), part[8:232])


@pytest.mark.parametrize("region", [(0, 0, 401, 300), (-1, 0, 20, 20), (30, 20, 30, 40), (0, 200, 10, 100)])
def test_a_region_that_does_not_lie_in_the_image_is_refused(region: Box) -> None:
    with pytest.raises(ValueError, match="does not lie in the image of 400 x 300 pixels"):
        cut_crops(Image.new("RGB", (400, 300)), TILES, region=region)


@given(sides, sides)
def test_everything_is_seen_where_the_tiles_suffice(width: int, height: int) -> None:
    assume(-(-width // 224) * -(-height // 224) <= 10_000)
    found = corners(width, height, PreprocessConfig(max_tiles=10_000))
    wide, high = max(width, 224), max(height, 224)
    for starts, length in ((sorted({c[0] for c in found}), wide), (sorted({c[1] for c in found}), high)):
        if len(starts) == 1:
            assert length <= 256  # 16 pixels on either side
        else:
            assert np.diff(starts).max() <= 224
            assert length - starts[-1] - 224 < JPEG_BLOCK


boxes = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 9), st.integers(1, 9))


@given(st.lists(boxes, min_size=1, max_size=6))
def test_pixels_in_several_boxes_are_counted_once(places: list[Box]) -> None:
    page = np.zeros((40, 40), dtype=bool)
    for x, y, width, height in places:
        page[y : y + height, x : x + width] = True
    assert covered([(x, y, x + w, y + h) for x, y, w, h in places]) == page.sum()


@pytest.mark.parametrize(
    ("size", "share"),
    [
        ((224, 224), 1.0),
        ((10, 10), 1.0),
        ((448, 448), 1.0),
        ((256, 256), 0.765625),
        ((1024, 1024), 9 * 224**2 / 1024**2),
    ],
)
def test_coverage(size: tuple[int, int], share: float) -> None:
    assert cut_crops(Image.new("RGB", size), TILES).coverage == pytest.approx(share)


@pytest.mark.parametrize("size", [(224, 224), (230, 225), (256, 256), (100, 256), (1, 1)])
def test_about_one_crop_is_the_centre_crop(size: tuple[int, int]) -> None:
    image, _ = image_of(*size)
    np.testing.assert_array_equal(cut_crops(image, TILES).pixels, cut_crops(image, CENTRE).pixels)


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((257, 256), (1, 2)),
        ((448, 448), (2, 2)),
        ((512, 512), (3, 3)),
        ((1024, 1024), (3, 3)),
        ((4000, 3000), (3, 6)),
        ((3000, 4000), (6, 3)),
        ((4000, 2000), (3, 5)),
        ((2000, 4000), (5, 3)),
        ((30_000, 4000), (2, 18)),
        ((30_000, 1), (1, 14)),
        ((1, 30_000), (14, 1)),
        ((600, 100), (1, 3)),
    ],
)
def test_the_grid_follows_the_shape(size: tuple[int, int], grid: tuple[int, int]) -> None:
    found = corners(*size, TILES)
    assert (len({corner[1] for corner in found}), len({corner[0] for corner in found})) == grid


def test_a_grid_by_hand() -> None:
    found = corners(600, 500, PreprocessConfig(max_tiles=4))
    assert found == [(0, 0), (376, 0), (0, 272), (376, 272)]  # 500 - 224 = 276, down to 8 x 34


@pytest.mark.parametrize("mode", ["center_crop", "tiles"])
@pytest.mark.parametrize("size", [(300, 500), (701, 230), (1, 700), (40, 30), (1, 1), (2000, 37)])
def test_crops_are_the_pixels_of_the_image(size: tuple[int, int], mode: str) -> None:
    config = PreprocessConfig.model_validate({"mode": mode, "crop_size": 56, "max_tiles": 5})
    image, array = image_of(*size)
    crops = cut_crops(image, config)
    found = corners(*size, config)
    assert (crops.pixels.shape, crops.pixels.dtype) == ((len(found), 3, 56, 56), np.uint8)
    assert crops.pixels.flags.c_contiguous
    assert (len(crops), crops.width, crops.height) == (len(found), *size)
    padded = pad_to(array, 56)  # the whole image mirrored first: the same crops
    for tile, (left, top) in zip(crops.pixels, found, strict=True):
        np.testing.assert_array_equal(tile.transpose(1, 2, 0), padded[top : top + 56, left : left + 56])


@pytest.mark.parametrize("size", [(300, 500), (701, 230), (40, 30)])
def test_the_view_of_the_whole_comes_last_and_shows_the_middle_square(size: tuple[int, int]) -> None:
    config = PreprocessConfig(crop_size=56, max_tiles=5, whole_weight=0.5)
    image, array = image_of(*size)
    without, crops = cut_crops(image, config.model_copy(update={"whole_weight": 0.0})), cut_crops(image, config)
    np.testing.assert_array_equal(crops.pixels[:-1], without.pixels)
    assert (len(crops), crops.windows, crops.coverage) == (len(without) + 1, without.windows, without.coverage)
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    square = Image.fromarray(array[top : top + side, left : left + side])
    expected = np.asarray(square.resize((56, 56), Image.Resampling.BICUBIC, reducing_gap=2.0))
    np.testing.assert_array_equal(crops.pixels[-1].transpose(1, 2, 0), expected)
    np.testing.assert_array_equal(cut_crops(array, config).pixels, crops.pixels)


def test_the_view_of_the_whole_is_of_the_region() -> None:
    config = PreprocessConfig(crop_size=56, whole_weight=0.5)
    image, array = image_of(300, 500)
    x, y, right, bottom = 100, 200, 220, 290
    crops = cut_crops(image, config, region=(x, y, right, bottom))
    alone = cut_crops(np.ascontiguousarray(array[y:bottom, x:right]), config)
    np.testing.assert_array_equal(crops.pixels[-1], alone.pixels[-1])


def test_a_small_image_is_mirrored_and_not_blackened() -> None:
    (tile,) = cut_crops(Image.new("RGB", (10, 10), (7, 8, 9)), CENTRE).pixels
    assert (tile == np.array([7, 8, 9]).reshape(3, 1, 1)).all()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_other_modes_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match=f"mode RGB, not {mode}; load_image"):
        cut_crops(Image.new(mode, (300, 300)), TILES)
