"""Metrics from labels and scores: pure functions `(y_true, y_score) -> float`, and their curves.

`y_true` (n,) holds 1 for AI-generated images and 0 for photographs. `y_score` (n,) is higher the more likely an image
is AI-generated: logits or probabilities. Arguments called `probability` must be probabilities. A metric that is not
defined (one class only, no images) is nan, never 0 or 1. Curves are vectors for a plot, empty where they are not
defined. All raise `DataError` for any other label, for a score that is not finite, and for vectors of different
lengths.

Ranking metrics are written out here because a bootstrap calls them tens of thousands of times, and scikit-learn's
checks would take most of the time; the tests compare them with scikit-learn's values. This module knows nothing of
images or detectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

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
    """True and false positives (m,) if the threshold is each of the m distinct scores, highest first, and included."""
    order = np.argsort(s)[::-1]
    falling = s[order]
    ends = np.append(np.flatnonzero(falling[1:] != falling[:-1]), len(s) - 1)  # the last image of each tie
    tps = np.cumsum(y[order])[ends]
    return tps, ends + 1 - tps


def _probabilities(y_true: ArrayLike, probability: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    y, p = _arrays(y_true, probability)
    if len(p) and (p.min() < 0 or p.max() > 1):
        raise DataError("metrics: this metric needs probabilities in [0, 1]")
    return y, p


# -- ranking --------------------------------------------------------------------------------------------------


def roc_points(y_true: ArrayLike, y_score: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False and true positive rates (m,) at falling thresholds, both ascending from 0 to 1.

    At the first threshold nothing is positive; then there is one for each distinct score, which it includes, so that
    images that tie are taken together. The points are those of scikit-learn's `roc_curve` with every point kept. Empty
    without both classes.
    """
    y, s = _arrays(y_true, y_score)
    if not 0 < y.sum() < len(y):
        return np.zeros(0), np.zeros(0)
    tps, fps = _counts(y, s)
    return np.append(0.0, fps / fps[-1]), np.append(0.0, tps / tps[-1])


def precision_recall_points(y_true: ArrayLike, y_score: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Recall (m,), ascending to 1, and precision (m,) at the threshold of each distinct score, highest first.

    The point at recall 0 and precision 1 that scikit-learn adds is left out, because no threshold gives it. Between
    points the curve is a step, as `average_precision` sums it. Empty without both classes.
    """
    y, s = _arrays(y_true, y_score)
    if not 0 < y.sum() < len(y):
        return np.zeros(0), np.zeros(0)
    tps, fps = _counts(y, s)
    return tps / tps[-1], tps / (tps + fps)


def average_precision(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Area under the precision-recall steps, sum_k (R_k - R_{k-1}) P_k over the distinct scores, highest first.

    It equals scikit-learn's `average_precision_score`, with generated images as the positive class; nan without both
    classes.
    """
    y, s = _arrays(y_true, y_score)
    if not 0 < y.sum() < len(y):
        return float("nan")
    tps, fps = _counts(y, s)
    return float(np.sum(np.diff(tps, prepend=0) * (tps / (tps + fps))) / tps[-1])


def auroc(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Probability that a generated image scores higher than a photograph, a tie counting half; nan without both."""
    y, s = _arrays(y_true, y_score)
    if not 0 < y.sum() < len(y):
        return float("nan")
    tps, fps = _counts(y, s)
    twice = np.diff(fps, prepend=0) * (2 * tps - np.diff(tps, prepend=0))
    return float(twice.sum() / (2 * tps[-1] * fps[-1]))


def tpr_at_fpr(y_true: ArrayLike, y_score: ArrayLike, fpr: float) -> float:
    """Share of generated images at or above the lowest threshold that at most the share `fpr` of photographs reaches.

    Of images that tie, all are found or none, and nothing is interpolated between thresholds. So it is 0 if the highest
    tie alone holds too many photographs, and with fewer than 1 / fpr photographs it is the share above all of them. It
    is a property of the ranking: the threshold is chosen on the images that are reported, and one that is fixed
    beforehand finds fewer or raises more false alarms. nan without both classes.

    Args:
        fpr: the false positive rate, 0 <= fpr < 1.
    """
    if not 0 <= fpr < 1:
        raise ConfigError(f"fpr={fpr}: a share of photographs, from 0 to below 1")
    false_positives, true_positives = roc_points(y_true, y_score)
    return float(true_positives[false_positives <= fpr].max()) if len(true_positives) else float("nan")


def equal_error_rate(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """The error rate at the threshold where the false positive rate equals the false negative rate.

    Straight lines join neighbouring ROC points, as they do for `auroc`, which counts a tie half. Along these lines
    FPR + TPR rises strictly from 0 to 2, so there is exactly one point where it is 1. nan without both classes.
    """
    false_positives, true_positives = roc_points(y_true, y_score)
    if not len(true_positives):
        return float("nan")
    return float(np.interp(1.0, false_positives + true_positives, false_positives))


def oracle_accuracy(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Accuracy at the best of all thresholds, searched on the very images that are reported.

    It is an upper bound that no user reaches, for comparison with papers that search in this way (UnivFD's "best
    threshold"). Never report it without the word oracle. It is at least the share of the larger class. nan without both
    classes.
    """
    y, s = _arrays(y_true, y_score)
    if not 0 < y.sum() < len(y):
        return float("nan")
    tps, fps = _counts(y, s)
    right = np.append(0, tps - fps) + fps[-1]
    return float(right.max() / len(y))


# -- verdicts -------------------------------------------------------------------------------------------------


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


def selective_accuracy(y_true: ArrayLike, probability: ArrayLike, low: float, high: float) -> float:
    """Share of right verdicts among those given: generated above `high`, real below `low`, none from `low` to `high`.

    nan if there is no verdict at all. Read it together with the coverage, the share of images that get a verdict.
    """
    y, p = _probabilities(y_true, probability)
    if not low <= high:
        raise ConfigError(f"low={low}, high={high}: the uncertain band runs from low to high")
    decided = (p > high) | (p < low)
    return float(((p > high) == (y == 1))[decided].mean()) if decided.any() else float("nan")


def risk_coverage(y_true: ArrayLike, probability: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coverage (m,), ascending to 1, and the accuracy (m,) on that share of the images, the most confident ones.

    This is the risk-coverage curve (El-Yaniv and Wiener, JMLR 2010) with risk = 1 - accuracy. The confidence is
    max(p, 1 - p), and the verdict is generated above p = 0.5; images of equal confidence enter together. The curve ends
    at `accuracy` for the threshold 0.5. Empty without images.
    """
    y, p = _probabilities(y_true, probability)
    if not len(y):
        return np.zeros(0), np.zeros(0)
    right, wrong = _counts(((p > 0.5) == (y == 1)).astype(np.int64), np.maximum(p, 1 - p))
    return (right + wrong) / len(y), right / (right + wrong)


# -- probabilities --------------------------------------------------------------------------------------------


def negative_log_likelihood(y_true: ArrayLike, probability: ArrayLike) -> float:
    """Mean of -ln(probability given to the image's class): binary cross-entropy in nats, 0.693 for p = 0.5.

    Probabilities are clipped to [e, 1 - e] with e = 2.2e-16, float64's epsilon, as in scikit-learn's `log_loss`: a
    certainty that is wrong costs 36 nats, not infinitely many. nan without images.
    """
    y, p = _probabilities(y_true, probability)
    epsilon = np.finfo(np.float64).eps
    own = np.clip(np.where(y == 1, p, 1 - p), epsilon, 1 - epsilon)
    return float(-np.log(own).mean()) if len(y) else float("nan")


def _bin_of(p: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """Index (n,) of each probability's bin: bin b holds b / bins <= p < (b + 1) / bins, the last one also p = 1."""
    if bins < 1:
        raise ConfigError(f"bins={bins}: at least one is needed")
    return np.minimum((p * bins).astype(np.int64), bins - 1)


def expected_calibration_error(y_true: ArrayLike, probability: ArrayLike, bins: int = 10) -> float:
    """sum_b n_b / n |mean probability - share generated| over bins b of equal width (Guo et al., arXiv 1706.04599).

    It is about the probability of being AI-generated, not about that of the more probable class. Bin b holds
    b / bins <= p < (b + 1) / bins, the last one also p = 1. nan without images.
    """
    y, p = _probabilities(y_true, probability)
    index = _bin_of(p, bins)
    return float(np.abs(np.bincount(index, weights=p - y)).sum() / len(y)) if len(y) else float("nan")


class ReliabilityBins(NamedTuple):
    """A reliability diagram.

    Attributes:
        mean_probability, share_generated: (bins,); nan where a bin holds no image.
        images: (bins,) number of images in each bin.
    """

    mean_probability: NDArray[np.float64]
    share_generated: NDArray[np.float64]
    images: NDArray[np.int64]


def reliability_bins(y_true: ArrayLike, probability: ArrayLike, bins: int = 10) -> ReliabilityBins:
    """What the bins of `expected_calibration_error` hold, for a reliability diagram."""
    y, p = _probabilities(y_true, probability)
    index = _bin_of(p, bins)
    images = np.bincount(index, minlength=bins)
    divisor = np.where(images > 0, images, np.nan)
    return ReliabilityBins(
        np.bincount(index, weights=p, minlength=bins) / divisor,
        np.bincount(index, weights=y, minlength=bins) / divisor,
        images,
    )
