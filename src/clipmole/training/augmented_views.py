"""Samples -> augmented views as tensors, made ahead by threads.

In: samples and lists of (index, view). Out: crops (B, 3, S, S) uint8, one batch after the other. A view depends on
the seed, its number and the sample alone, not on workers, batches or processes. It knows nothing of networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipmole.config import TrainConfig
from clipmole.data import load_window
from clipmole.data.sample import Sample
from clipmole.images.transforms import augment
from clipmole.plumbing.prefetch import started_ahead
from clipmole.plumbing.seeding import sample_rng
from clipmole.training.sampling import Item


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

    for futures in started_ahead(batches, start):
        crops = np.stack([future.result() for future in futures]).transpose(0, 3, 1, 2)
        yield torch.from_numpy(np.ascontiguousarray(crops))
