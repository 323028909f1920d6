"""The folder with the paper's data sets, and a preset -> a plan: the data, the steps, and what the run will cost.

In: the root that holds the data sets, and a preset `paper-*`. Out: an `ExperimentPlan`, and its lines for people. No
image is opened and nothing is downloaded. It does not know how to train, evaluate or report.

The data lie below the root:

    progan/train/<class>/0_real|1_fake, progan/val/...    CNNSpot's training and validation set
    univfd/                                               UnivFD's 19 sets, as the protocol univfd-19 finds them
    genimage/<generator>/val/nature|ai                    GenImage's validation sets
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from clipmole.config import CLIP_TOWERS, TrainConfig
from clipmole.data import VARIANTS, read_data
from clipmole.data.sample import Sample
from clipmole.data.splits import draw_per_class
from clipmole.errors import ConfigError, DataError
from clipmole.evaluation.protocol import find_sets, load_protocol
from clipmole.inference.detector import Detector
from clipmole.models.backbone import load_backbone
from clipmole.models.network import MoLENetwork
from clipmole.models.vit import ViT
from clipmole.plumbing.environment import environment
from clipmole.plumbing.files import nearest_existing
from clipmole.plumbing.progress import duration
from clipmole.speed.worker import timed
from clipmole.training.prefix_cache import GIB, prefix_cache_folder, record_type
from clipmole.training.presets import load_train_config, with_settings

METHODS = {  # preset -> its name in the published results
    "paper-vit-b-32": "MoLE ViT-B/32",
    "paper-vit-b-16": "MoLE ViT-B/16",
    "paper-vit-l-14": "MoLE ViT-L/14",
}
PROTOCOLS = {"univfd-19": "univfd", "genimage-8": "genimage"}  # protocol -> its folder below the root
TRAINING: dict[str, int | None] = {"train": 720_119, "val": None}  # split -> images as MoLE counts CNNSpot's
TOLERANCE = 0.02  # of a number of images, because owners round it
BATCH = 4  # images of a timed pass: enough for a rate, and done in seconds on a CPU
DETECTOR, TABLE = "detector", "paper"


@dataclass(frozen=True)
class PaperDataSet:
    """A data set of the experiment, and how much of it is there.

    Attributes:
        name: "progan/train", or the protocol and the set.
        expected: how many images are published, about; None: no number is known, and none is checked.
        images: how many are there.
        problem: why it cannot be used as it is; "" if it can.
    """

    name: str
    expected: int | None
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
class ExperimentPlan:
    """The steps, their data, and what the run will cost.

    Attributes:
        config: of the training run.
        train_images, val_images: that an epoch trains on and validates with.
        data_sets: all that the experiment needs.
        measured: protocol -> images that are scored.
        cache_gib: of the prefix cache; 0: none is kept.
    """

    preset: str
    config: TrainConfig
    root: Path
    out: Path
    train_images: int
    val_images: int
    data_sets: tuple[PaperDataSet, ...]
    measured: dict[str, int] = field(default_factory=dict)
    cache_gib: float = 0.0

    @property
    def problems(self) -> list[str]:
        """Why this would not be the paper's experiment, one line for each reason."""
        return [f"{each.name}: {each.problem}" for each in self.data_sets if each.problem]

    def seconds(self, rates: Rates) -> tuple[float, float]:
        """Of training, at most, and of measuring, by the network alone."""
        config = self.config
        training = config.epochs * (self.train_images / rates.train + self.val_images / rates.score)
        training += (config.cached_views or 0) * self.train_images / rates.prefix
        return training, len(VARIANTS) * sum(self.measured.values()) / rates.score


def paper_config(preset: str, few: bool, backbone: str | None, given: Sequence[str]) -> TrainConfig:
    """The training settings. Raises `ConfigError` for a preset that is not of the paper."""
    if preset not in METHODS:
        raise ConfigError(f"preset {preset!r}: is none of the paper's, which are {', '.join(METHODS)}")
    config = with_settings(load_train_config(preset + "-few" * few), given)
    return config.model_copy(update={"backbone": backbone}) if backbone else config


def plan(preset: str, root: str | Path, out: str | Path, config: TrainConfig) -> ExperimentPlan:
    """Check the data by layout and counts; no image is opened.

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
    data_sets = [
        paper_data_set(
            f"progan/{split}", TRAINING[split], by_split[split], problem or "expected <class>/0_real|1_fake/<images>"
        )
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
        for each in protocol.sets:
            samples, reason = found.get(each.name, []), reasons.get(each.name, "")
            data_sets.append(paper_data_set(f"{below}/{each.name}", each.images, samples, reason))
        measured[name] = sum(map(len, found.values()))
    return ExperimentPlan(
        preset=preset,
        config=config,
        root=folder,
        out=Path(out),
        train_images=len(training),
        val_images=len(by_split["val"]),
        data_sets=tuple(data_sets),
        measured=measured,
        cache_gib=cache_gib(config, len(training)),
    )


def paper_data_set(name: str, expected: int | None, samples: Sequence[Sample], missing: str) -> PaperDataSet:
    """A data set and how much of it is there; `missing`: why it is absent, if it is."""
    images = len(samples)
    n_generated = sum(sample.label for sample in samples)
    if not images:
        problem = missing or "no images"
    elif n_generated in (0, images):
        problem = f"holds {images:,} images of one class only"
    elif expected is not None and abs(images - expected) > TOLERANCE * expected:
        problem = f"holds {images:,} images ({n_generated:,} of them generated), and about {expected:,} are published"
    else:
        problem = ""
    return PaperDataSet(name, expected, images, problem)


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
        next(iter(network.trained_parameters().values())).sum().item()  # waits for the GPU to finish

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


def plan_lines(plan: ExperimentPlan, rates: Rates) -> list[str]:
    """The plan for people: the data, the steps, disk space and time."""
    config, out = plan.config, plan.out
    there = [f"  {p.name:<24} {p.images:>9,} images{f'   ({p.problem})' if p.problem else ''}" for p in plan.data_sets]
    training, measuring = plan.seconds(rates)
    steps = [
        f"train {plan.preset} on {plan.train_images:,} images, at most {config.epochs} epochs, {plan.val_images:,} "
        f"images for validation: {out / DETECTOR}",
        *(
            f"evaluate by {name}: {count:,} images, {' and '.join(VARIANTS)}: {out / name}"
            for name, count in plan.measured.items()
        ),
        f"the paper's table beside these results: {out / TABLE}.md",
    ]
    free = shutil.disk_usage(nearest_existing(out)).free / GIB
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
