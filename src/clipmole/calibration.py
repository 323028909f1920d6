"""Logit -> probability -> verdict, fitted on a calibration split and never on images of which results are reported.

In: logits and labels (1 = AI-generated), or logits of photographs alone. Out: a `Calibration`, which turns a logit
into a probability and a verdict. It knows nothing of images or networks. To fit a probability it needs scikit-learn
(`clipmole[train]`); to use one, or to set thresholds from photographs alone, it does not.

The probability assumes as many generated images as photographs: where generated images are rarer, true alarms are
rarer too.

What the thresholds promise (class-conditional split conformal prediction; Vovk et al. 2005, section 4.5): take n
calibration photographs and a further one from the same source, exchangeable with them. Then the further one is called
AI-generated with probability at most `max_false_alarm`; and a further generated image is called real with probability
at most `max_miss`. Each holds within its class, whatever the classes' shares, the detector and the distribution of its
logits. It is an average over draws of the calibration images: for a single draw the rate may be higher, and
`rate_bound` says how much. It is not a promise for one camera, generator or kind of edit, nor for images of another
source.

To hold for photographs of a new source too, the threshold is set over sources: see `upper_threshold_by_source`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ConfigDict, Field, model_validator

from clipmole.errors import ConfigError, DataError, MissingDependency
from clipmole.records import Record, StoredRecord, Thresholds, Verdict

# Log-odds between a threshold and the logit that it comes from. From one machine or batch to the next, rounding changes
# that image's logit a little, which must not change its verdict.
CLEARANCE = 1e-4
# Far above every slope and intercept that images give. Beyond it every logit would mean certainty: the file is damaged.
STEEPEST = 1e6

SOURCES_NEEDED = 5  # sources of photographs from which a threshold is set over sources
SOURCE_CONFIDENCE = 0.9

CalibrationMethod = Literal["platt", "temperature"]


def sigmoid(z: float) -> float:
    """1 / (1 + exp(-z)), for every z; nan for nan."""
    if z >= 0:
        return 1 / (1 + math.exp(-z))
    return math.exp(z) / (1 + math.exp(z))


class FalseAlarms(Record):
    """How many images made by people were called AI-generated, from sources with no image in training or calibration.

    Attributes:
        kind: of the images, in words: "stock photographs", "camera files", "digital paintings".
        photographs: how many images were scored, whether photographs or not.
        called_generated: how many of them got the verdict AI-generated.
    """

    kind: str = Field(max_length=80)
    photographs: int = Field(gt=0)
    called_generated: int = Field(ge=0)

    @property
    def often(self) -> bool:
        """Whether a fifth of them or more got it: the verdict AI-generated then means nothing for this kind."""
        return self.called_generated >= self.photographs / 5


class Calibration(StoredRecord):
    """p = sigmoid(slope * logit + intercept), and the probabilities that bound the verdicts.

    Attributes:
        slope, intercept: of the sigmoid; 0 < slope <= `STEEPEST`, -`STEEPEST` <= intercept <= `STEEPEST`.
        thresholds: AI-generated above `generated`, real below `real`, uncertain between and on both;
            real <= generated.
        max_false_alarm: share of photographs that `thresholds.generated` was set to stay at or below.
        max_miss: share of generated images that `thresholds.real` was set to stay at or below.
        n_real, n_generated: images of each class that it was fitted on; their older names in files are `real` and `ai`.
        variants: the versions of each image that it was fitted on, such as "as stored" and "equalised".
        method: how the sigmoid was fitted: "platt", or "temperature", whose intercept is 0.
        n_sources: number of sources of photographs over which `thresholds.generated` was set, so that it holds for new
            sources too; 0: the photographs were taken as independent draws from one source.
        own_photographs: number of the user's photographs, as stored, on which `thresholds.generated` was set
            afterwards; 0: it was set on the `n_real` photographs like the rest.
        false_alarms: measured afterwards, with these thresholds, on images made by people from new sources; () if not
            measured.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    slope: float = Field(gt=0, le=STEEPEST)
    intercept: float = Field(ge=-STEEPEST, le=STEEPEST)
    thresholds: Thresholds
    max_false_alarm: float = Field(gt=0, lt=1)
    max_miss: float = Field(gt=0, lt=1)
    n_real: int = Field(gt=0, alias="real")
    n_generated: int = Field(gt=0, alias="ai")
    variants: tuple[str, ...]
    method: CalibrationMethod = "platt"
    n_sources: int = Field(0, ge=0)
    own_photographs: int = Field(0, ge=0)
    false_alarms: tuple[FalseAlarms, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.thresholds.real > self.thresholds.generated:
            raise ValueError(f"thresholds: real={self.thresholds.real} is above generated={self.thresholds.generated}")
        if self.method == "temperature" and self.intercept != 0:
            raise ValueError(f"intercept={self.intercept}: temperature scaling has none")
        return self

    def probability(self, logit: float) -> float:
        """Calibrated probability in [0, 1] that an image with this logit is AI-generated; nan for nan."""
        return sigmoid(self.slope * float(logit) + self.intercept)

    def logit(self, probability: float) -> float:
        """The logit that has this probability; infinite for 0 and 1."""
        if not 0 < probability < 1:
            return math.copysign(math.inf, probability - 0.5)
        return (math.log(probability) - math.log1p(-probability) - self.intercept) / self.slope

    def probabilities(self, logits: ArrayLike) -> NDArray[np.float64]:
        """`probability` of each logit, the same to the last bit; same shape as `logits`."""
        values = np.asarray(logits, dtype=np.float64)
        # Not np.exp: its vectorised and scalar paths need not round alike on every machine.
        return np.array([self.probability(x) for x in values.ravel().tolist()]).reshape(values.shape)

    def verdict(self, logit: float) -> Verdict:
        """AI-generated above one threshold, real below the other, else uncertain; uncertain for nan too."""
        probability = self.probability(logit)
        if probability > self.thresholds.generated:
            return Verdict.AI_GENERATED
        return Verdict.REAL if probability < self.thresholds.real else Verdict.UNCERTAIN


def _rank(n: int, rate: float) -> int:
    """k of `upper_threshold` for n scores, 1 <= k <= n + 1. Raises `ConfigError` if `rate` is out of range."""
    if not 0 < rate < 1:
        raise ConfigError(f"rate={rate}: the share of errors to allow lies between 0 and 1, exclusive")
    return math.ceil((n + 1) * (1 - rate) - 1e-9)  # 1e-9: 100 * (1 - 0.05) may be 95.00000000000001


def images_needed(rate: float) -> int:
    """The smallest number of images that gives a threshold for an error rate: 1 / rate - 1, rounded up."""
    _rank(1, rate)  # raises if the rate is out of range
    return max(1, math.ceil((1 - 1e-9) / rate) - 1)


def check_enough(images: int, rate: float, kind: str) -> None:
    """Raise `DataError` if there are too few images for a threshold at an error rate; `kind` names them."""
    needed = images_needed(rate)
    if images < needed:
        raise DataError(
            f"calibration: {images} {kind} cannot bound a share of {rate:g}: at least {needed} are needed; "
            "give more images or allow a larger share"
        )


def upper_threshold(scores: ArrayLike, rate: float) -> float:
    """The bound that a further, exchangeable score exceeds with probability at most `rate`, 0 < rate < 1.

    It is the k-th smallest of the n scores with k = ceil((n + 1)(1 - rate)), the quantile of split conformal prediction
    (Vovk et al. 2005; Angelopoulos and Bates, arXiv 2107.07511, section 1); inf if n is below 1 / rate - 1. The
    probability is over the n scores and the further one together; it is exactly (n + 1 - k) / (n + 1) if none tie.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    k = _rank(len(ordered), rate)
    return float(ordered[k - 1]) if k <= len(ordered) else math.inf


def source_weights(sources: Sequence[str]) -> NDArray[np.float64]:
    """Weight (n,) of each image: proportional to n_s ** -0.5 if its source s has n_s images; all weights sum to 1.

    So a source counts with the square root of its number of images: a large one does not dominate, and a small one does
    not mislead. The power is this project's choice; 0 would weigh all images alike, -1 all sources.
    """
    _, of, counts = np.unique(np.asarray(sources, dtype=np.str_), return_inverse=True, return_counts=True)
    weights = (1 / np.sqrt(counts))[of].astype(np.float64)
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def weighted_quantile(scores: NDArray[np.float64], weights: NDArray[np.float64], share: float) -> float:
    """The lowest of the scores (n,) at or below which at least `share` of the weights (n,) lies."""
    order = np.argsort(scores)
    sums = np.cumsum(weights[order])
    return float(scores[order][min(len(scores) - 1, int(np.searchsorted(sums, share * sums[-1])))])


def upper_threshold_by_source(
    scores: ArrayLike,
    sources: Sequence[str],
    rate: float,
    confidence: float = SOURCE_CONFIDENCE,
    draws: int = 2000,
    seed: int = 0,
) -> float:
    """The bound that at most the share `rate` of photographs exceeds, over new draws of sources like these.

    The sources are taken as a random sample of sources. Each draw resamples the sources with replacement, and the
    images within each of them with replacement (the two-stage bootstrap; Davison and Hinkley 1997, section 3.8). It
    gives a (1 - rate) quantile with the weights of `source_weights`. The bound is the `confidence` quantile of these
    over all draws. It is about the mix of sources, not about the worst of them; `leave_one_source_out` shows those.

    With few sources a bootstrap is optimistic. In a simulation logits were N(m, 1) with m of each source from N(0, 1),
    there were 20 to 199 images per source, and the rate was 5 %. Photographs of new sources exceeded the bound from 5,
    12 and 30 sources at a mean rate of 5.4, 4.3 and 3.9 %, and 56, 69 and 79 % of the bounds kept to 5 %
    (`upper_threshold`: 8.1, 6.7 and 5.7 %; 31, 33 and 43 %). A bound for any distribution, hierarchical conformal
    prediction (Lee, Barber and Willett, arXiv 2306.06342), needs 1 / rate - 1 sources, 19 for 5 %, before it says
    anything.

    Args:
        scores: (n,) scores of photographs.
        sources: (n,) where each comes from, such as a photographer or a collection.
        rate: highest share that may exceed the bound, between 0 and 1.
        confidence: share of the draws whose quantile is at or below the bound, between 0 and 1.
        draws: number of draws of the bootstrap.
        seed: of the random numbers.
    """
    _rank(1, rate)  # raises if the rate is out of range
    values, names = np.asarray(scores, dtype=np.float64), np.asarray(sources, dtype=np.str_)
    groups = [values[names == name] for name in np.unique(names)]
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        drawn = [rng.choice(groups[i], len(groups[i])) for i in rng.integers(len(groups), size=len(groups))]
        weights = np.concatenate([np.full(len(group), len(group) ** -0.5) for group in drawn])
        found.append(weighted_quantile(np.concatenate(drawn), weights, 1 - rate))
    return float(np.quantile(found, confidence))


def leave_one_source_out(
    scores: ArrayLike, sources: Sequence[str], rate: float, draws: int = 500, seed: int = 0
) -> dict[str, float]:
    """Source -> share of its photographs above the bound that the other sources give; there must be two or more.

    Arguments as in `upper_threshold_by_source`.
    """
    values, names = np.asarray(scores, dtype=np.float64), np.asarray(sources, dtype=np.str_)
    shares = {}
    for name in np.unique(names):
        others = names != name
        bound = upper_threshold_by_source(values[others], names[others].tolist(), rate, draws=draws, seed=seed)
        shares[str(name)] = float((values[~others] > bound).mean())
    return shares


def rate_bound(n: int, rate: float, confidence: float = 0.95) -> float:
    """The error rate that the threshold of `upper_threshold` keeps to in a share `confidence` of all draws of n images.

    With m = n + 1 - k, the rate above the k-th smallest of n independent scores is distributed as Beta(m, k), or
    lower if scores tie (Vovk 2012, arXiv 1209.2673; Angelopoulos and Bates, arXiv 2107.07511, section 3.2). Its
    quantile is found by bisection of P(Beta(m, k) > x) = P(Binomial(n, x) < m). It is 0 if n is too small for a
    threshold.

    Args:
        n: number of images that the threshold was set on.
        rate: that it was set for, between 0 and 1.
        confidence: between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence={confidence}: a share between 0 and 1, exclusive")
    m = n + 1 - _rank(n, rate)
    errors = range(m)
    choose = np.array([math.lgamma(n + 1) - math.lgamma(j + 1) - math.lgamma(n - j + 1) for j in errors])
    low, high = 0.0, 1.0
    for _ in range(60 if m else 0):
        x = (low + high) / 2
        fewer = np.exp(choose + np.arange(m) * math.log(x) + (n - np.arange(m)) * math.log1p(-x)).sum()
        low, high = (x, high) if fewer > 1 - confidence else (low, x)
    return low


Weights = NDArray[np.float64] | None


def _logistic(
    x: NDArray[np.float64], labels: NDArray[np.int64], fit_intercept: bool, weights: Weights
) -> tuple[float, float]:
    """Slope and intercept (0 if not fitted) of the sigmoid for logits x (n,), with equal weight for both classes.

    The targets are Platt's smoothed ones (Platt 1999, section 2.2), which keep the slope finite if the classes do not
    overlap. x should be of about unit scale, so that the optimiser's tolerance means the same for all logits.

    Args:
        weights: (n,) weights of the images within their class; None: all alike.

    Raises `MissingDependency` without scikit-learn.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise MissingDependency("scikit-learn", "train") from error
    n_generated, n_real = int((labels == 1).sum()), int((labels == 0).sum())
    target = np.where(labels == 1, (n_generated + 1) / (n_generated + 2), 1 / (n_real + 2))
    own = np.ones(len(labels)) if weights is None else weights
    sums = np.where(labels == 1, own[labels == 1].sum(), own[labels == 0].sum())
    weight = own * 0.5 / sums * len(labels)
    model = LogisticRegression(
        C=np.inf, solver="newton-cholesky", tol=1e-10, max_iter=1000, fit_intercept=fit_intercept
    )
    # A soft target t counts as t of a positive and 1 - t of a negative example.
    model.fit(
        np.concatenate([x, x])[:, None],
        np.repeat([1, 0], len(x)),
        sample_weight=np.concatenate([weight * target, weight * (1 - target)]),
    )
    return float(model.coef_[0, 0]), float(model.intercept_[0]) if fit_intercept else 0.0


def fit_platt(logits: NDArray[np.float64], labels: NDArray[np.int64], weights: Weights = None) -> tuple[float, float]:
    """Slope and intercept of Platt's sigmoid, with his smoothed targets (Platt 1999, section 2.2).

    Both classes have the same weight, however many images they have: the intercept is that of equal priors.

    Args:
        logits: (n,).
        labels: (n,), 1 = AI-generated, 0 = photograph.
        weights: (n,) weights of the images within their class; None: all alike.

    Returns:
        (slope, intercept); (0, 0) if all logits are the same.
    """
    centre, spread = float(logits.mean()), float(logits.std())
    if spread == 0:
        return 0.0, 0.0
    slope, intercept = _logistic((logits - centre) / spread, labels, True, weights)
    return slope / spread, intercept - slope / spread * centre


def fit_temperature(
    logits: NDArray[np.float64], labels: NDArray[np.int64], weights: Weights = None
) -> tuple[float, float]:
    """Slope 1 / T of temperature scaling (Guo et al., arXiv 1706.04599, section 4.2), and the intercept 0.

    It suits logits that are right about even odds and wrong about how sure they are, such as those of a network that
    was trained on both classes equally and is shown similar images. It leaves p = 0.5 at logit 0, and its one parameter
    takes fewer images than Platt's two. If the detector leans to one class on the images at hand, only Platt's
    intercept corrects that. Arguments and weights as in `fit_platt`; (0, 0) if all logits are 0.
    """
    scale = float(np.sqrt(np.square(logits).mean()))
    if scale == 0:
        return 0.0, 0.0
    slope, _ = _logistic(logits / scale, labels, False, weights)
    return slope / scale, 0.0


FITS = {"platt": fit_platt, "temperature": fit_temperature}


def _checked(
    logits: dict[str, ArrayLike], labels: Sequence[int]
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.int64]]:
    """The arguments of `fit_calibration` as arrays. Raises its `DataError` if they do not fit together."""
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
    return scores, y


def fit_calibration(
    logits: dict[str, ArrayLike],
    labels: Sequence[int],
    max_false_alarm: float = 0.05,
    max_miss: float = 0.10,
    method: CalibrationMethod = "platt",
    sources: Sequence[str] | None = None,
) -> Calibration:
    """Fit probability and thresholds on a calibration split.

    Args:
        logits: name of a variant ("as stored", "equalised") -> logits (n,) of the same n images in that variant. The
            sigmoid is fitted on all variants together; each threshold is the most cautious one of all variants.
        labels: (n,), 1 = AI-generated, 0 = photograph; both occur.
        max_false_alarm: highest share of photographs that may be called AI-generated, between 0 and 1.
        max_miss: highest share of generated images that may be called real, between 0 and 1.
        method: how the sigmoid is fitted, by `fit_platt` or `fit_temperature`. The verdicts do not depend on it.
        sources: (n,) where each image comes from. Images then have the weights of `source_weights` within their class,
            `thresholds.generated` follows from `upper_threshold_by_source`, and `thresholds.real` is a weighted
            quantile. None: the images are independent draws from one source.

    Between the thresholds the verdict is "uncertain"; this module's docstring says what the thresholds promise. With
    several variants the promise holds for each of them.

    If a class has too few images (fewer than 1 / rate - 1), no probability passes its threshold: `thresholds.generated`
    is 1, or `thresholds.real` is 0.

    Raises:
        DataError: a class is missing, a label is neither 0 nor 1, a logit is not finite, or the logits do not rise with
            the label or hardly differ.
        ConfigError: a share is out of range.
        MissingDependency: scikit-learn is not installed.
    """
    scores, y = _checked(logits, labels)
    if method not in FITS:
        raise ConfigError(f"method={method}: must be one of {', '.join(FITS)}")
    weights = None if sources is None else _class_weights(y, sources)
    tiled = None if weights is None else np.tile(weights, len(scores))
    slope, intercept = FITS[method](np.concatenate(list(scores.values())), np.tile(y, len(scores)), tiled)
    if slope <= 0:
        raise DataError("calibration: generated images do not score higher than photographs; nothing to calibrate")
    if max(slope, abs(intercept)) > STEEPEST:
        raise DataError("calibration: the logits differ too little for their size; nothing to calibrate")
    photo_sources: list[str] = []
    if sources is None or weights is None:
        ai = max(upper_threshold(values[y == 0], max_false_alarm) for values in scores.values())
        real = min(-upper_threshold(-values[y == 1], max_miss) for values in scores.values())
    else:
        photo_sources = [source for source, label in zip(sources, y.tolist(), strict=True) if label == 0]
        ai = max(upper_threshold_by_source(each[y == 0], photo_sources, max_false_alarm) for each in scores.values())
        real = min(weighted_quantile(each[y == 1], weights[y == 1], max_miss) for each in scores.values())
    # If the classes are so far apart that the thresholds cross, the verdict between them is uncertain all the same.
    low, high = sorted((real, ai))
    return Calibration(
        slope=slope,
        intercept=intercept,
        thresholds=Thresholds(
            real=sigmoid(slope * low + intercept - CLEARANCE), generated=sigmoid(slope * high + intercept + CLEARANCE)
        ),
        max_false_alarm=max_false_alarm,
        max_miss=max_miss,
        n_real=int((y == 0).sum()),
        n_generated=int((y == 1).sum()),
        variants=tuple(scores),
        method=method,
        n_sources=len(set(photo_sources)),
    )


def _class_weights(labels: NDArray[np.int64], sources: Sequence[str]) -> NDArray[np.float64]:
    """The weights (n,) of images within their class, by `source_weights`."""
    if len(sources) != len(labels):
        raise DataError(f"calibration: {len(labels)} labels need as many sources, not {len(sources)}")
    names, weights = np.asarray(sources, dtype=np.str_), np.zeros(len(labels))
    for label in (0, 1):
        weights[labels == label] = source_weights(names[labels == label].tolist())
    return weights


def move_to_photographs(calibration: Calibration, logits: ArrayLike, max_false_alarm: float = 0.05) -> Calibration:
    """The calibration with `thresholds.generated` set anew, for a false-alarm rate on photographs of another source.

    The probability and `thresholds.real` stay as they are, because photographs alone say nothing about generated
    images. `thresholds.generated` does not fall below `thresholds.real`.

    Args:
        calibration: the old one.
        logits: (n,) logits of images, such as a user's own, that are all known to be photographs.
        max_false_alarm: highest share of such photographs that may be called AI-generated, between 0 and 1.

    Raises `DataError` if a logit is not finite, or there are too few.
    """
    scores = np.asarray(logits, dtype=np.float64)
    if scores.ndim != 1 or not np.isfinite(scores).all():
        raise DataError("calibration: needs one finite logit for each photograph")
    check_enough(len(scores), max_false_alarm, "photographs")
    z = calibration.slope * upper_threshold(scores, max_false_alarm) + calibration.intercept + CLEARANCE
    thresholds = Thresholds(real=calibration.thresholds.real, generated=max(calibration.thresholds.real, sigmoid(z)))
    changes = {
        "thresholds": thresholds,
        "max_false_alarm": max_false_alarm,
        "own_photographs": len(scores),
        "n_sources": 0,
        "false_alarms": (),
    }
    return Calibration.model_validate(calibration.model_dump() | changes)
