"""Protocols of published benchmarks, or of any manifest: which images are evaluated, and how.

In: a preset of `protocols/*.toml` or a TOML file of the same form, and the folder that holds the data sets. Out:
the samples of every set that is there, one line for each that is not, and the results that others published. It
knows nothing of detectors or metrics, and it never downloads: data sets come from their owners, on their terms.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from clipmole.config import Config, load_packaged
from clipmole.data import CAMERA, DataSource, Folders, Unpacking, limit_samples, read_data, read_folder
from clipmole.data.sample import Sample
from clipmole.errors import ConfigError, DataError
from clipmole.evaluation.records import PublishedResult


class Owner(Config):
    """The owner of data sets, and their layout once unpacked.

    Attributes:
        publishes: where to get them, and on what terms if they are not open.
        layout: below `folder`, or of `photographs` and `folder` if these are separate.
        below: folders below the data folder to search, in this order; "" is the data folder.
    """

    publishes: str
    layout: str
    below: tuple[str, ...] = ("",)


class DataSet(Config):
    """One set of images.

    Attributes:
        name: as in reports; also the generator of its generated images.
        folders: possible names of its folder, the owner's first; the first that exists is read.
        photographs: folder of its photographs, if it is separate from the generated images.
        owner: key of the protocol's `owners`.
        split: part of the folder that is read; None: all.
        images: about how many images of both classes its owners publish; None: not stated.
    """

    name: str
    folders: tuple[str, ...] = Field(min_length=1)
    photographs: str = ""
    owner: str
    split: str | None = None
    images: int | None = Field(None, gt=0)


class Protocol(Config):
    """Which images are evaluated, and how.

    Attributes:
        title: of the report.
        note: caveats of the data, printed in the report.
        sets, owners: the data sets; none: the data is one manifest or folder, of which `splits` are the sets.
        splits: of the manifest, where there are no sets.
        crop: "center_crop" as the published results were measured, or each detector's own.
        limit: images of each class and generator of a set, at most; None: all.
        seed: of the limit and of the draws of conditions.
        conditions: preset or file for `conditions.load_conditions`.
        benchmark: name of the published results to show beside; "": there are none.
    """

    title: str
    note: str = ""
    sets: tuple[DataSet, ...] = ()
    owners: dict[str, Owner] = Field(default_factory=dict)
    splits: tuple[str, ...] = ()
    crop: Literal["center_crop", "detector"] = "detector"
    limit: int | None = Field(None, gt=0)
    seed: int = Field(0, ge=0)
    conditions: str = "default"
    benchmark: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.sets) == bool(self.splits):
            raise ValueError(f"sets={len(self.sets)}, splits={self.splits}: give either the sets or the splits")
        names = self.splits or tuple(each.name for each in self.sets)
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"name {name!r} occurs twice; each set needs its own")
        for each in self.sets:
            if each.owner not in self.owners:
                raise ValueError(f"owner {each.owner!r} of set {each.name!r}: not one of {', '.join(self.owners)}")
        return self


def load_protocol(name: str | Path) -> Protocol:
    """The protocol of a preset or of a TOML file; `ConfigError` if there is neither, or if it does not validate."""
    return load_packaged(Protocol, "evaluation/protocols", name)


def find_sets(
    protocol: Protocol, root: DataSource, splits: Sequence[str] = (), how: Unpacking | None = None
) -> tuple[dict[str, list[Sample]], list[str]]:
    """The sets that can be measured, name -> samples in a fixed order, and one line for each that cannot.

    Args:
        root: the folder with the data sets; of a protocol without sets, whatever `read_data` takes.
        splits: of a manifest, instead of the protocol's own.
        how: of the data that have to be unpacked.

    A set needs photographs and generated images. The line on one that is missing, or that has another layout, says so,
    what is expected, and where its owners publish it. Raises `DataError` if `root` is not there, or is not a data set
    where it should be one; `ConfigError` for `splits` of a protocol with sets.
    """
    if protocol.sets and (isinstance(root, Folders) or not Path(root).exists()):
        raise DataError(f"{root}: there is no such file or folder; give the folder that holds the data sets")
    if protocol.sets and splits:
        raise ConfigError(f"splits {', '.join(splits)}: {protocol.title} fixes its own; leave them out")
    found: dict[str, list[Sample]] = {}
    missing: list[str] = []
    if not protocol.sets:
        everything = read_data(root, how=how)
        there = ", ".join(sorted({sample.split for sample in everything}))
        for split in splits or protocol.splits:
            samples = [sample for sample in everything if sample.split == split]
            reason = _lacks(samples)
            if reason:
                missing.append(f"{split}: {reason} of this split in {root}; the splits there are: {there}")
            else:
                found[split] = limit_samples(samples, protocol.limit, protocol.seed)
    for each in protocol.sets:
        owner = protocol.owners[each.owner]
        try:
            found[each.name] = limit_samples(_read_set(each, owner, Path(str(root))), protocol.limit, protocol.seed)
        except DataError as error:
            layout = owner.layout.format(folder=each.folders[0], photographs=each.photographs)
            missing.append(f"{each.name}: {error}; expected {layout} below {root}; published at {owner.publishes}")
    return found, missing


def _read_set(each: DataSet, owner: Owner, root: Path) -> list[Sample]:
    """Samples of one set: photographs, then generated images, each sorted by path; `DataError` if not both."""
    samples = [
        sample.model_copy(update={"generator": each.name if sample.label else CAMERA})
        for sample in read_folder(_folder_of(each.folders, owner, root))
        if each.split in (None, sample.split)
    ]
    if each.photographs:
        apart = read_folder(_folder_of((each.photographs,), owner, root))
        samples = [s for s in samples if s.label == 1] + [s for s in apart if s.label == 0]
    reason = _lacks(samples)
    if reason:
        raise DataError(reason)
    return sorted(samples, key=lambda sample: sample.label)


def _folder_of(folders: Sequence[str], owner: Owner, root: Path) -> Path:
    for below in owner.below:
        for folder in folders:
            path = root / below / folder
            if path.is_dir():
                return path
    raise DataError(f"no folder {folders[0]}")


def _lacks(samples: Sequence[Sample]) -> str:
    """What a set lacks to be evaluated; "" if nothing."""
    n_generated = sum(sample.label for sample in samples)
    if not samples:
        return "no images"
    return "no photographs" if n_generated == len(samples) else "" if n_generated else "no generated images"


def published_results() -> tuple[PublishedResult, ...]:
    """Every published result that comes with the package, in percent: means over benchmarks, then those of sets."""
    return tuple(
        PublishedResult.model_validate({"metric": "average_precision"} | row)
        for name in ("published.csv", "published_sets.csv")
        for row in _published_rows(name)
    )


def published_for(protocol: Protocol) -> tuple[PublishedResult, ...]:
    """Published results of the protocol's benchmark: the means, also under perturbations, and those of its sets."""
    return tuple(f for f in published_results() if f.benchmark.partition(" under ")[0] == protocol.benchmark)


def _published_rows(name: str) -> list[dict[str, str]]:
    text = (resources.files("clipmole") / "evaluation" / "protocols" / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
