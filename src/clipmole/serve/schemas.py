"""The records of the API's answers, which turn into JSON and into the OpenAPI description.

In: detections and errors. Out: JSON. It knows nothing of how they came about.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from clipmole.calibration import FalseAlarms
from clipmole.images.crops import Box
from clipmole.inference.explain import Evidence
from clipmole.provenance.findings import Provenance
from clipmole.records import Detection, Record, StoredRecord, Thresholds
from clipmole.serve.errors import IMAGE_CODES, STATUS

EvidenceKind = Literal["none", "tiles", "tokens"]

EXAMPLE_DETECTION: dict[str, Any] = {
    "source": "photo.jpg",
    "logit": -1.62,
    "probability": 0.18,
    "verdict": "real",
    "thresholds": {"real": 0.46, "ai": 0.84},
    "detector": "embedded@b50593d7c681",
    "width": 512,
    "height": 512,
    "tiles": 9,
    "tile_logits": None,
    "tile_boxes": None,
    "whole_logit": None,
    "coverage": 1.0,
    "reason": None,
    "family": None,
}
EXAMPLE_RESULT: dict[str, Any] = {
    "name": "photo.jpg",
    "sha256": "0f343b0931126a20f133d67c2b018a3b5e2b3a3d5b8e1a2d6b5b0c8c9d1e7f64",
    "region": None,
    "detection": EXAMPLE_DETECTION,
    "error": None,
    "evidence": None,
    "provenance": None,
}
EXAMPLE_FAILURE: dict[str, Any] = {
    "name": "notes.txt",
    "sha256": None,
    "region": None,
    "detection": None,
    "error": {
        "code": "unreadable",
        "message": "not an image format clipmole reads (JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, HEIC)",
    },
    "evidence": None,
    "provenance": None,
}


class ImageErrorDetail(Record):
    """Why one image has no detection: a stable code for programs, one line for people."""

    code: str = Field(json_schema_extra={"enum": list(IMAGE_CODES)})
    message: str


class RequestErrorDetail(Record):
    """Why a request was refused: a stable code for programs, one line for people."""

    code: str = Field(json_schema_extra={"enum": list(STATUS)})
    message: str


class Refusal(Record):
    """A request that was refused as a whole."""

    error: RequestErrorDetail
    request_id: str


class Result(Record):
    """One image's answer: a detection or an error.

    Attributes:
        name: of the file, as the client sent it, shortened and printable; "image-N" if it sent none.
        sha256: of the file's bytes, hexadecimal; None if there is an error.
        region: (left, top, right, bottom) of the only part that was looked at, pixels; None: the whole image.
        detection: None if there is an error. Its `source` is `name`; it has tile logits and boxes if evidence was
            asked for.
        error: None if there is a detection.
        evidence: where the score comes from, if it was asked for.
        provenance: what the file's metadata say, if it was asked for. Never part of the score.
    """

    name: str
    sha256: str | None = None
    region: Box | None = None
    detection: Detection | None = None
    error: ImageErrorDetail | None = None
    evidence: Evidence | None = None
    provenance: Provenance | None = None


class DetectAnswer(Record):
    """One result per image, in the order they were sent."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "request_id": "7d0c2f6b1a934c0e",
                    "detector": "embedded@b50593d7c681",
                    "results": [EXAMPLE_RESULT, EXAMPLE_FAILURE],
                }
            ]
        }
    )

    request_id: str
    detector: str
    results: tuple[Result, ...]


class BytesAnswer(Record):
    """The result of one image."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"request_id": "7d0c2f6b1a934c0e", "detector": "embedded@b50593d7c681", "result": EXAMPLE_RESULT}
            ]
        }
    )

    request_id: str
    detector: str
    result: Result


class CalibrationInfo(StoredRecord):
    """The data on which a detector's probabilities and verdicts were set.

    Attributes:
        thresholds: AI-generated above the probability `ai`, photograph below `real`, uncertain between.
        max_false_alarm: share of the calibration photographs that may be above `thresholds.ai`.
        max_miss: share of the generated calibration images that may be below `thresholds.real`.
        n_real, n_generated: calibration images of each kind; JSON: `real`, `generated`.
        own_photographs: unlabelled photographs that `thresholds.ai` was moved to afterwards; 0: none.
        slope, intercept: probability = sigmoid(slope * logit + intercept).
        false_alarms: measured on images that people made, from sources that the detector never saw, by kind; (): not
            measured.
        often_wrong: the kinds among them that it so often calls AI-generated that its verdict on them means nothing.
    """

    thresholds: Thresholds
    max_false_alarm: float
    max_miss: float
    n_real: int = Field(alias="real")
    n_generated: int = Field(alias="generated")
    own_photographs: int
    slope: float
    intercept: float
    false_alarms: tuple[FalseAlarms, ...]
    often_wrong: tuple[str, ...]


class LimitsInfo(Record):
    """What a request may contain."""

    max_image_bytes: int
    max_request_bytes: int
    max_pixels: int
    max_images: int
    max_token_images: int
    extensions: tuple[str, ...]


class DetectorAnswer(Record):
    """A detector that this server runs.

    Attributes:
        detector: name@digest, as in a detection.
        default: used if a request names none.
        evidence: what `evidence` in a request may be; "tokens" needs a detector that runs on torch.
        crop_size: side of a crop, pixels.
        max_tiles: most crops of one image.
        backbone: what the network is, in words.
        limitations: what to know before relying on an answer, one sentence each.
    """

    name: str
    detector: str
    default: bool
    calibration: CalibrationInfo | None
    limits: LimitsInfo
    evidence: tuple[EvidenceKind, ...]
    crop_size: int
    max_tiles: int
    backbone: str
    limitations: tuple[str, ...]


class DetectorsAnswer(Record):
    """The detectors of this server."""

    detectors: tuple[DetectorAnswer, ...]


class Health(Record):
    """State of the server."""

    status: Literal["ok", "ready", "loading", "draining", "failed"]
