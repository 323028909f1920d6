"""Samples -> views as tensors, made ahead by threads: random ones for training, fixed ones for validation.

In: samples and lists of (index, view). Out: crops (B, 3, S, S) uint8, one batch after the other. A view depends on
the seed, its number and the sample alone, not on workers, batches or processes. It knows nothing of networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipmole.config import PreprocessConfig, TrainConfig
from clipmole.data import Variant, load_window, windows
from clipmole.data.sample import Sample
from clipmole.images.crops import cut_crops
from clipmole.images.transforms import augment, augment_whole
from clipmole.plumbing.prefetch import started_ahead
from clipmole.plumbing.seeding import sample_rng
from clipmole.training.sampling import Item

MakeView = Callable[[Sequence[Sample], Item, TrainConfig], NDArray[np.uint8]]


def training_view(samples: Sequence[Sample], item: Item, config: TrainConfig) -> NDArray[np.uint8]:
    """One augmented view (S, S, 3) uint8 of one sample."""
    index, number = item
    rng = sample_rng(config.view_seed, "view", number, index)
    make = augment_whole if shows_whole(number, config.whole_share) else augment
    return make(load_window(samples[index]), config.preprocess.crop_size, config.augment, rng)


def shows_whole(number: int, share: float) -> bool:
    """Whether view `number` is of the whole: of any first n views, n * `share` are, rounded."""
    return int((number + 1) * share + 0.5) > int(number * share + 0.5)


def fixed_view(samples: Sequence[Sample], item: Item, config: TrainConfig, variant: Variant) -> NDArray[np.uint8]:
    """View (S, S, 3) uint8 of one sample: 0 is the centre crop, 1 the whole (if the detector looks at it)."""
    index, number = item
    (rgb,) = windows([samples[index]], variant, config.view_seed)
    crop: NDArray[np.uint8] = cut_crops(rgb, centre_and_whole(config)).pixels[number].transpose(1, 2, 0)
    return crop


def centre_and_whole(config: TrainConfig) -> PreprocessConfig:
    """The views of validation: the centre crop, and the whole if the detector looks at it."""
    return config.preprocess.model_copy(update={"mode": "center_crop"})


def views(
    samples: Sequence[Sample],
    batches: Iterable[Sequence[Item]],
    config: TrainConfig,
    pool: ThreadPoolExecutor,
    make: MakeView = training_view,
) -> Iterator[Tensor]:
    """Crops (B, 3, S, S) uint8 of each batch of items, two batches ahead."""

    def start(batch: Sequence[Item]) -> list[Future[NDArray[np.uint8]]]:
        return [pool.submit(make, samples, item, config) for item in batch]

    for futures in started_ahead(batches, start):
        crops = np.stack([future.result() for future in futures]).transpose(0, 3, 1, 2)
        yield torch.from_numpy(np.ascontiguousarray(crops))
