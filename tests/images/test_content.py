"""What shows nothing to tell from is named; photographs, smooth ones too, are not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from clipmole.config import PreprocessConfig
from clipmole.images.crops import cut_crops


def page(size: int = 16, ink: str = "black", paper: str = "white") -> Image.Image:
    """A page of text."""
    image = Image.new("RGB", (800, 1000), paper)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    for y in range(20, 960, int(1.4 * size)):
        draw.text((30, y), "the quick brown fox jumps over the lazy dog and on " * 3, fill=ink, font=font)
    return image


def drawing() -> Image.Image:
    """A line drawing."""
    image = Image.new("RGB", (900, 900), "white")
    draw = ImageDraw.Draw(image)
    for i in range(1, 12):
        draw.ellipse((30 * i, 20 * i, 880 - 25 * i, 850 - 30 * i), outline="black", width=3)
        draw.line((0, 70 * i, 880, 900 - 80 * i), fill="navy", width=2)
    return image


def photograph(width: int, height: int, grain: float = 3) -> Image.Image:
    """Soft shades, one object with an edge, and the noise of a sensor."""
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(60, 200, (7, 9, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    ImageDraw.Draw(coarse).ellipse((width // 3, height // 3, width // 2, height // 2), fill=(200, 40, 30))
    return Image.fromarray(
        np.clip(np.asarray(coarse) + rng.normal(0, grain, (height, width, 3)), 0, 255).astype(np.uint8)
    )


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def reason(image: Image.Image, size: int = 224) -> str | None:
    return cut_crops(image, PreprocessConfig(crop_size=size)).no_content


@pytest.mark.parametrize("color", ["black", "gray", "white", "#803020"])
@pytest.mark.parametrize("size", [(640, 480), (224, 224), (5000, 4000)])
def test_one_color_shows_nothing(color: str, size: tuple[int, int]) -> None:
    assert reason(Image.new("RGB", size, color)) == "the image shows nothing but even areas"


def test_a_soft_gradient_shows_nothing() -> None:
    gradient = np.repeat(np.linspace(0, 255, 800).astype(np.uint8)[None, :, None], 600, axis=0).repeat(3, axis=2)
    assert reason(Image.fromarray(gradient)) == "the image shows nothing but even areas"


@pytest.mark.parametrize("quality", [None, 95, 75])
@pytest.mark.parametrize(
    "image",
    [page(), page(32), page(14, "white", "black"), page(20, "#333", "#f4ecd8"), drawing()],
    ids=["page", "large", "dark", "cream", "drawing"],
)
def test_text_and_line_art_show_nothing(image: Image.Image, quality: int | None) -> None:
    shown = image if quality is None else as_jpeg(image, quality)
    assert "even areas and sharp edges" in (reason(shown) or "")


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (111, 111), (20, 300), (20, 9000), (9000, 55)])
def test_an_image_far_below_a_crop_shows_too_little(size: tuple[int, int]) -> None:
    assert (reason(photograph(*size)) or "").startswith("the image has only ")


def test_the_smallest_image_that_is_enough() -> None:
    assert reason(photograph(112, 112)) is None
    assert reason(photograph(9000, 56)) is None
    too_small = "the image has only 12,432 pixels to look at in a crop, which takes 224 x 224"
    assert reason(photograph(111, 112)) == too_small


@pytest.mark.parametrize("grain", [0, 1, 6])
@pytest.mark.parametrize("quality", [None, 90, 60])
def test_a_photograph_shows_something(quality: int | None, grain: float) -> None:
    image = photograph(900, 700, grain)
    assert reason(image if quality is None else as_jpeg(image, quality)) is None


def test_an_object_before_an_even_ground_is_something() -> None:
    image = Image.new("RGB", (1024, 1024), "white")
    image.paste(photograph(350, 350), (330, 330))
    assert reason(image) is None


def test_half_a_page_of_text_beside_a_picture_is_something() -> None:
    image = page()
    image.paste(photograph(400, 300), (200, 300))
    assert reason(image) is None


@pytest.mark.parametrize("size", [4, 12, 28, 225])
def test_crops_of_any_size_are_looked_at(size: int) -> None:
    assert reason(Image.new("RGB", (300, 300)), size) == "the image shows nothing but even areas"
    assert reason(photograph(300, 300, 6), size) is None
