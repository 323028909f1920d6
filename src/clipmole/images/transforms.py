"""Blur, JPEG, WebP, resize, noise, crop: the functions that train, equalise and perturb.

In: an RGB image (H, W, 3) uint8 and, where something is drawn, a numpy Generator. Out: RGB uint8.
It knows nothing of labels: whatever is drawn, is drawn alike for photographs and generated images.

Blur and resize need OpenCV (`clipmole[train]`); JPEG, WebP, noise and crops do not.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmole.config import AugmentConfig
from clipmole.errors import MissingDependency

if TYPE_CHECKING:
    import types

RGB = NDArray[np.uint8]
JPEG_BLOCK = 8  # pixels; ITU-T T.81: JPEG compresses squares of 8 x 8 one by one


def _cv2() -> types.ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise MissingDependency("OpenCV", "train") from error
    return cv2


def jpeg(rgb: RGB, quality: int) -> RGB:
    """Encode as baseline JPEG (4:2:0, libjpeg's tables at `quality`, 1..100) and decode again; same shape."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=int(quality))
    with Image.open(buffer) as decoded:
        return np.asarray(decoded.convert("RGB"))


def webp(rgb: RGB, quality: int) -> RGB:
    """Encode as lossy WebP (libwebp at `quality`, 0..100, method 4) and decode again; same shape."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "WEBP", quality=int(quality), method=4)
    with Image.open(buffer) as decoded:
        return np.asarray(decoded.convert("RGB"))


def blur(rgb: RGB, sigma: float, kernel: int = 0) -> RGB:
    """Gaussian blur, `sigma` in pixels; 0 changes nothing.

    `kernel` is the side of the window at which the Gaussian is cut, odd; 0: as wide as `sigma` asks for.
    """
    if sigma < 0.05:  # the kernel is a delta in uint8
        return rgb
    return _cv2().GaussianBlur(rgb, (kernel, kernel), sigma)  # type: ignore[no-any-return]


def resize_to(rgb: RGB, height: int, width: int) -> RGB:
    """Resize to `height` x `width`: area averaging when no side grows, bicubic otherwise."""
    cv2 = _cv2()
    shrinks = height <= rgb.shape[0] and width <= rgb.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(rgb, (width, height), interpolation=interpolation)  # type: ignore[no-any-return]


def resize(rgb: RGB, scale: float) -> RGB:
    """Resize by `scale`: area averaging when it shrinks, bicubic when it grows."""
    height, width = rgb.shape[:2]
    return resize_to(rgb, max(1, round(height * scale)), max(1, round(width * scale)))


def noise(rgb: RGB, sigma: float, rng: np.random.Generator) -> RGB:
    """Add white Gaussian noise of standard deviation `sigma` (of values 0..255), clipped and rounded."""
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
    """A `size` x `size` window at a uniformly drawn place; smaller images are mirrored at the borders first.

    Its corner lies at multiples of `grid` pixels.
    """
    rgb = pad_to(rgb, size)
    top = grid * int(rng.integers((rgb.shape[0] - size) // grid + 1))
    left = grid * int(rng.integers((rgb.shape[1] - size) // grid + 1))
    return rgb[top : top + size, left : left + size]


def crop_share(rgb: RGB, share: float, rng: np.random.Generator | None = None) -> RGB:
    """A window of `share` (0..1] of each side, at a uniformly drawn place; in the middle without `rng`."""
    height, width = (max(1, round(side * share)) for side in rgb.shape[:2])
    down, right = rgb.shape[0] - height, rgb.shape[1] - width
    top = down // 2 if rng is None else int(rng.integers(down + 1))
    left = right // 2 if rng is None else int(rng.integers(right + 1))
    return rgb[top : top + height, left : left + width]


def equalise(rgb: RGB, quality: tuple[int, int], rng: np.random.Generator) -> RGB:
    """Re-encode as JPEG with a quality drawn uniformly from `quality`, both ends included.

    Applied to both classes alike it takes away what the files' own JPEG qualities say about the label.
    """
    return jpeg(rgb, int(rng.integers(quality[0], quality[1] + 1)))


def augment(
    rgb: RGB, crop_size: int, config: AugmentConfig, rng: np.random.Generator, drawn: dict[str, float] | None = None
) -> RGB:
    """One random training view (crop_size, crop_size, 3) of a window.

    Order: resize, crop, blur, JPEG, noise, flip, and last the class-independent re-encoding. The number of
    draws does not depend on the image's content or label.

    Args:
        drawn: receives what was done before the re-encoding, for a network that is asked for it: "resize_scale",
            "blur_sigma", "jpeg_quality" (100 if not compressed) and "noise_sigma".
    """

    def happens(probability: float) -> bool:
        return bool(rng.random() < probability)

    scale, blur_sigma, quality, noise_sigma = 1.0, 0.0, 100, 0.0
    if happens(config.resize_probability):
        scale = float(np.exp(rng.uniform(*np.log(config.resize_scale))))
        rgb = resize(rgb, scale)
    on_grid = config.grid_probability > 0 and happens(config.grid_probability)
    rgb = random_crop(rgb, crop_size, rng, JPEG_BLOCK if on_grid else 1)
    if happens(config.blur_probability):
        blur_sigma = float(rng.uniform(*config.blur_sigma))
        rgb = blur(rgb, blur_sigma)
    if happens(config.jpeg_probability):
        quality = int(rng.integers(config.jpeg_quality[0], config.jpeg_quality[1] + 1))
        rgb = jpeg(rgb, quality)
    if happens(config.noise_probability):
        noise_sigma = float(rng.uniform(*config.noise_sigma))
        rgb = noise(rgb, noise_sigma, rng)
    if happens(config.flip_probability):
        rgb = rgb[:, ::-1]
    if config.equalise_quality is not None and happens(config.equalise_probability):
        rgb = equalise(rgb, config.equalise_quality, rng)
    if drawn is not None:
        drawn |= {
            "resize_scale": scale,
            "blur_sigma": blur_sigma,
            "jpeg_quality": quality,
            "noise_sigma": noise_sigma,
        }
    return np.ascontiguousarray(rgb)
