"""Labelled images: a manifest file -> samples, and a sample -> its window.

In: a CSV with the columns path, label, generator, split (and, if there, ignore_bottom_px); others are left
alone. Out: `Sample` records, and their pixels as stored or equalised. It knows nothing of crops, networks or
metrics.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from clipmole.augment import RGB, equalise
from clipmole.errors import ConfigError, DataError
from clipmole.images import load_image
from clipmole.records import Sample

COLUMNS = ("path", "label", "generator", "split")
IGNORE = "ignore_bottom_px"

Variant = Literal["as stored", "equalised"]
VARIANTS: tuple[Variant, ...] = ("as stored", "equalised")
EQUALISE_QUALITY = (65, 90)  # of the corpus protocol: JPEG quality drawn alike for both classes


def read_manifest(path: str | Path) -> list[Sample]:
    """Samples of a CSV manifest (UTF-8), in its order; relative paths are taken from the manifest's folder.

    Raises `DataError` naming the file and the line: unreadable, no rows, a missing column, an empty field, a
    label other than 0 and 1, or a path that stands on two lines, which would count an image twice or show a
    test image in training. Whether the images exist is found out when they are read.
    """
    manifest = Path(path)
    samples: list[Sample] = []
    lines: dict[str, int] = {}
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
            if missing:
                needed = ",".join(COLUMNS)
                raise DataError(f"{manifest}: the first line misses the columns {', '.join(missing)} of {needed}")
            for row in rows:
                sample = _sample(row, manifest, rows.line_num)
                first = lines.setdefault(os.path.normpath(sample.path), rows.line_num)
                if first != rows.line_num:
                    raise DataError(f"{manifest}, line {rows.line_num}: path {row['path']} stands in line {first} too")
                samples.append(sample)
    except OSError as error:
        raise DataError(f"{manifest}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{manifest}: not a CSV file in UTF-8: {error}") from error
    if not samples:
        raise DataError(f"{manifest}: holds no samples")
    return samples


def _sample(row: dict[str, str], manifest: Path, line: int) -> Sample:
    """The sample of one line; the fields of a short line are None, the excess of a long one stands under None."""
    if None in row:
        raise DataError(f"{manifest}, line {line}: more fields than the first line; quote a path that holds a comma")
    fields = {column: row.get(column) or "" for column in (*COLUMNS, IGNORE)}
    fields |= {column: text.strip() for column, text in fields.items() if column != "path"}
    for column in COLUMNS:
        if not fields[column]:
            raise DataError(f"{manifest}, line {line}: {column} is empty")
    if fields["label"] not in ("0", "1"):
        raise DataError(
            f"{manifest}, line {line}: label {fields['label']!r}: must be 1 (AI-generated) or 0 (photograph)"
        )
    try:
        return Sample.model_validate(
            {
                "path": manifest.parent / fields["path"],
                "label": int(fields["label"]),
                "generator": fields["generator"],
                "split": fields["split"],
                IGNORE: fields[IGNORE] or 0,
            }
        )
    except ValidationError as error:
        raise DataError(
            f"{manifest}, line {line}: {IGNORE} {fields[IGNORE]!r}: must be a number of pixels, 0 or more"
        ) from error


def take_split(samples: Sequence[Sample], split: str) -> list[Sample]:
    """The samples of one split, which must hold photographs and generated images."""
    chosen = [sample for sample in samples if sample.split == split]
    ai = sum(sample.label for sample in chosen)
    if not 0 < ai < len(chosen):
        raise DataError(
            f"split {split!r} holds {len(chosen) - ai} photographs (label 0) and {ai} generated images (label 1); "
            f"it needs both. The splits there are: {', '.join(sorted({sample.split for sample in samples}))}"
        )
    return chosen


def load_window(sample: Sample) -> RGB:
    """The sample's pixels (H, W, 3) uint8, without the rows that hold a visible mark.

    Raises `ImageError` if it cannot be read, `DataError` if no row would be left.
    """
    image = load_image(sample.path)
    height = image.height - sample.ignore_bottom_px
    if height < 1:
        raise DataError(f"{sample.path}: {IGNORE} {sample.ignore_bottom_px} leaves nothing of {image.height} rows")
    return np.asarray(image)[:height]


def sample_rng(seed: int, *keys: int | str) -> np.random.Generator:
    """A generator that depends on `seed` (0 or more) and `keys` alone, not on order, workers or earlier draws."""
    text = "\0".join(map(str, keys))
    words = np.frombuffer(hashlib.sha256(text.encode()).digest(), dtype="<u4")
    return np.random.default_rng([seed, *words.tolist()])


def labels_of(samples: Iterable[Sample]) -> NDArray[np.int64]:
    """Labels (n,), 1 = AI-generated."""
    return np.array([sample.label for sample in samples], dtype=np.int64)


def file_sha256(sample: Sample) -> str:
    """sha256 of the sample's file, hexadecimal. Raises `DataError` if it cannot be read."""
    try:
        with sample.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{sample.path}: cannot be read: {error.strerror}") from error


def data_digest(samples: Iterable[Sample]) -> str:
    """sha256 over each sample's file content, label, generator, split and ignored rows, whatever order and place."""
    lines = [f"{file_sha256(s)} {s.label} {s.generator} {s.split} {s.ignore_bottom_px}" for s in samples]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def windows(samples: Iterable[Sample], variant: Variant, seed: int = 0) -> Iterator[RGB]:
    """The samples' pixels, one after the other, as stored or re-encoded by one policy for both classes.

    The JPEG quality of a sample depends on `seed` and its file's content alone. So every detector that is
    compared sees the same pixels, wherever the files lie, and names that differ between the classes (all
    photographs `photo.jpg`, all generated images `output.png`) do not become qualities that do.
    """
    if variant not in VARIANTS:
        raise ConfigError(f"variant {variant!r}: must be one of {', '.join(VARIANTS)}")
    for sample in samples:
        rgb = load_window(sample)
        if variant == "equalised":
            rgb = equalise(rgb, EQUALISE_QUALITY, sample_rng(seed, file_sha256(sample)))
        yield rgb
