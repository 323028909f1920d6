"""Several training configurations, over several seeds, on the same data -> one table with paired differences.

In: a `Plan`, labelled images, a folder for the trained runs. Out: a `Comparison`, as JSON and as Markdown. Each
method's learning rate and each run's epoch are chosen on validation; the reported splits are scored after that, and
nothing is chosen by them. It knows nothing of terminals.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clipmole import metrics
from clipmole.data import labels_of, read_data, take_split
from clipmole.data.sample import Sample
from clipmole.data.samples import source_hash
from clipmole.errors import DataError, TrainingDiverged
from clipmole.evaluation.bootstrap import bootstrap_indices
from clipmole.evaluation.estimates import Replicates, origin_parts
from clipmole.evaluation.records import ComparedMethod, Comparison, Difference, TrainedOn
from clipmole.models.network import MoLENetwork
from clipmole.plumbing.files import foreign_file
from clipmole.plumbing.json_toml import read_json
from clipmole.plumbing.progress import SILENT, ProgressReporter
from clipmole.report.comparison import comparison_page
from clipmole.training.comparison_plan import Method, Plan, differing, wider, with_rate
from clipmole.training.trained_runs import TrainedRun, TrainedRuns, order_digest, write_whole

WIDENINGS = 4  # how often a grid is extended, at most: two decades


def run_at(runs: TrainedRuns, method: Method, rate: float, seed: int) -> TrainedRun:
    """The run of a method at a rate with a seed."""
    return runs.get_or_train(method.name, with_rate(method.config, rate).model_copy(update={"seed": seed}))


def choose_rate(runs: TrainedRuns, plan: Plan, method: Method) -> tuple[float, dict[float, float | None]]:
    """The learning rate with the best validation AP for the first seed, and rate -> AP of all tried.

    If the best is the lowest or highest rate tried, the grid is extended beyond it, at most `WIDENINGS` times. A
    single rate is used as it is. Raises `TrainingDiverged` if every run did.
    """
    tried: dict[float, float | None] = {}
    waiting = list(plan.rates_of(method))
    single = len(waiting) == 1
    widened = 0
    while waiting:
        rate = waiting.pop(0)
        try:
            tried[rate] = run_at(runs, method, rate, plan.seeds[0]).val
        except TrainingDiverged as error:
            if single:
                raise
            runs.progress.say(f"{method.name}, rate {rate:g}: {error}")
            tried[rate] = None
        if not waiting and not single and widened < WIDENINGS:
            further = wider(list(tried), best_of(method, tried))
            waiting = [further] if further is not None and further not in tried else []
            widened += 1
    return best_of(method, tried), tried


def best_of(method: Method, tried: Mapping[float, float | None]) -> float:
    """The rate with the highest validation AP; of equal ones the lowest."""
    reached = {rate: ap for rate, ap in tried.items() if ap is not None}
    if not reached:
        raise TrainingDiverged(f"{method.name}: every rate diverged: {', '.join(f'{r:g}' for r in sorted(tried))}")
    return max(sorted(reached), key=lambda rate: reached[rate])


def mean_ap(labels: NDArray[np.int64], logits: NDArray[np.float64]) -> float:
    """Mean of the average precision over the columns of `logits` (n, seeds)."""
    return float(np.mean([metrics.average_precision(labels, column) for column in logits.T]))


def estimate_ap(samples: Sequence[Sample], logits: NDArray[np.float64], resamples: int) -> Replicates:
    """`mean_ap` of logits (n, seeds), and of resamples that are the same for all logits of the same samples."""
    labels = labels_of(samples)
    drawn = bootstrap_indices(labels, resamples, groups=[sample.group for sample in samples])
    return Replicates(mean_ap(labels, logits), np.array([mean_ap(labels[i], logits[i]) for i in drawn]))


def compare(
    plan: Plan,
    data: str | Path,
    out: Path,
    *,
    test_data: str | Path | None = None,
    backbone: str | None = None,
    runs: Path | None = None,
    resamples: int = 1000,
    command: str = "",
    progress: ProgressReporter = SILENT,
) -> Comparison:
    """Train the runs that are missing, score them, and write `NAME.json` and `NAME.md` into `out`.

    It is long because everything that the tables say meets here, and it has many parameters because it is the whole of
    `clipmole compare`.

    Args:
        data: labelled images with the splits train, val and, if there, calibration.
        test_data: labelled images with the plan's splits; None: those of `data`.
        backbone: instead of the one that the configurations name.
        runs: folder of the trained runs; None: `out`/runs.
        resamples: of the bootstrap over images.
        command: the command that makes the tables again, which they print.

    Raises `DataError` for splits that are not there, before any training, and whatever `train` raises.
    """
    check_outputs(out, plan.name)
    labelled = read_data(data)
    train = take_split(labelled, "train")
    take_split(labelled, "val")  # noticed now, not after the training
    everything = labelled if test_data is None else read_data(test_data)
    splits = {split: take_split(everything, split) for split in plan.splits}
    digests = {split: order_digest(samples) for split, samples in splits.items()}
    trained = TrainedRuns(runs or out / "runs", data, backbone, progress, plan.variants, plan.kept_views)
    finished: dict[str, list[TrainedRun]] = {}
    logits: dict[str, dict[str, NDArray[np.float64]]] = {}
    rates: dict[str, tuple[float, dict[float, float | None]]] = {}
    for method in plan.methods:
        rates[method.name] = choose_rate(trained, plan, method)
        chosen = rates[method.name][0]
        finished[method.name] = [run_at(trained, method, chosen, seed) for seed in plan.seeds]
        scored = [trained.logits(run, splits, digests) for run in finished[method.name]]
        logits[method.name] = {key: np.stack([each[key] for each in scored], axis=1) for key in scored[0]}
    pooled = [sample for split in plan.splits for sample in splits[split]]
    for part, own in known_and_new(pooled, train).items():
        splits[part] = [pooled[i] for i in own.tolist()]
        for each in logits.values():
            for v in plan.variants:
                each[f"{part}, {v}"] = np.concatenate([each[f"{split}, {v}"] for split in plan.splits])[own]
    reported = {f"{split}, {v}": samples for split, samples in splits.items() for v in plan.variants}
    estimates = {
        name: {key: estimate_ap(reported[key], each, resamples) for key, each in own.items()}
        for name, own in logits.items()
    }
    speeds = crops_per_second({name: trained.detector(runs[0]).network for name, runs in finished.items()})
    settings = differing({method.name: method.config for method in plan.methods})
    comparison = Comparison(
        title=plan.title,
        note=plan.note,
        methods=tuple(
            compared(
                method,
                {key: row[method.name] for key, row in settings.items()},
                finished[method.name],
                rates[method.name],
                {key: labels_of(samples) for key, samples in reported.items()},
                logits[method.name],
                estimates[method.name],
                speeds[method.name],
            )
            for method in plan.methods
        ),
        images={split: (len(s) - int(labels_of(s).sum()), int(labels_of(s).sum())) for split, s in splits.items()},
        differences=reference_differences(plan, estimates),
        recipe={
            "command": command,
            "data digest": trained.digest,
            "seeds": list(plan.seeds),
            "resamples": resamples,
            **trained_with([run for each in finished.values() for run in each]),
        },
    )
    write_whole(out / f"{plan.name}.json", comparison.model_dump_json(indent=1) + "\n")
    write_whole(out / f"{plan.name}.md", comparison_page(comparison))
    return comparison


def known_and_new(samples: Sequence[Sample], train: Sequence[Sample]) -> dict[str, NDArray[np.intp]]:
    """Known and new sources of photographs x known and new generators -> indices of those of the samples (n,).

    Known is what the training images come from. Returns {} if a photograph names no source, or if there is one such
    part alone.
    """
    trained_on = TrainedOn(
        generators=tuple({sample.generator for sample in train if sample.label}),
        sources=tuple({source_hash(sample.source) for sample in train if not sample.label and sample.source}),
    )
    words = {True: "known", False: "new"}
    parts = {
        f"{words[source]} sources x {words[generator]} generators": own
        for (source, generator), own in origin_parts(samples, trained_on).items()
        if len(set(labels_of([samples[i] for i in own.tolist()]))) == 2
    }
    return parts if len(parts) > 1 else {}


def check_outputs(out: Path, name: str) -> None:
    """Raise `DataError` if `NAME.json` or `NAME.md` exists in `out` and is not a comparison's."""

    def read(path: Path) -> None:
        values = read_json(path.with_suffix(".json"), DataError)
        if not isinstance(values, dict) or not {"methods", "differences"} <= values.keys():
            raise DataError(f"{path}: is not a comparison")

    if path := foreign_file(out, {f"{name}.json": read, f"{name}.md": read}):
        raise DataError(f"{path}: exists and was not written by clipmole compare; name another --out")


@torch.inference_mode()
def crops_per_second(networks: Mapping[str, MoLENetwork], crops: int = 16, rounds: int = 7) -> dict[str, float]:
    """Crops that each network scores in a second: the median of rounds in which all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for each in range(rounds + 1):  # the first warms up
        for name, network in networks.items():
            size = network.tower.config.image_size
            pixels = torch.zeros(crops, 3, size, size, dtype=torch.uint8)
            began = time.perf_counter()
            network(pixels)
            seconds[name] += [time.perf_counter() - began] if each else []
    return {name: crops / float(np.median(own)) for name, own in seconds.items()}


def compared(
    method: Method,
    settings: dict[str, Any],
    runs: Sequence[TrainedRun],
    rates: tuple[float, Mapping[float, float | None]],
    labels: Mapping[str, NDArray[np.int64]],
    logits: Mapping[str, NDArray[np.float64]],
    estimates: Mapping[str, Replicates],
    crops_per_second: float,
) -> ComparedMethod:
    """The record of one method: `logits` (n, seeds), `labels` (n,) and average precision by "SPLIT, CONDITION".

    Args:
        rates: as `choose_rate` returns them.
    """
    first, (rate, tried) = runs[0].record, rates
    return ComparedMethod(
        name=method.name,
        settings=settings,
        backbone=f"{first['backbone']['id']}@{first['backbone']['sha256'][:12]}",
        trained_parameters=first["trained_parameters"],
        learning_rate=rate,
        val_by_rate=dict(sorted(tried.items())),
        on_edge=wider(list(tried), rate) is not None,
        val=tuple(run.val for run in runs),
        runs=tuple(run.folder.name for run in runs),
        estimates={key: estimate.estimate() for key, estimate in estimates.items()},
        seeds={
            key: tuple(metrics.average_precision(labels[key], column) for column in scores.T)
            for key, scores in logits.items()
        },
        seconds_per_epoch=float(np.median([epoch["seconds"] for run in runs for epoch in run.record["curve"]])),
        crops_per_second=crops_per_second,
        reported=method.reported,
    )


def reference_differences(plan: Plan, estimates: Mapping[str, Mapping[str, Replicates]]) -> tuple[Difference, ...]:
    """The reference minus each other method, both averaged over the seeds, on the same resampled images."""
    return tuple(
        Difference(
            first=reference,
            second=name,
            set=key.rsplit(", ", 1)[0],
            condition=key.rsplit(", ", 1)[1],
            metric="average_precision",
            estimate=estimates[reference][key].minus(estimates[name][key]).estimate(),
        )
        for reference, name in plan.pairs()
        for key in estimates[name]
    )


def trained_with(runs: Sequence[TrainedRun]) -> dict[str, Any]:
    """Versions, hardware and dates of the runs: a single value if all agree, else a list."""
    found: dict[str, list[Any]] = {}
    for run in runs:
        for key, value in run.record["environment"].items():
            found.setdefault(key, [])
            if value not in found[key]:
                found[key].append(value)
    return {key: values[0] if len(values) == 1 else sorted(values, key=str) for key, values in found.items()}
