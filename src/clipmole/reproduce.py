"""The paper's experiment from its data to its table: `train`, `evaluate` twice, and their figures beside the paper's.

In: the folder that holds the data sets, and a preset `paper-*`. Out: what is there and what it will take (`plan`); a
detector, two reports and `paper.md`, `paper.json` (`reproduce`). It trains and measures nothing by itself: it calls the
same functions as the command line does one by one, and goes on where a run was stopped. It downloads nothing.

The data lie below one folder, the root:

    progan/train/<class>/0_real|1_fake, progan/val/...    CNNSpot's training and validation set
    univfd/                                               UnivFD's 19 sets, as the protocol univfd-19 finds them
    genimage/<generator>/val/nature|ai                    GenImage's validation sets
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from clipmole import api
from clipmole.config import CLIP_TOWERS, TrainConfig
from clipmole.data import VARIANTS, read_data
from clipmole.data.sample import Sample
from clipmole.data.splits import draw_per_class
from clipmole.errors import ConfigError, DataError
from clipmole.evaluation.protocol import find_sets, load_protocol, published_for
from clipmole.evaluation.records import ALL_SETS, EvaluationReport, Number, SetReport
from clipmole.inference.detector import Detector
from clipmole.models.backbone import load_backbone
from clipmole.models.network import MoLENetwork
from clipmole.models.vit import ViT
from clipmole.plumbing.environment import environment
from clipmole.plumbing.files import write_texts
from clipmole.plumbing.json_toml import read_json
from clipmole.plumbing.progress import SILENT, ProgressReporter, duration
from clipmole.records import Record
from clipmole.report.page import Items, Section, Table, Value, markdown_page
from clipmole.speed.worker import timed
from clipmole.training.prefix_cache import GIB, prefix_cache_folder, record_type
from clipmole.training.presets import load_train_config, with_settings

METHODS = {  # preset -> its name in the published figures
    "paper-vit-b-32": "MoLE ViT-B/32",
    "paper-vit-b-16": "MoLE ViT-B/16",
    "paper-vit-l-14": "MoLE ViT-L/14",
}
SURVEYED, SURVEYED_AS = ("MoLE", "mean_accuracy"), ("paper-vit-l-14", "univfd-19")  # a survey's figure, and of what
PROTOCOLS = {"univfd-19": "univfd", "genimage-8": "genimage"}  # protocol -> its folder below the root
# Images of CNNSpot's sets: the first as MoLE counts them (arXiv 2404.04883); the second as remembered of CNNSpot's own
# paper (arXiv 1912.11035), and not read there again.
TRAINING = {"train": 720_119, "val": 4_000}
TOLERANCE = 0.02  # of a number of images: owners round them
BATCH = 4  # images of a pass whose time is taken: enough for a rate, and done in seconds on a CPU
DETECTOR, TABLE = "detector", "paper"
OPEN = (
    "The paper leaves open which blocks are adapted in B/16 and L/14, the ranks, the router's details, the LoRA scale, "
    "the balance loss, the optimizer and its schedule. They are this project's choice here, so a difference may come "
    "from them."
)


@dataclass(frozen=True)
class Part:
    """A data set of the experiment, and what is there of it.

    Attributes:
        name: "progan/train", or the protocol and the set.
        expected: how many images its owners publish, about.
        images: how many are there.
        problem: why it cannot be used as it is; "" if it can.
    """

    name: str
    expected: int
    images: int
    problem: str


@dataclass(frozen=True)
class Rates:
    """Images a second on one machine, with random weights; decoding comes beside it.

    Attributes:
        hardware: its name.
        prefix: through the blocks before the first adapted one.
        train: forward and backward, of what is not kept in the prefix cache.
        score: forward, in float32, of images of one crop.
    """

    hardware: str
    prefix: float
    train: float
    score: float


@dataclass(frozen=True)
class Plan:
    """What will be done, with what, and what it takes.

    Attributes:
        config: of the training run.
        train_images, val_images: that an epoch trains on and validates with.
        parts: every data set.
        measured: protocol -> images that are scored.
        cache_gib: of the prefix cache; 0: none is kept.
    """

    preset: str
    config: TrainConfig
    root: Path
    out: Path
    train_images: int
    val_images: int
    parts: tuple[Part, ...]
    measured: dict[str, int] = field(default_factory=dict)
    cache_gib: float = 0.0

    @property
    def problems(self) -> list[str]:
        """Why this would not be the paper's experiment, a line each."""
        return [f"{part.name}: {part.problem}" for part in self.parts if part.problem]

    def seconds(self, rates: Rates) -> tuple[float, float]:
        """Of training, at most, and of measuring, by the network alone."""
        config = self.config
        training = config.epochs * (self.train_images / rates.train + self.val_images / rates.score)
        training += (config.cached_views or 0) * self.train_images / rates.prefix
        return training, len(VARIANTS) * sum(self.measured.values()) / rates.score


class PaperRow(Record):
    """A published figure beside the same one measured here, as shares of 1.

    Attributes:
        benchmark: the protocol.
        set: of images; `ALL_SETS` for the mean over those that are here.
        metric: "average_precision", or "accuracy" at logit 0, as the paper takes it.
        published: None: there is none, or it is of other sets than those that are here.
        stored, equalised: measured here, on the images as they are stored and all encoded again by one rule.
    """

    benchmark: str
    set: str
    metric: str
    published: float | None
    stored: Number
    equalised: Number

    @property
    def difference(self) -> float | None:
        """Measured here as stored, less published."""
        return None if self.published is None else self.stored - self.published


class PaperTable(Record):
    """The paper's figures beside those measured here; `notes` say what is not like for like."""

    method: str
    rows: tuple[PaperRow, ...]
    notes: tuple[str, ...]


def settings(preset: str, few: bool, backbone: str | None, given: Sequence[str]) -> TrainConfig:
    """The training settings. Raises `ConfigError` for a preset that is not of the paper."""
    if preset not in METHODS:
        raise ConfigError(f"preset {preset!r}: is none of the paper's, which are {', '.join(METHODS)}")
    config = with_settings(load_train_config(preset + "-few" * few), given)
    return config.model_copy(update={"backbone": backbone}) if backbone else config


def plan(preset: str, root: str | Path, out: str | Path, config: TrainConfig) -> Plan:
    """Look at what is there, by layout and counts; no image is opened.

    Raises `DataError` if `root` is not there, or if `config.per_class` images of a class are not.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; give the one that holds progan, univfd and genimage")
    try:
        progan, problem = read_data(folder / "progan", unsplit=""), ""
    except DataError as error:
        progan, problem = [], str(error)
    by_split = {split: [sample for sample in progan if sample.split == split] for split in TRAINING}
    parts = [
        part(f"progan/{split}", TRAINING[split], by_split[split], problem or "expected <class>/0_real|1_fake/<images>")
        for split in TRAINING
    ]
    training = by_split["train"]
    if config.per_class is not None and training:
        training = draw_per_class(training, config.per_class, config.seed)
    measured = {}
    for name, below in PROTOCOLS.items():
        protocol = load_protocol(name)
        if (folder / below).is_dir():
            found, missing = find_sets(protocol, folder / below)
        else:
            found, missing = {}, [f"{each.name}: there is no folder {folder / below}" for each in protocol.sets]
        reasons = dict(line.split(": ", 1) for line in missing)
        parts += [part(f"{below}/{s.name}", s.images or 0, found.get(s.name, []), reasons.get(s.name, "")) for s in
                  protocol.sets]  # fmt: skip
        measured[name] = sum(map(len, found.values()))
    return Plan(
        preset=preset,
        config=config,
        root=folder,
        out=Path(out),
        train_images=len(training),
        val_images=len(by_split["val"]),
        parts=tuple(parts),
        measured=measured,
        cache_gib=cache_gib(config, len(training)),
    )


def part(name: str, expected: int, samples: Sequence[Sample], missing: str) -> Part:
    """A data set and what is there of it; `missing`: why there is nothing, if there is nothing."""
    images = len(samples)
    generated = sum(sample.label for sample in samples)
    if not images:
        problem = missing or "no images"
    elif generated in (0, images):
        problem = f"holds {images:,} images of one class only"
    elif abs(images - expected) > TOLERANCE * expected:
        problem = f"holds {images:,} images ({generated:,} of them generated), and about {expected:,} are published"
    else:
        problem = ""
    return Part(name, expected, images, problem)


def random_network(config: TrainConfig) -> MoLENetwork:
    """A network of the run's shape; random weights where the backbone is a preset, so that nothing is fetched."""
    shape = CLIP_TOWERS.get(config.backbone)
    return MoLENetwork(ViT(shape) if shape else load_backbone(config.backbone).tower, config.mole)


def cache_gib(config: TrainConfig, images: int) -> float:
    """GiB of the prefix cache of a run; 0 if it keeps none."""
    if not config.cached_views:
        return 0.0
    with torch.device("meta" if config.backbone in CLIP_TOWERS else "cpu"):  # of a preset no memory is taken
        return config.cached_views * images * record_type(random_network(config), config).itemsize / GIB


def measure_rates(config: TrainConfig, device: str, seconds: float = 1.0) -> Rates:
    """How fast this machine trains and scores a network of the run's shape; `seconds` for each of three."""
    network = random_network(config).to(device)
    size = config.preprocess.crop_size
    crops = torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8, device=device)

    def forward(prefix: bool) -> torch.Tensor:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            return network.prefix(crops) if prefix else network(crops)

    def prefix() -> None:
        with torch.no_grad():
            forward(True).sum().item()

    def step() -> None:
        forward(False).sum().backward()  # type: ignore[no-untyped-call]
        next(iter(network.trained_parameters().values())).sum().item()  # what a GPU still computes is waited for

    def rate(call: Callable[[], object]) -> float:
        call()
        return BATCH / min(timed(call, seconds))

    found, whole = rate(prefix), rate(step)
    kept = 1 / (1 / whole - 1 / found) if config.cached_views and found > whole else whole
    detector = Detector(network.eval(), config.preprocess, device=device, batch_size=BATCH)
    image = np.zeros((size, size, 3), dtype=np.uint8)
    named = environment()
    hardware = (
        str(named["gpu"]) if device != "cpu" and "gpu" in named else f"{named['cpu']}, {named['threads']} threads"
    )
    return Rates(hardware, found, kept, rate(lambda: detector.score([image] * BATCH)))


def plan_lines(plan: Plan, rates: Rates) -> list[str]:
    """The plan for people: what is there, the steps, disk, time."""
    config, out = plan.config, plan.out
    there = [f"  {p.name:<24} {p.images:>9,} images{f'   ({p.problem})' if p.problem else ''}" for p in plan.parts]
    training, measuring = plan.seconds(rates)
    steps = [
        f"train {plan.preset} on {plan.train_images:,} images, at most {config.epochs} epochs, {plan.val_images:,} "
        f"images for validation: {out / DETECTOR}",
        *(
            f"evaluate by {name}: {count:,} images, {' and '.join(VARIANTS)}: {out / name}"
            for name, count in plan.measured.items()
        ),
        f"the paper's table beside these figures: {out / TABLE}.md",
    ]
    place = next(path for path in (out.resolve(), *out.resolve().parents) if path.exists())
    free = shutil.disk_usage(place).free / GIB
    cache = f"{plan.cache_gib:,.1f} GiB of prefix cache in {prefix_cache_folder()}" if plan.cache_gib else "no cache"
    return [
        f"Data in {plan.root}:",
        *there,
        "Steps:",
        *(f"  {number}. {step}" for number, step in enumerate(steps, 1)),
        f"Disk: under 0.1 GiB in {out} ({free:,.0f} GiB are free there); {cache}.",
        f"Time on {rates.hardware}, with random weights: training {duration(training)} at most "
        f"({rates.train:.3g} images/s), evaluating {duration(measuring)} ({rates.score:.3g} images/s). Decoding comes "
        "beside it.",
    ]


def reproduce(
    plan: Plan,
    *,
    device: str = "cpu",
    incomplete: bool = False,
    resamples: int = 1000,
    command: str = "",
    progress: ProgressReporter = SILENT,
) -> PaperTable:
    """Train, evaluate by both protocols, and write `paper.md` and `paper.json` into `plan.out`.

    A detector that is already there is taken if it was trained with these settings. Whatever was stopped goes on.

    Args:
        device: where images are scored; training takes a GPU if there is one.
        incomplete: go on where data sets are missing or hold other numbers of images; the table then says so.
        resamples: of the bootstrap.
        command: printed in the reports as the way to make them again.

    Raises:
        DataError: the data are not complete, nothing can be trained or measured on, or the detector that is there was
            trained otherwise.
    """
    if not plan.train_images or not plan.val_images:
        raise DataError(f"nothing to train on: {'; '.join(plan.problems[:2])}")
    if not any(plan.measured.values()):
        raise DataError(f"{plan.root}: there is nothing to measure on; {plan.problems[-1]}")
    if plan.problems and not incomplete:
        raise DataError(
            f"{len(plan.problems)} of {len(plan.parts)} data sets are not as published: "
            f"{'; '.join(plan.problems[:3])}; --dry-run lists them all, --incomplete goes on with what is there"
        )
    trained(plan, progress)
    reports = {}
    for name, below in PROTOCOLS.items():
        if plan.measured[name]:
            reports[name] = api.evaluate(
                {TABLE: str(plan.out / DETECTOR)},
                plan.root / below,
                plan.out / name,
                protocol=name,
                backbones={TABLE: plan.config.backbone},
                resamples=resamples,
                gallery=False,
                device=device,
                command=command,
                progress=progress,
            )
    table = paper_table(plan, reports)
    texts = {f"{TABLE}.json": table.model_dump_json(indent=1) + "\n", f"{TABLE}.md": paper_page(table)}
    try:
        write_texts(plan.out, texts)
    except OSError as error:
        raise DataError(f"{plan.out}: cannot be written: {error.strerror}; free space") from error
    return table


def trained(plan: Plan, progress: ProgressReporter) -> None:
    """Train the detector, unless it is there. Raises `DataError` if one is that was trained otherwise."""
    folder = plan.out / DETECTOR
    record = folder / "train.json"
    if not record.is_file():
        api.train(plan.config, folder, data=plan.root / "progan", progress=progress)
        return
    kept = read_json(record, DataError, f"delete {folder} to train it again").get("config", {})
    other = sorted(key for key, value in plan.config.model_dump(mode="json").items() if kept.get(key, value) != value)
    if other:
        raise DataError(f"{folder}: was trained with another {', '.join(other)}; name another --out, or delete it")
    progress.say(f"{folder}: is there and was trained with these settings")


def paper_table(plan: Plan, reports: dict[str, EvaluationReport]) -> PaperTable:
    """The paper's figures of the preset's method beside those of the reports."""
    method, rows = METHODS[plan.preset], []
    for name, report in reports.items():
        found = {(own.set, own.condition): own for own in report.sets}
        names = list(dict.fromkeys(own.set for own in report.sets if own.set != ALL_SETS))
        published = published_for(load_protocol(name))
        by_set = {p.set: p.share for p in published if p.set and p.method == method}
        known = {("average_precision", each): share for each, share in by_set.items()}
        if set(names) <= set(by_set):
            known["average_precision", ALL_SETS] = float(np.mean([by_set[each] for each in names]))
        if (plan.preset, name) == SURVEYED_AS and not report.missing:
            known["accuracy", ALL_SETS] = next(p.share for p in published if (p.method, p.metric) == SURVEYED)
        for metric in ("average_precision", "accuracy"):
            for each in [*names, *([ALL_SETS] if len(names) > 1 else [])]:
                stored, equalised = (figure(found[each, variant], metric) for variant in VARIANTS)
                rows.append(PaperRow(benchmark=name, set=each, metric=metric, published=known.get((metric, each)),
                                     stored=stored, equalised=equalised))  # fmt: skip
    notes = [OPEN]
    if plan.config.per_class is not None:
        notes.append(
            f"Trained on {plan.train_images:,} images, {plan.config.per_class} of each class; the published figures by "
            "set are of training on all."
        )
    notes.append(
        "The accuracy published for MoLE is as a survey quotes it (arXiv 2502.15176), taken to be of the largest "
        "backbone. No figure of MoLE on GenImage comes with clipmole; those of other methods stand in the report."
    )
    return PaperTable(method=method, rows=tuple(rows), notes=(*notes, *plan.problems))


def figure(report: SetReport, metric: str) -> float:
    """A figure of a set; the accuracy at logit 0, also of a calibrated detector."""
    own = report.estimates
    return own["raw_accuracy" if metric == "accuracy" and "raw_accuracy" in own else metric].value


def paper_page(table: PaperTable) -> str:
    """The table as Markdown, in percent."""

    def percent(share: float | None, sign: str = "") -> Value:
        return Value("-" if share is None or math.isnan(share) else f"{100 * share:{sign}.2f}")

    sections = []
    for benchmark, metric in dict.fromkeys((row.benchmark, row.metric) for row in table.rows):
        own = [row for row in table.rows if (row.benchmark, row.metric) == (benchmark, metric)]
        words = metric.replace("_", " ")
        rows = [(r.set, percent(r.published), percent(r.stored), percent(r.difference, "+"), percent(r.equalised))
                for r in own]  # fmt: skip
        heads = ["set", "published", "here, as stored", "difference", "here, equalised"]
        shown = Table(f"{table.method}: {words}, percent", heads, rows)
        sections.append(Section(f"{benchmark}-{metric}", f"{benchmark}: {words}", [shown]))
    return markdown_page(f"{table.method} beside the paper", [Items(table.notes)], sections)
