"""An image whose origin is known, and a detector -> a small record of the detector's scores.

In: a file, the truth, a detector. Out: a `MissReport` that can be passed on: the file's sha256 and size, the
scores, the thresholds and the detector, without the file's name and, unless asked for, its metadata and pixels.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Literal

import clipmole
from clipmole.errors import ImageError
from clipmole.images.loading import read_file, source_name
from clipmole.inference.detector import Detector
from clipmole.records import Detection, Record, Verdict

Truth = Literal["generated", "photograph"]
VERDICTS = {"generated": Verdict.AI_GENERATED, "photograph": Verdict.REAL}


class MissReport(Record):
    """The scores of one image whose origin is known.

    Attributes:
        version: of this format.
        clipmole: version that wrote it.
        truth: what the image is.
        known_by: how that is known, and which generator or camera made it, in the reporter's words.
        sha256, bytes: of the file.
        format: by the file's first bytes, such as "JPEG".
        detection: logit, probability, thresholds, and each crop's logit and box; its source is "<bytes>".
        missed: whether the verdict is the opposite of the truth (`uncertain` is not); None without a calibration.
        file: the file itself, base64; None unless it was asked for.
    """

    version: int = 1
    clipmole: str
    truth: Truth
    known_by: str
    sha256: str
    bytes: int
    format: str
    detection: Detection
    missed: bool | None
    file: str | None = None


def miss_report(
    detector: Detector, path: str, truth: Truth, known_by: str = "", *, with_file: bool = False
) -> MissReport:
    """The record of one file. Raises `ImageError` if it cannot be scored."""
    data, found = read_file(path)
    try:
        detection = detector.detect(data, tiles=True)
    except ImageError as error:
        raise type(error)(source_name(path), error.reason) from error
    verdict = detection.verdict
    return MissReport(
        clipmole=clipmole.__version__,
        truth=truth,
        known_by=known_by,
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        format=found,
        detection=detection,
        missed=None if verdict is None else verdict not in (VERDICTS[truth], Verdict.UNCERTAIN),
        file=base64.b64encode(data).decode() if with_file else None,
    )
