"""A training configuration -> the images for training, for picking the epoch, and for calibration.

In: the source and the draws that `TrainConfig` names. Out: three lists of samples whose images can all be read, and
the record of how they were chosen. It knows nothing of networks or loops.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipmole.config import TrainConfig
from clipmole.data import DataSource, Folders, lines_digest, read_data, sample_lines, take_split
from clipmole.data.reading import Look, look_at_all, look_once
from clipmole.data.sample import Sample
from clipmole.data.samples import source_hash
from clipmole.data.splits import class_counts, draw_per_class, draw_splits
from clipmole.data.unpack import Unpacking
from clipmole.errors import ConfigError, DataError
from clipmole.plumbing.progress import SILENT, ProgressReporter, Say

NAMED = 10  # files that an error names


@dataclass(frozen=True)
class TrainingData:
    """The images of one training run.

    Attributes:
        train, val, calibration: samples; calibration may be empty.
        lines: `sample_lines` of `all`.
        record: JSON of what they are and how they were drawn, for train.json.
    """

    train: list[Sample]
    val: list[Sample]
    calibration: list[Sample]
    lines: list[str]
    record: dict[str, Any]

    @property
    def all(self) -> list[Sample]:
        """The images of train, val and calibration, in this order."""
        return [*self.train, *self.val, *self.calibration]


def source_of(config: TrainConfig) -> DataSource:
    """The data that the configuration names. Raises `ConfigError` if it names none."""
    if config.real or config.fake:
        return Folders(real=tuple(map(Path, config.real)), fake=tuple(map(Path, config.fake)))
    if config.data is None:
        raise ConfigError(
            "no data: give --data, or photographs with --real and generated images with --fake, or set data in the "
            "configuration"
        )
    return config.data


def without_folders(named: DataSource) -> str:
    """A source as a record may show it: without the folders of the images, because adapters are shared."""
    if isinstance(named, Folders):
        real, fake = (tuple(Path(folder.name) for folder in side) for side in (named.real, named.fake))
        return str(Folders(real=real, fake=fake))
    return Path(named).name if Path(named).is_absolute() else str(named)


def training_data(
    config: TrainConfig,
    source: DataSource | None = None,
    progress: ProgressReporter = SILENT,
) -> TrainingData:
    """Read, draw and check the images of a run.

    Where the source names no split at all, train, val and calibration are drawn from all its images. With
    `per_class`, that many of each class of the training split are taken, and val and calibration stay whole.

    Args:
        source: instead of the one that the configuration names.
        progress: follows the images while they are read, and gets a line on what was drawn, unpacked or skipped.

    Raises `DataError` if train or val lacks a class, if images cannot be read (naming them), unless
    `config.skip_unreadable`, and if one file is labelled both ways.
    """
    named = source_of(config) if source is None else source
    how = Unpacking(Path(config.unpack_to) if config.unpack_to else None, config.unpack_gib, progress.say)
    samples = read_data(named, unsplit="", how=how)
    drawn = not any(sample.split for sample in samples)
    if not drawn and not all(sample.split for sample in samples):
        count = sum(not sample.split for sample in samples)
        raise DataError(f"{named}: {count} of {len(samples)} images have no split; give each one, or none")
    samples = [sample for sample in samples if drawn or sample.split in ("train", "val", "calibration")]
    record: dict[str, Any] = {"source": without_folders(named), "seed": config.seed}
    looks: dict[Sample, Look] = {}
    if drawn:  # contents first: identical files must not be divided
        samples = _readable(samples, named, config, record, looks, progress)
        samples, looks = _with_splits(samples, looks, config.seed)
        counts = Counter(sample.split for sample in samples)
        shown = ", ".join(f"{count} {split}" for split, count in counts.items())
        progress.say(f"{named}: names no splits; drawn by seed {config.seed}: {shown}")
    else:
        for split in ("train", "val"):
            take_split(samples, split)
    train = [sample for sample in samples if sample.split == "train"]
    if config.per_class is not None:
        train = draw_per_class(train, config.per_class, config.seed)
        progress.say(f"{len(train)} training images drawn by seed {config.seed}: {config.per_class} of each of "
            f"{len(class_counts(train))} classes")  # fmt: skip
    samples = train + [sample for sample in samples if sample.split != "train"]
    if not drawn:
        samples = _readable(samples, named, config, record, looks, progress)
    _check_labels(samples, looks)
    parts = {split: take_split(samples, split) for split in ("train", "val")}
    parts["calibration"] = [sample for sample in samples if sample.split == "calibration"]
    if parts["calibration"]:
        take_split(samples, "calibration")
    digests = {split: [looks[sample].sha256 for sample in members] for split, members in parts.items()}
    everything = [sample for members in parts.values() for sample in members]
    lines = sample_lines(everything, [sha for members in digests.values() for sha in members])
    record |= {
        "digest": lines_digest(lines),
        **{split: len(members) for split, members in parts.items()},
        "generators": sorted({sample.generator for sample in parts["train"] if sample.label}),
    }
    sources = {sample.source for sample in parts["train"] if sample.label == 0}
    if "" not in sources:  # else some are unknown, and no source could be called new
        record["sources"] = sorted(map(source_hash, sources))
    _record_draws(record, digests, class_counts(parts["train"]), config.per_class, drawn, progress.say)
    return TrainingData(parts["train"], parts["val"], parts["calibration"], lines, record)


def _with_splits(
    samples: Sequence[Sample], looks: Mapping[Sample, Look], seed: int
) -> tuple[list[Sample], dict[Sample, Look]]:
    """The samples with drawn splits, and what was seen of them."""
    drawn = draw_splits(samples, {sample: looks[sample].sha256 for sample in samples}, seed)
    return drawn, {after: looks[sample] for sample, after in zip(samples, drawn, strict=True)}


def _readable(
    samples: Sequence[Sample],
    named: DataSource,
    config: TrainConfig,
    record: dict[str, Any],
    looks: dict[Sample, Look],
    progress: ProgressReporter,
) -> list[Sample]:
    """The samples that can be read; what was seen of them goes into `looks`, what was skipped into `record`."""
    seen = list(zip(samples, look_at_all(samples, look_once, progress.track, "reading images"), strict=True))
    failed = [(sample, found) for sample, found in seen if found.problem]
    if failed and not config.skip_unreadable:
        shown = "; ".join(found.problem for _, found in failed[:NAMED])
        rest = f"; and {len(failed) - NAMED} more, which clipmole data check lists" if len(failed) > NAMED else ""
        raise DataError(
            f"{named}: {len(failed)} of {len(samples)} images cannot be read: {shown}{rest}. Repair or remove them, or "
            "leave them out with --skip-unreadable"
        )
    for _, found in failed:
        progress.say(f"skipped: {found.problem}")
    record["skipped"] = [{"file": _short(sample), "problem": found.problem} for sample, found in failed]
    looks.update({sample: found for sample, found in seen if not found.problem})
    return [sample for sample, found in seen if not found.problem]


def _short(sample: Sample) -> str:
    return "/".join(sample.path.parts[-3:])


def _check_labels(samples: Sequence[Sample], looks: dict[Sample, Look]) -> None:
    """Refuse a file that is labelled both as a photograph and as generated."""
    first: dict[str, Sample] = {}
    for sample in samples:
        other = first.setdefault(looks[sample].sha256, sample)
        if other.label != sample.label:
            raise DataError(
                f"{sample.path} and {other.path} are the same file, once labelled {sample.label}, once {other.label}; "
                "remove the wrong one"
            )


def _record_draws(
    record: dict[str, Any],
    digests: dict[str, list[str]],
    classes: dict[str, int],
    per_class: int | None,
    drawn: bool,
    say: Say,
) -> None:
    """Write file by file into `record` what was drawn, and how many training files are in other splits too."""
    shared = set(digests["train"]) & {*digests["val"], *digests["calibration"]}
    if shared:
        say(f"{len(shared)} training files are in val or calibration too, which makes those too good: see data check")
    record["also_in_other_splits"] = len(shared)
    if drawn:
        record["drawn_splits"] = {split: sorted(digests[split]) for split in ("val", "calibration")}
    if per_class is not None:
        record["drawn_per_class"] = {"per_class": per_class, "classes": classes, "files": sorted(digests["train"])}
