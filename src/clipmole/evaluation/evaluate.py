"""Scorers and labelled images -> logits under every condition -> estimates with intervals.

In: scorers, named sets of samples, conditions. Out: a `ScoreTable` and an `EvaluationReport`. All scorers see the same
pixels: an image is decoded and perturbed once for all that lack its scores. It knows nothing of training or of pages.
No threshold is chosen here: verdicts use those of each detector's calibration. Only metrics that say so in their names,
such as `oracle_accuracy`, search a threshold on the images that they report.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clipmole.data import DataSource, Unpacking, data_digest, file_sha256, load_window
from clipmole.data.reading import look_at_all
from clipmole.data.sample import Sample
from clipmole.errors import ConfigError, DataError, ImageError, Stopped
from clipmole.evaluation.estimates import MAIN, report_table
from clipmole.evaluation.protocol import Protocol, find_sets, published_for
from clipmole.evaluation.records import DetectorInfo, EvaluationReport, TrainedOn
from clipmole.evaluation.scorers import ImageScorer, load_scorer, trained_on, with_center_crop
from clipmole.evaluation.scores import ScoreFile, ScoreTable
from clipmole.images.conditions import Condition, apply, load_conditions
from clipmole.images.transforms import RGB
from clipmole.inference.runtime import RuntimeName, batch_for
from clipmole.plumbing.environment import environment
from clipmole.plumbing.prefetch import ahead
from clipmole.plumbing.progress import SILENT, ProgressReporter
from clipmole.plumbing.seeding import sample_rng
from clipmole.plumbing.text import escaped, printable

READY_BYTES = 256 * 2**20  # decoded pixels, of all conditions together, that wait for the scorers
CHUNK_BYTES = READY_BYTES  # of those that are scored at once; a further image may exceed either limit
CHUNK_IMAGES = 32  # most that are scored at once
KEPT_SECONDS = 20.0  # of scoring, about, between two writes of the scores to the disk; a kill costs no more

Pixels = list[RGB] | str  # an image under each condition, or the reason why it cannot be read


def perturbed(sample: Sample, conditions: Sequence[Condition], seed: int) -> list[RGB]:
    """The sample's pixels under each condition; they depend on the seed and the file's content alone."""
    rgb, digest = load_window(sample), file_sha256(sample)
    return [apply(condition, rgb, sample_rng(seed, digest)) for condition in conditions]


def prepared(
    samples: Iterable[Sample], conditions: Sequence[Condition], seed: int, workers: int
) -> Generator[tuple[Sample, Pixels], None, None]:
    """Images with their pixels under each condition (or why there are none), in order.

    `workers` threads decode and perturb ahead of the reader, as many images as fit in `READY_BYTES`.
    """

    def prepare(sample: Sample) -> tuple[Sample, Pixels]:
        try:
            return sample, perturbed(sample, conditions, seed)
        except (ImageError, DataError) as error:
            return sample, str(error)

    made = ahead(prepare, samples, workers=workers, limit=READY_BYTES, weigh=pixel_bytes)
    with closing(made):
        for result in made:
            if result is not None:
                yield result


def pixel_bytes(image: tuple[Sample, Pixels]) -> int:
    """Bytes of an image's pixels under all conditions."""
    return 0 if isinstance(image[1], str) else sum(rgb.nbytes for rgb in image[1])


def take_chunk(images: Iterator[tuple[Sample, Pixels]], most: int) -> list[tuple[Sample, Pixels]]:
    """The next images, `most` of them or until they hold `CHUNK_BYTES`."""
    chunk: list[tuple[Sample, Pixels]] = []
    size = 0
    while len(chunk) < most and size < CHUNK_BYTES and (image := next(images, None)) is not None:
        chunk.append(image)
        size += pixel_bytes(image)
    return chunk


def score_sets(
    scorers: Mapping[str, ImageScorer],
    sets: Mapping[str, Sequence[Sample]],
    conditions: Sequence[Condition],
    file: Path,
    *,
    seed: int = 0,
    workers: int = 2,
    progress: ProgressReporter = SILENT,
) -> tuple[ScoreTable, dict[str, str]]:
    """Score every image of every set under every condition with every scorer, and keep the scores in `file`.

    Scores are on the disk after about `KEPT_SECONDS` of scoring, or after one image by one scorer if that takes
    longer. A run that was stopped or killed continues where it was: scores in `file` are not computed again, so only
    detectors or images that are added later are scored, and images that have changed. An image in several sets is
    scored once. One that cannot be read is recorded with the reason and left out of the table.

    Args:
        scorers: short name -> scorer. Scorers with the same `ImageScorer.name` count as one, which scores once.
        file: JSON lines; see `scores`. One that was begun with other conditions or another seed is refused.
        workers: threads that decode and perturb.
        progress: follows the images as their scores are kept.

    Returns:
        The table, and path -> reason for the images that could not be read.

    Raises `Stopped`, with the scores kept, once `progress` asks to stop.
    """
    samples = {str(sample.path): sample for members in sets.values() for sample in members}
    if not samples or not scorers or not conditions:
        raise DataError("evaluation: nothing to do: it needs images, detectors and conditions")
    what: dict[str, Any] = {"conditions": [each.model_dump(mode="json") for each in conditions], "seed": seed}
    different = {scorer.name: scorer for scorer in scorers.values()}
    read = look_at_all(list(samples.values()), content_of, progress.track, "reading images", workers)
    with ScoreFile(file, what, dict(zip(samples, read, strict=True))) as scores:
        if changed := scores.changed - scores.done.keys():
            progress.say(f"{len(changed):,} images have changed since they were scored, and are scored again")
        waiting = [sample for path, sample in samples.items() if scores.lacking(path, different)]
        with closing(prepared(waiting, conditions, seed, workers)) as images:
            kept = score_images(images, different, len(conditions), scores, progress.stopping)
            try:
                for _ in progress.track(kept, "scoring", len(waiting)):
                    pass
            except Stopped as error:
                done = sum(not scores.lacking(path, different) for path in samples)
                raise Stopped(
                    f"stopped; the scores of {done:,} of {len(samples):,} images are kept in {file}: give the same "
                    "command again to go on"
                ) from error
        names = {name: scorer.name for name, scorer in scorers.items()}
        return scores.table(sets, names, [condition.name for condition in conditions])


def content_of(sample: Sample) -> str:
    """sha256 of a sample's file and the number of its ignored rows; "unreadable" if it cannot be read."""
    try:
        return f"{file_sha256(sample)} {sample.ignore_bottom_px}"
    except DataError:
        return "unreadable"


def score_images(
    images: Iterator[tuple[Sample, Pixels]],
    scorers: Mapping[str, ImageScorer],
    conditions: int,
    scores: ScoreFile,
    stopping: Callable[[], bool],
) -> Iterator[Sample]:
    """Score images in chunks and put their scores into `scores`; yields each image once its scores are on the disk.

    The length of a chunk follows from `KEPT_SECONDS` and the speed of the one before, at most `CHUNK_IMAGES`; the
    first chunk is one image.

    Args:
        scorers: what identifies a scorer -> scorer.
        conditions: number of conditions; each gives an array of the image's pixels.
        stopping: asked after each scorer; then `Stopped` is raised.
    """
    length = 1
    while chunk := take_chunk(images, length):
        began = time.monotonic()
        scores.append((str(sample.path), pixels) for sample, pixels in chunk if isinstance(pixels, str))
        for key, scorer in scorers.items():
            own = [(s, p) for s, p in chunk if not isinstance(p, str) and scores.lacking(str(s.path), [key])]
            if not own:
                continue
            logits = scorer.score([rgb for _, pixels in own for rgb in pixels]).astype(np.float64)
            rows = zip(own, logits.reshape(-1, conditions), strict=True)
            scores.append((str(sample.path), {key: row.tolist()}) for (sample, _), row in rows)
            if stopping():
                raise Stopped("stopped")
        yield from (sample for sample, _ in chunk)
        seconds = (time.monotonic() - began) / len(chunk)
        length = max(1, min(CHUNK_IMAGES, 2 * length, int(KEPT_SECONDS / max(seconds, 1e-6))))


def detector_info(name: str, scorer: ImageScorer, origin: TrainedOn | None = None) -> DetectorInfo:
    """A scorer as a report describes it; `origin`: what it was trained on."""
    calibration = scorer.calibration
    if calibration is None:
        note = "not calibrated: accuracies are at score 0, and it gives no verdicts"
        return DetectorInfo(name=name, id=scorer.name, note=note, trained_on=origin)
    return DetectorInfo(
        name=name,
        id=scorer.name,
        thresholds=calibration.thresholds,
        slope=calibration.slope,
        intercept=calibration.intercept,
        trained_on=origin,
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
    progress: ProgressReporter = SILENT,
    origins: Mapping[str, TrainedOn | None] | None = None,
) -> tuple[EvaluationReport, ScoreTable]:
    """Score everything once, or continue with `file`, and report it.

    It has many parameters because it is `score_sets` and `report_table` in one call, with those of both.

    Args:
        origins: short name -> what a scorer was trained on; None: not known.

    Raises `DataError` if nothing can be read, `ConfigError` unless the conditions "as stored" and "equalised" are
    there: they are always reported together.
    """
    names = [condition.name for condition in conditions]
    if not set(MAIN) <= set(names):
        raise ConfigError(f"conditions: {' and '.join(MAIN)} are always reported together; given: {', '.join(names)}")
    began = time.perf_counter()
    table, failed = score_sets(scorers, sets, conditions, file, seed=seed, workers=workers, progress=progress)
    if not table.samples:
        raise DataError(f"none of {len(failed)} images could be read: {next(iter(failed.values()))}")
    seconds = time.perf_counter() - began
    calibrations = {name: scorer.calibration for name, scorer in scorers.items()}
    reports, differences = report_table(table, calibrations, resamples, seed, origins)
    report = EvaluationReport(
        title=title,
        detectors=tuple(detector_info(name, scorer, (origins or {}).get(name)) for name, scorer in scorers.items()),
        sets=reports,
        differences=differences,
        failed={escaped(path): printable(reason) for path, reason in failed.items()},
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
    runtime: RuntimeName | Literal["auto"] | None = None,
    command: str = "",
    progress: ProgressReporter = SILENT,
) -> tuple[EvaluationReport, ScoreTable, tuple[Condition, ...]]:
    """Measure detectors by a protocol, and keep the scores in `out`.

    It has many parameters because it is `clipmole.evaluate` without the pages.

    Args:
        specs: short name -> what `load_scorer` takes.
        data: whatever `read_data` takes, or the folder with the protocol's data sets.
        splits: of a manifest, instead of the protocol's.
        how: of the data that have to be unpacked.
        conditions: a preset or a file, instead of the protocol's.
        backbones: short name -> its backbone, instead of the one that the detector names.
        command: the command that makes the report again, which it prints.

    Returns:
        The report, the scores that it was made from, and the conditions: what `write_report` takes.

    Data sets that are not there are named in the report, and the others are measured. Raises `DataError` if there is
    none, and the errors of `evaluate` and `load_scorer`.
    """
    sets, missing = find_sets(protocol, data, splits, how)
    if not sets:
        raise DataError(f"{data}: none of the data sets is there: " + "; ".join(missing[:3]))
    size = batch_for(device, batch_size)
    settings = {"device": device, "precision": precision, "batch size": size}
    settings |= {"runtime": runtime} if runtime else {}
    own = backbones or {}
    scorers = {
        name: load_scorer(
            spec, backbone=own.get(name), device=device, precision=precision, runtime=runtime, batch_size=size
        )
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
        progress=progress,
        origins={name: trained_on(spec) for name, spec in specs.items()},
    )
    report = report.model_copy(
        update={
            "note": protocol.note,
            "missing": tuple(map(printable, missing)),
            "published": published_for(protocol),
            "recipe": ({"command": command} if command else {}) | report.recipe | settings,
        }
    )
    return report, table, chosen
