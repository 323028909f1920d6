"""Samples -> augmented views as tensors, made ahead by threads.

In: samples and lists of (index, view). Out: crops (B, 3, S, S) uint8, one batch after the other. A view depends on
the seed, its number and the sample alone, not on workers, batches or processes. It knows nothing of networks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipmole.augment import augment
from clipmole.config import TrainConfig
from clipmole.data import load_window, sample_rng
from clipmole.records import Sample
from clipmole.sampling import Item

T = TypeVar("T")
R = TypeVar("R")


def view(samples: Sequence[Sample], item: Item, config: TrainConfig) -> NDArray[np.uint8]:
    """One augmented view (S, S, 3) uint8 of one sample."""
    index, number = item
    rng = sample_rng(config.seed, "view", number, index)
    return augment(load_window(samples[index]), config.preprocess.crop_size, config.augment, rng)


def views(
    samples: Sequence[Sample], batches: Iterable[Sequence[Item]], config: TrainConfig, pool: ThreadPoolExecutor
) -> Iterator[Tensor]:
    """Crops (B, 3, S, S) uint8 of each batch of items, two batches ahead."""

    def start(batch: Sequence[Item]) -> list[Future[NDArray[np.uint8]]]:
        return [pool.submit(view, samples, item, config) for item in batch]

    for futures in ahead(batches, start):
        crops = np.stack([future.result() for future in futures]).transpose(0, 3, 1, 2)
        yield torch.from_numpy(np.ascontiguousarray(crops))


def ahead(batches: Iterable[T], start: Callable[[T], R], count: int = 2) -> Iterator[R]:
    """`start` of each batch in order, called for `count` more of them before one is given out."""
    started: deque[R] = deque()
    for batch in batches:
        started.append(start(batch))
        if len(started) > count:
            yield started.popleft()
    yield from started
