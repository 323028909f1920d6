"""Extending a detector: what stays, what is added, and how its directory records both.

In: the name of a detector and the settings of a run. Out: a network whose only trained parameters are one new
`Extension` in each adapted block; the tokens that are replayed; the history for `train.json` and the model card. It
knows nothing of steps or epochs: the loop is that of every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipmole.calibration import Calibration
from clipmole.config import MoLEConfig, PreprocessConfig, TrainConfig
from clipmole.data.sample import Sample
from clipmole.errors import CheckpointError, ConfigError
from clipmole.models.adapter import (
    ADAPTER,
    TRAIN,
    AdapterConfig,
    adapter_digest,
    find_adapter,
    read_calibration,
    read_config,
    read_kept_tokens,
    read_tensors,
)
from clipmole.models.network import MoLENetwork
from clipmole.models.vit import ViT
from clipmole.plumbing.json_toml import read_json
from clipmole.plumbing.seeding import sample_rng
from clipmole.training.augmented_views import views
from clipmole.training.presets import OWN_IMAGES, load_train_config

ROWS = 32  # of a forward pass over kept tokens
WHOLE_SHARE = 1 / 3  # of the views, for a detector that looks at the whole, unless the settings say otherwise


@dataclass(frozen=True)
class Base:
    """The detector that a run extends, as its directory holds it.

    Attributes:
        name, digest: as `Adapter`'s.
        record: its `train.json`; {} if it has none.
        tokens: kept for replay, (n, T, d) bfloat16; None if there are none.
    """

    name: str
    digest: str
    folder: Path
    config: AdapterConfig
    record: dict[str, Any]
    calibration: Calibration | None
    tokens: Tensor | None

    @classmethod
    def open(cls, name: str | Path) -> Base:
        """Read the directory of a detector. Raises `CheckpointError`, in one line."""
        label, folder = find_adapter(name)
        config = read_config(folder)
        if config.full_finetune:
            raise CheckpointError(f"{label}: its whole tower was trained, so it has no adapter to extend")
        path = folder / TRAIN
        cure = "delete it, and the training data count as unknown"
        record = read_json(path, CheckpointError, cure) if path.is_file() else {}
        if not isinstance(record, dict):
            raise CheckpointError(f"{path}: is damaged; {cure}")
        digest = adapter_digest(folder)
        base = cls(label, digest, folder, config, record, read_calibration(folder), read_kept_tokens(folder))
        try:
            history_lines(base.history())
        except (AttributeError, KeyError, TypeError) as error:  # noticed now, not after the training
            raise CheckpointError(f"{path}: is damaged; {cure}") from error
        return base

    def settings(self, config: TrainConfig) -> TrainConfig:
        """`config` with the detector's backbone, adapter and preprocessing, and one extension of its rank (0: none).

        Raises `ConfigError` where `config` asks for another adapter or preprocessing.
        """
        for name in ("full_finetune", "hypernetwork"):
            if getattr(config, name):
                raise ConfigError(f"{name}: an extension freezes everything else; leave this setting out")
        preset = load_train_config(OWN_IMAGES)  # a default that nobody asked for
        for name, given, known in (
            ("mole", config.mole, (MoLEConfig(), preset.mole, self.config.mole)),
            ("preprocess", config.preprocess, (PreprocessConfig(), preset.preprocess, self.config.preprocess)),
        ):
            if given not in known:
                raise ConfigError(
                    f"{name}: an extension keeps what {self.name} has; leave these settings out (extension_rank is "
                    "the rank of what is added)"
                )
        ranks = self.config.mole.extension_ranks + ((config.extension_rank,) if config.extension_rank else ())
        grown = self.config.mole.model_dump() | {"extension_ranks": ranks}
        changes = {
            "backbone": self.config.backbone.id,
            "mole": MoLEConfig.parse(grown, self.name),
            "preprocess": self.config.preprocess,
            "whole_share": (config.whole_share or WHOLE_SHARE) if self.config.preprocess.whole_weight else 0.0,
            "head_start": None,  # it is frozen
        }
        return TrainConfig.parse(config.model_copy(update=changes).model_dump(), self.name)

    def grow(self, tower: ViT, mole: MoLEConfig) -> MoLENetwork:
        """The detector's network with one more extension, the only trained part; unchanged if `mole` has no more of
        them.

        Args:
            tower: of its backbone; changed in place.
            mole: of `settings`.
        """
        network = MoLENetwork(tower, mole)
        grows = mole.extension_ranks != self.config.mole.extension_ranks
        new = f"mlp.extensions.{len(mole.extension_ranks) - 1}."
        old = {name: p for name, p in network.adapter_parameters().items() if not (grows and new in name)}
        network.load_state_dict(read_tensors(self.folder / ADAPTER, old), strict=False)
        if grows:
            network.train_last_extension_alone()
        return network.eval()

    def replay(self, network: MoLENetwork, config: TrainConfig) -> Replay | None:
        """The kept tokens, and their logits by the network of `grow`; None if nothing is replayed."""
        return Replay(network, self.tokens) if self.tokens is not None and config.replay_weight else None

    def history(self) -> list[dict[str, Any]]:
        """The steps that led to the detector, the oldest first: name, digest, data, size and date of each."""
        data, environment = self.record.get("data") or {}, self.record.get("environment") or {}
        own = {
            "name": self.name,
            "digest": self.digest,
            "data": {key: data[key] for key in ("digest", "train", "generators", "sources") if key in data},
            "trained_parameters": self.record.get("trained_parameters"),
            "date": environment.get("date"),
        }
        return [*(self.record.get("history") or []), own]


class Replay:
    """Tokens of older images, and the logits that the detector gave for them before it was extended.

    Args:
        network: before its new extension is trained.
        tokens: before the first adapted block, (n, T, d).
    """

    def __init__(self, network: MoLENetwork, tokens: Tensor) -> None:
        self.tokens = tokens
        self.device = next(network.parameters()).device
        with torch.inference_mode():
            parts = [network.suffix(rows.to(self.device).float()) for rows in tokens.split(ROWS)]  # type: ignore[no-untyped-call]
        self.logits = torch.cat(parts).clone()

    def loss(self, network: MoLENetwork, count: int, rng: np.random.Generator) -> Tensor:
        """Mean KL(old || new) of the probabilities of `count` drawn images, nats: 0 while nothing is changed."""
        chosen = torch.from_numpy(rng.integers(len(self.tokens), size=count))
        new = network.suffix(self.tokens[chosen].to(self.device).float()).float()
        return bernoulli_kl(self.logits[chosen.to(self.device)].float(), new).mean()


def bernoulli_kl(old: Tensor, new: Tensor) -> Tensor:
    """KL(sigmoid(old) || sigmoid(new)) of each pair of logits, nats."""
    p = torch.sigmoid(old)
    cross_entropy = F.binary_cross_entropy_with_logits(new, p, reduction="none")
    return cross_entropy - F.binary_cross_entropy_with_logits(old, p, reduction="none")


def thresholds_changed(old: Calibration | None, new: Calibration | None) -> list[str]:
    """What happened to the thresholds, one sentence each; [] if there were none before."""
    if old is None:
        return []
    if new is None:
        return [
            "The thresholds of the detector that was extended do not hold for this one; it has none until clipmole "
            "calibrate sets them."
        ]
    was, now = ([c.logit(p) for p in (c.thresholds.generated, c.thresholds.real)] for c in (old, new))
    return [
        f"The thresholds were set anew on the {new.n_real} photographs and {new.n_generated} generated images for "
        f"calibration of this step: AI-generated above a logit of {now[0]:.2f} (before: {was[0]:.2f}), photograph "
        f"below {now[1]:.2f} (before: {was[1]:.2f}). For older kinds of images they hold as far as these images stand "
        "for them; clipmole calibrate sets them on others."
    ]


def kept_tokens(
    network: MoLENetwork, samples: Sequence[Sample], config: TrainConfig, pool: ThreadPoolExecutor, base: Base | None
) -> Tensor | None:
    """Tokens (n, T, d) bfloat16 to keep beside the adapter: those that `base` kept, and `config.kept_tokens` new ones.

    The new ones are tokens of training images before the first adapted block, half of each class, drawn by the seed;
    fewer if there are not enough images. None if there are none at all.
    """
    rng, device = sample_rng(config.seed, "kept tokens"), next(network.parameters()).device
    chosen: list[int] = []
    for label in (0, 1):
        own = [i for i, sample in enumerate(samples) if sample.label == label]
        chosen += rng.permutation(own)[: config.kept_tokens // 2].tolist()
    batches = [[(i, 0) for i in chosen[start : start + ROWS]] for start in range(0, len(chosen), ROWS)]
    parts = [] if base is None or base.tokens is None else [base.tokens]
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        for crops in views(samples, batches, config, pool):
            parts.append(network.prefix(crops.to(device)).bfloat16().cpu())
    return torch.cat(parts) if parts else None


def history_lines(history: list[dict[str, Any]]) -> list[str]:
    """The history of an extended detector as items of a model card."""
    lines = []
    for step in history:
        data = step.get("data") or {}
        seen = [f"{data['train']} training images"] if "train" in data else []
        seen += [f"generators {', '.join(data['generators'])}"] if data.get("generators") else []
        when = f", {step['date']}" if step.get("date") else ""
        said = ", ".join(seen) or "its images are not recorded"
        lines.append(f"- `{step['name']}` (digest `{step['digest'][:12]}...`{when}): {said}.")
    return lines
