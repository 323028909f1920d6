"""Seeded draws: splits for a source that has none, and a few samples of each class of a layout.

In: samples and a seed. Out: samples. A draw depends on the seed, names and contents, never on the order in which a
folder lists its files. It opens no image.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from clipmole.data.sample import Sample
from clipmole.errors import DataError, MissingDependency
from clipmole.plumbing.disjoint_sets import DisjointSets

FOLDS = 10  # of which val takes one, calibration one to three, and train the others
CALIBRATED = 20  # images of each class that calibration takes if they are in three folds: 19 bound a share of 5 %


def draw_splits(samples: Sequence[Sample], digests: Mapping[Sample, str], seed: int) -> list[Sample]:
    """The samples with one split each: eight tenths train, one val, one calibration, in the same order.

    If a tenth of a class has fewer than `CALIBRATED` images, calibration takes two or three tenths if that is enough:
    with too few, no verdict can be given. Groups stay whole, and so do files of the same content; classes and
    generators are spread evenly over the splits as far as groups allow. By scikit-learn's `StratifiedGroupKFold` on the
    samples in the order of their digests.

    Args:
        digests: sha256 of each sample's file.

    Raises `DataError` if there are fewer than ten groups of a class.
    """
    try:
        from sklearn.model_selection import StratifiedGroupKFold
    except ImportError as error:
        raise MissingDependency("scikit-learn", "train") from error
    group_of = whole_groups(samples, [digests[sample] for sample in samples])
    for label, kind in ((0, "photographs"), (1, "generated images")):
        count = len({group for group, sample in zip(group_of, samples, strict=True) if sample.label == label})
        if count < FOLDS:
            raise DataError(
                f"{count} {kind} that are independent of one another: at least {FOLDS} are needed to draw the splits "
                "train, val and calibration; add some, or give the splits yourself"
            )
    order = sorted(range(len(samples)), key=lambda i: (digests[samples[i]], samples[i].path.as_posix()))
    strata = np.unique([f"{samples[i].label} {samples[i].generator}" for i in order], return_inverse=True)[1]
    numbers: dict[int, int] = {}  # in the order of the digests, whatever the order of the samples
    groups = np.array([numbers.setdefault(group_of[i], len(numbers)) for i in order])
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    smallest = min(sum(sample.label == label for sample in samples) for label in (0, 1))
    enough = (tenths for tenths in (1, 2, 3) if smallest * tenths >= CALIBRATED * FOLDS)
    names = ["val", *["calibration"] * next(enough, 1)]
    split = ["train"] * len(samples)
    with warnings.catch_warnings():  # of generators with fewer than ten images
        warnings.simplefilter("ignore", UserWarning)
        for name, (_, chosen) in zip(names, folds.split(strata, strata, groups), strict=False):
            for i in chosen.tolist():
                split[order[i]] = name
    return [sample.model_copy(update={"split": name}) for sample, name in zip(samples, split, strict=True)]


def whole_groups(samples: Sequence[Sample], digests: Sequence[str]) -> list[int]:
    """A number (n,) for each sample, the same for samples that share a group or a file's content, directly or not."""
    groups = DisjointSets(len(samples))
    first: dict[tuple[str, str], int] = {}
    for i, (sample, sha) in enumerate(zip(samples, digests, strict=True)):
        for key in (("group", sample.group), ("sha256", sha)):
            if key[1]:
                groups.join(i, first.setdefault(key, i))
    return [groups.find(i) for i in range(len(samples))]


def draw_per_class(samples: Sequence[Sample], per_class: int, seed: int) -> list[Sample]:
    """`per_class` samples of each category, half of them photographs, half generated, in the order of `samples`.

    The categories are the class folders of the layout; a source without any is one category. So 100 of CNNSpot's 20
    object classes are 2,000 images, 0.28 % of its 720,119 (MoLE, arXiv 2404.04883). If `per_class` is odd, there is one
    more generated image than photographs. Which ones are drawn depends on the seed, category and name alone: a larger
    number keeps what a smaller one took.

    Raises `DataError` if a category has too few of a class.
    """
    pools: dict[tuple[str, int], list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        pools[sample.category, sample.label].append(i)
    wanted = {0: per_class // 2, 1: per_class - per_class // 2}

    def rank(i: int) -> tuple[bytes, str]:
        sample = samples[i]
        key = f"{seed}\0{sample.category}\0{sample.label}\0{sample.path.name}"
        return hashlib.sha256(key.encode(errors="surrogateescape")).digest(), sample.path.as_posix()

    chosen: set[int] = set()
    for category in sorted({category for category, _ in pools}):
        for label, kind in ((0, "photographs"), (1, "generated images")):
            pool = pools[category, label]
            if len(pool) < wanted[label]:
                raise DataError(
                    f"per_class = {per_class}: {wanted[label]} {kind} are needed of each class, and "
                    f"{category or 'the training split'} has {len(pool)}; lower per_class, or leave it out to take all"
                )
            chosen.update(sorted(pool, key=rank)[: wanted[label]])
    return [samples[i] for i in sorted(chosen)]


def class_counts(samples: Sequence[Sample]) -> dict[str, int]:
    """Category -> how many samples, sorted by name."""
    return dict(sorted(Counter(sample.category for sample in samples).items()))
