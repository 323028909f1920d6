"""The records that modules exchange: a verdict, its thresholds, a detection.

They are frozen pydantic models that turn into JSON directly. They know nothing of how they are made.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """Base of all records: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredRecord(Record):
    """Base of records some of whose fields have an older name in files, the alias.

    Files are written with the older name, so that every version of clipmole can read them; both names are read.
    """

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)


class Verdict(StrEnum):
    """What a calibrated detector says about an image."""

    REAL = "real"
    UNCERTAIN = "uncertain"
    AI_GENERATED = "ai_generated"

    @property
    def description(self) -> str:
        """The verdict in words for people: a likelihood, never a proof."""
        return {"real": "likely photograph", "uncertain": "uncertain", "ai_generated": "likely AI-generated"}[self]


class Thresholds(StoredRecord):
    """Probabilities that bound the verdicts: AI-generated above `generated`, real below `real`, uncertain between.

    In files and in the HTTP API `generated` has its older name, `ai`.
    """

    real: float = Field(ge=0, le=1)
    generated: float = Field(ge=0, le=1, alias="ai")


class Family(Record):
    """The family of generators that an AI-generated image is most like: a hint, never a proof.

    Attributes:
        name: the family's name.
        share: its probability among the families that the detector knows, over 0.5. It leaves all other generators
            aside, and takes all families as equally frequent.
        answers: how often the detector named this family, on generated validation images.
        right: how many of these answers were right.
    """

    name: str
    share: float = Field(gt=0.5, le=1)
    right: int = Field(ge=1)
    answers: int = Field(ge=1)


class Detection(Record):
    """What a detector says about one image.

    Attributes:
        source: the path as given, or "<bytes>", "<array>", "<image>". In a path, characters that a terminal would act
            on and bytes that are not UTF-8 are escaped; `clipmole.plumbing.text.unescaped` gives it back.
        logit: mean of the tiles' logits. If the detector also looks at a view of the whole, the middle square of the
            image at small size, it is a weighted mean of that and the view's logit. Positive values mean AI-generated.
        probability: calibrated probability that the image is AI-generated, in [0, 1]; None if uncalibrated.
        verdict: None if the detector is not calibrated.
        thresholds: the probabilities that bound the verdicts; None if uncalibrated.
        detector: name and digest of the detector.
        width, height: of the upright image, pixels.
        tiles: number of crops that the detector looked at.
        tile_logits: logit of each crop, in the order of `tile_boxes`; None unless asked for.
        tile_boxes: (left, top, right, bottom) of each crop, pixels; None unless asked for.
        whole_logit: logit of the view of the whole; None if the detector has no such view, or tiles were not asked for.
        coverage: share of the image's pixels that lie in at least one crop, in (0, 1]; None in older records.
        reason: why the verdict is "uncertain" whatever the probability: the image shows nothing by which a detector
            could judge, or it looks drawn. None: the verdict follows from the probability.
        family: the family of generators that the image is most like, if the verdict is "ai_generated" and the detector
            was trained to tell families apart; None: nothing can be said.
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
    family: Family | None = None
