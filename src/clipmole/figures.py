"""Labels and logits -> figures with intervals, and paired differences between detectors.

In: samples and logits of one set, or a whole `ScoreTable`. Out: `SetReport` and `Difference` records. It knows
nothing of images or of how logits are made, and it never searches a threshold on what it reports (but for
`oracle_accuracy`, which says so).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from clipmole import metrics
from clipmole.calibration import Calibration
from clipmole.data import labels_of
from clipmole.errors import DataError
from clipmole.records import Difference, Figure, Sample, SetReport
from clipmole.scores import ScoreTable

MAIN = ("as stored", "equalised")  # conditions that get every figure; the others get those of `QUICK`
QUICK = ("average_precision", "auroc", "accuracy", "false_alarm", "detected", "uncertain")


def generator_aps(
    generators: NDArray[np.str_], labels: NDArray[np.int64], scores: NDArray[np.float64]
) -> dict[str, float]:
    """Generator -> average precision of its images against all photographs, by name; vectors of (n,)."""
    return by_generator(metrics.average_precision, generators, labels, scores)


def by_generator(
    metric: metrics.Metric, generators: NDArray[np.str_], labels: NDArray[np.int64], scores: NDArray[np.float64]
) -> dict[str, float]:
    """Generator -> `metric` of its images and all photographs, by name; vectors of (n,)."""
    found = {}
    for generator in np.unique(generators[labels == 1]):
        own = (labels == 0) | (generators == generator)
        found[str(generator)] = metric(labels[own], scores[own])
    return found


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


RANKING: Mapping[str, metrics.Metric] = {
    "average_precision": metrics.average_precision,
    "auroc": metrics.auroc,
    "tpr_at_1_percent_fpr": partial(metrics.tpr_at_fpr, fpr=0.01),
    "tpr_at_5_percent_fpr": partial(metrics.tpr_at_fpr, fpr=0.05),
    "equal_error_rate": metrics.equal_error_rate,
    "oracle_accuracy": metrics.oracle_accuracy,
}


def verdict_metrics(calibration: Calibration) -> dict[str, metrics.Metric]:
    """Name -> metric of labels and calibrated probabilities, at this calibration's thresholds."""
    real, ai = calibration.thresholds.real, calibration.thresholds.ai
    return {
        "accuracy": partial(metrics.accuracy, threshold=0.5),
        "balanced_accuracy": partial(metrics.balanced_accuracy, threshold=0.5),
        "real_accuracy": partial(metrics.class_accuracy, label=0, threshold=0.5),
        "fake_accuracy": partial(metrics.class_accuracy, label=1, threshold=0.5),
        "calibration_error": metrics.expected_calibration_error,
        "negative_log_likelihood": metrics.negative_log_likelihood,
        "false_alarm": partial(share_above, label=0, threshold=ai),
        "detected": partial(share_above, label=1, threshold=ai),
        "miss": partial(share_below, label=1, threshold=real),
        "uncertain": partial(share_between, low=real, high=ai),
        "selective_accuracy": partial(metrics.selective_accuracy, low=real, high=ai),
    }


def report_set(
    name: str,
    condition: str,
    samples: Sequence[Sample],
    scores: NDArray[np.float64],
    calibration: Calibration | None,
    *,
    detector: str = "detector",
    only: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> SetReport:
    """Figures of logits `scores` (n,) for `samples`, with bootstrap intervals.

    The figures resample images within each class, the generators' and their mean within each generator too: the
    generators are those that were chosen, only their images are a sample. Without a calibration `accuracy` and
    its kin are those at logit 0, a probability of 0.5 for a network with a sigmoid.

    Args:
        only: names of the figures to make; None: all.

    Raises `DataError` without samples.
    """
    if not len(samples) == len(scores) > 0:
        raise DataError(f"set {name!r}: needs images and a logit for each: {len(samples)} images, {len(scores)} logits")
    labels = labels_of(samples)
    generators = np.array([sample.generator for sample in samples])
    values = scores if calibration is None else calibration.probabilities(scores)
    middle = 0.0 if calibration is None else 0.5
    functions: dict[str, tuple[metrics.Metric, NDArray[np.float64]]] = {k: (m, scores) for k, m in RANKING.items()}
    if calibration is not None:
        functions |= {key: (metric, values) for key, metric in verdict_metrics(calibration).items()}
    else:
        functions["accuracy"] = (partial(metrics.accuracy, threshold=middle), scores)
        functions["real_accuracy"] = (partial(metrics.class_accuracy, label=0, threshold=middle), scores)
        functions["fake_accuracy"] = (partial(metrics.class_accuracy, label=1, threshold=middle), scores)
    figures = {}
    for key, (function, given) in functions.items():
        if only is None or key in only:
            low, high = metrics.bootstrap_interval(function, labels, given, resamples, seed=seed)
            figures[key] = Figure(value=function(labels, given), low=low, high=high)

    strata = np.where(labels == 1, np.unique(generators, return_inverse=True)[1], -1)
    per_generator: dict[str, dict[str, Figure]] = {}
    means: dict[str, Figure] = {}
    for key, metric, s in (
        ("average_precision", metrics.average_precision, scores),
        ("accuracy", partial(metrics.accuracy, threshold=middle), values),
    ):
        own = by_generator(metric, generators, labels, s)
        drawn = [
            by_generator(metric, generators[i], labels[i], s[i])
            for i in metrics.resample_within(strata, resamples, seed)
        ]
        for generator, value in own.items():
            low, high = metrics.percentile_interval(resample[generator] for resample in drawn)
            per_generator.setdefault(generator, {})[key] = Figure(value=value, low=low, high=high)
        low, high = metrics.percentile_interval(float(np.mean(list(r.values()))) for r in drawn if r)
        mean = float(np.mean(list(own.values()))) if own else float("nan")
        means[key] = Figure(value=mean, low=low, high=high)
    return SetReport(
        detector=detector,
        set=name,
        condition=condition,
        real=int((labels == 0).sum()),
        ai=int((labels == 1).sum()),
        figures=figures,
        generators=per_generator,
        means=means,
    )


def paired_difference(
    metric: metrics.Metric,
    labels: NDArray[np.int64],
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    resamples: int = 1000,
    seed: int = 0,
) -> Figure:
    """`metric` of `first` minus that of `second` on the same images; both see the same resamples."""
    differences = [
        metric(labels[i], first[i]) - metric(labels[i], second[i])
        for i in metrics.resample_within(labels, resamples, seed)
    ]
    low, high = metrics.percentile_interval(differences)
    return Figure(value=metric(labels, first) - metric(labels, second), low=low, high=high)


def report_table(
    table: ScoreTable,
    calibrations: Mapping[str, Calibration | None],
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[tuple[SetReport, ...], tuple[Difference, ...]]:
    """Figures of every detector, set and condition, and the paired differences of each two detectors.

    The conditions of `MAIN` get every figure, the others (of a robustness curve) those of `QUICK`.
    """
    reports: list[SetReport] = []
    differences: list[Difference] = []
    for name in dict.fromkeys(table.sets.tolist()):
        own = table.sets == name
        samples = [sample for sample, chosen in zip(table.samples, own, strict=True) if chosen]
        labels = labels_of(samples)
        for c, condition in enumerate(table.conditions):
            main = condition in MAIN
            for d, detector in enumerate(table.detectors):
                reports.append(
                    report_set(
                        name,
                        condition,
                        samples,
                        table.logits[d, c, own],
                        calibrations[detector],
                        detector=detector,
                        only=None if main else QUICK,
                        resamples=resamples,
                        seed=seed,
                    )
                )
            if not main:
                continue
            for a, b in combinations(range(len(table.detectors)), 2):
                for key in ("average_precision", "auroc"):
                    logits = (table.logits[a, c, own], table.logits[b, c, own])
                    differences.append(
                        Difference(
                            first=table.detectors[a],
                            second=table.detectors[b],
                            set=name,
                            condition=condition,
                            metric=key,
                            figure=paired_difference(RANKING[key], labels, *logits, resamples, seed),
                        )
                    )
    return tuple(reports), tuple(differences)
