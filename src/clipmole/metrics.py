"""Figures from labels and scores: pure functions `(y_true, y_score) -> float`, and their bootstrap intervals.

`y_true` (n,) holds 1 for AI-generated and 0 for photographs; `y_score` (n,) rises with the belief that an
image is AI-generated: logits or probabilities for ranking figures, probabilities where it is said. A figure
that is not defined (one class only, nothing at all) is nan, never 0 or 1. Raises `DataError` for any other
label, for a score that is not finite, and for vectors of different lengths.

Ranking figures are written out here because a bootstrap calls them tens of thousands of times, of which
scikit-learn's checks would be most; the tests hold them to its values. It knows nothing of images or detectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipmole.errors import ConfigError, DataError

Metric = Callable[[NDArray[np.int64], NDArray[np.float64]], float]


def _arrays(y_true: ArrayLike, y_score: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    y, s = np.asarray(y_true), np.asarray(y_score, dtype=np.float64)
    if y.ndim != 1 or y.shape != s.shape:
        raise DataError(f"metrics: labels {y.shape} and scores {s.shape} must be two vectors of one length")
    if not np.all((y == 0) | (y == 1)):
        raise DataError("metrics: labels are 1 (AI-generated) and 0 (photograph)")
    if not np.isfinite(s).all():
        raise DataError("metrics: a score is not finite")
    return y.astype(np.int64, copy=False), s


def _counts(y: NDArray[np.int64], s: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Generated images and photographs that score at least as high as each distinct score, highest first."""
    order = np.argsort(s)[::-1]
    falling = s[order]
    ends = np.append(np.flatnonzero(falling[1:] != falling[:-1]), len(s) - 1)  # the last image of each tie
    generated = np.cumsum(y[order])[ends]
    return generated, ends + 1 - generated


def average_precision(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Area under the precision-recall steps, sum_k (R_k - R_{k-1}) P_k over the distinct scores, highest first.

    As scikit-learn's `average_precision_score`, with generated images as the positive class; nan without both.
    """
    y, s = _arrays(y_true, y_score)
    if not 0 < y.sum() < len(y):
        return float("nan")
    generated, real = _counts(y, s)
    return float(np.sum(np.diff(generated, prepend=0) * (generated / (generated + real))) / generated[-1])


def auroc(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Probability that a generated image scores higher than a photograph, ties counting half; nan without both."""
    y, s = _arrays(y_true, y_score)
    if not 0 < y.sum() < len(y):
        return float("nan")
    generated, real = _counts(y, s)
    twice = np.diff(real, prepend=0) * (2 * generated - np.diff(generated, prepend=0))
    return float(twice.sum() / (2 * generated[-1] * real[-1]))


def class_accuracy(y_true: ArrayLike, y_score: ArrayLike, label: int, threshold: float) -> float:
    """Share of the images of `label` on the right side of `threshold` (generated: above; real: not above)."""
    y, s = _arrays(y_true, y_score)
    if label not in (0, 1):
        raise DataError(f"metrics: label={label}: labels are 1 (AI-generated) and 0 (photograph)")
    own = s[y == label] > threshold
    return float((own == bool(label)).mean()) if len(own) else float("nan")


def accuracy(y_true: ArrayLike, y_score: ArrayLike, threshold: float) -> float:
    """Share of images on the right side of `threshold`."""
    y, s = _arrays(y_true, y_score)
    return float(((s > threshold) == (y == 1)).mean()) if len(y) else float("nan")


def balanced_accuracy(y_true: ArrayLike, y_score: ArrayLike, threshold: float) -> float:
    """Mean of the two classes' accuracies."""
    return (class_accuracy(y_true, y_score, 0, threshold) + class_accuracy(y_true, y_score, 1, threshold)) / 2


def expected_calibration_error(y_true: ArrayLike, probability: ArrayLike, bins: int = 10) -> float:
    """sum_b n_b / n |mean probability - share generated| over equally wide bins (Guo et al., arXiv 1706.04599).

    The two-class form: of the probability of being AI-generated, not of the more probable class. Bin b holds
    b / bins <= p < (b + 1) / bins, the last one also p = 1.
    """
    y, p = _arrays(y_true, probability)
    if bins < 1:
        raise ConfigError(f"bins={bins}: at least one is needed")
    if not len(y):
        return float("nan")
    if p.min() < 0 or p.max() > 1:
        raise DataError("metrics: the calibration error needs probabilities in [0, 1]")
    index = np.minimum((p * bins).astype(np.int64), bins - 1)
    return float(np.abs(np.bincount(index, weights=p - y)).sum() / len(y))


def resample_within(strata: ArrayLike, resamples: int, seed: int = 0) -> Iterator[NDArray[np.int64]]:
    """`resamples` times indices (n,), drawn with replacement so that each of the strata (n,) keeps its size."""
    if resamples < 1:
        raise ConfigError(f"resamples={resamples}: at least one is needed")
    values = np.asarray(strata)
    own = [np.flatnonzero(values == stratum) for stratum in np.unique(values)]
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        drawn = [indices[rng.integers(len(indices), size=len(indices))] for indices in own]
        yield np.concatenate(drawn) if drawn else np.zeros(0, dtype=np.int64)


def percentile_interval(values: Iterable[float], level: float = 0.95) -> tuple[float, float]:
    """The middle share `level` of the values that are not nan; (nan, nan) without any."""
    if not 0 < level < 1:
        raise ConfigError(f"level={level}: a share between 0 and 1, exclusive")
    defined = np.array([value for value in values if not np.isnan(value)])
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
) -> tuple[float, float]:
    """Percentile bootstrap interval of `metric` (Efron 1979), resampling images within each class.

    Returns (nan, nan) if the metric is nan on every resample. It takes the images as independent; with few of
    them, or a metric at its limit such as an average precision of 1, it is too narrow.
    """
    y, s = _arrays(y_true, y_score)
    return percentile_interval((metric(y[i], s[i]) for i in resample_within(y, resamples, seed)), level)
