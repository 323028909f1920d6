"""A detector and labelled images -> figures with intervals, as stored and equalised.

In: a `Detector` and samples of one split. Out: an `EvaluationReport`. It knows nothing of training; it never
searches a threshold on what it reports.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator

from clipmole import metrics
from clipmole.calibration import Calibration
from clipmole.data import VARIANTS, Variant, labels_of, windows
from clipmole.detect import Detector
from clipmole.errors import DataError
from clipmole.records import Record, Sample

# JSON has no nan: pydantic writes null, and here it is read again.
Number = Annotated[float, BeforeValidator(lambda value: float("nan") if value is None else value)]


class Figure(Record):
    """A value with its 95 % bootstrap interval over images; nan (in JSON null) where it is not defined."""

    value: Number
    low: Number
    high: Number

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class SetReport(Record):
    """Figures of one set of images in one variant.

    Attributes:
        name: of the set.
        variant: "as stored" or "equalised".
        real, ai: images of each class.
        figures: name -> figure. `average_precision`, `auroc`; if the detector is calibrated also `accuracy`,
            `real_accuracy`, `fake_accuracy` at the calibrated probability 0.5, `calibration_error`, and the
            shares `false_alarm` (photographs called AI-generated), `detected` (generated called AI-generated),
            `miss` (generated called real) and `uncertain` (of all).
        generators: generator -> average precision of its images against all photographs of the set.
        mean_generator_ap: their mean, as papers report it (mAP).
    """

    name: str
    variant: Variant
    real: int
    ai: int
    figures: dict[str, Figure]
    generators: dict[str, Figure]
    mean_generator_ap: Figure


class EvaluationReport(Record):
    """Figures of one detector on named sets of images, each as stored and equalised."""

    detector: str
    seed: int
    resamples: int
    sets: tuple[SetReport, ...]


def score_windows(
    detector: Detector, samples: Sequence[Sample], variant: Variant, seed: int = 0
) -> NDArray[np.float64]:
    """Logits (n,) of the samples in one variant, through `Detector.score`."""
    return detector.score(windows(samples, variant, seed)).astype(np.float64)


def generator_aps(
    generators: NDArray[np.str_], labels: NDArray[np.int64], scores: NDArray[np.float64]
) -> dict[str, float]:
    """Generator -> average precision of its images against all photographs, by name; vectors of (n,)."""
    aps = {}
    for generator in np.unique(generators[labels == 1]):
        own = (labels == 0) | (generators == generator)
        aps[str(generator)] = metrics.average_precision(labels[own], scores[own])
    return aps


def mean_generator_ap(generators: NDArray[np.str_], labels: NDArray[np.int64], scores: NDArray[np.float64]) -> float:
    """Mean over generators of the average precision of a generator's images against all photographs."""
    aps = generator_aps(generators, labels, scores)
    return float(np.mean(list(aps.values()))) if aps else float("nan")


def share_above(y: NDArray[np.int64], p: NDArray[np.float64], label: int, threshold: float) -> float:
    """Share of the images of `label` with a probability above `threshold`."""
    own = p[y == label]
    return float((own > threshold).mean()) if len(own) else float("nan")


def share_below(y: NDArray[np.int64], p: NDArray[np.float64], label: int, threshold: float) -> float:
    """Share of the images of `label` with a probability below `threshold`."""
    return share_above(y, -p, label, -threshold)


def share_between(y: NDArray[np.int64], p: NDArray[np.float64], low: float, high: float) -> float:
    """Share of all images with low <= probability <= high."""
    return float(((p >= low) & (p <= high)).mean()) if len(y) else float("nan")


RANKING: Mapping[str, metrics.Metric] = {"average_precision": metrics.average_precision, "auroc": metrics.auroc}


def verdict_metrics(calibration: Calibration) -> dict[str, metrics.Metric]:
    """Name -> metric of labels and calibrated probabilities, at this calibration's thresholds."""
    real, ai = calibration.thresholds.real, calibration.thresholds.ai
    return {
        "accuracy": partial(metrics.accuracy, threshold=0.5),
        "real_accuracy": partial(metrics.class_accuracy, label=0, threshold=0.5),
        "fake_accuracy": partial(metrics.class_accuracy, label=1, threshold=0.5),
        "calibration_error": metrics.expected_calibration_error,
        "false_alarm": partial(share_above, label=0, threshold=ai),
        "detected": partial(share_above, label=1, threshold=ai),
        "miss": partial(share_below, label=1, threshold=real),
        "uncertain": partial(share_between, low=real, high=ai),
    }


def report_set(
    name: str,
    variant: Variant,
    samples: Sequence[Sample],
    scores: NDArray[np.float64],
    calibration: Calibration | None,
    resamples: int = 1000,
    seed: int = 0,
) -> SetReport:
    """Figures of logits `scores` (n,) for `samples`, with bootstrap intervals.

    The figures resample images within each class, the generators' and their mean within each generator too: the
    generators are those that were chosen, only their images are a sample. Raises `DataError` without samples.
    """
    if not len(samples) == len(scores) > 0:
        raise DataError(f"set {name!r}: needs images and a logit for each: {len(samples)} images, {len(scores)} logits")
    labels = labels_of(samples)
    generators = np.array([sample.generator for sample in samples])

    def figure(metric: metrics.Metric, values: NDArray[np.float64]) -> Figure:
        low, high = metrics.bootstrap_interval(metric, labels, values, resamples, seed=seed)
        return Figure(value=metric(labels, values), low=low, high=high)

    figures = {key: figure(metric, scores) for key, metric in RANKING.items()}
    if calibration is not None:
        probabilities = calibration.probabilities(scores)
        figures |= {key: figure(metric, probabilities) for key, metric in verdict_metrics(calibration).items()}

    aps = generator_aps(generators, labels, scores)
    strata = np.where(labels == 1, np.unique(generators, return_inverse=True)[1], -1)
    drawn = [
        generator_aps(generators[i], labels[i], scores[i]) for i in metrics.resample_within(strata, resamples, seed)
    ]
    own_figures = {}
    for generator, ap in aps.items():
        low, high = metrics.percentile_interval(resample[generator] for resample in drawn)
        own_figures[generator] = Figure(value=ap, low=low, high=high)
    low, high = metrics.percentile_interval(float(np.mean(list(resample.values()))) for resample in drawn if resample)
    return SetReport(
        name=name,
        variant=variant,
        real=int((labels == 0).sum()),
        ai=int((labels == 1).sum()),
        figures=figures,
        generators=own_figures,
        mean_generator_ap=Figure(value=mean_generator_ap(generators, labels, scores), low=low, high=high),
    )


def evaluate(
    detector: Detector,
    sets: Mapping[str, Sequence[Sample]],
    variants: Iterable[Variant] = VARIANTS,
    resamples: int = 1000,
    seed: int = 0,
) -> EvaluationReport:
    """Score every set in every variant once and report it. Raises the first `ImageError` or `DataError`."""
    variants = tuple(variants)
    reports = tuple(
        report_set(
            name,
            variant,
            samples,
            score_windows(detector, samples, variant, seed),
            detector.calibration,
            resamples,
            seed,
        )
        for name, samples in sets.items()
        for variant in variants
    )
    return EvaluationReport(detector=detector.name, seed=seed, resamples=resamples, sets=reports)
