"""Trained runs in a folder: existing ones are used, missing ones are trained.

In: training settings, labelled images, a backbone. Out: an adapter directory with its `train.json`, and its logits.
It knows nothing of plans or estimates.

The name of a run's folder has a digest of its settings, the training data, the backbone's weights and clipmole's
version. A run that is there is not trained again, whatever it was trained for; a killed one does not count.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, Field, ValidationError, model_validator

import clipmole
from clipmole.config import TrainConfig, first_problem
from clipmole.data import VARIANTS, Variant, data_digest, file_sha256, read_data, windows
from clipmole.data.sample import Sample
from clipmole.errors import DataError, TrainingDiverged
from clipmole.inference.detector import Detector
from clipmole.models.backbone import load_backbone
from clipmole.models.network import MoLENetwork
from clipmole.plumbing.files import write_texts
from clipmole.plumbing.json_toml import checksum, read_json
from clipmole.plumbing.prefetch import cores
from clipmole.plumbing.progress import SILENT, ProgressReporter
from clipmole.training.augmented_views import centre_and_whole
from clipmole.training.comparison_plan import rate_of
from clipmole.training.distributed import Distributed
from clipmole.training.loop import kept_logits
from clipmole.training.prefix_cache import fixed_cache, prefix_cache_folder
from clipmole.training.train import train

USED = ("train", "val", "calibration")  # splits that a run reads


class EpochRecord(BaseModel):
    """The part of an epoch's record that comparisons read."""

    val_ap: float
    seconds: float


class RunRecord(BaseModel):
    """The part of a `train.json` that comparisons read."""

    best_epoch: int = Field(ge=0)
    curve: list[EpochRecord]
    trained_parameters: int
    backbone: dict[Literal["id", "revision", "sha256"], str | None]
    config: dict[str, Any]
    environment: dict[str, Any]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.best_epoch >= len(self.curve):
            raise ValueError(f"best_epoch={self.best_epoch}: of {len(self.curve)} epochs")
        if not self.backbone.get("id") or not self.backbone.get("sha256") or "backbone" not in self.config:
            raise ValueError("backbone: its id or sha256 is missing")
        return self


@dataclass(frozen=True)
class TrainedRun:
    """A finished run: its adapter directory and its `train.json`."""

    folder: Path
    record: dict[str, Any]

    @property
    def val(self) -> float:
        """The metric that validation chooses by: average precision of the best epoch."""
        return float(self.record["curve"][self.record["best_epoch"]]["val_ap"])


def is_whole(kept: Any, digest: str, images: int, variants: Sequence[Variant] = VARIANTS) -> bool:
    """Whether the kept logits of a split are for images other than those of `digest`, or hold one for each image."""
    if not isinstance(kept, dict) or kept.get("digest") != digest:
        return isinstance(kept, dict)
    if kept.get("crc32", checksum(kept)) != checksum(kept):  # older files have none
        return False
    lists = [kept.get(variant) for variant in variants]
    return all(isinstance(x, list) and len(x) == images and all(isinstance(y, float) for y in x) for x in lists)


class TrainedRuns:
    """Trained runs in a folder; missing ones are trained.

    Args:
        folder: of the runs; comparisons may share it.
        data: labelled images with the splits train, val and, if there, calibration.
        backbone: a preset, a hub id or a directory, instead of the configurations' own.
        variants, kept_views: as in `Plan`.
    """

    def __init__(
        self,
        folder: Path,
        data: str | Path,
        backbone: str | None = None,
        progress: ProgressReporter = SILENT,
        variants: Sequence[Variant] = VARIANTS,
        kept_views: bool = False,
    ) -> None:
        self.folder, self.variants, self.kept_views = folder, variants, kept_views
        self.data = data
        self.backbone = backbone
        self.progress = progress
        samples = read_data(data)
        self.digest = data_digest([sample for sample in samples if sample.split in USED] or samples)
        self._weights: dict[str, str] = {}

    def folder_of(self, name: str, config: TrainConfig) -> Path:
        """Folder of a run: an existing one with the same digest, whatever its name, else a new one."""
        backbone = self.backbone or config.backbone
        if backbone not in self._weights:
            self._weights[backbone] = load_backbone(backbone).sha256
        digest = trained_run_digest(config, self.digest, self._weights[backbone])[:12]
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        there = sorted(self.folder.glob(f"*-{digest}")) if self.folder.is_dir() else []
        return there[0] if there else self.folder / f"{slug}-{rate_of(config):g}-seed{config.seed}-{digest}"

    def get_or_train(self, name: str, config: TrainConfig) -> TrainedRun:
        """The run with these settings; `name` is for people. Raises `TrainingDiverged`, also for a kept run."""
        folder = self.folder_of(name, config)
        diverged = folder.with_name(folder.name + ".diverged")
        if diverged.is_file():
            raise TrainingDiverged(diverged.read_text(encoding="utf-8").strip())
        if not (folder / "train.json").is_file():
            self.progress.say(f"{name}, rate {rate_of(config):g}, seed {config.seed}: {folder}")
            backbone = load_backbone(self.backbone or config.backbone)
            try:
                train(config, folder, data=self.data, backbone=backbone, progress=self.progress, with_report=False)
            except TrainingDiverged as error:
                write_whole(diverged, f"{error}\n")
                raise
        cure = f"delete {folder} to train it again"
        record = read_json(folder / "train.json", DataError, cure)
        try:
            RunRecord.model_validate(record)
        except ValidationError as error:
            raise DataError(f"{folder / 'train.json'}: is damaged: {first_problem(error)}; {cure}") from error
        return TrainedRun(folder, record)

    def logits(
        self, run: TrainedRun, splits: Mapping[str, Sequence[Sample]], digests: Mapping[str, str]
    ) -> dict[str, Any]:
        """ "SPLIT, CONDITION" -> logits (n,) of a run, kept beside it.

        Args:
            digests: split -> `order_digest` of its samples; logits that were kept for other images do not count.
        """
        if self.kept_views:  # logits of other views do not count as these
            digests = {split: f"{digest}, kept views" for split, digest in digests.items()}
        file = run.folder.with_name(run.folder.name + ".logits.json")
        cure = "delete it, and the images are scored again"
        kept: dict[str, Any] = read_json(file, DataError, cure) if file.exists() else {}
        there = [split for split in splits if isinstance(kept, dict) and split in kept]
        if not isinstance(kept, dict) or not all(
            is_whole(kept[split], digests[split], len(splits[split]), self.variants) for split in there
        ):
            raise DataError(f"{file}: is damaged; {cure}")
        missing = [split for split in splits if kept.get(split, {}).get("digest") != digests[split]]
        if missing:
            detector = self.detector(run)
            for split in missing:
                kept[split] = {"digest": digests[split]}
                for variant in self.variants:
                    if self.kept_views:
                        kept[split][variant] = self._from_kept_views(run, detector.network, splits[split], variant)
                        continue
                    images = self.progress.track(
                        windows(splits[split], variant), f"{split}, {variant}", len(splits[split])
                    )
                    kept[split][variant] = detector.score(images).tolist()
                kept[split]["crc32"] = checksum(kept[split])
            write_whole(file, json.dumps(kept) + "\n")
        return {f"{split}, {variant}": np.array(kept[split][variant]) for split in splits for variant in self.variants}

    def detector(self, run: TrainedRun) -> Detector:
        """The detector of a run."""
        return Detector.from_pretrained(run.folder, backbone=self.backbone or run.record["config"]["backbone"])

    def _from_kept_views(
        self, run: TrainedRun, network: MoLENetwork, samples: Sequence[Sample], variant: Variant
    ) -> list[float]:
        """Logits of samples in the views of validation; if the run keeps tokens, from them."""
        config = TrainConfig.parse(run.record["config"], str(run.folder / "train.json"))
        if not config.cached_views:
            images = self.progress.track(windows(samples, variant, config.view_seed), variant, len(samples))
            return [float(logit) for logit in Detector(network, centre_and_whole(config)).score(images)]
        folder, sha256 = prefix_cache_folder(), run.record["backbone"]["sha256"]
        with ThreadPoolExecutor(cores()) as pool:
            workers: Any = {"distributed": Distributed(), "pool": pool, "progress": self.progress}
            cache = fixed_cache(network, sha256, samples, config, folder, variant, **workers)
            device = torch.device("cpu")
            logits = kept_logits(network, cache, range(len(samples)), config, device, self.progress.track)
        return [float(logit) for logit in logits]


def trained_run_digest(config: TrainConfig, data: str, backbone: str) -> str:
    """sha256 over settings, training data, the backbone's weights and clipmole's version.

    The names of the data and the backbone do not count, only their digests; nor do settings that are None, since they
    are features that are not used.
    """

    def used(value: Any) -> Any:
        return {k: used(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value

    what = {"config": used(config.run_settings()), "data": data, "backbone": backbone, "clipmole": clipmole.__version__}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def order_digest(samples: Sequence[Sample]) -> str:
    """sha256 over the files' contents, ignored rows and labels, in the order of the logits."""
    lines = [f"{file_sha256(s)} {s.ignore_bottom_px} {s.label}" for s in samples]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Write a text file as a whole or not at all. Raises `DataError` if it cannot be written."""
    try:
        write_texts(path.parent, {path.name: text})
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written: {error.strerror}; finished runs are kept: free some space"
        ) from error
