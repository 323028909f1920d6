"""Views of listed images for training: native crops and small views of the whole, processed as the web processes them.

Both classes go through the same draws. Every view depends on the image's sha256, the round and the seed alone.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmole.images.loading import load_pixels
from clipmole.images.transforms import jpeg, pad_to, shrink, web_chain
from clipmole.plumbing.seeding import sample_rng

RGB = NDArray[np.uint8]
SIZE = 224  # pixels, the tower's input
MARGIN = 16  # pixels around a crop while it is processed, so that its place moves against the grid of an earlier JPEG
SEED = 7
FILTERS = (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.BILINEAR)
STEPS = (0.3, 0.35, 0.2, 0.15)  # probability of 0, 1, 2, 3 steps of what happens on the web
LAST_JPEG = 0.85  # share of the views that end as a JPEG of quality 65 to 95


@dataclass(frozen=True)
class Listed:
    """An image of a list: its file, and what the list says of it."""

    path: Path
    sha256: str
    label: int
    generator: str
    source: str
    split: str
    kind: str
    group: str
    repository: str
    ignore_bottom: int

    @property
    def stratum(self) -> str:
        """What is drawn alike in training: a generator at one source, or a source of photographs."""
        return f"{self.generator if self.label else ''}|{self.source}"


def read_list(path: Path, images: Path) -> list[Listed]:
    """Images of an `originals.csv`, or of the outside list; files are `images`/<sha256>.<the ending of their path>."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Listed(
                images / f"{row['sha256']}{Path(row['path']).suffix.lower() or '.jpg'}",
                row["sha256"],
                int(row["label"]),
                row["generator"],
                row["source"],
                row.get("split", "outside"),
                row.get("kind") or kind_of(row.get("note", "")),
                row.get("group", ""),
                row["repository"],
                int(row.get("ignore_bottom_px") or 0),
            )
            for row in csv.DictReader(file)
        ]


def kind_of(note: str) -> str:
    """What the outside list's note says of a generated image: "photo", "drawn"; "" of a photograph."""
    kinds = {"photograph-like": "photo", "drawn or rendered": "drawn"}
    return next((kind for words, kind in kinds.items() if note.startswith(words)), "")


def pixels(image: Listed) -> RGB:
    """The upright image (H, W, 3) without a generator's mark at its lower edge."""
    rgb = np.asarray(load_pixels(image.path))
    return np.ascontiguousarray(rgb[: rgb.shape[0] - image.ignore_bottom])


def native(rgb: RGB, rng: np.random.Generator) -> RGB:
    """A crop (SIZE, SIZE, 3); half of them from an image that was first resized by 0.3 to 1.3."""
    side, scale = SIZE + MARGIN, 1.0
    if rng.random() < 0.5:
        scale = float(np.exp(rng.uniform(np.log(0.3), np.log(1.3))))
    wanted = min(max(round(side / scale), 64), max(side, min(rgb.shape[:2])))
    high, wide = min(wanted, rgb.shape[0]), min(wanted, rgb.shape[1])
    grid = 8 if rng.random() < 0.5 else 1
    top = int(rng.integers((rgb.shape[0] - high) // grid + 1)) * grid
    left = int(rng.integers((rgb.shape[1] - wide) // grid + 1)) * grid
    crop = np.ascontiguousarray(pad_to(rgb[top : top + high, left : left + wide], wanted))
    if wanted != side:
        if rng.random() < 0.6:
            crop = cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA if wanted > side else cv2.INTER_CUBIC)
        else:
            crop = np.asarray(Image.fromarray(crop).resize((side, side), FILTERS[int(rng.integers(3))]))
    crop = web_chain(crop, STEPS, rng)
    top, left = rng.integers(MARGIN + 1, size=2)
    crop = crop[top : top + SIZE, left : left + SIZE]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    crop = np.ascontiguousarray(crop)
    return jpeg(crop, int(rng.integers(65, 96))) if rng.random() < LAST_JPEG else crop


def whole(rgb: RGB, rng: np.random.Generator) -> RGB:
    """A square of 0.7 to 1 of the shorter side, at 256 to 900 pixels when it is processed, then SIZE x SIZE."""
    side = int(min(rgb.shape[:2]) * rng.uniform(0.7, 1))
    top, left = int(rng.integers(rgb.shape[0] - side + 1)), int(rng.integers(rgb.shape[1] - side + 1))
    square = np.ascontiguousarray(rgb[top : top + side, left : left + side])
    shown = int(rng.integers(256, 900))
    if shown < side:
        resample = (*FILTERS, Image.Resampling.BOX)[int(rng.integers(4))]
        square = np.asarray(Image.fromarray(square).resize((shown, shown), resample, reducing_gap=2.0))
    square = web_chain(square, STEPS, rng)
    if rng.random() < LAST_JPEG:
        square = jpeg(square, int(rng.integers(65, 96)))
    if rng.random() < 0.5:
        square = square[:, ::-1]
    return shrink(square, SIZE)


KINDS = {"native": native, "whole": whole}


def view(image: Listed, name: str, number: int, kind: str) -> RGB:
    """View (SIZE, SIZE, 3) number `number` of an image of the set `name`."""
    return KINDS[kind](pixels(image), sample_rng(SEED, name, number, image.sha256))
