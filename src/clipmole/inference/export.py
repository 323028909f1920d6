"""A detector -> a graph for OpenVINO or ONNX Runtime, checked against the detector in float32 or not written.

In: a detector, images to check on, and for OpenVINO's int8 images that show the ranges of activations. Out: the
directory that `export_directory` reads. It knows nothing of how graphs are made (`inference.graph`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import clipmole
from clipmole.config import check_name
from clipmole.errors import CheckpointError, ConfigError, DataError
from clipmole.images.crops import cut_crops
from clipmole.images.loading import ImageSource, load_image
from clipmole.inference.detector import Detector
from clipmole.inference.export_directory import EXPORT, Check, Export, file_digests, read_export
from clipmole.inference.graph import GRAPH, GraphRuntime, convert, open_graph
from clipmole.inference.quantize import quantise
from clipmole.inference.runtime import Precision
from clipmole.metrics import average_precision
from clipmole.models.adapter import CALIBRATION, CONFIG, find_adapter, load_adapter, read_config
from clipmole.plumbing.files import replacing_folder, why_not_replaceable
from clipmole.plumbing.progress import SILENT, ProgressReporter
from clipmole.plumbing.text import first_line
from clipmole.records import Detection, Verdict

CALIBRATION_CROPS = 256  # at most; one of each image


class ExportRefused(CheckpointError):
    """A graph differs too much from its detector; nothing was written.

    Attributes:
        check: what was measured.
    """

    def __init__(self, message: str, check: Check) -> None:
        super().__init__(message)
        self.check = check


@dataclass(frozen=True)
class Limits:
    """The largest changes that a graph may make.

    Attributes:
        average_precision: difference, either way.
        difference: of a logit, in standard deviations of the float32 logits.
        changed: how many verdicts may change from real or AI-generated to something else; None: any number.
        reversed: how many verdicts may turn into the opposite.
        others: how many uncertain verdicts may settle, and how many families of generators may change; None: any
            number.
    """

    average_precision: float
    difference: float
    changed: int | None
    reversed: int = 0
    others: int | None = None


LIMITS: dict[Precision, Limits] = {
    "float32": Limits(average_precision=0.0005, difference=0.001, changed=0, others=0),
    "bfloat16": Limits(average_precision=0.001, difference=0.25, changed=0),
    "int8": Limits(average_precision=0.005, difference=0.2, changed=None),
}


def compare_detections(
    exact: Sequence[Detection], given: Sequence[Detection], labels: Sequence[int] | None, families: bool = False
) -> Check:
    """The changes between what a detector says of n images in float32 and what its graph says of them.

    Args:
        labels: (n,), 1 = AI-generated; None: not known.
        families: whether the detector can name families of generators.
    """
    if len(exact) != len(given) or len(exact) < 2:
        raise DataError(f"check: {len(exact)} images in float32, {len(given)} by the graph; give two or more")
    a, b = (np.array([each.logit for each in part]) for part in (exact, given))
    both = labels is not None and 0 < sum(labels) < len(labels)
    pairs = [(x.verdict, y.verdict) for x, y in zip(exact, given, strict=True) if x.verdict and y.verdict]
    unsure, found = Verdict.UNCERTAIN, Verdict.AI_GENERATED
    named = [
        tuple(each.family and each.family.name for each in pair)
        for pair in zip(exact, given, strict=True)
        if all(each.verdict == found for each in pair) and any(each.family for each in pair)
    ]
    difference = np.abs(a - b)
    return Check(
        images=len(a),
        labelled=len(labels) if labels is not None else 0,
        spread=float(a.std()),
        # A graph may give NaN, which must not pass any comparison.
        max_difference=float(difference.max()) if np.isfinite(b).all() else float("inf"),
        mean_difference=float(difference.mean()) if np.isfinite(b).all() else float("inf"),
        average_precision=(average_precision(labels, a), average_precision(labels, np.nan_to_num(b)))
        if both and labels is not None
        else None,
        changed=sum(x not in (unsure, y) for x, y in pairs) if pairs else None,
        reversed=sum(unsure not in (x, y) and x != y for x, y in pairs) if pairs else None,
        settled=sum(x == unsure != y for x, y in pairs) if pairs else None,
        families=(sum(x != y for x, y in named), len(named)) if families else None,
    )


def failures(check: Check, precision: Precision) -> list[str]:
    """Why a graph differs too much from its detector; [] if it does not."""
    limits = LIMITS[precision]
    found = []
    if not check.max_difference <= limits.difference * check.spread:
        found.append(
            f"a logit differs by {check.max_difference:.2g}, more than {limits.difference:g} of the logits' "
            f"standard deviation {check.spread:.2g}"
        )
    if check.average_precision is not None:
        before, after = check.average_precision
        if not abs(after - before) < limits.average_precision:
            found.append(f"average precision goes from {before:.4f} to {after:.4f}")
    if limits.changed is not None and (check.changed or 0) > limits.changed:
        found.append(f"{check.changed} settled verdicts change")
    if (check.reversed or 0) > limits.reversed:
        found.append(f"{check.reversed} verdicts turn into their opposite")
    if limits.others is not None and (check.settled or 0) > limits.others:
        found.append(f"{check.settled} uncertain verdicts settle")
    if limits.others is not None and check.families and check.families[0] > limits.others:
        found.append(f"{check.families[0]} of {check.families[1]} families of generators change")
    return found


def check_export_folder(directory: str | Path) -> Path:
    """A folder where an export may be written: absent, empty, or an export and nothing else.

    Raises `CheckpointError` for any other folder, and if nothing can be written there; nothing is changed.
    """
    target = Path(directory)
    files: dict[str, Callable[[Path], object] | None] = {
        EXPORT: lambda path: read_export(path.parent),
        CONFIG: lambda path: read_config(path.parent),
        CALIBRATION: None,
        "model.*": None,
    }
    if reason := why_not_replaceable(target, "an export", files):
        raise CheckpointError(f"{target}: {reason}")
    return target


def calibration_crops(images: Iterable[ImageSource], detector: Detector) -> list[NDArray[np.uint8]]:
    """One crop (1, 3, S, S) of each image, from each position of the grid in turn. Raises the first `ImageError`."""
    found: list[NDArray[np.uint8]] = []
    for source in images:
        if len(found) == CALIBRATION_CROPS:
            break
        crops = cut_crops(load_image(source), detector.preprocess).pixels
        i = len(found) % len(crops)
        found.append(np.ascontiguousarray(crops[i : i + 1]))
    return found


def export_detector(
    name: str | Path,
    out: str | Path,
    runtime: GraphRuntime,
    images: Callable[[], Iterable[ImageSource]],
    *,
    labels: Sequence[int] | None = None,
    precision: Precision = "float32",
    calibrate_on: Iterable[ImageSource] = (),
    backbone: str | Path | None = None,
    progress: ProgressReporter = SILENT,
) -> Export:
    """Write a detector's graph to `out`, replacing an older export as a whole, if it passes its check.

    It has many parameters because it is the whole of `clipmole export`.

    Args:
        name: "default", a packaged detector, an adapter directory, or a hub id `owner/name`.
        images: returns the images to check on, the same ones each time.
        labels: of these images, 1 = AI-generated; None: not known.
        calibrate_on: sample images that fix the ranges of activations for OpenVINO's int8; preferably not those to
            check on. Without them, or if the graph then fails its check, the ranges are measured while it runs:
            slower, and closer to float32.
        backbone: as in `Detector.from_pretrained`.
        progress: follows the images that are scored, and gets a remark on each step. Once it asks to stop, `Stopped`
            may be raised; then nothing is written.

    Raises `ExportRefused` if the graph differs from the detector by more than `LIMITS`; the first `ImageError`;
    `MissingDependency`; and as `Detector.from_pretrained` does.
    """
    check_name("runtime", runtime, tuple(GRAPH))
    check_name("precision", precision, tuple(LIMITS))
    if runtime == "onnx" and precision == "bfloat16":
        raise ConfigError("precision=bfloat16: ONNX Runtime computes in float32 or int8; take --to openvino")
    target = check_export_folder(out)
    adapter = load_adapter(name, backbone)
    _, folder = find_adapter(name)
    called = f"{adapter.name}@{adapter.digest[:12]}"
    exact = Detector(adapter.network, adapter.config.preprocess, adapter.calibration, called)
    crops = calibration_crops(calibrate_on, exact) if precision == "int8" and runtime == "openvino" else []
    progress.say("scoring in float32")
    followed = progress.track(images(), "scoring in float32", None if labels is None else len(labels))
    reference = exact.detect_batch(followed)
    try:
        with replacing_folder(target) as new:
            for shown in [crops, []] if crops else [[]]:
                progress.say("making the graph")
                _make(exact, runtime, precision, shown, new)
                graph = open_graph(new, runtime, precision)
                progress.say("scoring with the graph")
                followed = progress.track(images(), "scoring with the graph", len(reference))
                families = adapter.config.mole.families
                ours = Detector(None, exact.preprocess, adapter.calibration, called, runtime=graph, families=families)
                check = compare_detections(reference, ours.detect_batch(followed), labels, families is not None)
                why = "; ".join(failures(check, precision))
                if not why:
                    break
                if shown:
                    progress.say(f"with fixed ranges {why}; measuring them while it runs instead")
            if why:
                raise ExportRefused(f"{called}: not exported: {why} (on {check.images} images)", check)
            record = Export(
                detector=called,
                digest=adapter.digest,
                runtime=runtime,
                precision=precision,
                graph_sha256=file_digests(new),
                made_with=_versions(runtime),
                calibrated_on=len(shown),
                check=check,
            )
            for file in (CONFIG, *([CALIBRATION] if adapter.calibration else [])):  # none holds on another backbone
                shutil.copyfile(folder / file, new / file)
            (new / EXPORT).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written: {error}; nothing was changed") from error
    return record


def _make(
    exact: Detector, runtime: GraphRuntime, precision: Precision, crops: Sequence[NDArray[np.uint8]], folder: Path
) -> None:
    """The graph's files in `folder`, and nothing else there."""
    for file in folder.iterdir():
        file.unlink()  # of a graph that failed its check
    try:
        graph = convert(exact.network, exact.preprocess.crop_size, runtime, folder)
        if precision == "int8":
            quantise(graph, runtime, exact.network.tower.config.width, crops)
    except RuntimeError as error:  # raised by the libraries when a disk is full
        raise OSError(f"the graph cannot be made or written: {first_line(error)}") from error
    for file in sorted(folder.glob("int8-*")):
        file.replace(folder / file.name.removeprefix("int8-"))


def _versions(runtime: GraphRuntime) -> dict[str, str]:
    libraries = {"openvino": ("torch", "openvino", "nncf"), "onnx": ("torch", "onnx", "onnxruntime")}[runtime]
    return {"clipmole": clipmole.__version__} | {library: version(library) for library in libraries}


def _arithmetic(record: Export) -> str:
    if record.precision != "int8":
        return record.precision
    return "int8 (static)" if record.calibrated_on else "int8 (dynamic)"


def summary_lines(record: Export) -> list[str]:
    """A description of an export and the result of its check, as lines for people."""
    check = record.check
    lines = [
        f"{record.detector} for {record.runtime} in {_arithmetic(record)}, checked on {check.images} images "
        f"({check.labelled} labelled) against float32:",
        f"  logits differ by at most {check.max_difference:.2g}, on average {check.mean_difference:.2g}; "
        f"their standard deviation is {check.spread:.2g}",
    ]
    if check.average_precision is not None:
        before, after = check.average_precision
        lines.append(f"  average precision {before:.4f} in float32, {after:.4f} here")
    if check.changed is not None:
        lines.append(
            f"  settled verdicts that change: {check.changed}, of them into their opposite: {check.reversed}; "
            f"uncertain ones that settle: {check.settled}"
        )
    if check.families is not None:
        changed, named = check.families
        lines.append(f"  families of generators that change: {changed} of {named} that were named")
    return lines
