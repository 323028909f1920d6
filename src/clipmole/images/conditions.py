"""Conditions under which images are scored: nothing, one perturbation, or a chain of them.

In: a preset of `conditions/*.toml` or a TOML file of the same form; then an RGB image and a Generator. Out: the
image (H, W, 3) uint8 as that condition leaves it. "as stored" (no step) and "equalised" (JPEG of a random
quality) are conditions like all others. The steps are functions of `transforms`, as in training.
It knows nothing of labels, image files or detectors.

A number in a step is one value, or a pair [low, high]: each image then draws its own value between them, uniformly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from clipmole.config import Config, load_packaged
from clipmole.errors import ConfigError
from clipmole.images import transforms
from clipmole.images.transforms import RGB

Value = TypeVar("Value", int, float)


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int | float) else value


def _ascending(pair: tuple[Value, Value]) -> tuple[Value, Value]:
    if pair[0] > pair[1]:
        raise ValueError(f"[{pair[0]}, {pair[1]}]: not an ascending range")
    return pair


Quality = Annotated[int, Field(ge=1, le=100)]
Scale = Annotated[float, Field(gt=0, le=8)]
Share = Annotated[float, Field(gt=0, le=1)]
Sigma = Annotated[float, Field(ge=0)]
Qualities = Annotated[tuple[Quality, Quality], BeforeValidator(_pair), AfterValidator(_ascending)]
Scales = Annotated[tuple[Scale, Scale], BeforeValidator(_pair), AfterValidator(_ascending)]
Shares = Annotated[tuple[Share, Share], BeforeValidator(_pair), AfterValidator(_ascending)]
Sigmas = Annotated[tuple[Sigma, Sigma], BeforeValidator(_pair), AfterValidator(_ascending)]


class Jpeg(Config):
    """Re-encode as JPEG of a quality in 1..100."""

    op: Literal["jpeg"] = "jpeg"
    quality: Qualities

    def __call__(self, rgb: RGB, rng: np.random.Generator) -> RGB:
        return transforms.equalise(rgb, self.quality, rng)


class Webp(Config):
    """Re-encode as lossy WebP of a quality in 1..100."""

    op: Literal["webp"] = "webp"
    quality: Qualities

    def __call__(self, rgb: RGB, rng: np.random.Generator) -> RGB:
        return transforms.webp(rgb, int(rng.integers(self.quality[0], self.quality[1] + 1)))


class Blur(Config):
    """Gaussian blur of `sigma` pixels, cut to a square whose side is drawn from `kernels`; (): not cut."""

    op: Literal["blur"] = "blur"
    sigma: Sigmas
    kernels: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _odd(self) -> Self:
        if any(kernel < 1 or kernel % 2 == 0 for kernel in self.kernels):
            raise ValueError(f"kernels={self.kernels}: sides of a kernel are odd, 1 or more")
        return self

    def __call__(self, rgb: RGB, rng: np.random.Generator) -> RGB:
        kernel = int(rng.choice(self.kernels)) if self.kernels else 0
        return transforms.blur(rgb, float(rng.uniform(*self.sigma)), kernel)


class Noise(Config):
    """Add white Gaussian noise of standard deviation `sigma`, of values 0..255."""

    op: Literal["noise"] = "noise"
    sigma: Sigmas

    def __call__(self, rgb: RGB, rng: np.random.Generator) -> RGB:
        return transforms.noise(rgb, float(rng.uniform(*self.sigma)), rng)


class Resize(Config):
    """Resize both sides by `scale`."""

    op: Literal["resize"] = "resize"
    scale: Scales

    def __call__(self, rgb: RGB, rng: np.random.Generator) -> RGB:
        return transforms.resize(rgb, float(rng.uniform(*self.scale)))


class Square(Config):
    """Resize to `side` x `side` pixels, whatever the shape is."""

    op: Literal["square"] = "square"
    side: int = Field(gt=0, le=4096)

    def __call__(self, rgb: RGB, rng: np.random.Generator) -> RGB:  # noqa: ARG002
        return transforms.resize_to(rgb, self.side, self.side)


class Crop(Config):
    """Keep `share` of each side.

    Attributes:
        place: "drawn": the window is at a random position; "centre": in the middle, where a detector's centre crop is.
        resize_back: enlarge the window to the size of the image.
    """

    op: Literal["crop"] = "crop"
    share: Shares
    place: Literal["drawn", "centre"] = "drawn"
    resize_back: bool = False

    def __call__(self, rgb: RGB, rng: np.random.Generator) -> RGB:
        share = float(rng.uniform(*self.share))
        kept = transforms.crop_share(rgb, share, rng if self.place == "drawn" else None)
        return transforms.resize_to(kept, *rgb.shape[:2]) if self.resize_back else kept


class Web(Config):
    """`steps` random steps of what happens to images on the web (`transforms.web_step`), as in training."""

    op: Literal["web"] = "web"
    steps: int = Field(gt=0, le=100)

    def __call__(self, rgb: RGB, rng: np.random.Generator) -> RGB:
        return transforms.web_chain(rgb, [0.0] * self.steps + [1.0], rng)


class Camera(Config):
    """A camera's pipeline: a Bayer pattern, noise of standard deviation `sigma` at white, interpolation, sharpening."""

    op: Literal["camera"] = "camera"
    sigma: Sigmas

    def __call__(self, rgb: RGB, rng: np.random.Generator) -> RGB:
        return transforms.camera(rgb, float(rng.uniform(*self.sigma)), rng)


class LocalContrast(Config):
    """Local histogram equalisation of the lightness; `limit` is the largest slope (`transforms.local_contrast`)."""

    op: Literal["local contrast"] = "local contrast"
    limit: float = Field(gt=0, le=100)

    def __call__(self, rgb: RGB, rng: np.random.Generator) -> RGB:  # noqa: ARG002
        return transforms.local_contrast(rgb, self.limit)


class Spectrum(Config):
    """Move the high frequencies towards the spectrum of natural images, fully at `strength` 1 (`match_spectrum`)."""

    op: Literal["spectrum"] = "spectrum"
    strength: Share

    def __call__(self, rgb: RGB, rng: np.random.Generator) -> RGB:  # noqa: ARG002
        return transforms.match_spectrum(rgb, self.strength)


Step = Annotated[
    Jpeg | Webp | Blur | Noise | Resize | Square | Crop | Web | Camera | LocalContrast | Spectrum,
    Field(discriminator="op"),
]


class Condition(Config):
    """One way to process every image before it is scored.

    Attributes:
        name: as reports show it, such as "JPEG 50".
        steps: the processing, in this order; no steps leave the image as stored.
        family: the curve of a report to which it belongs, named by its axis, such as "JPEG quality"; "": none.
        strength: its position on that axis.
        applied: probability that an image is processed; otherwise it stays as stored.
        note: a caveat that reports print under the tables.
    """

    name: str = Field(min_length=1)
    steps: tuple[Step, ...] = ()
    family: str = ""
    strength: float = 0.0
    applied: float = Field(1.0, gt=0, le=1)
    note: str = ""


class _ConditionFile(Config):
    conditions: tuple[Condition, ...]


def apply(condition: Condition, rgb: RGB, rng: np.random.Generator) -> RGB:
    """An image under a condition, (H', W', 3) uint8; the input is not changed.

    Args:
        condition: the condition.
        rgb: the image, (H, W, 3) uint8.
        rng: source of everything random. Make a new `seeding.sample_rng(seed, file_sha256)` for every image and
            condition: all detectors then see the same pixels, in any order. Since all conditions of an image start with
            the same draws, the points of a curve differ by their strength and not by chance.
    """
    if condition.applied < 1 and rng.random() >= condition.applied:
        return rgb
    for step in condition.steps:
        rgb = step(rgb, rng)
    return np.ascontiguousarray(rgb)


def load_conditions(name: str | Path) -> tuple[Condition, ...]:
    """The conditions of a preset or of a TOML file; before them "as stored" and "equalised", which every report has.

    Raises `ConfigError` if there is no such preset or file, if the file does not validate, or if two conditions share
    a name or a point of a curve.
    """
    standard = load_packaged(_ConditionFile, "images/conditions", "default").conditions
    if name == "default":
        return standard
    own = load_packaged(_ConditionFile, "images/conditions", name).conditions
    conditions = (*standard, *own)
    for label, keys in (
        ("name", [c.name for c in conditions]),
        ("point", [f"{c.family} {c.strength:g}" for c in conditions if c.family]),
    ):
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise ConfigError(f"conditions {str(name)!r}: the {label} {twice[0]!r} is there twice; each needs its own")
    return conditions
