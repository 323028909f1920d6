"""What passes between the rooms: a labelled sample, a verdict, a detection.

Frozen pydantic records that turn into JSON as they are. They know nothing of how they are made.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """Base of all records: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredRecord(Record):
    """Base of records with fields that files call by an older name, their alias.

    Files are written with the older name, so that every version of clipmole can read them; both names are read.
    """

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)


class Verdict(StrEnum):
    """What a calibrated detector says of an image."""

    REAL = "real"
    UNCERTAIN = "uncertain"
    AI_GENERATED = "ai_generated"

    @property
    def description(self) -> str:
        """The verdict as a person should read it: a likelihood, never a proof."""
        return {"real": "likely photograph", "uncertain": "uncertain", "ai_generated": "likely AI-generated"}[self]


class Thresholds(StoredRecord):
    """Probabilities that bound the verdicts: AI-generated above `generated`, real below `real`, uncertain between.

    Files and the HTTP API call `generated` by its older name, `ai`.
    """

    real: float = Field(ge=0, le=1)
    generated: float = Field(ge=0, le=1, alias="ai")


class Detection(Record):
    """What a detector says of one image.

    Attributes:
        source: the path as given, or "<bytes>", "<array>", "<image>". What a terminal would act on and bytes that are
            not UTF-8 are escaped in a path; `clipmole.plumbing.text.unescaped` gives it back.
        logit: mean of the tiles' logits, or a weighted mean of that and the logit of the view of the whole, where the
            detector looks at one; positive towards AI-generated.
        probability: calibrated probability that the image is AI-generated, in [0, 1]; None if uncalibrated.
        verdict: None if the detector is not calibrated.
        thresholds: the probabilities that bound the verdicts; None if uncalibrated.
        detector: name and digest of the detector that says it.
        width, height: of the image after its orientation is applied, pixels.
        tiles: number of crops looked at.
        tile_logits: logit of each crop, in the order of `tile_boxes`; None unless asked for.
        tile_boxes: (left, top, right, bottom) of each crop, pixels; None unless asked for.
        whole_logit: logit of the view of the whole; None unless tiles were asked for, or if the detector has none.
        coverage: share of the image's pixels that lie in at least one crop, in (0, 1]; None in records written before
            it was counted.
        reason: why the verdict is "uncertain" whatever the probability: there is nothing to see from which a detector
            could tell, or the image looks drawn. None: the verdict follows from the probability.
    """

    source: str
    logit: float
    probability: float | None
    verdict: Verdict | None
    thresholds: Thresholds | None
    detector: str
    width: int
    height: int
    tiles: int
    tile_logits: tuple[float, ...] | None = None
    tile_boxes: tuple[tuple[int, int, int, int], ...] | None = None
    whole_logit: float | None = None
    coverage: float | None = Field(None, gt=0, le=1)
    reason: str | None = None
