"""How many images of a generator a detector needs to tell it apart, and how well it then finds others.

In: labelled images and a frozen backbone. Out: a `Separability` record. It knows nothing of pages.

The questions are those of "Are Images Indistinguishable to Humans Also Indistinguishable to Classifiers?" (You et al.
2024), which trains classifiers between a generator and photographs, and between generators. The protocol is this
project's own:

- A frozen backbone looks at each image once, after all have been re-encoded alike. Heads on these features are
  linear, so all of them are solved in the images' Gram matrix.
- A third of the sources of photographs is held out, and of each generator a third of its sources, or of its groups
  if it has too few sources. No source or group is on both sides.
- A head sees n images of a generator, drawn by the seed, and all training photographs. Both classes weigh the same.
- Control: the photographs of one source are treated like a generator. A head can recognise a source too, by its
  subjects and its cameras; only what a generator's curve reaches beyond these says something about the generator.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from clipmole.config import Config
from clipmole.data import data_digest, file_sha256
from clipmole.data.sample import Sample
from clipmole.data.samples import draw_order
from clipmole.data.splits import whole_groups
from clipmole.errors import DataError
from clipmole.evaluation.bootstrap import bootstrap_indices
from clipmole.evaluation.estimates import Replicates
from clipmole.evaluation.features import FeatureExtractor
from clipmole.evaluation.records import Separability, SeparabilityCurve, SeparabilityPoint, SeparabilitySet
from clipmole.images.conditions import load_conditions
from clipmole.inference.runtime import Precision
from clipmole.models.backbone import load_backbone
from clipmole.plumbing.environment import environment
from clipmole.plumbing.progress import SILENT, ProgressReporter
from clipmole.plumbing.seeding import sample_rng

PHOTOGRAPHS, OTHERS = "photographs", "other generators"
FEWEST_SOURCES = 6  # with fewer, a third is too few to represent all
FEWEST = 4  # training images, or held-out images, of a set, at least
MEMORY = 20_000  # images: their Gram matrix takes 3.2 GB


class SeparabilityConfig(Config):
    """The protocol's settings."""

    counts: tuple[int, ...] = Field((1, 2, 4, 8, 16, 32, 64, 128, 256), min_length=1, description="images n of a curve")
    seeds: int = Field(10, gt=0, le=1000, description="draws of n images for each point")
    generators: tuple[str, ...] = Field((), description="generators; (): all with at least `least` images")
    least: int = Field(30, ge=6, description="images that a generator or a control has at least")
    per_generator: int = Field(300, ge=6, description="most images of a generator, drawn by the seed")
    photographs: int = Field(1500, ge=6, description="most photographs, drawn evenly over their sources")
    controls: int = Field(3, ge=0, description="sources of photographs that take the place of a generator")
    test_share: float = Field(1 / 3, gt=0, lt=1, description="share of each set that is held apart")
    level: float = Field(0.9, gt=0.5, lt=1, description="AUROC from which on a set counts as told apart")
    ridge: float = Field(1e-3, gt=0, description="weight of |w|^2, where features have a mean squared length of 1")
    head_blocks: tuple[int, ...] = Field((), description="blocks whose class tokens are read too")
    max_tiles: int = Field(1, gt=0, le=100, description="crops of an image, whose features are averaged")
    seed: int = Field(0, ge=0, description="of every draw")
    resamples: int = Field(1000, gt=0, le=10**6, description="of the bootstrap over groups of images held apart")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if list(self.counts) != sorted(set(self.counts)) or self.counts[0] < 1:
            raise ValueError(f"counts={self.counts}: numbers of images, 1 or more, in rising order")
        return self


@dataclass(frozen=True)
class ImageSet:
    """Rows of the features that belong to one set, and their division.

    Attributes:
        train, test: rows for training, and those held out.
        groups: for all rows of all sets, the number of the row's source or group, which is never divided.
    """

    name: str
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    groups: NDArray[np.int64]
    held_by: str
    sources: int
    control: bool = False

    def without(self, rows: NDArray[np.int64]) -> ImageSet:
        """The set without some rows."""
        train, test = (np.setdiff1d(own, rows) for own in (self.train, self.test))
        return ImageSet(self.name, train, test, self.groups, self.held_by, self.sources, self.control)

    def record(self) -> SeparabilitySet:
        rows = np.concatenate([self.train, self.test])
        groups = len(np.unique(self.groups[rows]))
        return SeparabilitySet(
            name=self.name,
            control=self.control,
            images=len(rows),
            trained=len(self.train),
            sources=self.sources,
            held_by=self.held_by,
            groups=groups,
        )


def choose(samples: Sequence[Sample], config: SeparabilityConfig) -> tuple[list[Sample], list[str]]:
    """Draw the images to look at: photographs evenly over their sources, each generator's, and photographs of the
    largest sources up to `least`, for controls.

    Returns the images and the set of each: `PHOTOGRAPHS`, a generator, or "" if it is only there for a control. Raises
    `DataError` if there is no photograph or no generator to look at.
    """

    drawn = sorted(samples, key=lambda sample: draw_order(sample, config.seed))
    ranked = [sample for sample in drawn if sample.label == 0]
    by_source, turns = Counter[str](), []
    for sample in ranked:
        turns.append(by_source[sample.source])
        by_source[sample.source] += 1
    even = np.argsort(turns, kind="stable")[: config.photographs].tolist()
    photographs, rest = [ranked[i] for i in even], sorted(set(range(len(ranked))) - set(even))
    largest = [source for source, size in by_source.most_common(config.controls) if source and size >= config.least]
    more = [ranked[i] for i in rest if ranked[i].source in largest and turns[i] < config.least]
    by_generator: dict[str, list[Sample]] = defaultdict(list)
    for sample in drawn:
        if sample.label == 1:
            by_generator[sample.generator].append(sample)
    wanted = config.generators or tuple(sorted(name for name, own in by_generator.items() if len(own) >= config.least))
    there = ", ".join(f"{name} ({len(own)})" for name, own in sorted(by_generator.items())) or "none"
    for name in wanted:
        if len(by_generator[name]) < config.least:
            raise DataError(f"generator {name!r}: at least {config.least} images are needed; there are: {there}")
    if not wanted or len(photographs) < config.least:
        raise DataError(
            f"{len(photographs)} photographs, and generators {there}: at least {config.least} photographs are needed, "
            "and as many images of a generator"
        )
    generated = [sample for name in wanted for sample in by_generator[name][: config.per_generator]]
    names = [PHOTOGRAPHS] * len(photographs) + [sample.generator for sample in generated] + [""] * len(more)
    return photographs + generated + more, names


def divide(
    samples: Sequence[Sample], names: Sequence[str], digests: Sequence[str], config: SeparabilityConfig
) -> tuple[list[ImageSet], list[ImageSet]]:
    """Photographs and generators, then controls: each divided into training images and held-out images.

    Args:
        names: the set of each sample, as `choose` gives it.
        digests: sha256 of each sample's file.

    Raises `DataError` if a set cannot be divided because its images are too few groups.
    """
    by_name: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(names):
        by_name[name].append(row)
    by_name.pop("", None)
    sources = {name: {samples[row].source for row in rows} - {""} for name, rows in by_name.items()}
    by_source = {name for name, rows in by_name.items() if _names_sources([samples[r] for r in rows])}
    grouped = np.array(whole_groups(samples, digests))
    held = [
        sample.model_copy(update={"group": f"source {sample.source}"})
        if (sample.generator if sample.label else PHOTOGRAPHS) in by_source
        else sample
        for sample in samples
    ]
    # Each sample once with its source and once with its group, so that both stay whole.
    groups = np.array(whole_groups([*held, *samples], [*digests, *digests]))[: len(samples)]
    sets, taken = [], dict[int, bool]()
    for name in sorted(by_name, key=lambda each: len(np.unique(groups[by_name[each]]))):
        rows = np.array(by_name[name])
        test = held_apart(rows, groups, config, name, taken)
        kind = "source" if name in by_source else "group"
        sets.append(ImageSet(name, np.setdiff1d(rows, test), test, groups, kind, len(sources[name])))
    sets.sort(key=lambda each: (each.name != PHOTOGRAPHS, each.name))
    sizes = Counter(sample.source for sample in samples if sample.label == 0 and sample.source)
    controls = []
    for source, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[: config.controls]:
        if size >= config.least and PHOTOGRAPHS in by_source:
            rows = np.array([r for r, each in enumerate(samples) if each.label == 0 and each.source == source])
            test = held_apart(rows, grouped, config, source, {})
            train = np.setdiff1d(rows, test)
            controls.append(ImageSet(source, train, test, grouped, "group", 1, control=True))
    return sets, controls


def _names_sources(samples: Sequence[Sample]) -> bool:
    """Whether all images name their source, and there are enough sources to hold some out."""
    sources = {sample.source for sample in samples}
    return "" not in sources and len(sources) >= FEWEST_SOURCES


def held_apart(
    rows: NDArray[np.int64], groups: NDArray[np.int64], config: SeparabilityConfig, name: str, taken: dict[int, bool]
) -> NDArray[np.int64]:
    """The rows of a set that are held out: whole sources or groups as they are drawn, while they fit in the share.

    If there are smaller ones, one takes at most a third of it, so that no single source represents all.

    Args:
        taken: source or group -> whether it is held out, as decided for another set; new decisions are added.
    """
    own = groups[rows]
    sizes = {group: int((own == group).sum()) for group in np.unique(own).tolist()}
    smallest = min(sizes.values())
    room = max(config.test_share * len(rows), smallest)
    largest = max(room / 3, smallest)
    room -= sum(size for group, size in sizes.items() if taken.get(group))
    for group in sample_rng(config.seed, "held apart", name).permutation(sorted(sizes)).tolist():
        if group not in taken:
            taken[group] = sizes[group] <= min(room, largest)
            room -= sizes[group] * taken[group]
    chosen = np.array([taken[group] for group in own.tolist()])
    if min(chosen.sum(), (~chosen).sum()) < FEWEST:
        raise DataError(
            f"{name}: its {len(rows)} images cannot be divided into {FEWEST} or more to train on and to test, as they "
            f"are {len(sizes)} groups; give more of them, or name the other generators with --generator"
        )
    found: NDArray[np.int64] = rows[chosen]
    return found


class Heads:
    """Linear heads on features, solved in their Gram matrix.

        min over w, b of  sum_i c_i (w . x_i + b - t_i)^2 + ridge |w|^2,   t_i = 1 or -1, sum_i c_i = 1

    It is the least-squares discriminant; its direction is Fisher's if the ridge is 0.

    Args:
        features: (n, F); centred by the mean of the rows `origin`, and scaled to a mean squared length of 1 there.
        origin: rows that may be trained on.
    """

    def __init__(self, features: NDArray[np.float32], origin: NDArray[np.int64], ridge: float) -> None:
        x = features - features[origin].mean(axis=0)
        x /= np.sqrt(np.square(x[origin]).sum(axis=1).mean()) or 1.0
        self.gram = (x @ x.T).astype(np.float64)
        self.ridge = ridge

    def scores(
        self, positive: NDArray[np.int64], negative: NDArray[np.int64], weights: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """Scores (n,) of all rows by a head that was trained on some: w . x + b.

        Args:
            positive, negative: rows of target 1 and -1; each class weighs one half.
            weights: (len(negative),) of the negative rows among themselves; None: all alike.
        """
        rows = np.concatenate([positive, negative])
        share = np.ones(len(negative)) if weights is None else weights
        c = 0.5 * np.concatenate([np.full(len(positive), 1 / len(positive)), share / share.sum()])
        target = np.repeat([1.0, -1.0], [len(positive), len(negative)])
        cross = self.gram[:, rows]  # (n, m)
        own = cross[rows]
        mean = own @ c  # m_i = x_i . the weighted mean
        centred = own - mean[:, None] - mean[None] + c @ mean
        alpha = np.linalg.solve(centred + np.diag(self.ridge / c), target)
        scores: NDArray[np.float64] = (cross - (cross @ c)[:, None] - mean[None] + c @ mean) @ alpha
        return scores


def estimate_auroc(
    scores: Sequence[NDArray[np.float64]],
    positive: NDArray[np.int64],
    negative: NDArray[np.int64],
    groups: NDArray[np.int64],
    config: SeparabilityConfig,
) -> tuple[Replicates, tuple[float, ...]]:
    """AUROC, mean over the seeds, on rows and on resamples of their groups; and that of each seed.

    AUROC is the share of pairs in which the generated image has the higher score, so a resample is a weighted mean of
    pairs.

    Args:
        scores: (n,) of all rows, one per seed.
        positive, negative: rows that are held apart.
    """
    wins = np.stack([_wins(each[positive], each[negative]) for each in scores])
    rows = np.concatenate([positive, negative])
    labels = np.repeat([1, 0], [len(positive), len(negative)])
    names = [str(group) for group in groups[rows].tolist()]
    counts = np.stack(
        [
            np.bincount(draw, minlength=len(rows))
            for draw in bootstrap_indices(labels, config.resamples, config.seed, groups=names)
        ]
    ).astype(np.float64)
    up, down = counts[:, : len(positive)], counts[:, len(positive) :]
    with np.errstate(invalid="ignore"):  # where all drawn groups are of one class
        draws = ((up @ wins.mean(axis=0)) * down).sum(axis=1) / (up.sum(axis=1) * down.sum(axis=1))
    each = tuple(float(own.mean()) for own in wins)
    return Replicates(float(np.mean(each)), draws), each


def _wins(up: NDArray[np.float64], down: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 where the first score (p,) is above the second (q,), 1/2 where they are equal: (p, q)."""
    difference = up[:, None] - down[None]
    return np.where(difference > 0, 1.0, np.where(difference == 0, 0.5, 0.0))


def curve(
    heads: Heads, own: ImageSet, others: Sequence[ImageSet], against: str, config: SeparabilityConfig
) -> SeparabilityCurve:
    """AUROC of heads that tell a set from others, by the number n of its images that they were trained on.

    The others weigh alike among themselves, as sets.
    """
    train, test = (np.concatenate([getattr(each, part) for each in others]) for part in ("train", "test"))
    weights = np.concatenate([np.full(len(each.train), 1 / len(each.train)) for each in others])
    points = []
    for n in config.counts:
        if n <= len(own.train):
            scores = [heads.scores(draw_rows(own, n, seed, config), train, weights) for seed in range(config.seeds)]
            found, seeds = estimate_auroc(scores, own.test, test, own.groups, config)
            points.append(SeparabilityPoint(n=n, auroc=found.estimate(), seeds=seeds))
    return SeparabilityCurve(
        name=own.name,
        against=against,
        points=tuple(points),
        better_than_chance=_from(points, [point.auroc.low > 0.5 for point in points]),
        separable=_from(points, [point.auroc.value >= config.level for point in points]),
    )


def all_curves(
    heads: Heads,
    sets: Sequence[ImageSet],
    controls: Sequence[ImageSet],
    config: SeparabilityConfig,
    progress: ProgressReporter,
) -> tuple[SeparabilityCurve, ...]:
    """Of generators against photographs, the first of `sets`, and other generators; of controls against the rest."""
    photographs, generators = sets[0], sets[1:]
    jobs = [(own, [photographs], PHOTOGRAPHS) for own in generators]
    if len(generators) > 1:
        jobs += [(own, [each for each in generators if each is not own], OTHERS) for own in generators]
    for each in controls:
        rest = photographs.without(np.concatenate([each.train, each.test]))
        jobs += [(each, [rest], PHOTOGRAPHS)] * bool(len(rest.train) and len(rest.test))
    return tuple(
        curve(heads, own, others, against, config)
        for own, others, against in progress.track(jobs, "solving heads", len(jobs))
    )


def draw_rows(own: ImageSet, n: int, seed: int, config: SeparabilityConfig) -> NDArray[np.int64]:
    """n rows of a set that may be trained on; a larger n keeps what a smaller one drew."""
    rows: NDArray[np.int64] = sample_rng(config.seed, "drawn", own.name, seed).permutation(own.train)[:n]
    return rows


def _from(points: Sequence[SeparabilityPoint], holds: Sequence[bool]) -> int | None:
    """The smallest n from which the condition holds for all points."""
    last = next((i for i in range(len(points), 0, -1) if not holds[i - 1]), 0)
    return points[last].n if last < len(points) else None


def transfer(
    heads: Heads, photographs: ImageSet, generators: Sequence[ImageSet], config: SeparabilityConfig
) -> tuple[int, dict[str, dict[str, Any]]]:
    """The largest n that all generators reach, and the AUROC of heads of each generator on each other."""
    smallest = min(len(each.train) for each in generators)
    n = max((count for count in config.counts if count <= smallest), default=smallest)
    found: dict[str, dict[str, Any]] = {}
    for own in generators:
        scores = [heads.scores(draw_rows(own, n, seed, config), photographs.train) for seed in range(config.seeds)]
        found[own.name] = {
            other.name: estimate_auroc(scores, other.test, photographs.test, own.groups, config)[0].estimate()
            for other in generators
        }
    return n, found


def separability(
    samples: Sequence[Sample],
    backbone: str,
    out: Path,
    config: SeparabilityConfig | None = None,
    *,
    device: str = "cpu",
    precision: Precision = "float32",
    command: str = "",
    progress: ProgressReporter = SILENT,
) -> Separability:
    """How many images of each generator it takes to tell it from photographs, and from other generators.

    Args:
        samples: labelled images; their splits are ignored. Sources and groups are never divided.
        backbone: as `load_backbone` takes it. If it was trained on generated images, the results look too good.
        out: the folder that keeps the features; a run that was stopped continues with them.
        config: the protocol's settings.
        device, precision: of the forward passes.
        command: the command that makes the report again, which it prints.
        progress: follows the images.

    Raises `DataError` if there are too few images, or a set cannot be divided; `WeightsError` for the backbone.
    """
    config = config or SeparabilityConfig()
    chosen, names = choose(samples, config)
    if len(chosen) > MEMORY:
        raise DataError(f"{len(chosen)} images: at most {MEMORY} are told apart at once; lower --photographs")
    loaded = load_backbone(backbone)
    (equalised,) = (each for each in load_conditions("default") if each.name == "equalised")
    extractor = FeatureExtractor(
        loaded,
        head_blocks=config.head_blocks,
        max_tiles=config.max_tiles,
        condition=equalised,
        seed=config.seed,
        device=device,
        precision=precision,
    )
    digests = [file_sha256(sample) for sample in progress.track(chosen, "reading", len(chosen))]
    features, failed = extractor.extract(chosen, digests, out, progress)
    readable = np.flatnonzero(~np.isnan(features).any(axis=1))
    rows = readable.tolist()
    chosen, names, digests = [chosen[i] for i in rows], [names[i] for i in rows], [digests[i] for i in rows]
    sets, controls = divide(chosen, names, digests, config)
    photographs, generators = sets[0], sets[1:]
    heads = Heads(features[readable], photographs.train, config.ridge)
    curves = all_curves(heads, sets, controls, config, progress)
    n, matrix = transfer(heads, photographs, generators, config)
    return Separability(
        title="Separability of generators",
        level=config.level,
        sets=tuple(each.record() for each in [*sets, *controls]),
        curves=curves,
        transfer_n=n,
        transfer=matrix,
        failed=failed,
        recipe={
            "command": command,
            "data digest": data_digest(chosen),
            "backbone": f"{loaded.id}@{loaded.sha256[:12]}",
            "settings": config.model_dump(mode="json"),
            "precision": precision,
            **environment(),
        },
    )
