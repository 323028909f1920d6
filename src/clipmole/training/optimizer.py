"""The optimiser of a training run and its learning rate.

In: a network and a configuration. Out: AdamW, and the factor of its learning rates at a step. It knows nothing of
data.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from clipmole.config import TrainConfig
from clipmole.models.network import MoLENetwork


def learning_rate_factor(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up to 1 over `warmup` steps, then half a cosine to 0 at `steps`."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def make_optimizer(network: MoLENetwork, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the trained parameters; the head, and the tower if it is trained, at learning rates of their own."""
    groups: dict[str, list[nn.Parameter]] = {part: [] for part in learning_rates(config)}
    for name, parameter in network.trained_parameters().items():
        part = "tower" if name.startswith("tower.") and config.full_finetune else "head"
        groups[part if part == "tower" or name.startswith("head.") else "adapter"].append(parameter)
    return torch.optim.AdamW(
        [{"params": groups[part], "lr": rate} for part, rate in learning_rates(config).items()],
        weight_decay=config.weight_decay,
        fused=False,  # on a CPU the fused kernel silently mixes up the memory layouts of channels-last weights
    )


def learning_rates(config: TrainConfig) -> dict[str, float]:
    """The highest learning rate of each part of a network."""
    head = config.learning_rate if config.head_learning_rate is None else config.head_learning_rate
    return {"adapter": config.learning_rate, "head": head, "tower": config.tower_learning_rate}


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int, steps: int) -> float:
    """Give an optimiser of `make_optimizer` the learning rates of `step` of `steps`; returns that of the LoRAs."""
    factor = learning_rate_factor(step, steps, round(steps * config.warmup_fraction))
    for group, rate in zip(optimizer.param_groups, learning_rates(config).values(), strict=True):
        group["lr"] = rate * factor
    return config.learning_rate * factor
