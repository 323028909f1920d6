"""The directory that `clipmole export` writes, and how it is read.

    export.json       its detector, its runtime, and the result of the check
    model.xml, .bin   the graph for OpenVINO; or model.onnx for ONNX Runtime
    config.json       the adapter's configuration: preprocessing, backbone, MoLE
    calibration.json  as the adapter's; absent if it is not calibrated

In: a directory. Out: a runtime with its preprocessing and calibration. It needs neither the adapter nor the backbone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import StrictInt, ValidationError

from clipmole.calibration import Calibration
from clipmole.config import Families, PreprocessConfig, first_problem
from clipmole.errors import CheckpointError
from clipmole.inference.graph import GraphRuntime, graph_cache, open_graph
from clipmole.inference.runtime import Precision, Runtime
from clipmole.models.adapter import read_calibration, read_config
from clipmole.plumbing.files import sha256_of
from clipmole.plumbing.json_toml import read_json
from clipmole.records import Record

EXPORT = "export.json"
FORMAT_VERSION = 1


class Check(Record):
    """A graph against its detector in float32, on the same crops.

    Attributes:
        images: how many were compared, `labelled` of them for the average precision.
        spread: standard deviation of the float32 logits.
        max_difference, mean_difference: of the logits, absolute.
        average_precision: in float32 and of the graph; None without labels of both classes.
        changed: verdicts that were real or AI-generated in float32, and are something else; None if uncalibrated.
        reversed: those that turned from real to AI-generated or the other way; None if uncalibrated.
        settled: verdicts that were uncertain in float32, and are not; None if uncalibrated.
        families: how many families of generators differ, and how many were named by either, of the images that both
            call AI-generated; None if the detector names none.
    """

    images: int
    labelled: int
    spread: float
    max_difference: float
    mean_difference: float
    average_precision: tuple[float, float] | None
    changed: int | None
    reversed: int | None
    settled: int | None
    families: tuple[int, int] | None = None


class Export(Record):
    """The content of `export.json`.

    Attributes:
        detector: name and digest of the detector it came from, as detections show it.
        digest: sha256 of that detector, whole.
        graph_sha256: of each file of the graph.
        calibrated_on: number of crops that fixed the ranges of activations for int8; 0: they are measured while it
            runs.
        made_with: versions of clipmole and the libraries.
    """

    format_version: StrictInt = FORMAT_VERSION
    detector: str
    digest: str
    runtime: Literal["openvino", "onnx"]
    precision: Precision
    graph_sha256: dict[str, str]
    made_with: dict[str, str]
    calibrated_on: int
    check: Check


@dataclass(frozen=True)
class OpenExport:
    """An exported detector, ready to run."""

    record: Export
    preprocess: PreprocessConfig
    calibration: Calibration | None
    families: Families | None
    runtime: Runtime


def is_export(name: str | Path) -> bool:
    """Whether this is a directory that `clipmole export` wrote."""
    return (Path(name) / EXPORT).is_file()


def graph_files(folder: Path) -> list[Path]:
    """The files of the graph that a folder holds, by name."""
    return sorted(path for path in folder.iterdir() if path.name.startswith("model."))


def file_digests(folder: Path) -> dict[str, str]:
    """sha256 of each file of the graph."""
    return {path.name: sha256_of(path) for path in graph_files(folder)}


def read_export(folder: Path) -> Export:
    """`export.json`. Raises `CheckpointError` if it is damaged or of another version."""
    cure = "export the detector again"
    try:
        record = Export.model_validate(read_json(folder / EXPORT, CheckpointError, cure))
    except ValidationError as error:
        raise CheckpointError(f"{folder / EXPORT}: is damaged ({first_problem(error)}); {cure}") from error
    if record.format_version != FORMAT_VERSION:
        version = record.format_version
        raise CheckpointError(
            f"{folder / EXPORT}: format version {version}, and this clipmole reads {FORMAT_VERSION}; update clipmole"
        )
    return record


def open_export(folder: Path) -> OpenExport:
    """Open an exported detector; its graph must be, byte for byte, the one that was checked."""
    record = read_export(folder)
    if file_digests(folder) != record.graph_sha256:
        raise CheckpointError(f"{folder}: its graph is not the one that was checked; export the detector again")
    kind: GraphRuntime = record.runtime
    what = "".join(sorted(record.graph_sha256.values()))
    compiled = graph_cache() / hashlib.sha256(what.encode()).hexdigest()[:32]
    config = read_config(folder)
    return OpenExport(
        record,
        config.preprocess,
        read_calibration(folder),
        config.mole.families,
        open_graph(folder, kind, record.precision, compiled),
    )
