"""simplejpeg gives what Pillow gives, pixel for pixel, and errors stay Pillow's; only the time differs."""

from __future__ import annotations

import io
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from tiny import PREPROCESS, picture, tiny_network

from clipmole import Detector
from clipmole.config import PreprocessConfig
from clipmole.errors import ImageError, ImageTooLarge
from clipmole.images import fast_jpeg as jpeg
from clipmole.images.crops import cut_crops
from clipmole.images.loading import ImageLimits, load_image, load_pixels

simplejpeg = pytest.importorskip("simplejpeg", reason="needs simplejpeg: pip install 'clipmole[fast]'")
if jpeg.matching_simplejpeg() is None:
    pytest.skip("this simplejpeg does not decode as this Pillow does, so it is not used", allow_module_level=True)


def file(width: int, height: int, seed: int, **options: Any) -> bytes:
    """A JPEG file of noise, flat areas and edges, which show any difference in chroma upsampling."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((width, height))
    noise = rng.normal(0, rng.choice([0, 5, 60]), (height, width, 3))
    image = Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    image.convert(options.pop("mode", "RGB")).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@st.composite
def files(draw: st.DrawFn) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = draw(st.integers(0, 9))
    return file(
        draw(st.integers(1, 120)),
        draw(st.integers(1, 120)),
        draw(st.integers(0, 1000)),
        quality=draw(st.sampled_from([1, 20, 50, 75, 90, 95, 100])),
        subsampling=draw(st.sampled_from(["4:4:4", "4:2:2", "4:2:0"])),
        progressive=draw(st.booleans()),
        optimize=draw(st.booleans()),
        restart_marker_blocks=draw(st.sampled_from([0, 0, 1, 7])),
        mode=draw(st.sampled_from(["RGB", "RGB", "RGB", "L", "CMYK"])),
        exif=exif.tobytes(),
    )


@settings(max_examples=300, deadline=None)
@given(files())
def test_the_pixels_are_pillows(data: bytes) -> None:
    ours, theirs = load_pixels(data), load_image(data)
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    config = PreprocessConfig(crop_size=32, max_tiles=4)
    np.testing.assert_array_equal(cut_crops(ours, config).pixels, cut_crops(theirs, config).pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_turned_as_load_image_turns_it(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file(41, 23, orientation, exif=exif.tobytes())
    ours = load_pixels(data)
    assert isinstance(ours, np.ndarray)  # it was not left to Pillow
    assert ours.shape == ((23, 41, 3) if orientation < 5 else (41, 23, 3))
    np.testing.assert_array_equal(ours, np.asarray(load_image(data)))


def outcome(load: Any, data: bytes) -> tuple[str, NDArray[np.uint8] | None]:
    try:
        return "", np.asarray(load(data))
    except ImageError as error:
        return f"{error.code}: {error}", None


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 50), st.booleans(), st.integers(0, 3), st.randoms(use_true_random=False))
def test_damaged_files_have_the_same_outcome(seed: int, progressive: bool, kind: int, rng: random.Random) -> None:
    data = bytearray(file(70, 50, seed, progressive=progressive, quality=90))
    if kind == 0:  # bytes changed
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(2, len(data))] = rng.randrange(256)
    elif kind == 1:  # cut
        del data[rng.randrange(1, len(data)) :]
    elif kind == 2:  # cut and ended
        data[rng.randrange(3, len(data)) :] = b"\xff\xd9"
    else:  # a piece is missing
        start = rng.randrange(2, len(data))
        del data[start : start + rng.randint(1, 200)]
    (ours, pixels), (theirs, expected) = outcome(load_pixels, bytes(data)), outcome(load_image, bytes(data))
    assert ours == theirs
    np.testing.assert_array_equal(pixels, expected)


def test_limits_and_missing_files_are_refused_alike(tmp_path: Path) -> None:
    data = file(60, 40, 0)
    for limits in (ImageLimits(max_pixels=2399), ImageLimits(max_bytes=len(data) - 1)):
        for load in (load_image, load_pixels):
            with pytest.raises(ImageTooLarge, match="over the limit"):
                load(data, limits=limits)
    (tmp_path / "empty.jpg").write_bytes(b"")
    for path in (tmp_path / "absent.jpg", tmp_path, tmp_path / "empty.jpg"):
        messages = []
        for load in (load_image, load_pixels):
            with pytest.raises(ImageError) as caught:
                load(path)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


def test_a_detector_gives_the_same_logits_with_and_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [file(40 + 17 * i, 130 - 11 * i, i) for i in range(6)]
    detector = Detector(tiny_network(), PREPROCESS, workers=2)
    with_it = detector.score(images)
    used = [isinstance(load_pixels(image), np.ndarray) for image in images]
    monkeypatch.setattr(jpeg, "matching_simplejpeg", lambda: None)
    assert not isinstance(load_pixels(images[0]), np.ndarray)
    assert all(used)
    assert np.array_equal(detector.score(images), with_it)


def test_a_decoder_that_rounds_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    original = simplejpeg.decode_jpeg

    def coarse(data: bytes, *args: Any, **options: Any) -> NDArray[np.uint8]:
        options |= {"fastupsample": True}
        return original(data, *args, **options)  # type: ignore[no-any-return]

    jpeg.matching_simplejpeg.cache_clear()
    try:
        assert jpeg.matching_simplejpeg() is simplejpeg
        jpeg.matching_simplejpeg.cache_clear()
        monkeypatch.setattr(simplejpeg, "decode_jpeg", coarse)
        assert jpeg.matching_simplejpeg() is None
        jpeg.matching_simplejpeg.cache_clear()
        monkeypatch.setitem(sys.modules, "simplejpeg", None)  # not installed
        assert jpeg.matching_simplejpeg() is None
    finally:
        jpeg.matching_simplejpeg.cache_clear()


def test_preprocess_refuses_other_arrays() -> None:
    rgb = np.asarray(picture(0))
    for array in (rgb[..., 0], rgb.astype(np.float32), rgb[..., :2]):
        with pytest.raises(ValueError, match="uint8, not"):
            cut_crops(array, PREPROCESS)
