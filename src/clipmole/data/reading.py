"""Samples -> the digests of their files, and which of them cannot be read.

In: samples. Out: one `Look` each. It reads and decodes every image once, in threads, and keeps none of them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import lru_cache
from typing import TypeVar

from PIL import Image

from clipmole.data.sample import Sample
from clipmole.data.samples import IGNORE, sample_bytes
from clipmole.errors import DataError, ImageError
from clipmole.images.loading import load_image, source_name
from clipmole.plumbing.prefetch import ahead
from clipmole.plumbing.progress import Track, untracked
from clipmole.records import Record

T = TypeVar("T")


class Look(Record):
    """The result of reading a sample's file once.

    Attributes:
        sha256: of its bytes, hexadecimal; "" if they cannot be read.
        problem: why it cannot be read; "" if it can.
    """

    sha256: str
    problem: str = ""


def read_checked(sample: Sample) -> tuple[bytes | None, Image.Image | None, str]:
    """A sample's bytes and its decoded image, None where they cannot be read; and why not, "" if nothing is wrong."""
    try:
        data = sample_bytes(sample)
    except DataError as error:
        return None, None, str(error)
    name = source_name(sample.path)
    try:
        image = load_image(data, name=name)
    except ImageError as error:
        return data, None, str(error)
    if sample.ignore_bottom_px >= image.height:
        return data, None, f"{name}: {IGNORE} {sample.ignore_bottom_px} leaves nothing of {image.height} rows"
    return data, image, ""


def look(sample: Sample) -> Look:
    """Read and decode one sample's image."""
    data, _, problem = read_checked(sample)
    return Look(sha256="" if data is None else hashlib.sha256(data).hexdigest(), problem=problem)


def look_once(sample: Sample) -> Look:
    """`look`, once in this process for an unchanged file, because a comparison trains many runs on the same images."""
    try:
        stat = (sample.path if sample.inside is None else sample.inside.file).stat()
    except (OSError, ValueError):  # ValueError: a path that no file can have
        return look(sample)
    return _looked_at(sample, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=2**17)
def _looked_at(sample: Sample, size: int, changed: int) -> Look:  # noqa: ARG001
    return look(sample)


def look_at_all(
    samples: Sequence[Sample],
    looking: Callable[[Sample], T],
    track: Track = untracked,
    description: str = "reading",
    workers: int | None = None,
) -> Iterator[T]:
    """`looking(sample)` of every sample in order, a few ahead in `workers` threads (None: as many as processors)."""
    count = workers or min(16, os.cpu_count() or 1)
    with closing(ahead(looking, track(samples, description, len(samples)), workers=count, limit=2 * count)) as found:
        yield from (each for each in found if each is not None)
