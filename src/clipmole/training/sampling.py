"""Which images an epoch shows, in which views and which order, and which process computes which of them.

In: samples, a configuration, an epoch, a seed. Out: lists of (index of the sample, number of its view). Nothing here
depends on earlier epochs or on the number of processes, so an epoch can be resumed at any step. It knows nothing of
pixels or networks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipmole.config import TrainConfig
from clipmole.data.sample import Sample
from clipmole.errors import ConfigError
from clipmole.plumbing.seeding import sample_rng

Item = tuple[int, int]  # index of the sample, number of its view
POWERS = {"classes": 1.0, "sqrt": 0.5, "generators": 0.0}


@dataclass(frozen=True)
class MicroBatch:
    """The images that one process computes at once.

    Attributes:
        items: images and views.
        weights: 1 for each image, or 0 for one that only pads the part.
        images: images of this part over all processes.
        step_images: images of the whole step.
        last: whether the optimiser steps after this part.
    """

    items: tuple[Item, ...]
    weights: tuple[float, ...]
    images: int
    step_images: int
    last: bool


def epoch_items(samples: Sequence[Sample], epoch: int, config: TrainConfig) -> list[Item]:
    """What epoch `epoch` shows, in order: as many items as there are samples, `epoch_passes` times.

    Epoch e shows view e of an image, with `cached_views` view e modulo their number. An image that an epoch shows again
    is shown in another view.
    """
    rng = sample_rng(config.seed, "order", epoch)
    order: list[int] = []
    for _ in range(epoch_passes(len(samples), config)):
        if config.sampling == "every":
            order += rng.permutation(len(samples)).tolist()
        else:
            chosen = balanced(samples, POWERS[config.sampling], rng)
            order += [chosen[i] for i in rng.permutation(len(chosen))]
    shown: Counter[int] = Counter()
    items = []
    for index in order:
        again = shown[index]
        shown[index] += 1
        view = (epoch + again) % config.cached_views if config.cached_views else epoch + again * config.epochs
        items.append((index, view))
    return items


def stratum(sample: Sample) -> str:
    """The stratum of a sample within its class: its generator, or for a photograph its source, if known."""
    return sample.generator if sample.label else sample.source or sample.generator


def balanced(samples: Sequence[Sample], power: float, rng: np.random.Generator) -> list[int]:
    """Indices, as many as there are samples, half of each class.

    Within a class, a stratum of n images (see `stratum`) gets a share in proportion to n ** power: 1 leaves the shares
    unchanged, 0 makes them equal. The images of a stratum are shown equally often; where the numbers do not divide
    evenly, the extra ones are drawn.
    """
    strata: dict[int, dict[str, list[int]]] = {0: {}, 1: {}}
    for index, sample in enumerate(samples):
        strata[sample.label].setdefault(stratum(sample), []).append(index)
    chosen: list[int] = []
    for label, share in ((0, len(samples) // 2), (1, len(samples) - len(samples) // 2)):
        weights = np.array([len(own) ** power for own in strata[label].values()])
        for own, count in zip(strata[label].values(), apportion(share, weights), strict=True):
            chosen += own * (count // len(own))
            chosen += rng.permutation(own)[: count % len(own)].tolist()
    return chosen


def apportion(total: int, weights: np.ndarray) -> list[int]:
    """Integers that sum to `total`, closest to its division in proportion to `weights` (largest remainders)."""
    exact = total * weights / weights.sum()
    counts = np.floor(exact).astype(int)
    for i in np.argsort(counts - exact, kind="stable")[: total - counts.sum()]:
        counts[i] += 1
    return [int(count) for count in counts]


def check_batch(config: TrainConfig, processes: int) -> None:
    """Raise `ConfigError` unless a batch can be divided over processes and parts."""
    if config.batch_size % (processes * config.accumulation):
        raise ConfigError(
            f"batch_size={config.batch_size}: must be a multiple of {processes} processes x "
            f"accumulation={config.accumulation}; it counts the images of a step over all of them"
        )


def epoch_passes(images: int, config: TrainConfig) -> int:
    """How many times an epoch goes over the images: once, or until it has `min_steps_per_epoch`."""
    least = config.min_steps_per_epoch or 1
    return (least - 1) * config.batch_size // images + 1


def steps_in_epoch(images: int, config: TrainConfig) -> int:
    """Optimiser steps of an epoch."""
    return math.ceil(images * epoch_passes(images, config) / config.batch_size)


def micro_batches(items: Sequence[Item], config: TrainConfig, rank: int, processes: int) -> list[MicroBatch]:
    """The share of process `rank` in one step's items, part by part.

    All processes get parts of the same size, padded with images of weight 0 if the last ones do not divide evenly.
    """
    at_once = config.batch_size // config.accumulation
    parts = []
    for start in range(0, len(items), at_once):
        chunk = list(items[start : start + at_once])
        size = math.ceil(len(chunk) / processes)
        weights = [1.0] * len(chunk) + [0.0] * (size * processes - len(chunk))
        filled = chunk + [chunk[0]] * (size * processes - len(chunk))
        own = slice(rank * size, (rank + 1) * size)
        last = start + at_once >= len(items)
        parts.append(MicroBatch(tuple(filled[own]), tuple(weights[own]), len(chunk), len(items), last))
    return parts
