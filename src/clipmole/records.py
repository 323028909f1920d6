"""What passes between the rooms: a labelled sample, a verdict, a detection.

Frozen pydantic records that turn into JSON as they are. They know nothing of how they are made.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Record(BaseModel):
    """Base of all records: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Verdict(StrEnum):
    """What a calibrated detector says of an image."""

    REAL = "real"
    UNCERTAIN = "uncertain"
    AI_GENERATED = "ai_generated"

    @property
    def words(self) -> str:
        """The verdict as a person should read it: a likelihood, never a proof."""
        return {"real": "likely photograph", "uncertain": "uncertain", "ai_generated": "likely AI-generated"}[self]


class ByteRange(Record):
    """A run of bytes in a file: one image inside a shard or a table.

    Attributes:
        file: the file that holds them.
        offset, size: first byte and number of bytes.
    """

    file: Path
    offset: int = Field(ge=0)
    size: int = Field(ge=0)


class Sample(Record):
    """One labelled image of a data set.

    Attributes:
        path: the file; of an image inside another file, that file's path with the image's name below it.
        label: 1 = AI-generated, 0 = photograph.
        generator: what made it; "camera" for photographs.
        split: the part of the data set that it belongs to; "": the data set names none.
        ignore_bottom_px: rows at the lower edge that hold a visible mark and are never looked at.
        group: images of one group show the same scene or prompt and are not independent; "": its own.
        source: collection that it was taken from; "": not known.
        category: the class folder of the layout that it lies in, such as "progan/airplane"; "": there is none.
        inside: where its bytes are, if it is no file of its own.
    """

    path: Path
    label: Literal[0, 1]
    generator: str
    split: str
    ignore_bottom_px: int = Field(0, ge=0)
    group: str = ""
    source: str = ""
    category: str = ""
    inside: ByteRange | None = None


class Thresholds(Record):
    """Probabilities that bound the verdicts: AI-generated above `ai`, real below `real`, uncertain between."""

    real: float = Field(ge=0, le=1)
    ai: float = Field(ge=0, le=1)


class Detection(Record):
    """What a detector says of one image.

    Attributes:
        source: the path as given, or "<bytes>", "<array>", "<image>".
        logit: mean of the tiles' logits, positive towards AI-generated.
        probability: calibrated probability that the image is AI-generated, in [0, 1]; None if uncalibrated.
        verdict: None if the detector is not calibrated.
        thresholds: the probabilities that bound the verdicts; None if uncalibrated.
        detector: name and digest of the detector that says it.
        width, height: of the image after its orientation is applied, pixels.
        tiles: number of crops looked at.
        tile_logits: logit of each crop, in the order of `tile_boxes`; None unless asked for.
        tile_boxes: (left, top, right, bottom) of each crop, pixels; None unless asked for.
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


# JSON has no nan: pydantic writes null, and here it is read again.
Number = Annotated[float, BeforeValidator(lambda value: float("nan") if value is None else value)]


class Figure(Record):
    """A value with its 95 % bootstrap interval over groups of images; nan (in JSON null) where it is not defined."""

    value: Number
    low: Number
    high: Number

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class DetectorInfo(Record):
    """A detector that was evaluated.

    Attributes:
        name: short and unique in the report.
        id: what identifies it: name and digest, hub id and revision, or module:function.
        thresholds: probabilities that bound its verdicts; None if it is not calibrated.
        slope, intercept: of its calibration, probability = sigmoid(slope * logit + intercept); None likewise.
        note: a caveat to print under the tables.
    """

    name: str
    id: str
    thresholds: Thresholds | None = None
    slope: float | None = None
    intercept: float | None = None
    note: str = ""


ALL_SETS = "mean over sets"


class SetReport(Record):
    """Figures of one detector on one set of images under one condition.

    Attributes:
        detector: name of the detector.
        set: name of the set of images, such as "test_unseen"; `ALL_SETS` for the means over several of them.
        condition: "as stored", "equalised", or a perturbation such as "JPEG 50".
        real, ai: images of each class.
        groups: how many independent groups they are: images that share a scene or a prompt are one.
        figures: name -> figure; names as in `metrics`.
        generators: generator -> figures of its images against all photographs of the set.
        means: name -> mean over generators, as papers report it (mAP, mean accuracy).
    """

    detector: str
    set: str
    condition: str
    real: int
    ai: int
    groups: int
    figures: dict[str, Figure]
    generators: dict[str, dict[str, Figure]]
    means: dict[str, Figure]


class Difference(Record):
    """Paired difference first - second of a figure on the same images, with its 95 % bootstrap interval."""

    first: str
    second: str
    set: str
    condition: str
    metric: str
    figure: Figure


class PublishedFigure(Record):
    """A figure that somebody else published; rows are not like for like.

    Attributes:
        benchmark: such as "univfd-19"; a perturbation may stand after " under ".
        metric: "mean_ap" or "mean_accuracy" over its sets; of one set a name of `metrics`.
        value: in percent, or as a share up to 1.
        note: the caveat, or where it was published.
        set: the set that it is of; "": the mean over all.
        condition: the condition of ours that comes next to a published perturbation; "": none.
    """

    benchmark: str
    method: str
    metric: str
    value: float
    note: str = ""
    set: str = ""
    condition: str = ""

    @property
    def share(self) -> float:
        return self.value / 100 if self.value > 1 else self.value


class EvaluationReport(Record):
    """What an evaluation found, and the recipe that makes it again.

    Attributes:
        title: of the protocol.
        note: caveats of the data.
        recipe: command, data digest, versions, hardware, date, seed, resamples, seconds.
        missing: data sets of the protocol that were not there, each with where its owners publish it.
        failed: file -> reason, for images that could not be read.
    """

    title: str
    note: str = ""
    detectors: tuple[DetectorInfo, ...]
    sets: tuple[SetReport, ...]
    differences: tuple[Difference, ...] = ()
    published: tuple[PublishedFigure, ...] = ()
    missing: tuple[str, ...] = ()
    failed: dict[str, str] = Field(default_factory=dict)
    recipe: dict[str, Any] = Field(default_factory=dict)


class ComparedMethod(Record):
    """A method of a comparison, over its seeds.

    Attributes:
        settings: of its configuration, those in which the methods differ; "mole.shared_rank" -> value.
        backbone: id and weights' sha256 of the tower it was trained on.
        learning_rate: the one chosen, or the only one.
        val_by_rate: rate -> validation AP of the best epoch with the first seed; None: the run diverged.
        on_edge: the chosen rate is still the lowest or highest of those tried.
        val: validation AP of the best epoch, a seed each.
        runs: folders of the trained adapters, a seed each.
        figures: "SPLIT, CONDITION" -> average precision, mean over the seeds.
        seeds: the same -> average precision of each seed.
        seconds_per_epoch: median over all epochs of the seeds' runs.
    """

    name: str
    settings: dict[str, Any]
    backbone: str
    trained_parameters: int
    learning_rate: float
    val_by_rate: dict[float, float | None]
    on_edge: bool
    val: tuple[float, ...]
    runs: tuple[str, ...]
    figures: dict[str, Figure]
    seeds: dict[str, tuple[float, ...]]
    seconds_per_epoch: float


class Comparison(Record):
    """Several methods on the same data and seeds.

    Attributes:
        images: split -> photographs and generated images.
        differences: the reference minus each other method, averaged over the seeds.
        recipe: command, data digest, seeds, resamples, versions, hardware, dates.
    """

    title: str
    note: str
    methods: tuple[ComparedMethod, ...]
    images: dict[str, tuple[int, int]]
    differences: tuple[Difference, ...]
    recipe: dict[str, Any]
