"""Blur, JPEG, WebP, resize, noise, crop: the transforms of training, equalising and perturbing.

In: an RGB image (H, W, 3) uint8 and, for random transforms, a numpy Generator. Out: an RGB image, uint8.
It knows nothing of labels: random values are drawn alike for photographs and generated images.

Blur and resize need OpenCV (`clipmole[train]`); JPEG, WebP, noise and crops do not.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmole.config import AugmentConfig
from clipmole.errors import MissingDependency

if TYPE_CHECKING:
    import types

RGB = NDArray[np.uint8]
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
JPEG_BLOCK = 8  # pixels; ITU-T T.81: JPEG compresses squares of 8 x 8 one by one
SPECTRUM_FROM = 0.1  # cycles per pixel; `match_spectrum` leaves lower frequencies, which show the scene, alone
WHOLE_SHARE, WHOLE_SIDE = (0.7, 1.0), (256, 900)  # share of the shorter side; pixels at which the web shows images


def _cv2() -> types.ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise MissingDependency("OpenCV", "train") from error
    return cv2


def jpeg(rgb: RGB, quality: int) -> RGB:
    """Encode as baseline JPEG (4:2:0, libjpeg's tables at `quality`, 1..100) and decode again; same shape."""
    return _encoded_and_decoded(rgb, "JPEG", quality=int(quality))


def webp(rgb: RGB, quality: int) -> RGB:
    """Encode as lossy WebP (libwebp at `quality`, 0..100, method 4) and decode again; same shape."""
    return _encoded_and_decoded(rgb, "WEBP", quality=int(quality), method=4)


def _encoded_and_decoded(rgb: RGB, kind: str, **options: int) -> RGB:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, kind, **options)
    with Image.open(buffer) as decoded:
        return np.asarray(decoded.convert("RGB"))


def blur(rgb: RGB, sigma: float, kernel: int = 0) -> RGB:
    """Gaussian blur.

    Args:
        sigma: standard deviation, pixels; below 0.05 nothing changes.
        kernel: side of the square to which the Gaussian is cut, odd, pixels; 0: as wide as `sigma` needs.
    """
    if sigma < 0.05:  # the kernel is a delta in uint8
        return rgb
    return _cv2().GaussianBlur(rgb, (kernel, kernel), sigma)  # type: ignore[no-any-return]


def resize_to(rgb: RGB, height: int, width: int) -> RGB:
    """Resize to `height` x `width` pixels: by area averaging if no side grows, else bicubic."""
    cv2 = _cv2()
    shrinks = height <= rgb.shape[0] and width <= rgb.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(rgb, (width, height), interpolation=interpolation)  # type: ignore[no-any-return]


def resize(rgb: RGB, scale: float) -> RGB:
    """Resize both sides by the factor `scale`, as `resize_to` does."""
    height, width = rgb.shape[:2]
    return resize_to(rgb, max(1, round(height * scale)), max(1, round(width * scale)))


def resize_by_any(rgb: RGB, size: int, rng: np.random.Generator) -> RGB:
    """Resize to `size` x `size` with `resize_to` or one of Pillow's filters, because programs use different filters."""
    if rng.random() < 0.6:
        return resize_to(rgb, size, size)
    chosen = FILTERS[int(rng.integers(len(FILTERS)))]
    return np.asarray(Image.fromarray(rgb).resize((size, size), chosen, reducing_gap=2.0))


def noise(rgb: RGB, sigma: float, rng: np.random.Generator) -> RGB:
    """Add white Gaussian noise of standard deviation `sigma` (of values 0..255), then round and clip."""
    values = rgb + rng.standard_normal(rgb.shape, dtype=np.float32) * np.float32(sigma)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def pad_to(rgb: RGB, size: int) -> RGB:
    """Mirror the borders until both sides measure at least `size`; no pixel is interpolated."""
    height, width = rgb.shape[:2]
    down, right = max(0, size - height), max(0, size - width)
    if not down and not right:
        return rgb
    return np.pad(rgb, ((down // 2, down - down // 2), (right // 2, right - right // 2), (0, 0)), mode="symmetric")


def random_crop(rgb: RGB, size: int, rng: np.random.Generator, grid: int = 1) -> RGB:
    """A `size` x `size` window at a uniformly drawn position; an image that is too small is first mirrored by `pad_to`.

    Its upper left corner lies at multiples of `grid` pixels.
    """
    rgb = pad_to(rgb, size)
    top = grid * int(rng.integers((rgb.shape[0] - size) // grid + 1))
    left = grid * int(rng.integers((rgb.shape[1] - size) // grid + 1))
    return rgb[top : top + size, left : left + size]


def crop_share(rgb: RGB, share: float, rng: np.random.Generator | None = None) -> RGB:
    """A window of `share` of each side, in (0, 1], at a uniformly drawn position; in the middle without `rng`."""
    height, width = (max(1, round(side * share)) for side in rgb.shape[:2])
    down, right = rgb.shape[0] - height, rgb.shape[1] - width
    top = down // 2 if rng is None else int(rng.integers(down + 1))
    left = right // 2 if rng is None else int(rng.integers(right + 1))
    return rgb[top : top + height, left : left + width]


def equalise(rgb: RGB, quality: tuple[int, int], rng: np.random.Generator) -> RGB:
    """Re-encode as JPEG with a quality drawn uniformly from `quality`, both ends included.

    If both classes are re-encoded alike, the JPEG quality of a file no longer says anything about its label.
    """
    return jpeg(rgb, int(rng.integers(quality[0], quality[1] + 1)))


def sharpen(rgb: RGB, sigma: float, amount: float) -> RGB:
    """Unsharp masking: the image plus `amount` times its difference from itself blurred by `sigma` pixels."""
    return _cv2().addWeighted(rgb, 1 + amount, blur(rgb, sigma), -amount, 0)  # type: ignore[no-any-return]


def tone(rgb: RGB, gamma: float, contrast: float) -> RGB:
    """Raise values in [0, 1] to the power `gamma`, then multiply their distance from 0.5 by `contrast`."""
    values = (np.arange(256) / 255.0) ** gamma
    return np.clip(((values - 0.5) * contrast + 0.5) * 255, 0, 255).astype(np.uint8)[rgb]


def camera(rgb: RGB, sigma: float, rng: np.random.Generator) -> RGB:
    """Record the scene as a camera does: one colour per pixel, with noise; interpolate the other two, and sharpen.

    A value is taken as linear light to the power 1 / 2.2. The linear light is sampled in a Bayer pattern. The noise has
    the standard deviation `sigma` (of values 0..255) at full white and falls with the square root of the light.
    """
    linear = (rgb / np.float32(255)) ** 2.2
    red = (np.arange(rgb.shape[0])[:, None] % 2) + (np.arange(rgb.shape[1]) % 2)  # 0 blue, 1 green, 2 red
    mosaic = np.take_along_axis(linear, (2 - red)[..., None], axis=2)[..., 0]  # B G over G R
    mosaic = mosaic + rng.standard_normal(mosaic.shape, dtype=np.float32) * np.sqrt(mosaic) * np.float32(sigma / 255)
    cv2 = _cv2()
    values = np.rint(np.clip(mosaic, 0, 1) * 65535).astype(np.uint16)
    seen = cv2.cvtColor(values, cv2.COLOR_BayerBGGR2RGB)
    return sharpen(np.rint((seen / 65535) ** (1 / 2.2) * 255).astype(np.uint8), 1.0, 0.5)


def local_contrast(rgb: RGB, limit: float) -> RGB:
    """Contrast-limited adaptive histogram equalisation of the lightness in 8 x 8 tiles (Zuiderveld 1994)."""
    cv2 = _cv2()
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(limit, (8, 8)).apply(np.ascontiguousarray(lab[..., 0]))
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)  # type: ignore[no-any-return]


def match_spectrum(rgb: RGB, strength: float) -> RGB:
    """Move the amplitudes of the high frequencies towards those of natural images, 1 / frequency (Field 1987).

    The amplitudes of each ring of frequencies are multiplied by (wanted / own) ** `strength`, limited to between 1/2
    and 2. The wanted ones continue the ring at `SPECTRUM_FROM`, or the next one that holds a frequency of the image.
    """
    values = rgb.astype(np.float32)
    spectrum = np.fft.rfft2(values, axes=(0, 1))
    high, wide = rgb.shape[:2]
    frequency = np.hypot(np.fft.fftfreq(high)[:, None], np.fft.rfftfreq(wide)[None])
    rings = np.minimum((frequency * 200).astype(int), 141)  # of 1/200 cycle per pixel; the corner lies at 0.707
    count = np.bincount(rings.ravel(), minlength=142)
    amplitude = np.bincount(rings.ravel(), np.abs(spectrum).mean(2).ravel(), minlength=142) / np.maximum(count, 1)
    first = int(SPECTRUM_FROM * 200)
    first += int(np.argmax(count[first:] > 0))
    wanted = amplitude[first] * first / np.maximum(np.arange(142), 1)
    gain = np.clip((wanted / np.maximum(amplitude, 1e-6)) ** strength, 0.5, 2)
    gain[: first + 1] = 1
    changed = np.fft.irfft2(spectrum * gain[rings][..., None], s=(high, wide), axes=(0, 1))
    return np.clip(np.rint(changed), 0, 255).astype(np.uint8)


def web_step(rgb: RGB, rng: np.random.Generator) -> RGB:
    """One random step of what happens to images on the web; kinds and ranges are this project's choice."""
    match int(rng.integers(8)):
        case 0 | 1:
            return jpeg(rgb, int(rng.integers(50, 96)))
        case 2 | 3:
            return webp(rgb, int(rng.integers(50, 96)))
        case 4:
            amount, sigma = float(rng.uniform(0.3, 1.2)), float(rng.uniform(0.5, 1.5))
            return sharpen(rgb, sigma, amount)
        case 5:
            return blur(rgb, float(rng.uniform(0.3, 1.0)))
        case 6:
            return noise(rgb, float(rng.uniform(1, 4)), rng)
    return tone(rgb, float(rng.uniform(0.8, 1.25)), float(rng.uniform(0.85, 1.15)))


def web_chain(rgb: RGB, probabilities: Sequence[float], rng: np.random.Generator) -> RGB:
    """n steps of `web_step`, where n = 0, 1, 2, ... has `probabilities`."""
    for _ in range(int(rng.choice(len(probabilities), p=probabilities))):
        rgb = web_step(rgb, rng)
    return rgb


def augment(
    rgb: RGB, crop_size: int, config: AugmentConfig, rng: np.random.Generator, drawn: dict[str, float] | None = None
) -> RGB:
    """One random training view (crop_size, crop_size, 3) of a window, at native resolution or resized a little.

    The order is: crop, resize, blur, JPEG, noise, `web_chain`, flip, and last `equalise`. What is drawn does not depend
    on the label.

    Args:
        rgb: the window, (H, W, 3) uint8.
        crop_size: side of the view, pixels.
        config: probabilities and ranges of the steps.
        rng: source of everything random.
        drawn: receives the parameters before the re-encoding, for a network that learns to predict them:
            "resize_scale", "blur_sigma", "jpeg_quality" (100 if not compressed) and "noise_sigma".
    """

    def happens(probability: float) -> bool:
        return bool(rng.random() < probability)

    # Cutting off pixels at the end shifts the crop against the 8x8 grids of the chain's JPEGs.
    margin = 2 * JPEG_BLOCK if config.chain else 0
    size, scale, blur_sigma, quality, noise_sigma = crop_size + margin, 1.0, 0.0, 100, 0.0
    if happens(config.resize_probability):
        scale = float(np.exp(rng.uniform(*np.log(config.resize_scale))))
    side = min(max(1, round(size / scale)), max(size, min(rgb.shape[:2])))
    on_grid = config.grid_probability > 0 and happens(config.grid_probability)
    rgb = random_crop(rgb, side, rng, JPEG_BLOCK if on_grid else 1)
    if side != size:
        rgb = resize_by_any(rgb, size, rng)
    if happens(config.blur_probability):
        blur_sigma = float(rng.uniform(*config.blur_sigma))
        rgb = blur(rgb, blur_sigma)
    if happens(config.jpeg_probability):
        quality = int(rng.integers(config.jpeg_quality[0], config.jpeg_quality[1] + 1))
        rgb = jpeg(rgb, quality)
    if happens(config.noise_probability):
        noise_sigma = float(rng.uniform(*config.noise_sigma))
        rgb = noise(rgb, noise_sigma, rng)
    if config.chain:
        rgb = random_crop(web_chain(rgb, config.chain, rng), crop_size, rng)
    if drawn is not None:
        drawn |= {
            "resize_scale": size / side,
            "blur_sigma": blur_sigma,
            "jpeg_quality": quality,
            "noise_sigma": noise_sigma,
        }
    return _flip_and_equalise(rgb, config, rng)


def augment_whole(rgb: RGB, crop_size: int, config: AugmentConfig, rng: np.random.Generator) -> RGB:
    """One random training view (crop_size, crop_size, 3) that shows nearly the whole of a window at small size.

    A square of 0.7 to 1 of the shorter side, resized to a size at which the web shows images, goes through `web_chain`,
    the flip and `equalise`, and `shrink` then makes it small. Arguments as in `augment`.
    """
    side = max(1, int(min(rgb.shape[:2]) * rng.uniform(*WHOLE_SHARE)))
    square = random_crop(rgb, side, rng)
    shown = int(rng.integers(*WHOLE_SIDE))
    if shown < side:
        square = resize_by_any(square, shown, rng)
    if config.chain:
        square = web_chain(square, config.chain, rng)
    return shrink(_flip_and_equalise(square, config, rng), crop_size)


def _flip_and_equalise(rgb: RGB, config: AugmentConfig, rng: np.random.Generator) -> RGB:
    if rng.random() < config.flip_probability:
        rgb = rgb[:, ::-1]
    if config.equalise_quality is not None and rng.random() < config.equalise_probability:
        rgb = equalise(rgb, config.equalise_quality, rng)
    return np.ascontiguousarray(rgb)


def shrink(rgb: RGB, size: int) -> RGB:
    """Resize (H, W, 3) to (size, size, 3), bicubic with antialiasing.

    An image of more than twice that size is first reduced by averaging whole pixels (Pillow's `reducing_gap`).
    """
    image = Image.fromarray(np.ascontiguousarray(rgb))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=2.0))
