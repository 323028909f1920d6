"""Which images a bootstrap draws, and the interval of an estimate over its draws.

In: the strata that keep their size (the class or the generator of each image), and the groups that are drawn whole.
Out: indices, one vector for each resample; intervals. It knows nothing of what is measured on them.

Images of one scene or prompt are not independent: drawn one by one, they would make an interval too narrow. So whole
groups are drawn, the cluster bootstrap (Davison and Hinkley 1997, section 3.8; Field and Welsh 2007). A resample then
holds as many groups as the data, and about as many images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipmole.errors import ConfigError, DataError
from clipmole.metrics import Metric
from clipmole.plumbing.disjoint_sets import DisjointSets
from clipmole.plumbing.seeding import sample_rng


@dataclass(frozen=True)
class _Stratum:
    """The groups that can replace one another in a draw.

    Attributes:
        members: indices of the images, those of a group side by side.
        starts, sizes: (groups,) where each group begins in `members`, and how many it holds.
        rng: of its draws alone.
    """

    members: NDArray[np.int64]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    rng: np.random.Generator

    def draw(self) -> NDArray[np.int64]:
        """Indices of as many groups as there are, drawn with replacement."""
        drawn = self.rng.integers(len(self.starts), size=len(self.starts))
        sizes = self.sizes[drawn]
        ends = np.cumsum(sizes)
        indices: NDArray[np.int64] = np.arange(ends[-1]) + np.repeat(self.starts[drawn] - (ends - sizes), sizes)
        return self.members.take(indices)


def group_codes(groups: Sequence[str]) -> NDArray[np.int64]:
    """Number (n,) of each image's group, in the order of their appearance; an image of group "" is its own."""
    seen: dict[str | int, int] = {}
    codes = [seen.setdefault(group or i, len(seen)) for i, group in enumerate(groups)]
    return np.array(codes, dtype=np.int64)


def _joined(strata: NDArray[np.int64], codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Strata (n,) in which those that share a group are joined, numbered by the smallest of them."""
    sets, first = DisjointSets(int(strata.max()) + 1), dict[int, int]()
    for stratum, code in zip(strata.tolist(), codes.tolist(), strict=True):
        sets.join(stratum, first.setdefault(code, stratum))
    return np.array([sets.find(stratum) for stratum in range(len(sets.parent))])[strata]


def bootstrap_indices(
    strata: ArrayLike,
    resamples: int,
    seed: int = 0,
    *,
    groups: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> Iterator[NDArray[np.int64]]:
    """`resamples` times indices of images, groups drawn with replacement within each of the strata.

    Args:
        strata: (n,) the images whose number of groups is kept, such as those of a class. Strata that share a group
            are drawn as one, since its images stay together.
        groups: (n,) as in `Sample.group`; None: no two images belong together, and every stratum keeps its size.
        names: (n,) of the images. A stratum's draws depend only on `seed` and these, so two sets with the same
            photographs draw the same ones together; None: they depend on `seed` and the stratum's position.
    """
    if resamples < 1:
        raise ConfigError(f"resamples={resamples}: at least one is needed")
    values = np.unique(np.asarray(strata), return_inverse=True)[1].astype(np.int64)
    n = len(values)
    if any(len(given) != n for given in (groups, names) if given is not None):
        raise DataError(f"resamples: {n} images need as many groups and names")
    parts: list[_Stratum] = []
    if n:
        codes = np.arange(n) if groups is None else group_codes(groups)
        values = values if groups is None else _joined(values, codes)
        for number, value in enumerate(np.unique(values)):
            own = np.flatnonzero(values == value)
            members = own[np.argsort(codes[own], kind="stable")]
            starts = np.flatnonzero(np.diff(codes[members], prepend=-1))
            keys = [names[i] for i in own.tolist()] if names is not None else [number]
            rng = sample_rng(seed, *keys)
            parts.append(_Stratum(members, starts, np.diff(starts, append=len(members)), rng))
    for _ in range(resamples):
        yield np.concatenate([part.draw() for part in parts]) if parts else np.zeros(0, dtype=np.int64)


def percentile_interval(values: Iterable[float], level: float = 0.95) -> tuple[float, float]:
    """The middle share `level` of the values that are not nan; (nan, nan) without any."""
    if not 0 < level < 1:
        raise ConfigError(f"level={level}: a share between 0 and 1, exclusive")
    given = np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=np.float64)
    defined = given[~np.isnan(given)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return low, high


def bootstrap_interval(
    metric: Metric,
    y_true: ArrayLike,
    y_score: ArrayLike,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `metric` (Efron 1979), resampling groups of images within each class.

    Returns (nan, nan) if the metric is nan on every resample. With few groups, or a metric at its limit such as
    an average precision of 1, it is too narrow.

    Args:
        groups: (n,) as `Sample.group`; None: the images are independent.
    """
    y, s = np.asarray(y_true), np.asarray(y_score, dtype=np.float64)
    if y.ndim != 1 or y.shape != s.shape:
        raise DataError(f"metrics: labels {y.shape} and scores {s.shape} must be two vectors of one length")
    draws = bootstrap_indices(y, resamples, seed, groups=groups)
    return percentile_interval((metric(y[i], s[i]) for i in draws), level)
