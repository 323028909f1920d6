"""Labels and logits -> estimates with intervals, and paired differences between detectors.

In: samples and logits of one set, or a whole `ScoreTable`. Out: `SetReport` and `Difference` records. It knows
nothing of images or of how logits are made, and it never searches a threshold on the images that it reports (except
`oracle_accuracy`, which says so).

A metric is measured on a set and on each of its resamples. All detectors see the same resamples, so a difference of two
is a difference resample by resample; the same holds for sets that share their photographs, and for means over sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Self

import numpy as np
from numpy.typing import NDArray

from clipmole import metrics
from clipmole.calibration import Calibration
from clipmole.data import labels_of
from clipmole.data.sample import Sample
from clipmole.data.samples import source_hash
from clipmole.errors import DataError
from clipmole.evaluation.bootstrap import bootstrap_indices, group_codes, percentile_interval
from clipmole.evaluation.records import (
    ALL_SETS,
    Difference,
    Estimate,
    KindEstimate,
    OriginEstimate,
    SetReport,
    TrainedOn,
)
from clipmole.evaluation.scores import ScoreTable

MAIN = ("as stored", "equalised")  # conditions that get every metric; the others get those of `QUICK`
QUICK = ("average_precision", "auroc", "accuracy", "false_alarm", "detected", "uncertain")
COMPARED = ("average_precision", "auroc", "accuracy")  # more is better


@dataclass(frozen=True)
class Replicates:
    """An estimate and its resamples.

    Attributes:
        value: on the data.
        draws: (resamples,) on each resample; nan where it is not defined.
    """

    value: float
    draws: NDArray[np.float64]

    def estimate(self) -> Estimate:
        """The value with its 95 % percentile interval."""
        low, high = percentile_interval(self.draws)
        return Estimate(value=self.value, low=low, high=high)

    def minus(self, other: Self) -> Replicates:
        """The paired difference; both must come from the same resamples."""
        return Replicates(self.value - other.value, self.draws - other.draws)


def mean_replicates(estimates: Sequence[Replicates]) -> Replicates:
    """The mean of those that are defined on the data; in each resample, the mean of those that are defined there."""
    own = [estimate for estimate in estimates if not np.isnan(estimate.value)]
    if not own:
        return Replicates(float("nan"), np.zeros(0))
    draws = np.stack([estimate.draws for estimate in own])  # (estimates, resamples)
    defined = ~np.isnan(draws)
    count = defined.sum(0)
    means = np.where(defined, draws, 0).sum(0) / np.where(count, count, np.nan)
    return Replicates(float(np.mean([estimate.value for estimate in own])), means)


@dataclass(frozen=True)
class SetReplicates:
    """The estimates of one detector on one set under one condition, with their resamples; as in `SetReport`."""

    estimates: dict[str, Replicates]
    generators: dict[str, dict[str, Replicates]]
    means: dict[str, Replicates]


def metric_by_generator(
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
    aps = metric_by_generator(metrics.average_precision, generators, labels, scores)
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
    real, generated = calibration.thresholds.real, calibration.thresholds.generated
    return {
        "accuracy": partial(metrics.accuracy, threshold=0.5),
        "alarm_accuracy": partial(metrics.accuracy, threshold=generated),
        "balanced_accuracy": partial(metrics.balanced_accuracy, threshold=0.5),
        "real_accuracy": partial(metrics.class_accuracy, label=0, threshold=0.5),
        "fake_accuracy": partial(metrics.class_accuracy, label=1, threshold=0.5),
        "calibration_error": metrics.expected_calibration_error,
        "negative_log_likelihood": metrics.negative_log_likelihood,
        "false_alarm": partial(share_above, label=0, threshold=generated),
        "detected": partial(share_above, label=1, threshold=generated),
        "miss": partial(share_below, label=1, threshold=real),
        "uncertain": partial(share_between, low=real, high=generated),
        "selective_accuracy": partial(metrics.selective_accuracy, low=real, high=generated),
    }


def scored_metrics(
    scores: NDArray[np.float64], calibration: Calibration | None
) -> dict[str, tuple[metrics.Metric, NDArray[np.float64]]]:
    """Name -> a metric and its scores: the logits (n,), or their calibrated probabilities.

    `raw_accuracy` is at logit 0, a probability of 0.5 for a network with a sigmoid, as papers compute it. Without a
    calibration `accuracy` and the metrics like it are at logit 0 too.
    """
    at_zero = partial(metrics.accuracy, threshold=0.0)
    found = {key: (metric, scores) for key, metric in RANKING.items()}
    if calibration is not None:
        probabilities = calibration.probabilities(scores)
        found |= {key: (metric, probabilities) for key, metric in verdict_metrics(calibration).items()}
        found["raw_accuracy"] = (at_zero, scores)
    else:
        found["accuracy"] = (at_zero, scores)
        found["real_accuracy"] = (partial(metrics.class_accuracy, label=0, threshold=0.0), scores)
        found["fake_accuracy"] = (partial(metrics.class_accuracy, label=1, threshold=0.0), scores)
    return found


def estimate_set(
    name: str,
    samples: Sequence[Sample],
    scores: NDArray[np.float64],
    calibration: Calibration | None,
    *,
    only: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> SetReplicates:
    """Estimates from logits `scores` (n,) of `samples`, on the data and on resamples of them.

    The estimates resample groups within each class; those of generators, and their mean, also within each generator:
    the generators are fixed, and only their images are a sample.

    Args:
        only: names of the metrics to compute, and none by generator; None: all.

    Raises `DataError` without samples.
    """
    if not len(samples) == len(scores) > 0:
        raise DataError(f"set {name!r}: needs images and a logit for each: {len(samples)} images, {len(scores)} logits")
    labels = labels_of(samples)
    groups = [sample.group for sample in samples]
    names = sample_names(samples)
    functions = scored_metrics(scores, calibration)
    if only is not None:
        functions = {key: function for key, function in functions.items() if key in only}
    draws: dict[str, list[float]] = {key: [] for key in functions}
    for i in bootstrap_indices(labels, resamples, seed, groups=groups, names=names):
        drawn = labels[i]
        for key, (metric, given) in functions.items():
            draws[key].append(metric(drawn, given[i]))
    estimates = {
        key: Replicates(metric(labels, given), np.array(draws[key])) for key, (metric, given) in functions.items()
    }
    if only is not None:
        return SetReplicates(estimates, {}, {})

    generators = np.array([sample.generator for sample in samples])
    strata = np.where(labels == 1, np.unique(generators, return_inverse=True)[1], -1)
    chosen = {key: functions[key] for key in ("average_precision", "accuracy")}
    found: dict[str, list[dict[str, float]]] = {key: [] for key in chosen}
    for i in bootstrap_indices(strata, resamples, seed, groups=groups, names=names):
        for key, (metric, given) in chosen.items():
            found[key].append(metric_by_generator(metric, generators[i], labels[i], given[i]))
    per_generator: dict[str, dict[str, Replicates]] = {}
    means: dict[str, Replicates] = {}
    for key, (metric, given) in chosen.items():
        own = metric_by_generator(metric, generators, labels, given)
        own_replicates = {
            g: Replicates(v, np.array([one.get(g, np.nan) for one in found[key]])) for g, v in own.items()
        }
        for generator, replicates in own_replicates.items():
            per_generator.setdefault(generator, {})[key] = replicates
        means[key] = mean_replicates(list(own_replicates.values()))
    return SetReplicates(estimates, per_generator, means)


def report_set(detector: str, name: str, condition: str, samples: Sequence[Sample], found: SetReplicates) -> SetReport:
    """The record of the estimates on `samples`."""
    labels = labels_of(samples)
    return SetReport(
        detector=detector,
        set=name,
        condition=condition,
        n_real=int((labels == 0).sum()),
        n_generated=int((labels == 1).sum()),
        groups=len(np.unique(group_codes([sample.group for sample in samples]))),
        estimates={key: estimate.estimate() for key, estimate in found.estimates.items()},
        generators={
            generator: {key: estimate.estimate() for key, estimate in own.items()}
            for generator, own in found.generators.items()
        },
        means={key: estimate.estimate() for key, estimate in found.means.items()},
    )


def bootstrap_metric(
    metric: metrics.Metric,
    samples: Sequence[Sample],
    scores: NDArray[np.float64],
    resamples: int,
    seed: int,
) -> Estimate:
    """A metric of labels and `scores` (n,) on some images, and its interval over resamples of them."""
    labels = labels_of(samples)
    if not len(samples):
        return Estimate(value=float("nan"), low=float("nan"), high=float("nan"))
    groups, names = [sample.group for sample in samples], sample_names(samples)
    drawn = bootstrap_indices(labels, resamples, seed, groups=groups, names=names)
    return Replicates(metric(labels, scores), np.array([metric(labels[i], scores[i]) for i in drawn])).estimate()


def origin_parts(samples: Sequence[Sample], trained_on: TrainedOn | None) -> dict[tuple[bool, bool], NDArray[np.intp]]:
    """(source known, generator known) -> indices of the photographs of such sources and the images of such generators.

    Returns {} where a photograph names no source, or where it is not known what was trained on.
    """
    if trained_on is None or any(sample.label == 0 and not sample.source for sample in samples):
        return {}
    known = np.array(
        [
            sample.generator in trained_on.generators
            if sample.label
            else source_hash(sample.source) in trained_on.sources
            for sample in samples
        ]
    )
    labels = labels_of(samples)
    cells = ((True, True), (True, False), (False, True), (False, False))
    return {
        (source, generator): np.flatnonzero(known == np.where(labels == 1, generator, source))
        for source, generator in cells
    }


def estimate_origins(
    samples: Sequence[Sample], scores: NDArray[np.float64], trained_on: TrainedOn | None, resamples: int, seed: int
) -> tuple[OriginEstimate, ...]:
    """The AUROC of logits (n,) for known and new sources of photographs x known and new generators.

    Returns () where a photograph names no source, or where the detector's are not known.
    """
    found = []
    for (known_source, known_generator), own in origin_parts(samples, trained_on).items():
        chosen = [samples[i] for i in own.tolist()]
        auroc = bootstrap_metric(metrics.auroc, chosen, scores[own], resamples, seed)
        n_generated = int(labels_of(chosen).sum())
        found.append(
            OriginEstimate(
                known_source=known_source,
                known_generator=known_generator,
                n_real=len(own) - n_generated,
                n_generated=n_generated,
                auroc=auroc,
            )
        )
    return tuple(found)


def estimate_kinds(
    samples: Sequence[Sample], scores: NDArray[np.float64], calibration: Calibration | None, resamples: int, seed: int
) -> tuple[KindEstimate, ...]:
    """The shares of photographs called AI-generated and uncertain, by kind, from logits (n,); () if no kind is
    known."""
    kinds = np.array([sample.kind if sample.label == 0 else "" for sample in samples])
    if calibration is None or not kinds.astype(bool).any():
        return ()
    verdicts, found = verdict_metrics(calibration), []
    for kind in sorted(set(kinds.tolist()) - {""}):
        own = np.flatnonzero(kinds == kind)
        chosen, probabilities = [samples[i] for i in own.tolist()], calibration.probabilities(scores[own])
        shares = {
            key: bootstrap_metric(verdicts[key], chosen, probabilities, resamples, seed)
            for key in ("false_alarm", "uncertain")
        }
        found.append(KindEstimate(kind=kind, n_real=len(own), **shares))
    return tuple(found)


def sample_names(samples: Sequence[Sample]) -> list[str]:
    """The names that the images' bootstrap draws depend on: the same wherever the data lie."""
    return ["/".join(sample.path.parts[-3:]) for sample in samples]


def mean_over_sets(found: Sequence[SetReplicates]) -> SetReplicates:
    """The mean of each metric over the sets where it is defined, as papers report it for a benchmark."""

    def means(parts: Sequence[Mapping[str, Replicates]]) -> dict[str, Replicates]:
        keys = dict.fromkeys(key for part in parts for key in part)
        return {key: mean_replicates([part[key] for part in parts if key in part]) for key in keys}

    return SetReplicates(means([each.estimates for each in found]), {}, means([each.means for each in found]))


def paired_differences(
    name: str, condition: str, detectors: Sequence[str], found: Sequence[SetReplicates]
) -> list[Difference]:
    """Paired differences of each two detectors in the metrics of `COMPARED`."""
    return [
        Difference(
            first=detectors[a],
            second=detectors[b],
            set=name,
            condition=condition,
            metric=key,
            estimate=found[a].estimates[key].minus(found[b].estimates[key]).estimate(),
        )
        for a, b in combinations(range(len(detectors)), 2)
        for key in COMPARED
    ]


def report_table(
    table: ScoreTable,
    calibrations: Mapping[str, Calibration | None],
    resamples: int = 1000,
    seed: int = 0,
    trained_on: Mapping[str, TrainedOn | None] | None = None,
) -> tuple[tuple[SetReport, ...], tuple[Difference, ...]]:
    """Estimates of every detector, set and condition, and the paired differences of each two detectors.

    The conditions of `MAIN` get every metric, the differences, and the estimates by origin and kind; the others (of a
    robustness curve) get the metrics of `QUICK`. Of several sets the means over them come last, under the name
    `ALL_SETS`.

    Args:
        trained_on: detector -> what it was trained on; None: not known.
    """
    reports: list[SetReport] = []
    compared: list[Difference] = []
    by_set = {name: np.flatnonzero(table.sets == name) for name in dict.fromkeys(table.sets.tolist())}
    samples = {name: [table.samples[i] for i in own.tolist()] for name, own in by_set.items()}
    everything: dict[tuple[int, int], list[SetReplicates]] = {}
    for name, own in by_set.items():
        for c, condition in enumerate(table.conditions):
            found = [
                estimate_set(
                    name,
                    samples[name],
                    table.logits[d, c, own],
                    calibrations[detector],
                    only=None if condition in MAIN else QUICK,
                    resamples=resamples,
                    seed=seed,
                )
                for d, detector in enumerate(table.detectors)
            ]
            for d, detector in enumerate(table.detectors):
                report = report_set(detector, name, condition, samples[name], found[d])
                if condition in MAIN:
                    scores, origin = table.logits[d, c, own], (trained_on or {}).get(detector)
                    origins = estimate_origins(samples[name], scores, origin, resamples, seed)
                    kinds = estimate_kinds(samples[name], scores, calibrations[detector], resamples, seed)
                    report = report.model_copy(update={"origins": origins, "kinds": kinds})
                reports.append(report)
                everything.setdefault((c, d), []).append(found[d])
            if condition in MAIN:
                compared += paired_differences(name, condition, table.detectors, found)
    if len(by_set) > 1:
        distinct = list({sample.path: sample for sample in table.samples}.values())
        for c, condition in enumerate(table.conditions):
            found = [mean_over_sets(everything[c, d]) for d in range(len(table.detectors))]
            for d, detector in enumerate(table.detectors):
                reports.append(report_set(detector, ALL_SETS, condition, distinct, found[d]))
            if condition in MAIN:
                compared += paired_differences(ALL_SETS, condition, table.detectors, found)
    return tuple(reports), tuple(compared)
