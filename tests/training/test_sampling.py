"""What an epoch shows, and how it is divided."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from clipmole.config import TrainConfig
from clipmole.data.sample import Sample
from clipmole.errors import ConfigError
from clipmole.training.sampling import apportion, check_batch, epoch_items, micro_batches, steps_in_epoch

COUNTS = {("camera", "a"): 10, ("camera", "b"): 90, ("gan", ""): 16, ("diffusion", ""): 64, ("dalle", ""): 4}
SAMPLES = [
    Sample(path=Path(f"{g}{s}{i}"), label=0 if g == "camera" else 1, generator=g, split="train", source=s)
    for (g, s), count in COUNTS.items()
    for i in range(count)
]


def config(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"backbone": "given", "batch_size": 12, **changes})


def shown(sampling: str, epoch: int = 0) -> tuple[Counter[str], Counter[int]]:
    items = epoch_items(SAMPLES, epoch, config(sampling=sampling))
    chosen = [SAMPLES[index] for index, _ in items]
    assert len(items) == len(SAMPLES) == 184
    return Counter(s.source or s.generator for s in chosen), Counter(index for index, _ in items)


def test_every_image_is_shown_once_an_epoch_unless_told_otherwise() -> None:
    assert set(shown("every")[1].values()) == {1}
    orders = [epoch_items(SAMPLES, epoch, config()) for epoch in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert [index for index, _ in orders[0]] != [index for index, _ in orders[2]]
    assert {view for _, view in orders[2]} == {1}


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ("classes", {"a": 9, "b": 83, "gan": 18, "diffusion": 70, "dalle": 4}),  # 92 * n / 100, 92 * n / 84
        ("sqrt", {"a": 23, "b": 69, "gan": 26, "diffusion": 53, "dalle": 13}),  # roots 3.16 : 9.49, 4 : 8 : 2
        ("generators", {"a": 46, "b": 46, "gan": 31, "diffusion": 31, "dalle": 30}),
    ],
)
def test_balanced_epochs_show_the_shares_they_say(sampling: str, expected: dict[str, int]) -> None:
    by_stratum, by_image = shown(sampling)
    assert by_stratum == expected
    for name, count in expected.items():  # a stratum's images are shown equally often, but for the rest
        own = [by_image[i] for i, s in enumerate(SAMPLES) if (s.source or s.generator) == name]
        assert max(own) - min(own) <= 1
        assert max(own) == -(-count // len(own))


def test_an_image_that_is_shown_again_is_shown_in_another_view() -> None:
    for cached in (None, 8):
        items = epoch_items(SAMPLES, 3, config(sampling="generators", cached_views=cached))
        assert max(Counter(index for index, _ in items).values()) == 8  # 30 of 4 images
        assert len(set(items)) == len(items)


def test_apportioning_sums_up_and_is_within_one_of_the_exact_share() -> None:
    for total, weights in ((10, [1, 1, 1]), (7, [5, 3, 1]), (100, [0.5, 20, 3])):
        counts = apportion(total, np.array(weights, dtype=float))
        assert sum(counts) == total
        assert all(abs(c - total * w / sum(weights)) < 1 for c, w in zip(counts, weights, strict=True))


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 1), (2, 1), (1, 3), (2, 3), (4, 1)])
@pytest.mark.parametrize("images", [12, 11, 5, 1])
def test_the_parts_of_all_processes_are_the_step(processes: int, accumulation: int, images: int) -> None:
    settings = config(accumulation=accumulation)
    items = [(i, 0) for i in range(images)]
    every = [micro_batches(items, settings, rank, processes) for rank in range(processes)]
    counted = [i for parts in every for part in parts for i, w in zip(part.items, part.weights, strict=True) if w]
    assert sorted(counted) == items
    for parts in zip(*every, strict=True):
        assert len({len(part.items) for part in parts}) == 1  # all processes take part in every pass
        assert sum(sum(part.weights) for part in parts) == parts[0].images
    assert [part.last for part in every[0]] == [False] * (len(every[0]) - 1) + [True]


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    check_batch(config(accumulation=3), 4)
    with pytest.raises(ConfigError, match="batch_size=12: must be a multiple of 5 processes x accumulation=1"):
        check_batch(config(), 5)


@pytest.mark.parametrize("sampling", ["every", "classes"])
def test_few_images_are_shown_several_times_an_epoch_in_other_views(sampling: str) -> None:
    """184 images in batches of 12 are 16 steps; 40 steps take three passes."""
    settings = config(sampling=sampling, min_steps_per_epoch=40)
    items = epoch_items(SAMPLES, 1, settings)
    assert len(items) == 3 * 184
    assert steps_in_epoch(184, settings) == 46
    assert len(set(items)) == len(items)  # never one view twice
    if sampling == "every":
        assert set(Counter(index for index, _ in items).values()) == {3}
        assert len({index for index, _ in items[:184]}) == 184
    assert epoch_items(SAMPLES, 1, config(sampling=sampling, min_steps_per_epoch=16)) == epoch_items(
        SAMPLES, 1, config(sampling=sampling)
    )
    assert steps_in_epoch(184, config()) == 16
