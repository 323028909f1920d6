"""Samples -> the digests of their files, and which of them cannot be read.

In: samples. Out: one `Look` each. It reads and decodes every image once, in threads, and keeps none of them.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from clipmole.data.sample import Sample
from clipmole.data.samples import IGNORE, read_bytes
from clipmole.errors import DataError, ImageError
from clipmole.images.loading import load_image, source_name
from clipmole.plumbing.progress import Track, untracked
from clipmole.records import Record

T = TypeVar("T")


class Look(Record):
    """What one look at a sample's file found.

    Attributes:
        sha256: of its bytes, hexadecimal; "" if there are none to be had.
        problem: why it cannot be read; "" if it can.
    """

    sha256: str
    problem: str = ""


def look(sample: Sample) -> Look:
    """Read and decode one sample's image."""
    try:
        data = read_bytes(sample)
    except DataError as error:
        return Look(sha256="", problem=str(error))
    sha256 = hashlib.sha256(data).hexdigest()
    problem = ""
    try:
        image = load_image(data, name=source_name(sample.path))
        if sample.ignore_bottom_px >= image.height:
            problem = (
                f"{source_name(sample.path)}: {IGNORE} {sample.ignore_bottom_px} leaves nothing of {image.height} rows"
            )
    except ImageError as error:
        problem = str(error)
    return Look(sha256=sha256, problem=problem)


def look_at_all(
    samples: Sequence[Sample],
    looking: Callable[[Sample], T],
    track: Track = untracked,
    description: str = "reading",
    workers: int | None = None,
) -> Iterator[T]:
    """`looking(sample)` of every sample in order, a few ahead in `workers` threads (None: as many as processors)."""
    count = workers or min(16, os.cpu_count() or 1)
    ahead: deque[Future[T]] = deque()
    with ThreadPoolExecutor(count) as pool:
        for sample in track(samples, description, len(samples)):
            ahead.append(pool.submit(looking, sample))
            if len(ahead) > 2 * count:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
