"""A detector and images -> a calibration, and a copy of the detector with it.

In: a detector and labelled samples, or its name and photographs alone, such as a user's own. Out: a `Calibration`;
an adapter directory beside the detector's, and a `Recalibration` that says what changed and what it promises. It
knows nothing of training or terminals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from clipmole.calibration import (
    SOURCE_CONFIDENCE,
    SOURCES_NEEDED,
    Calibration,
    CalibrationMethod,
    check_enough,
    fit_calibration,
    leave_one_source_out,
    move_to_photographs,
    rate_bound,
)
from clipmole.data import VARIANTS, labels_of, load_window, windows
from clipmole.data.sample import Sample
from clipmole.errors import ConfigError, DataError, ImageError
from clipmole.images.loading import ImageSource
from clipmole.inference.detector import Detector
from clipmole.models.adapter import SIBLINGS, check_copy, find_adapter, read_config, with_calibration
from clipmole.plumbing.progress import SILENT, ProgressReporter
from clipmole.records import Record, Verdict

MAX_FALSE_ALARM, MAX_MISS = 0.05, 0.10
Photograph = Sample | str | Path | ImageError


class VerdictShares(Record):
    """Shares of the images that a calibration was set on, as stored; nan of a class that was not given.

    Attributes:
        false_alarm: of the photographs, called AI-generated.
        detected: of the generated images, called AI-generated.
        miss: of the generated images, called real.
    """

    false_alarm: float
    detected: float
    miss: float


class Recalibration(Record):
    """The changes made by calibrating a detector again.

    Attributes:
        detector: the one that was calibrated, by name and digest.
        old: its calibration; None if it had none.
        new: the calibration of the copy.
        n_real, n_generated: images of each class that `new` was set on now; n_generated = 0 for photographs alone.
        before, after: the shares of these images by the old and the new calibration; None if there was none.
        failed: photographs that could not be read, each with its reason.
        left_out: source -> share of its photographs above the threshold that the other sources give, equalised; empty
            unless `new` was set over sources.
    """

    detector: str
    old: Calibration | None
    new: Calibration
    n_real: int
    n_generated: int
    before: VerdictShares | None
    after: VerdictShares
    failed: tuple[str, ...] = ()
    left_out: dict[str, float] = Field(default_factory=dict)


def score_variants(
    detector: Detector, samples: Sequence[Sample], seed: int = 0, progress: ProgressReporter = SILENT
) -> dict[str, ArrayLike]:
    """Logits (n,) of the samples in each variant, as stored and equalised. Raises the first `ImageError`."""
    return {
        variant: detector.score(windows(progress.track(samples, variant, len(samples)), variant, seed)).astype(
            np.float64
        )
        for variant in VARIANTS
    }


def calibration_sources(samples: Sequence[Sample]) -> list[str] | None:
    """Source of each sample, for thresholds set over sources; None if that is not possible.

    Every photograph must name a source, and there must be at least `SOURCES_NEEDED`. For a generated image that names
    none, its generator counts as its source.
    """
    photographs = {sample.source for sample in samples if sample.label == 0}
    if "" in photographs or len(photographs) < SOURCES_NEEDED:
        return None
    return [sample.source or sample.generator for sample in samples]


def left_out_shares(
    logits: Mapping[str, ArrayLike], samples: Sequence[Sample], sources: Sequence[str] | None, rate: float
) -> dict[str, float]:
    """Shares of `leave_one_source_out` among the photographs, equalised; empty without sources."""
    if sources is None:
        return {}
    real = labels_of(samples) == 0
    return leave_one_source_out(np.asarray(logits["equalised"])[real], np.asarray(sources)[real].tolist(), rate)


def check_calibration_set(
    samples: Sequence[Sample], max_false_alarm: float = MAX_FALSE_ALARM, max_miss: float = MAX_MISS
) -> None:
    """Raise `DataError` if there are too few images of a class for a threshold."""
    labels = labels_of(samples)
    check_enough(int((labels == 0).sum()), max_false_alarm, "photographs")
    check_enough(int((labels == 1).sum()), max_miss, "generated images")


def fit_detector_calibration(
    detector: Detector, samples: Sequence[Sample], seed: int = 0
) -> tuple[Calibration, dict[str, float]]:
    """Fit probability and thresholds to a detector's logits, as stored and equalised together.

    Thresholds are set over sources where `calibration_sources` finds enough of them.

    Returns:
        The calibration, and `Recalibration.left_out`.

    Raises `DataError` if there are too few images of a class, and as `fit_calibration` does.
    """
    check_calibration_set(samples)
    logits, sources = score_variants(detector, samples, seed), calibration_sources(samples)
    calibration = fit_calibration(logits, labels_of(samples).tolist(), sources=sources)
    return calibration, left_out_shares(logits, samples, sources, MAX_FALSE_ALARM)


def recalibrate(
    name: str | Path,
    samples: Sequence[Sample],
    out: str | Path,
    *,
    max_false_alarm: float = MAX_FALSE_ALARM,
    max_miss: float = MAX_MISS,
    method: CalibrationMethod = "platt",
    by_source: bool | None = None,
    backbone: str | Path | None = None,
    device: str = "cpu",
    seed: int = 0,
    progress: ProgressReporter = SILENT,
) -> Recalibration:
    """Calibrate a detector on labelled images, and write a copy of it with that calibration.

    It has many parameters because it is `clipmole.calibrate` for samples that have been read.

    Args:
        name: "default", a packaged detector, an adapter directory, or a hub id `owner/name`; it is left as it is.
        samples: of both classes.
        out: the adapter directory to write.
        max_false_alarm: highest share of photographs called AI-generated, between 0 and 1.
        max_miss: highest share of generated images called real, between 0 and 1.
        method: of fitting the probability, as `fit_calibration` says.
        by_source: set thresholds over sources, so that they hold for a new one; None: where there are enough sources.
        backbone, device: as in `Detector.from_pretrained`.
        seed: of the equalised variant.
        progress: follows the samples of a variant.

    Raises `DataError` if there are too few images of a class for a threshold, before any is scored;
    the first `ImageError`; and as `fit_calibration`, `Detector.from_pretrained` and `with_calibration` do.
    """
    labels = labels_of(samples)
    check_calibration_set(samples, max_false_alarm, max_miss)
    sources = None if by_source is False else calibration_sources(samples)
    if by_source and sources is None:
        raise DataError(
            f"calibration: thresholds by source need a source for every photograph, {SOURCES_NEEDED} sources or more: "
            "name them in the column source of a manifest, or leave --by-source out"
        )
    folder, detector = _to_copy(name, out, backbone, device)
    logits = score_variants(detector, samples, seed, progress)
    new = fit_calibration(logits, labels.tolist(), max_false_alarm, max_miss, method, sources)
    result = _compare(detector, new, np.asarray(logits[VARIANTS[0]]), labels)
    left_out = left_out_shares(logits, samples, sources, max_false_alarm)
    result = result.model_copy(update={"left_out": left_out})
    with_calibration(folder, out, new, recalibration_summary(result))
    return result


def recalibrate_on_photographs(
    name: str | Path,
    photographs: Sequence[Photograph],
    out: str | Path,
    *,
    max_false_alarm: float = 0.05,
    backbone: str | Path | None = None,
    device: str = "cpu",
    progress: ProgressReporter = SILENT,
) -> Recalibration:
    """Set a detector's threshold for AI-generated on photographs alone, and write a copy of the detector with it.

    Args:
        photographs: files or samples, all of them photographs. They are scored as stored, like the images that will be
            judged later. One that cannot be read is left out and named in the result.

    The rest as `recalibrate`. Raises `DataError` if the detector has no calibration whose probability could be
    kept, if a sample is labelled as generated, or if there are too few.
    """
    unfound = [item for item in photographs if isinstance(item, ImageError)]
    if unfound and len(unfound) == len(photographs):
        raise unfound[0]
    n_generated = sum(isinstance(item, Sample) and item.label == 1 for item in photographs)
    if n_generated:
        raise DataError(
            f"calibration: {n_generated} of {len(photographs)} images are labelled as generated, and only photographs "
            "were announced; calibrate on labelled images, or leave these out"
        )
    check_enough(len(photographs) - len(unfound), max_false_alarm, "photographs")
    folder, detector = _to_copy(name, out, backbone, device)
    if detector.calibration is None:
        raise DataError(
            f"calibration: {detector.name} is not calibrated, and photographs alone give no probability; calibrate "
            "it on labelled images first"
        )
    results = list(detector.stream(_sources(progress.track(photographs, "photographs", len(photographs)))))
    failed = tuple(str(result) for result in results if isinstance(result, ImageError))
    logits = np.array([result.logit for result in results if not isinstance(result, ImageError)], dtype=np.float64)
    check_enough(len(logits), max_false_alarm, "photographs that can be read")
    new = move_to_photographs(detector.calibration, logits, max_false_alarm)
    result = _compare(detector, new, logits, np.zeros(len(logits), dtype=np.int64), failed)
    with_calibration(folder, out, new, recalibration_summary(result))
    return result


def _to_copy(name: str | Path, out: str | Path, backbone: str | Path | None, device: str) -> tuple[Path, Detector]:
    """The adapter directory of a detector and the detector itself, after checking that a copy may be written."""
    _, folder = find_adapter(name)
    check_copy(folder, out)
    if backbone is not None and SIBLINGS.get(read_config(folder).backbone.id) == backbone:
        raise ConfigError(f"backbone={backbone}: thresholds are set on the detector's own backbone; leave it out")
    return folder, Detector.from_pretrained(name, backbone=backbone, device=device)


def _sources(photographs: Iterable[Photograph]) -> Iterator[ImageSource | ImageError]:
    for item in photographs:
        try:
            yield load_window(item) if isinstance(item, Sample) else item
        except ImageError as error:
            yield error


def _compare(
    detector: Detector,
    new: Calibration,
    logits: NDArray[np.float64],
    labels: NDArray[np.int64],
    failed: tuple[str, ...] = (),
) -> Recalibration:
    real, generated = logits[labels == 0].tolist(), logits[labels == 1].tolist()

    def shares(calibration: Calibration) -> VerdictShares:
        def share(own: list[float], verdict: Verdict) -> float:
            return sum(calibration.verdict(logit) is verdict for logit in own) / len(own) if own else math.nan

        return VerdictShares(
            false_alarm=share(real, Verdict.AI_GENERATED),
            detected=share(generated, Verdict.AI_GENERATED),
            miss=share(generated, Verdict.REAL),
        )

    old = detector.calibration
    return Recalibration(
        detector=detector.name,
        old=old,
        new=new,
        n_real=len(real),
        n_generated=len(generated),
        before=shares(old) if old else None,
        after=shares(new),
        failed=failed,
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _promise(n: int, rate: float, kind: str, verdict: str) -> str:
    """The promise of a threshold from n images of a kind for further ones, computed for this n and rate."""
    return (
        f"With {n} {kind}, at most {_percent(rate)} of further ones like them are called {verdict}, on average "
        f"over such sets of {n}; 19 such sets in 20 keep it to {_percent(rate_bound(n, rate))} "
        f"(ten times as many images: to {_percent(rate_bound(10 * n, rate))})."
    )


def promises(calibration: Calibration, left_out: Mapping[str, float]) -> list[str]:
    """The promises of a calibration's thresholds for further images, a sentence or two each.

    Args:
        left_out: as in `Recalibration`.
    """
    if calibration.own_photographs:
        return [_promise(calibration.own_photographs, calibration.max_false_alarm, "photographs", "AI-generated")]
    lines = []
    if calibration.n_sources:
        lines.append(
            f"The threshold was set over {calibration.n_sources} sources of {calibration.n_real} photographs: "
            f"{100 * SOURCE_CONFIDENCE:.0f} % of bootstrap draws of the sources call at most "
            f"{_percent(calibration.max_false_alarm)} of their photographs AI-generated. That is what to expect of "
            "new sources like these on average, not of each; few sources make a bootstrap optimistic."
        )
    else:
        lines.append(_promise(calibration.n_real, calibration.max_false_alarm, "photographs", "AI-generated"))
    if left_out:
        shares = list(left_out.values())
        lines.append(
            f"With each source left out in turn, and the threshold set over the others, {_percent(min(shares))} to "
            f"{_percent(max(shares))} of its photographs are called AI-generated, {_percent(float(np.mean(shares)))} "
            "on average."
        )
    if not calibration.n_sources:
        lines.append(_promise(calibration.n_generated, calibration.max_miss, "generated images", "photographs"))
    return lines


def recalibration_summary(result: Recalibration) -> list[str]:
    """The changes and the promises, a sentence or two each, for people and for a model card."""
    old, new, before, after = result.old, result.new, result.before, result.after
    labelled = result.n_generated > 0
    variants = " and ".join(new.variants) if labelled else "as stored"
    given = f"{result.n_real} photographs" + (f" and {result.n_generated} generated images" if labelled else "")
    was = f" (before: {old.thresholds.generated:.3f} and {old.thresholds.real:.3f})" if old else ""
    shares = f"Of these photographs {_percent(after.false_alarm)} are called AI-generated"
    shares += f" (before: {_percent(before.false_alarm)})" if before else ""
    if labelled:
        shares += (
            f"; of these generated images {_percent(after.detected)} are called AI-generated and "
            f"{_percent(after.miss)} photographs"
        )
        shares += f" (before: {_percent(before.detected)} and {_percent(before.miss)})" if before else ""
    lines = [
        f"{result.detector}, calibrated again on {given}, {variants}.",
        f"AI-generated above a probability of {new.thresholds.generated:.3f}, "
        f"photograph below {new.thresholds.real:.3f}, uncertain between{was}.",
        f"{shares}. The new thresholds were set on these very images, so these shares look better than they are.",
        *promises(new, result.left_out),
    ]
    if labelled:
        lines += [
            f"The probability was fitted on them as well ({new.method} scaling), and is meant for as many generated "
            "images as photographs.",
        ]
    else:
        lines.append(
            "They say nothing of generated images: the probability and the threshold for a photograph are as before, "
            f"from {new.n_real} photographs and {new.n_generated} generated images. Labelled generated images beside "
            "them would fit the probability again, bound the share that passes as photographs, and show how many are "
            "found."
        )
    like = "sources like these" if new.n_sources else "the same sources"
    lines.append(
        f"All this is for images that are independent draws from {like}, not copies or series of one another; for "
        "other cameras, generators or edits nothing is promised."
    )
    return lines
