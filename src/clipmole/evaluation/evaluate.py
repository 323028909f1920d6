"""Scorers and labelled images -> logits under every condition -> figures with intervals.

In: scorers, named sets of samples, conditions. Out: a `ScoreTable` and an `EvaluationReport`. Every scorer sees
the same pixels: an image is decoded once and perturbed once for all of them. It knows nothing of training or of
pages, and it never searches a threshold on what it reports.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from clipmole.data import DataSource, Unpacking, data_digest, file_sha256, load_window
from clipmole.data.sample import Sample
from clipmole.errors import ConfigError, DataError, ImageError
from clipmole.evaluation.estimates import MAIN, report_table
from clipmole.evaluation.protocol import Protocol, find_sets, published_for
from clipmole.evaluation.records import DetectorInfo, EvaluationReport
from clipmole.evaluation.scorers import ImageScorer, load_scorer, with_center_crop
from clipmole.evaluation.scores import Logits, ScoreFile, ScoreTable
from clipmole.images.conditions import Condition, apply, load_conditions
from clipmole.images.transforms import RGB
from clipmole.inference.runtime import batch_for
from clipmole.plumbing.environment import environment
from clipmole.plumbing.progress import Track, untracked
from clipmole.plumbing.seeding import sample_rng
from clipmole.plumbing.text import escaped

CHUNK_BYTES = 256 * 2**20  # decoded pixels of one chunk, all conditions together; as much is prepared ahead
CHUNK_IMAGES = 32

Pixels = list[RGB] | str  # an image under each condition, or the reason why there is none


def perturbed(sample: Sample, conditions: Sequence[Condition], seed: int) -> list[RGB]:
    """The sample's pixels under each condition; they depend on the seed and the file's content alone."""
    rgb, digest = load_window(sample), file_sha256(sample)
    return [apply(condition, rgb, sample_rng(seed, digest)) for condition in conditions]


def chunks(
    samples: Iterable[Sample], conditions: Sequence[Condition], seed: int, workers: int
) -> Iterator[list[tuple[Sample, Pixels]]]:
    """Images with their perturbed pixels (or why there are none), in order, in chunks of bounded size.

    `workers` threads decode and perturb the next chunk while the scorers are at work on this one. As many images
    are prepared ahead as `CHUNK_BYTES` holds of the largest one so far, but no fewer than there are workers.
    """

    def prepare(sample: Sample) -> Pixels:
        try:
            return perturbed(sample, conditions, seed)
        except (ImageError, DataError) as error:
            return str(error)

    chunk: list[tuple[Sample, Pixels]] = []
    size, largest, depth = 0, 1, 2 * workers
    ahead: deque[tuple[Sample, Future[Pixels]]] = deque()
    remaining = iter(samples)
    with ThreadPoolExecutor(workers) as pool:
        while True:
            while len(ahead) < depth and (sample := next(remaining, None)) is not None:
                ahead.append((sample, pool.submit(prepare, sample)))
            if not ahead:
                break
            sample, future = ahead.popleft()
            views = future.result()
            chunk.append((sample, views))
            if not isinstance(views, str):
                own = sum(view.nbytes for view in views)
                size, largest = size + own, max(largest, own)
                depth = max(workers, min(CHUNK_IMAGES, CHUNK_BYTES // largest))
            if size >= CHUNK_BYTES or len(chunk) >= CHUNK_IMAGES:
                yield chunk
                chunk, size = [], 0
    if chunk:
        yield chunk


def score_sets(
    scorers: Mapping[str, ImageScorer],
    sets: Mapping[str, Sequence[Sample]],
    conditions: Sequence[Condition],
    file: Path,
    *,
    seed: int = 0,
    workers: int = 2,
    track: Track = untracked,
) -> tuple[ScoreTable, dict[str, str]]:
    """Score every image of every set under every condition with every scorer, and keep the scores in `file`.

    A run that was killed goes on where it was: what is in `file` is not scored again, and detectors or images that
    are added later are scored alone. An image of several sets is scored once. One that cannot be read is recorded
    with the reason and left out of the table.

    Args:
        scorers: short name -> scorer. Scorers of the same `ImageScorer.name` are one, and scored once.
        file: JSON lines; see `scores`. One that was begun with other conditions or another seed is refused.
        workers: threads that decode and perturb.
        track: wraps the images that are left to score, given a description and their number (a progress bar).

    Returns:
        The table, and path -> reason for the images that could not be read.
    """
    samples = {str(sample.path): sample for members in sets.values() for sample in members}
    if not samples or not scorers or not conditions:
        raise DataError("evaluation: nothing to do: needs images, detectors and conditions")
    what: dict[str, Any] = {"conditions": [each.model_dump(mode="json") for each in conditions], "seed": seed}
    different = {scorer.name: scorer for scorer in scorers.values()}
    with ScoreFile(file, what) as scores:
        waiting = [sample for path, sample in samples.items() if scores.lacking(path, different)]
        tracked = track(waiting, "scoring", len(waiting))
        for chunk in chunks(tracked, conditions, seed, workers):
            found: dict[str, Logits | str] = {
                str(sample.path): views if isinstance(views, str) else {} for sample, views in chunk
            }
            for key, scorer in different.items():
                own = [(s, v) for s, v in chunk if not isinstance(v, str) and scores.lacking(str(s.path), [key])]
                logits = scorer.score([view for _, views in own for view in views]).astype(np.float64)
                for (sample, _), row in zip(own, logits.reshape(-1, len(conditions)), strict=True):
                    cast(Logits, found[str(sample.path)])[key] = row.tolist()
            scores.append(found.items())
        names = {name: scorer.name for name, scorer in scorers.items()}
        return scores.table(sets, names, [condition.name for condition in conditions])


def detector_info(name: str, scorer: ImageScorer) -> DetectorInfo:
    """What a report says of a scorer."""
    calibration = scorer.calibration
    if calibration is None:
        note = "not calibrated: accuracies are at logit 0, and it gives no verdicts"
        return DetectorInfo(name=name, id=scorer.name, note=note)
    return DetectorInfo(
        name=name,
        id=scorer.name,
        thresholds=calibration.thresholds,
        slope=calibration.slope,
        intercept=calibration.intercept,
    )


def evaluate(
    scorers: Mapping[str, ImageScorer],
    sets: Mapping[str, Sequence[Sample]],
    conditions: Sequence[Condition],
    file: Path,
    *,
    title: str = "Evaluation",
    resamples: int = 1000,
    seed: int = 0,
    workers: int = 2,
    track: Track = untracked,
) -> tuple[EvaluationReport, ScoreTable]:
    """Score everything once, or go on with `file`, and report it. Arguments as `score_sets`'.

    Raises `DataError` if nothing can be read, `ConfigError` unless the conditions "as stored" and "equalised" are
    there: they are always reported together.
    """
    names = [condition.name for condition in conditions]
    if not set(MAIN) <= set(names):
        raise ConfigError(f"conditions: {' and '.join(MAIN)} are always reported together; given: {', '.join(names)}")
    began = time.perf_counter()
    table, failed = score_sets(scorers, sets, conditions, file, seed=seed, workers=workers, track=track)
    if not table.samples:
        raise DataError(f"none of {len(failed)} images could be read: {next(iter(failed.values()))}")
    seconds = time.perf_counter() - began
    calibrations = {name: scorer.calibration for name, scorer in scorers.items()}
    reports, differences = report_table(table, calibrations, resamples, seed)
    report = EvaluationReport(
        title=title,
        detectors=tuple(detector_info(name, scorer) for name, scorer in scorers.items()),
        sets=reports,
        differences=differences,
        failed={escaped(path): reason for path, reason in failed.items()},
        recipe={
            "images": len(table.samples),
            "data digest": data_digest(table.samples),
            "seed": seed,
            "resamples": resamples,
            "seconds of scoring in this run": round(seconds, 1),
            **environment(),
        },
    )
    return report, table


def run_protocol(
    protocol: Protocol,
    specs: Mapping[str, str],
    data: DataSource,
    out: Path,
    *,
    splits: Sequence[str] = (),
    how: Unpacking | None = None,
    conditions: str | None = None,
    backbones: Mapping[str, str] | None = None,
    resamples: int = 1000,
    workers: int = 2,
    batch_size: int | None = None,
    device: str = "cpu",
    precision: Literal["float32", "bfloat16"] = "float32",
    command: str = "",
    track: Track = untracked,
) -> tuple[EvaluationReport, ScoreTable, tuple[Condition, ...]]:
    """Measure detectors by a protocol, and keep the scores in `out`.

    Args:
        specs: short name -> what `load_scorer` takes.
        data: whatever `read_data` takes, or the folder with the protocol's data sets.
        splits: of a manifest, instead of the protocol's.
        how: of the data that have to be unpacked.
        conditions: a preset or a file, instead of the protocol's.
        backbones: short name -> where its backbone comes from, if not from where the detector says.
        command: printed in the report as the way to make it again.

    Returns:
        The report, the scores that it was made from, and the conditions: what `write_report` takes.

    Data sets that are not there are named in the report, and the others are measured. Raises `DataError` if none
    is there, and what `evaluate` and `load_scorer` raise.
    """
    sets, missing = find_sets(protocol, data, splits, how)
    if not sets:
        raise DataError(f"{data}: none of the data sets is there: " + "; ".join(missing[:3]))
    size = batch_for(device, batch_size)
    settings = {"device": device, "precision": precision, "batch size": size}
    own = backbones or {}
    scorers = {
        name: load_scorer(spec, backbone=own.get(name), device=device, precision=precision, batch_size=size)
        for name, spec in specs.items()
    }
    if protocol.crop == "center_crop":
        scorers = {name: with_center_crop(scorer) for name, scorer in scorers.items()}
    chosen = load_conditions(conditions or protocol.conditions)
    report, table = evaluate(
        scorers,
        sets,
        chosen,
        out / "scores.jsonl",
        title=protocol.title,
        resamples=resamples,
        seed=protocol.seed,
        workers=workers,
        track=track,
    )
    report = report.model_copy(
        update={
            "note": protocol.note,
            "missing": tuple(missing),
            "published": published_for(protocol),
            "recipe": ({"command": command} if command else {}) | report.recipe | settings,
        }
    )
    return report, table, chosen
