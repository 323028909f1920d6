"""Logit -> probability -> verdict, fitted on a calibration split and never on anything that is reported.

In: logits and labels (1 = AI-generated). Out: a `Calibration`, which turns a logit into a probability and a
verdict. It knows nothing of images or networks. Fitting needs scikit-learn (`clipmole[train]`), using does not.

The probability is meant for as many generated images as photographs: where generated images are rarer, so is
a true alarm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ConfigDict, Field, model_validator

from clipmole.errors import ConfigError, DataError, MissingDependency
from clipmole.records import Record, Thresholds, Verdict

# Log-odds by which a threshold stands clear of the image that it comes from: a logit repeats only to float
# rounding from one batch, machine or number of crops to the next, which must not change that image's verdict.
CLEARANCE = 1e-4


def sigmoid(z: float) -> float:
    """1 / (1 + exp(-z)), for every z; nan for nan."""
    if z >= 0:
        return 1 / (1 + math.exp(-z))
    return math.exp(z) / (1 + math.exp(z))


class Calibration(Record):
    """p = sigmoid(slope * logit + intercept) (Platt 1999), and the probabilities that bound the verdicts.

    Attributes:
        slope, intercept: Platt's parameters; slope > 0.
        thresholds: AI-generated above `ai`, real below `real`, uncertain between and on both; real <= ai.
        max_false_alarm: share of photographs that `thresholds.ai` was set to stay at or below.
        max_miss: share of generated images that `thresholds.real` was set to stay at or below.
        real, ai: images of each class it was fitted on.
        variants: the versions of each image that it was fitted on, such as "as stored" and "equalised".
    """

    model_config = ConfigDict(allow_inf_nan=False)

    slope: float = Field(gt=0)
    intercept: float
    thresholds: Thresholds
    max_false_alarm: float = Field(gt=0, lt=1)
    max_miss: float = Field(gt=0, lt=1)
    real: int = Field(gt=0)
    ai: int = Field(gt=0)
    variants: tuple[str, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.thresholds.real > self.thresholds.ai:
            raise ValueError(f"thresholds: real={self.thresholds.real} is above ai={self.thresholds.ai}")
        return self

    def probability(self, logit: float) -> float:
        """Calibrated probability in [0, 1] that an image with this logit is AI-generated; nan for nan."""
        return sigmoid(self.slope * float(logit) + self.intercept)

    def probabilities(self, logits: ArrayLike) -> NDArray[np.float64]:
        """`probability` of each logit, the same to the last bit; same shape as `logits`."""
        values = np.asarray(logits, dtype=np.float64)
        # Not np.exp: its vectorised and scalar paths need not round alike on every machine.
        return np.array([self.probability(x) for x in values.ravel().tolist()]).reshape(values.shape)

    def verdict(self, logit: float) -> Verdict:
        """AI-generated above one threshold, real below the other, else uncertain (so also for nan)."""
        probability = self.probability(logit)
        if probability > self.thresholds.ai:
            return Verdict.AI_GENERATED
        return Verdict.REAL if probability < self.thresholds.real else Verdict.UNCERTAIN


def upper_threshold(scores: ArrayLike, rate: float) -> float:
    """The score that a further, exchangeable one exceeds with probability at most `rate`, 0 < rate < 1.

    The k-th smallest of n scores with k = ceil((n + 1)(1 - rate)): split conformal prediction's quantile
    (Vovk et al. 2005; Angelopoulos and Bates, arXiv 2107.07511, section 1). inf if n is too small to tell,
    that is below 1 / rate - 1. The probability is over the n scores and the further one together.
    """
    if not 0 < rate < 1:
        raise ConfigError(f"rate={rate}: the share of errors to allow lies between 0 and 1, exclusive")
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    k = math.ceil((len(ordered) + 1) * (1 - rate) - 1e-9)  # 1e-9: 100 * (1 - 0.05) may be 95.00000000000001
    return float(ordered[k - 1]) if k <= len(ordered) else math.inf


def fit_platt(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[float, float]:
    """Slope and intercept of Platt's sigmoid, with his smoothed targets (Platt 1999, section 2.2).

    Both classes weigh the same, whatever their numbers: the intercept is that of equal priors. (0, 0) if all
    logits are the same.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise MissingDependency("scikit-learn", "train") from error
    centre, spread = float(logits.mean()), float(logits.std())
    if spread == 0:
        return 0.0, 0.0
    ai, real = int((labels == 1).sum()), int((labels == 0).sum())
    target = np.where(labels == 1, (ai + 1) / (ai + 2), 1 / (real + 2))
    weight = np.where(labels == 1, 0.5 / ai, 0.5 / real) * len(labels)
    # A soft target t is t of a positive and 1 - t of a negative example. Standardised, so that the optimiser's
    # tolerance means the same for logits of any scale.
    standard = (logits - centre) / spread
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10, max_iter=1000)
    model.fit(
        np.concatenate([standard, standard])[:, None],
        np.repeat([1, 0], len(logits)),
        sample_weight=np.concatenate([weight * target, weight * (1 - target)]),
    )
    slope = float(model.coef_[0, 0]) / spread
    return slope, float(model.intercept_[0]) - slope * centre


def fit_calibration(
    logits: dict[str, ArrayLike],
    labels: Sequence[int],
    max_false_alarm: float = 0.05,
    max_miss: float = 0.10,
) -> Calibration:
    """Fit probability and thresholds on a calibration split.

    Args:
        logits: name of a variant ("as stored", "equalised") -> logits (n,) of the same n images in it. The
            sigmoid is fitted on all together; each threshold is the most cautious of the variants'.
        labels: (n,), 1 = AI-generated, 0 = photograph; both occur.
        max_false_alarm: highest share of photographs called AI-generated, between 0 and 1.
        max_miss: highest share of generated images called real, between 0 and 1.

    With too few images of a class to tell (fewer than 1 / rate - 1) its threshold is one that no probability
    passes: `thresholds.ai` 1 or `thresholds.real` 0.

    Raises `DataError` if a class is missing, a label is neither 0 nor 1, a logit is not finite, or the logits
    do not rise with the label; `ConfigError` if a share is out of range.
    """
    given = np.asarray(labels)
    if given.ndim != 1 or not np.isin(given, (0, 1)).all():
        raise DataError("calibration: labels are 1 (AI-generated) and 0 (photograph)")
    y = given.astype(np.int64)
    scores = {name: np.asarray(values, dtype=np.float64) for name, values in logits.items()}
    if not scores or not 0 < y.sum() < len(y):
        raise DataError("calibration: both photographs and AI-generated images are needed")
    for name, values in scores.items():
        if values.shape != y.shape or not np.isfinite(values).all():
            raise DataError(f"calibration: {name}: needs one finite logit for each of the {len(y)} labels")
    slope, intercept = fit_platt(np.concatenate(list(scores.values())), np.tile(y, len(scores)))
    if slope <= 0:
        raise DataError("calibration: generated images do not score higher than photographs; nothing to calibrate")
    ai = max(upper_threshold(values[y == 0], max_false_alarm) for values in scores.values())
    real = min(-upper_threshold(-values[y == 1], max_miss) for values in scores.values())
    # Where the classes are further apart than the rates ask for, what lies between them is uncertain too.
    low, high = sorted((real, ai))
    return Calibration(
        slope=slope,
        intercept=intercept,
        thresholds=Thresholds(
            real=sigmoid(slope * low + intercept - CLEARANCE), ai=sigmoid(slope * high + intercept + CLEARANCE)
        ),
        max_false_alarm=max_false_alarm,
        max_miss=max_miss,
        real=int((y == 0).sum()),
        ai=int((y == 1).sum()),
        variants=tuple(scores),
    )
