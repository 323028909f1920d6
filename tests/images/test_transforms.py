"""augment.py: each function against an independent formula, and no draw that could know the label."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from clipmole.config import AugmentConfig
from clipmole.errors import MissingDependency
from clipmole.images import transforms as module
from clipmole.images.transforms import (
    augment,
    augment_whole,
    blur,
    camera,
    crop_share,
    equalise,
    jpeg,
    local_contrast,
    match_spectrum,
    noise,
    pad_to,
    random_crop,
    resize,
    resize_to,
    sharpen,
    tone,
    web_chain,
    web_step,
    webp,
)

OFF = AugmentConfig(blur_probability=0, jpeg_probability=0, flip_probability=0, equalise_quality=None)
RGB = NDArray[np.uint8]


def texture(height: int = 96, width: int = 80, seed: int = 0) -> RGB:
    """Noise on ramps: it has detail for blur and JPEG to take away."""
    y, x = np.mgrid[0:height, 0:width]
    ramps = np.stack([x * 2, y * 2, x + y], axis=-1)
    return np.clip(ramps + np.random.default_rng(seed).integers(-25, 26, ramps.shape), 0, 255).astype(np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---------------------------------------------------------------- JPEG


def test_jpeg_is_one_baseline_generation_at_the_quality() -> None:
    rgb = texture()
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=60, subsampling="4:2:0")
    np.testing.assert_array_equal(jpeg(rgb, 60), np.asarray(Image.open(buffer)))


def test_lower_quality_loses_more() -> None:
    rgb = texture()
    losses = [np.abs(jpeg(rgb, quality).astype(int) - rgb).mean() for quality in (95, 75, 50, 20)]
    assert losses == sorted(losses)
    assert jpeg(rgb[:33, :17], 80).shape == (33, 17, 3)


@pytest.mark.parametrize("quality", [(65, 90), (30, 31)])
def test_equalise_draws_every_quality_and_no_other(quality: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(module, "jpeg", lambda rgb, q: drawn.append(q) or rgb)
    generator = rng()
    for _ in range(400):
        equalise(texture(8, 8), quality, generator)
    assert set(drawn) == set(range(quality[0], quality[1] + 1))


def test_webp_is_one_lossy_generation_at_the_quality() -> None:
    rgb = texture()
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "WEBP", quality=60, lossless=False, method=4)
    assert buffer.getvalue()[12:16] == b"VP8 "  # lossy; lossless is "VP8L"
    np.testing.assert_array_equal(webp(rgb, 60), np.asarray(Image.open(buffer).convert("RGB")))
    losses = [np.abs(webp(rgb, quality).astype(int) - rgb).mean() for quality in (95, 75, 50, 20)]
    assert losses == sorted(losses)
    assert webp(rgb[:33, :17], 80).shape == (33, 17, 3)


# ---------------------------------------------------------------- blur, resize, noise


def test_a_cut_blur_is_a_gaussian_of_that_many_taps() -> None:
    pytest.importorskip("cv2")
    step = np.zeros((21, 41, 3), np.uint8)
    step[:, 20:] = 255
    for kernel in (3, 9):
        taps = np.exp(-0.5 * (np.arange(-(kernel // 2), kernel // 2 + 1) / 4.0) ** 2)
        expected = np.convolve(step[10, :, 0], taps / taps.sum(), mode="same")
        assert np.abs(blur(step, 4.0, kernel)[10, 8:33, 0] - expected[8:33]).max() <= 1


@pytest.mark.parametrize("sigma", [0.8, 1.5, 3.0])
def test_blur_is_a_gaussian(sigma: float) -> None:
    pytest.importorskip("cv2")
    step = np.zeros((41, 81, 3), np.uint8)
    step[:, 40:] = 255
    found = blur(step, sigma)[20, :, 0]
    taps = np.exp(-0.5 * (np.arange(-20, 21) / sigma) ** 2)
    expected = np.convolve(step[20, :, 0], taps / taps.sum(), mode="same")
    assert np.abs(found[20:61] - expected[20:61]).max() <= 2  # OpenCV cuts the kernel at 3 sigma


def test_no_blur_changes_nothing() -> None:
    rgb = texture()
    np.testing.assert_array_equal(blur(rgb, 0.0), rgb)


def test_resize_shapes_and_identity() -> None:
    pytest.importorskip("cv2")
    rgb = texture(96, 80)
    assert resize(rgb, 0.5).shape == (48, 40, 3)
    assert resize(rgb, 1.5).shape == (144, 120, 3)
    assert resize(texture(2, 1), 0.1).shape == (1, 1, 3)
    np.testing.assert_array_equal(resize(rgb, 1.0), rgb)
    block_means = rgb.reshape(48, 2, 40, 2, 3).mean(axis=(1, 3))
    assert np.abs(resize(rgb, 0.5) - block_means).max() <= 0.51  # area averaging


def test_resize_to_a_size_and_its_identity() -> None:
    pytest.importorskip("cv2")
    rgb = texture(96, 80)
    assert resize_to(rgb, 50, 120).shape == (50, 120, 3)
    np.testing.assert_array_equal(resize_to(rgb, 96, 80), rgb)
    block_means = rgb.reshape(32, 3, 20, 4, 3).mean(axis=(1, 3))
    assert np.abs(resize_to(rgb, 32, 20) - block_means).max() <= 0.51  # area averaging


def test_noise_has_the_deviation_and_no_bias() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    change = noise(grey, 5.0, rng()).astype(int) - 128
    assert abs(change.mean()) < 0.06  # 4 standard errors of 5 / sqrt(120,000)
    assert change.std() == pytest.approx((25 + 1 / 12) ** 0.5, rel=0.01)  # rounding adds 1/12
    np.testing.assert_array_equal(noise(grey, 0.0, rng()), grey)


def test_noise_is_clipped_and_does_not_wrap() -> None:
    assert noise(np.full((50, 50, 3), 255, np.uint8), 5.0, rng()).min() > 200
    assert noise(np.zeros((50, 50, 3), np.uint8), 5.0, rng()).max() < 55


def test_without_opencv_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    for call in (lambda: blur(texture(), 1.0), lambda: resize(texture(), 0.5)):
        with pytest.raises(MissingDependency, match=r"pip install -e '\.\[train\]'"):
            call()
    jpeg(texture(), 80)  # and what needs no OpenCV works
    random_crop(texture(), 32, rng())


# ---------------------------------------------------------------- pad and crop


def mirrored(index: int, length: int) -> int:
    """The place that `index` shows when the borders are mirrored with their edge pixel repeated."""
    index %= 2 * length
    return index if index < length else 2 * length - 1 - index


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 40))
def test_pad_to_mirrors_both_sides(height: int, width: int, size: int) -> None:
    rgb = texture(height, width)
    padded = pad_to(rgb, size)
    assert padded.shape == (max(height, size), max(width, size), 3)
    top, left = max(0, size - height) // 2, max(0, size - width) // 2
    rows = [mirrored(y - top, height) for y in range(padded.shape[0])]
    columns = [mirrored(x - left, width) for x in range(padded.shape[1])]
    np.testing.assert_array_equal(padded, rgb[np.ix_(rows, columns)])


def test_nothing_is_copied_that_is_large_enough() -> None:
    rgb = texture()
    assert pad_to(rgb, 80) is rgb


def test_random_crop_reaches_every_place_evenly() -> None:
    y, x = np.mgrid[0:7, 0:6]
    rgb = np.stack([x, y, x * 0], axis=-1).astype(np.uint8)
    generator = rng()
    corners = [random_crop(rgb, 4, generator) for _ in range(2400)]
    places = [(int(crop[0, 0, 1]), int(crop[0, 0, 0])) for crop in corners]
    counts = {place: places.count(place) for place in set(places)}
    assert set(counts) == {(top, left) for top in range(4) for left in range(3)}  # 7 - 4 + 1, 6 - 4 + 1
    assert min(counts.values()) > 140  # 200 each; 4.4 standard deviations
    assert all((crop[..., 0] == crop[0, 0, 0] + np.arange(4)).all() for crop in corners)


def test_random_crop_on_a_grid_starts_at_its_multiples() -> None:
    rgb = np.stack(np.broadcast_arrays(*np.indices((60, 50)), 0), axis=-1).astype(np.uint8)  # (row, column, 0)
    corners = {tuple(random_crop(rgb, 32, np.random.default_rng(i), 8)[0, 0, :2].tolist()) for i in range(300)}
    assert corners == {(top, left) for top in (0, 8, 16, 24) for left in (0, 8, 16)}


def test_half_of_the_views_start_on_the_jpeg_grid_if_asked() -> None:
    rgb = np.stack(np.broadcast_arrays(*np.indices((250, 250)), 0), axis=-1).astype(np.uint8)
    config = AugmentConfig(
        blur_probability=0, jpeg_probability=0, flip_probability=0, equalise_quality=None, grid_probability=0.5
    )
    corners = [augment(rgb, 32, config, np.random.default_rng(i))[0, 0, :2] for i in range(600)]
    share = np.mean([not (corner % 8).any() for corner in corners])
    assert share == pytest.approx(0.5 + 0.5 / 64, abs=0.06)  # three standard errors; off the grid 1 in 64 falls on it


def test_what_was_drawn_can_be_asked_for() -> None:
    config = AugmentConfig(resize_probability=1, blur_probability=1, jpeg_probability=1, noise_probability=1)
    rgb = np.asarray(Image.effect_noise((90, 80), 50).convert("RGB"))
    drawn: dict[str, float] = {}
    view = augment(rgb, 32, config, np.random.default_rng(3), drawn)
    assert np.array_equal(view, augment(rgb, 32, config, np.random.default_rng(3)))
    assert 0.5 <= drawn["resize_scale"] <= 1.5
    assert 0 < drawn["blur_sigma"] <= 3
    assert 30 <= drawn["jpeg_quality"] <= 100
    assert 0 < drawn["noise_sigma"] <= 5
    off = AugmentConfig(blur_probability=0, jpeg_probability=0)
    augment(rgb, 32, off, np.random.default_rng(3), drawn)
    assert drawn == {"resize_scale": 1.0, "blur_sigma": 0.0, "jpeg_quality": 100, "noise_sigma": 0.0}


def test_random_crop_of_a_smaller_image() -> None:
    assert random_crop(texture(5, 100), 32, rng()).shape == (32, 32, 3)


def test_a_share_is_cut_from_the_middle_or_from_every_place() -> None:
    y, x = np.mgrid[0:10, 0:6]
    rgb = np.stack([x, y, x * 0], axis=-1).astype(np.uint8)
    np.testing.assert_array_equal(crop_share(rgb, 0.5), rgb[2:7, 1:4])  # 5 x 3 of 10 x 6
    assert crop_share(rgb, 1.0).shape == rgb.shape
    assert crop_share(rgb, 0.01).shape == (1, 1, 3)
    generator = rng()
    crops = [crop_share(rgb, 0.5, generator) for _ in range(600)]
    corners = {(int(crop[0, 0, 1]), int(crop[0, 0, 0])) for crop in crops}
    assert corners == {(top, left) for top in range(6) for left in range(4)}  # 10 - 5 + 1, 6 - 3 + 1
    for crop in crops:
        top, left = crop[0, 0, 1], crop[0, 0, 0]
        np.testing.assert_array_equal(crop, rgb[top : top + 5, left : left + 3])


# ---------------------------------------------------------------- all of it


def test_with_everything_off_a_view_is_the_random_crop() -> None:
    rgb = texture()
    views = {augment(rgb, 32, OFF, rng(seed)).tobytes() for seed in range(9)}
    windows = {rgb[y : y + 32, x : x + 32].tobytes() for y in range(65) for x in range(49)}
    assert len(views) > 1
    assert views <= windows


@pytest.mark.parametrize("seed", range(5))
def test_views_are_repeatable_and_well_formed(seed: int) -> None:
    pytest.importorskip("cv2")
    config = AugmentConfig(resize_probability=0.5, noise_probability=0.5)
    view = augment(texture(), 64, config, rng(seed))
    assert (view.shape, view.dtype) == ((64, 64, 3), np.uint8)
    assert view.flags.c_contiguous
    np.testing.assert_array_equal(view, augment(texture(), 64, config, rng(seed)))
    assert not np.array_equal(view, augment(texture(), 64, config, rng(seed + 100)))


def test_the_input_is_left_alone() -> None:
    pytest.importorskip("cv2")
    rgb = texture()
    before = rgb.copy()
    for seed in range(8):
        augment(rgb, 80, AugmentConfig(noise_probability=1, resize_probability=0.5), rng(seed))
    np.testing.assert_array_equal(rgb, before)


@given(arrays(np.uint8, (40, 40, 3)), st.integers(0, 50))
def test_the_draws_do_not_depend_on_the_content(rgb: RGB, seed: int) -> None:
    """The same generator stands at the same place after any image: nothing drawn can tell the classes apart."""
    pytest.importorskip("cv2")
    config = AugmentConfig(noise_probability=0.5, resize_probability=0.5)
    one, other = rng(seed), rng(seed)
    augment(rgb, 32, config, one)
    augment(texture(40, 40), 32, config, other)
    assert one.bit_generator.state == other.bit_generator.state


def test_a_flip_mirrors_left_and_right_half_of_the_time() -> None:
    rgb = texture(32, 32)  # the crop is the image
    flips = OFF.model_copy(update={"flip_probability": 0.5})
    results = [augment(rgb, 32, flips, rng(seed)) for seed in range(400)]
    mirrored_views = [np.array_equal(view, rgb[:, ::-1]) for view in results]
    assert all(np.array_equal(view, rgb) or flip for view, flip in zip(results, mirrored_views, strict=True))
    assert 160 < sum(mirrored_views) < 240  # 4 standard deviations


def test_the_last_step_is_the_re_encoding_of_both_classes() -> None:
    rgb = texture(64, 64)
    config = OFF.model_copy(update={"equalise_quality": (70, 70), "equalise_probability": 1.0, "flip_probability": 1.0})
    np.testing.assert_array_equal(augment(rgb, 64, config, rng()), jpeg(rgb[:, ::-1], 70))


# ---------------------------------------------------------------- what happens to images on the web

CHAIN = (0.0, 0.5, 0.5)


def test_sharpening_adds_what_blur_takes_away() -> None:
    flat = np.full((9, 9, 3), 100, dtype=np.uint8)
    np.testing.assert_array_equal(sharpen(flat, 1.0, 0.5), flat)
    rgb = texture(40, 40) // 2 + 60  # far from 0 and 255
    expected = rgb + 0.5 * (rgb.astype(float) - blur(rgb, 1.0))
    np.testing.assert_allclose(sharpen(rgb, 1.0, 0.5), expected, atol=1)


def test_tone_is_a_power_and_a_spread_around_the_middle() -> None:
    values = np.array([0, 51, 127, 204, 255], dtype=np.uint8)
    rgb = np.broadcast_to(values[:, None, None], (5, 1, 3))
    np.testing.assert_array_equal(tone(rgb, 1.0, 1.0), rgb)
    np.testing.assert_array_equal(tone(rgb, 2.0, 1.0)[:, 0, 0], [0, 10, 63, 163, 255])  # 255 * (v / 255)^2
    np.testing.assert_array_equal(tone(rgb, 1.0, 0.5)[:, 0, 0], [63, 89, 127, 165, 191])  # halfway to 127.5


def test_a_chain_has_as_many_steps_as_its_probabilities_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "web_step", lambda rgb, _: rgb + 1)
    black, generator = np.zeros((1, 1, 3), dtype=np.uint8), rng()
    steps = [int(web_chain(black, (0.5, 0.0, 0.5), generator)[0, 0, 0]) for _ in range(400)]
    assert set(steps) == {0, 2}
    assert 160 < steps.count(0) < 240  # 4 standard deviations


def test_every_kind_of_step_changes_the_pixels_and_keeps_the_shape() -> None:
    rgb = texture(48, 40)
    results = {web_step(rgb, rng(seed)).tobytes() for seed in range(40)}
    assert len(results) > 30
    assert all(web_step(rgb, rng(seed)).shape == rgb.shape for seed in range(10))


@pytest.mark.parametrize("make", [augment, augment_whole])
@given(arrays(np.uint8, (40, 52, 3)), st.integers(0, 30))
def test_the_draws_of_a_chain_do_not_depend_on_the_content(make: Callable[..., RGB], rgb: RGB, seed: int) -> None:
    config = AugmentConfig(resize_probability=0.5, chain=CHAIN)
    one, other = rng(seed), rng(seed)
    view = make(rgb, 32, config, one)
    make(texture(52, 40), 32, config, other)
    assert one.bit_generator.state == other.bit_generator.state
    assert (view.shape, view.dtype, view.flags.c_contiguous) == ((32, 32, 3), np.uint8, True)


def test_a_resized_crop_shows_so_much_more_of_the_image() -> None:
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (200, 200, 3))
    half = OFF.model_copy(update={"resize_probability": 1.0, "resize_scale": (0.5, 0.5)})
    for seed in range(5):
        view = augment(ramp, 32, half, rng(seed))[16, :, 0].astype(int)
        assert 60 <= view[-1] - view[0] <= 63  # 64 columns are seen


def test_a_view_of_the_whole_shows_most_of_the_shorter_side() -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 300).astype(np.uint8)[:, None, None], (300, 500, 3))
    spans = [np.ptp(augment_whole(ramp, 32, OFF, rng(seed))[:, 16, 0].astype(int)) for seed in range(40)]
    assert min(spans) >= 255 * 0.7 * 31 / 32 - 4
    assert max(spans) <= 255
    assert max(spans) - min(spans) > 20


# ---------------------------------------------------------------- what somebody may do to evade


def test_a_camera_of_an_even_scene_gives_its_color_and_noise_as_strong_as_asked() -> None:
    rgb = np.broadcast_to(np.array([220, 128, 40], dtype=np.uint8), (64, 65, 3))
    np.testing.assert_allclose(camera(rgb, 0.0, rng()).astype(int), rgb, atol=1)
    linear = [np.std((camera(rgb, sigma, rng())[..., 0] / 255) ** 2.2) for sigma in (5.0, 15.0)]
    assert linear[1] == pytest.approx(3 * linear[0], rel=0.15)


def test_a_camera_interpolates_two_of_three_colors() -> None:
    red = np.zeros((33, 33, 3), dtype=np.uint8)
    red[16, 16] = (255, 0, 0)  # where the pattern is blue: nobody sees it
    assert not camera(red, 0.0, rng()).any()
    red[15, 15] = (255, 0, 0)
    seen = camera(red, 0.0, rng())[..., 0]
    assert seen[15, 15] > seen[15, 16] > 0


def test_local_contrast_spreads_values_that_lie_close() -> None:
    rgb = texture(64, 64) // 8 + 100
    spread = [np.std(local_contrast(rgb, limit).astype(float)) for limit in (2.0, 8.0)]
    assert np.std(rgb.astype(float)) < spread[0] < spread[1]


def test_high_frequencies_are_drawn_to_one_over_frequency_and_low_ones_left_alone() -> None:
    white = np.clip(np.random.default_rng(0).normal(128, 20, (128, 128, 3)), 0, 255).astype(np.uint8)

    def amplitudes(image: RGB) -> NDArray[np.float64]:
        spectrum = np.abs(np.fft.fft2(image.astype(float), axes=(0, 1))).mean(2)
        frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
        return np.array([spectrum[(frequency > f - 0.02) & (frequency <= f + 0.02)].mean() for f in (0.06, 0.2, 0.3)])

    ratio = amplitudes(match_spectrum(white, 1.0)) / amplitudes(white)
    # White noise has one amplitude everywhere; wanted are 0.1 / f of it, but not less than half.
    assert ratio == pytest.approx([1.0, 0.51, 0.5], abs=0.06)
    assert amplitudes(match_spectrum(white, 0.5))[1] / amplitudes(white)[1] == pytest.approx(0.5**0.5, abs=0.06)


@pytest.mark.parametrize("side", [32, 64])
def test_an_image_with_a_natural_spectrum_keeps_it_whatever_its_size(side: int) -> None:
    white = np.fft.fft2(np.random.default_rng(0).normal(size=(side, side)))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    natural = np.fft.ifft2(white / np.maximum(frequency, 1 / side)).real
    grey = np.rint(128 + 30 * natural / natural.std()).clip(0, 255).astype(np.uint8)
    before, after = (
        np.abs(np.fft.fft2(each.astype(float))) for each in (grey, match_spectrum(np.stack([grey] * 3, 2), 1.0)[..., 0])
    )
    high = frequency > 0.2
    assert after[high].mean() / before[high].mean() == pytest.approx(1, abs=0.15)
