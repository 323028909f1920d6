"""The results of an evaluation or a comparison: estimates with intervals, and how to make them again.

They are frozen pydantic records that turn into JSON directly. If a field has been renamed, JSON is written with the
older name and both are read (`StoredRecord`). They know nothing of how they are made or shown.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from clipmole.records import Record, StoredRecord, Thresholds

# JSON has no nan: pydantic writes null, and here it is read again.
Number = Annotated[float, BeforeValidator(lambda value: float("nan") if value is None else value)]


class Estimate(Record):
    """A value with its 95 % bootstrap interval over groups of images; nan (in JSON null) where it is not defined."""

    value: Number
    low: Number
    high: Number

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class TrainedOn(Record):
    """The generators and sources in a detector's training, from its `train.json`.

    Attributes:
        generators: of its generated images.
        sources: of its photographs, as `source_hash` writes them.
    """

    generators: tuple[str, ...]
    sources: tuple[str, ...]


class DetectorInfo(Record):
    """A detector that was evaluated.

    Attributes:
        name: short and unique in the report.
        id: what identifies it: name and digest, hub id and revision, or module:function.
        thresholds: probabilities that bound its verdicts; None if it is not calibrated.
        slope, intercept: of its calibration, probability = sigmoid(slope * logit + intercept); None likewise.
        note: a caveat to print under the tables.
        trained_on: sources and generators that it was trained on; None: not recorded.
    """

    name: str
    id: str
    thresholds: Thresholds | None = None
    slope: float | None = None
    intercept: float | None = None
    note: str = ""
    trained_on: TrainedOn | None = None


ALL_SETS = "mean over sets"


class OriginEstimate(Record):
    """The AUROC of a part of a set: images from known or new sources and generators.

    Attributes:
        known_source: whether it was trained on photographs of these photographs' sources.
        known_generator: whether it was trained on images of these images' generators.
        n_real, n_generated: images of each class; with none of one `auroc` is nan.
    """

    known_source: bool
    known_generator: bool
    n_real: int
    n_generated: int
    auroc: Estimate


class KindEstimate(Record):
    """A detector's verdicts on the photographs of one kind in a set.

    Attributes:
        kind: as the manifest's column says.
        n_real: how many there are.
        false_alarm: share that is called AI-generated.
        uncertain: share without a verdict.
    """

    kind: str
    n_real: int
    false_alarm: Estimate
    uncertain: Estimate


class SetReport(StoredRecord):
    """The estimates of one detector on one set of images under one condition.

    Attributes:
        detector: name of the detector.
        set: name of the set of images, such as "test_unseen"; `ALL_SETS` for the means over several of them.
        condition: "as stored", "equalised", or a perturbation such as "JPEG 50".
        n_real, n_generated: images of each class; JSON: `real`, `ai`.
        groups: number of independent groups; images that share a scene or a prompt are one group.
        estimates: name of a metric -> its estimate; names as in `metrics`; JSON: `figures`.
        generators: generator -> estimates of its images against all photographs of the set.
        means: name -> mean over generators, as papers report it (mAP, mean accuracy).
        origins: known and new sources of photographs x known and new generators; () where the photographs' sources or
            the detector's are not known.
        kinds: the photographs by kind; () where no kind or no threshold is known.
    """

    detector: str
    set: str
    condition: str
    n_real: int = Field(alias="real")
    n_generated: int = Field(alias="ai")
    groups: int
    estimates: dict[str, Estimate] = Field(alias="figures")
    generators: dict[str, dict[str, Estimate]]
    means: dict[str, Estimate]
    origins: tuple[OriginEstimate, ...] = ()
    kinds: tuple[KindEstimate, ...] = ()


class Difference(StoredRecord):
    """Paired difference first - second of a metric on the same images, with its 95 % bootstrap interval.

    JSON calls `estimate` by its older name, `figure`.
    """

    first: str
    second: str
    set: str
    condition: str
    metric: str
    estimate: Estimate = Field(alias="figure")


class PublishedResult(Record):
    """A result that somebody else published; not like for like with ours.

    Attributes:
        benchmark: such as "univfd-19"; a perturbation may follow after " under ".
        metric: "mean_ap" or "mean_accuracy" over its sets; of one set a name of `metrics`.
        value: in percent, or as a share up to 1.
        note: the caveat, or where it was published.
        set: the set; "": the mean over all.
        condition: our condition that is closest to a published perturbation; "": none.
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
    """The results of an evaluation, and how to make them again.

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
    published: tuple[PublishedResult, ...] = ()
    missing: tuple[str, ...] = ()
    failed: dict[str, str] = Field(default_factory=dict)
    recipe: dict[str, Any] = Field(default_factory=dict)


class ComparedMethod(StoredRecord):
    """A method of a comparison, over its seeds.

    Attributes:
        settings: of its configuration, those in which the methods differ; "mole.shared_rank" -> value.
        backbone: id and weights' sha256 of the tower it was trained on.
        learning_rate: the one chosen, or the only one.
        val_by_rate: rate -> validation AP of the best epoch with the first seed; None: the run diverged.
        on_edge: the chosen rate is still the lowest or highest of those tried.
        val: validation AP of the best epoch, one per seed.
        runs: folders of the trained adapters, one per seed.
        estimates: "SPLIT, CONDITION" -> average precision, mean over the seeds; JSON: `figures`.
        seeds: the same -> average precision of each seed.
        seconds_per_epoch: median over all epochs of the seeds' runs.
        crops_per_second: of the network of the first seed; None: not measured.
        reported: what its authors report, on other data; "": nothing.
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
    estimates: dict[str, Estimate] = Field(alias="figures")
    seeds: dict[str, tuple[float, ...]]
    seconds_per_epoch: float
    crops_per_second: float | None = None
    reported: str = ""


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


class SeparabilityPoint(Record):
    """How well heads that were trained on `n` images of a set tell it from others.

    Attributes:
        auroc: on held-out images, mean over the seeds, with its interval over their groups.
        seeds: AUROC of each seed.
    """

    n: int
    auroc: Estimate
    seeds: tuple[float, ...]


class SeparabilityCurve(Record):
    """How many images of a set a head needs to tell it from others.

    Attributes:
        name: a generator, or the source of the photographs of a control.
        against: "photographs" or "other generators".
        points: by rising n.
        better_than_chance: the smallest n from which every interval lies above 0.5; None: none of those tried.
        separable: the smallest n from which every AUROC is at least the level; None: none of those tried.
    """

    name: str
    against: str
    points: tuple[SeparabilityPoint, ...]
    better_than_chance: int | None
    separable: int | None


class SeparabilitySet(StoredRecord):
    """A set of images to be told from others: those of a generator, photographs, or the photographs of one source.

    Attributes:
        name: "photographs", a generator, or a source.
        control: whether it is the photographs of one source, which no generator made.
        images: how many; `trained` of them may be trained on, the others are held out.
        sources: collections that they come from; 0: not known.
        held_by: what is never divided between training and test: "source", or "group" (and identical files).
        groups: number of these sources or groups; JSON: `units`.
    """

    name: str
    control: bool
    images: int
    trained: int
    sources: int
    held_by: str
    groups: int = Field(alias="units")


class Separability(Record):
    """How separable generators are, by linear heads on frozen features.

    Attributes:
        level: AUROC from which on a set counts as told apart.
        sets: photographs, generators, then controls.
        curves: of generators against photographs, against other generators, and of controls against other photographs.
        transfer: generator -> generator -> AUROC of heads that were trained on `transfer_n` images of the first, on the
            second and photographs.
        failed: file -> reason, for images that could not be read.
        recipe: command, data digest, backbone, versions, hardware, date, seeds, settings.
    """

    title: str
    level: float
    sets: tuple[SeparabilitySet, ...]
    curves: tuple[SeparabilityCurve, ...]
    transfer_n: int
    transfer: dict[str, dict[str, Estimate]]
    failed: dict[str, str] = Field(default_factory=dict)
    recipe: dict[str, Any] = Field(default_factory=dict)
