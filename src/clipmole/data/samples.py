"""A labelled sample -> its bytes and its pixels under a condition; draws and digests that depend on content alone.

In: `Sample` records, whose images are files or lie inside shards and tables. Out: windows, labels, digests, parts of
a list of samples. It knows nothing of how data sets are laid out, of crops, networks or metrics.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmole.data.containers.huggingface import arrow_bytes
from clipmole.data.sample import ArrowRow, Sample
from clipmole.errors import ConfigError, DataError, ImageError
from clipmole.images.conditions import Condition, apply, load_conditions
from clipmole.images.loading import DEFAULT_LIMITS, load_image, source_name
from clipmole.images.transforms import RGB
from clipmole.plumbing.json_toml import NotReadable, read_regular_file
from clipmole.plumbing.seeding import sample_rng

Variant = Literal["as stored", "equalised"]
VARIANTS: tuple[Variant, ...] = ("as stored", "equalised")

CAMERA = "camera"  # generator of photographs
UNNAMED = "unnamed"  # generator of generated images whose source names none
IGNORE = "ignore_bottom_px"


def take_split(samples: Sequence[Sample], split: str) -> list[Sample]:
    """The samples of one split, which must hold photographs and generated images."""
    chosen = [sample for sample in samples if sample.split == split]
    n_generated = sum(sample.label for sample in chosen)
    if not 0 < n_generated < len(chosen):
        raise DataError(
            f"split {split!r} holds {len(chosen) - n_generated} photographs (label 0) and {n_generated} generated "
            "images (label 1); it needs both. The splits there are: "
            f"{', '.join(sorted({sample.split for sample in samples}))}"
        )
    return chosen


def source_hash(source: str) -> str:
    """The name of a source in a training record: the first twelve hexadecimal digits of its name's sha256."""
    return hashlib.sha256(source.encode(errors="surrogateescape")).hexdigest()[:12]


def draw_order(sample: Sample, seed: int) -> tuple[bytes, str]:
    """A key that sorts samples into the order of a draw; it depends on the seed and the file's name only, and on its
    folder if names are the same."""
    name = f"{seed}\0{sample.path.name}".encode(errors="surrogateescape")
    return hashlib.sha256(name).digest(), sample.path.as_posix()


def limit_samples(samples: Sequence[Sample], limit: int | None, seed: int = 0) -> list[Sample]:
    """At most `limit` samples of each class and generator, in the order of `samples`; None: all.

    Which ones depends on `seed` and the files' names alone, not on their order or on the other files: those whose
    seeded hash of the name is smallest. So a larger limit keeps what a smaller one took.
    """
    if limit is None:
        return list(samples)

    taken: Counter[tuple[int, str]] = Counter()
    chosen = set()
    for sample in sorted(samples, key=lambda each: draw_order(each, seed)):
        taken[sample.label, sample.generator] += 1
        if taken[sample.label, sample.generator] <= limit:
            chosen.add(sample.path)
    return [sample for sample in samples if sample.path in chosen]


def sample_bytes(sample: Sample) -> bytes:
    """The stored bytes of the sample's image, wherever they lie. Raises `DataError`."""
    inside = sample.inside
    try:
        if isinstance(inside, ArrowRow):
            return arrow_bytes(inside.file, inside.column, inside.row)
        if inside is None:
            return read_regular_file(sample.path, DEFAULT_LIMITS.max_bytes)
        with inside.file.open("rb") as opened:
            opened.seek(inside.offset)
            data = opened.read(inside.size)
    except (ImageError, NotReadable) as error:
        raise DataError(f"{source_name(sample.path)}: {error}") from error
    except OSError as error:
        raise DataError(f"{source_name(sample.path)}: cannot be read: {error.strerror}") from error
    if len(data) < inside.size:
        raise DataError(f"{source_name(sample.path)}: {inside.file} ends before it; fetch that file again")
    return data


def load_sample(sample: Sample) -> Image.Image:
    """The sample's whole image, upright RGB. Raises `ImageError` if it cannot be read, `DataError` of its container."""
    if sample.inside is None:
        return load_image(sample.path)
    return load_image(sample_bytes(sample), name=source_name(sample.path))


def load_window(sample: Sample) -> RGB:
    """The sample's pixels (H, W, 3) uint8, without the rows that hold a visible mark.

    Raises `ImageError` if it cannot be read, `DataError` if no row would be left.
    """
    image = load_sample(sample)
    height = image.height - sample.ignore_bottom_px
    if height < 1:
        raise DataError(
            f"{source_name(sample.path)}: {IGNORE} {sample.ignore_bottom_px} leaves nothing of {image.height} rows"
        )
    return np.asarray(image)[:height]


def labels_of(samples: Iterable[Sample]) -> NDArray[np.int64]:
    """Labels (n,), 1 = AI-generated."""
    return np.array([sample.label for sample in samples], dtype=np.int64)


def file_sha256(sample: Sample) -> str:
    """sha256 of the sample's file, hexadecimal. Raises `DataError` if it cannot be read."""
    return hashlib.sha256(sample_bytes(sample)).hexdigest()


def sample_lines(samples: Iterable[Sample], digests: Iterable[str] | None = None) -> list[str]:
    """One line per sample, in their order: sha256 of its file's content, label, generator, split and ignored rows.

    `digests` are the files' sha256 in the order of `samples`, where they are known already.
    """
    chosen = list(samples)
    known = map(file_sha256, chosen) if digests is None else digests
    return [
        f"{sha} {s.label} {s.generator} {s.split} {s.ignore_bottom_px}" for sha, s in zip(known, chosen, strict=True)
    ]


def data_digest(samples: Iterable[Sample]) -> str:
    """sha256 over the samples' `sample_lines`, whatever their order and wherever the files lie."""
    return lines_digest(sample_lines(samples))


def lines_digest(lines: Iterable[str]) -> str:
    """`data_digest` of samples by their `sample_lines`."""
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def windows(samples: Iterable[Sample], condition: Condition | Variant, seed: int = 0) -> Iterator[RGB]:
    """The samples' pixels under a condition, or under a standard one by its name, one after the other.

    A condition's draws for a sample depend only on `seed` and the file's content. So all detectors see the same pixels,
    wherever the files lie, and file names that differ between the classes (all photographs `photo.jpg`, all generated
    images `output.png`) do not lead to qualities that differ.
    """
    if not isinstance(condition, Condition):
        standard = {each.name: each for each in load_conditions("default")}
        if condition not in standard:
            raise ConfigError(f"condition {condition!r}: must be one of {', '.join(standard)}")
        condition = standard[condition]
    for sample in samples:
        rgb = load_window(sample)
        yield apply(condition, rgb, sample_rng(seed, file_sha256(sample))) if condition.steps else rgb
