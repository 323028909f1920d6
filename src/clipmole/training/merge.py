"""Several adapters of one backbone -> one adapter directory, without training of LoRAs, routers or head.

In: names of detectors whose adapters are in the same blocks; for camex labelled images too. Out: one detector, and
how much of its parts was lost. It is not calibrated, since the parts' thresholds do not hold for it.

The updates W = s B A of the LoRAs are merged with weights c_k (1/K by default); of the heads, the weighted mean is
always taken. Stacking keeps all of them, at the sum of the ranks; the others bring each LoRA back to one rank:

    stack     y = MLP(x) + sum_k c_k update_k(x) in each block, exactly: LoRAs, routers and extensions side by side
    average   W = sum_k c_k W_k of the LoRAs of one position, cut to the largest of their ranks by SVD; routers' mean
    ties      as average, with the entries of W merged as TIES does (Yadav et al. 2023, arXiv 2306.01708): of each W_k
              only the largest entries, of these only those with the sign of the larger total, and their mean
    camex     as average, with W the first one's plus masked differences to it, transformed by Kronecker factors
           on both sides, which are learnt on labelled images: see `curvature` (arXiv 2502.18821)

Even where blocks are exact, the merged detector's logit is not the mean of its parts' logits: the output of one
block is the input of the next.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from clipmole.config import MoLEConfig, PreprocessConfig, check_name
from clipmole.data.sample import Sample
from clipmole.errors import CheckpointError, ConfigError
from clipmole.models.adapter import ADAPTER, backbone_for, check_copy, read_tensors, save_adapter
from clipmole.models.network import MoLENetwork
from clipmole.models.vit import ViT
from clipmole.plumbing.progress import SILENT, ProgressReporter
from clipmole.records import Record
from clipmole.training.curvature import CurvedNetwork, Merging, Position, curved, tokens_of
from clipmole.training.extend import Base, history_lines

MOST_WEIGHT = 1000.0
MergeMethod = Literal["stack", "average", "ties", "camex"]
State = dict[str, Tensor]
Combine = Callable[[Position, Sequence[Tensor], Sequence[float]], Tensor]
"""(position, updates (d, d) of the parts there, their weights) -> the merged update (d, d)."""


class Merged(Record):
    """The result of a merge.

    Attributes:
        parts: names of the detectors.
        weights: c_k of each.
        trained_parameters: of the merged adapter.
        lost: Frobenius norm of the part lost by cutting to a rank, over that of the whole updates; 0 for "stack".
        losses: of "camex": cross entropy on the images that it was learnt on, before and after, nats; None of others.
    """

    method: MergeMethod
    parts: tuple[str, ...]
    weights: tuple[float, ...]
    trained_parameters: int
    lost: float
    losses: tuple[float, float] | None = None

    @property
    def summary(self) -> str:
        """One sentence on how much of its parts the merged detector keeps."""
        given = ", ".join(f"{weight:g} x {part}" for weight, part in zip(self.weights, self.parts, strict=True))
        if self.method == "stack":
            kept = "each block adds exactly the weighted sum of what the parts' blocks add to the same tokens"
        else:
            kept = f"cutting to the parts' ranks lost {100 * self.lost:.1f} % of the updates (Frobenius norm)"
        learnt = f"; cross entropy on its images {self.losses[0]:.4f}, then {self.losses[1]:.4f}" if self.losses else ""
        return (
            f"{self.method} of {given}: {kept}{learnt}. The heads were averaged. It gives no verdicts until it is "
            "calibrated."
        )


def merge(
    names: Sequence[str | Path],
    out: str | Path,
    method: MergeMethod = "stack",
    *,
    weights: Sequence[float] = (),
    density: float = 0.2,
    backbone: str | Path | None = None,
    samples: Sequence[Sample] = (),
    progress: ProgressReporter = SILENT,
) -> Merged:
    """Merge adapters of one backbone into one, and write its directory.

    Args:
        names: two or more detectors, which are not changed; for "camex" the first one is the base.
        out: the adapter directory to write.
        method: as this module says.
        weights: c_k of each detector, positive; (): 1/K each, so that the update is their mean. With 1 each it is
            their sum (the heads are averaged all the same).
        density: for "ties", the share of the largest entries of each update to keep; 0.2 as in the paper.
        backbone: as in `Detector.from_pretrained`.
        samples: for "camex", labelled images of both classes to learn on, such as those of the split calibration.

    Raises `ConfigError` if the weights or the density make no sense, or if the adapters cannot be merged in this way;
    `DataError` for samples of one class; `CheckpointError` or `WeightsError` if a detector cannot be read.
    """
    given = tuple(weights) or (1 / len(names),) * len(names)
    if len(names) < 2 or len(given) != len(names) or not all(0 < weight <= MOST_WEIGHT for weight in given):
        raise ConfigError(
            f"merge: {len(names)} detectors and weights {given}: give two or more, a positive weight each or none, "
            f"and no weight above {MOST_WEIGHT:g}"
        )
    if not 0 < density <= 1:
        raise ConfigError(f"density={density}: the share of the entries that are kept is above 0 and at most 1")
    check_name("method", method, get_args(MergeMethod))
    if bool(samples) != (method == "camex"):
        raise ConfigError("merge: labelled images (--data) are for the method camex, which needs them")
    parts = [Base.open(name) for name in names]
    for part in parts:
        check_copy(part.folder, out)
    first = parts[0]
    loaded = backbone_for(first.name, first.folder, first.config.backbone, backbone)
    check_alike(parts, loaded.tower.config.depth, method)
    states = [read_state(part, loaded.tower) for part in parts]
    configs = [part.config.mole for part in parts]
    losses = None
    if method == "camex":  # a base and weighted differences to it: weights of the sum 1
        given = tuple(weight / sum(given) for weight in given)
    if method == "stack":
        config, state, lost = stack(configs, states, given)
    else:
        combine: Combine = partial(_ties, density=density) if method == "ties" else _average
        if method == "camex":
            tower = copy.deepcopy(loaded.tower)
            combine, losses = learn(tower, configs, states, given, first.config.preprocess, samples, progress)
        config, state, lost = cut(configs, states, given, combine)
    network = MoLENetwork.with_weights(loaded.tower, config, lambda _names: state)
    found = Merged(
        method=method,
        parts=tuple(part.name for part in parts),
        weights=given,
        trained_parameters=sum(p.numel() for p in network.adapter_parameters().values()),
        lost=lost,
        losses=losses,
    )
    history = [step for part in parts for step in part.history()]
    record = {"merge": found.model_dump(), "data": {"generators": [], "sources": []}, "history": history}
    card = "\n".join(["# Merged detector", "", found.summary, "", "## History", *history_lines(history)])
    save_adapter(out, network, loaded, first.config.preprocess, train=record, card=card)
    return found


def check_alike(parts: Sequence[Base], depth: int, method: MergeMethod) -> None:
    """Raise an error if the parts' adapters are not in the same blocks, or their routers differ."""
    first = parts[0]
    for part in parts:
        if part.config.mole.companion:
            raise ConfigError(f"{part.name}: has a companion ({part.config.mole.companion}), which cannot be merged")
    for other in parts[1:]:
        pair = f"{first.name} and {other.name}"
        one, two = first.config, other.config
        if one.backbone.sha256 != two.backbone.sha256:
            raise CheckpointError(f"{pair}: were made for other backbones ({one.backbone.id}, {two.backbone.id})")
        if one.preprocess != two.preprocess:
            raise ConfigError(f"{pair}: differ in preprocess: {one.preprocess} and {two.preprocess}")
        blocks = [each.mole.block_indices(depth) for each in (one, two)]
        if blocks[0] != blocks[1] or one.mole.head_blocks != two.mole.head_blocks:
            raise ConfigError(f"{pair}: adapt or read other blocks ({blocks[0]}, {blocks[1]}); they cannot be merged")
        if one.mole.drawn != two.mole.drawn:
            raise ConfigError(f"{pair}: one has a second output (mole.drawn) and the other has none")
        groups = [each.mole.expert_groups or (len(each.mole.expert_ranks),) for each in (one, two)]
        if method != "stack" and groups[0] != groups[1]:
            counts = " and ".join("+".join(map(str, sizes)) for sizes in groups)
            raise ConfigError(f"{pair}: have {counts} experts, which do not pair up; merge them with --method stack")
    routed = [part for part in parts if part.config.mole.expert_ranks]
    for other in routed[1:]:
        kinds = [(m.router, m.top_k, m.renormalize) for m in (routed[0].config.mole, other.config.mole)]
        if kinds[0] != kinds[1]:
            raise ConfigError(
                f"{routed[0].name} and {other.name}: their routers differ (router, top_k, renormalize: {kinds[0]} and "
                f"{kinds[1]}), and no one router computes both; only adapters with the same kind can be merged"
            )


def read_state(part: Base, tower: ViT) -> State:
    """The tensors of a part's adapter, checked against its configuration."""
    with torch.device("meta"):
        expected = MoLENetwork(ViT(tower.config), part.config.mole).adapter_parameters()
    return read_tensors(part.folder / ADAPTER, expected)


def loras(config: MoLEConfig, layer: State) -> list[tuple[Tensor, Tensor]]:
    """(A, s B) of the shared LoRA, if there is one, and of each expert of a layer."""
    found, row = [], 0
    for rank in [config.shared_rank] * (config.shared_rank > 0) + list(config.expert_ranks):
        own = slice(row, row + rank)
        found.append((layer["lora_A"][own], layer["lora_B"][:, own] * ((config.alpha or rank) / rank)))
        row += rank
    return found


def side_by_side(pairs: Sequence[tuple[Tensor, Tensor]], empty: State) -> State:
    """Pairs (A, B) as one `lora_A` and one `lora_B`; those of `empty` if there are none."""
    if not pairs:
        return {name: empty[name] for name in ("lora_A", "lora_B")}
    return {"lora_A": torch.cat([a for a, _ in pairs]), "lora_B": torch.cat([b for _, b in pairs], dim=1)}


def layers_of(state: State) -> dict[str, State]:
    """Prefix of each adapted layer -> its tensors by their names within it."""
    prefixes = sorted({name.removesuffix("lora_A") for name in state if name.endswith("mlp.lora_A")})
    return {p: {n.removeprefix(p): t for n, t in state.items() if n.startswith(p)} for p in prefixes}


def mean_head(states: Sequence[State], weights: Sequence[float]) -> State:
    """The heads' mean with weights scaled to a sum of 1."""
    total = sum(weights)
    names = [name for name in states[0] if name.startswith(("head.", "drawn."))]
    return {n: sum(w / total * s[n] for w, s in zip(weights, states, strict=True)) for n in names}  # type: ignore[misc]


def grown(configs: Sequence[MoLEConfig], **changes: object) -> MoLEConfig:
    """The settings of a merged adapter, whose LoRAs have their scaling in `lora_B`."""
    routed = next((config for config in configs if config.expert_ranks), configs[0])
    extensions = tuple(rank for config in configs for rank in config.extension_ranks)
    changes = {"blocks": configs[0].blocks, "alpha": None, "extension_ranks": extensions} | changes
    changes["families"] = None  # fitted to the features of one detector
    return MoLEConfig.parse(routed.model_dump() | changes, "merge")


def extensions(configs: Sequence[MoLEConfig], layers: Sequence[State], weights: Sequence[float]) -> State:
    """The extensions of all parts side by side: each gate is its own, so this is exact."""
    state, number = State(), 0
    for config, layer, weight in zip(configs, layers, weights, strict=True):
        for own, rank in enumerate(config.extension_ranks):
            for name in ("lora_A", "lora_B", "gate_weight", "gate_bias"):
                scale = weight * (config.alpha or rank) / rank if name == "lora_B" else 1.0
                state[f"extensions.{number}.{name}"] = scale * layer[f"extensions.{own}.{name}"]
            number += 1
    return state


def stack(
    configs: Sequence[MoLEConfig], states: Sequence[State], weights: Sequence[float]
) -> tuple[MoLEConfig, State, float]:
    """Settings and tensors of the exact weighted sum of the parts' updates, and what is lost: 0."""
    groups = tuple(g for c in configs if c.expert_ranks for g in c.expert_groups or (len(c.expert_ranks),))
    softmax = len(groups) > 1 and all(c.router != "local-global" for c in configs if c.expert_ranks)
    config = grown(
        configs,
        shared_rank=sum(c.shared_rank for c in configs),
        expert_ranks=tuple(rank for c in configs for rank in c.expert_ranks),
        expert_groups=groups if softmax else (),
    )
    state = mean_head(states, weights)
    every = [layers_of(each) for each in states]
    for prefix in every[0]:
        layers = [each[prefix] for each in every]
        parts = [
            [(a, weight * b) for a, b in loras(c, layer)]
            for c, layer, weight in zip(configs, layers, weights, strict=True)
        ]
        shared = [part[0] for part, c in zip(parts, configs, strict=True) if c.shared_rank]
        experts = [pair for part, c in zip(parts, configs, strict=True) for pair in part[bool(c.shared_rank) :]]
        own = extensions(configs, layers, weights)
        own |= side_by_side(shared + experts, layers[0])
        for name in ("router.weight", "router.global_weight"):
            if rows := [
                _router_rows(name, c, layer, w)
                for c, layer, w in zip(configs, layers, weights, strict=True)
                if name in layer
            ]:
                own[name] = torch.cat(rows)
        state |= {prefix + name: tensor for name, tensor in own.items()}
    return config, state, 0.0


def _router_rows(name: str, config: MoLEConfig, layer: State, weight: float) -> Tensor:
    """Rows of a router; those that read the experts' outputs are rescaled, since scaling and weight are now in B."""
    if name == "router.weight":
        return layer[name]
    scale = [weight * (config.alpha or rank) / rank for rank in config.expert_ranks]
    return layer[name] / torch.tensor(scale)[:, None]


def cut(
    configs: Sequence[MoLEConfig], states: Sequence[State], weights: Sequence[float], combine: Combine
) -> tuple[MoLEConfig, State, float]:
    """Settings and tensors of LoRAs merged position by position, and what cutting them to a rank lost."""
    config, kept_ranks = cut_config(configs)
    state, total = mean_head(states, weights), sum(weights)
    every = [layers_of(each) for each in states]
    lost = whole = 0.0
    for prefix in every[0]:
        layers = [each[prefix] for each in every]
        own, pairs = extensions(configs, layers, weights), []
        for position, rank in enumerate(kept_ranks):
            merged = combine((prefix, position), updates_at(configs, layers, position, config), weights)
            a, b = low_rank(merged, rank)
            pairs.append((a, b))
            lost += float((merged - b @ a).square().sum())
            whole += float(merged.square().sum())
        own |= side_by_side(pairs, layers[0])
        for name in ("router.weight", "router.global_weight"):
            if name in layers[0]:
                rows = [_router_rows(name, c, layer, total) for c, layer in zip(configs, layers, strict=True)]
                own[name] = weighted_sum(rows, [w / total for w in weights])
        state |= {prefix + name: tensor for name, tensor in own.items()}
    return config, state, math.sqrt(lost / whole) if whole else 0.0


def cut_config(configs: Sequence[MoLEConfig]) -> tuple[MoLEConfig, list[int]]:
    """Settings of LoRAs merged position by position, each with the largest rank of its parts, and these ranks."""
    ranks = [max(c.expert_ranks[i] for c in configs) for i in range(len(configs[0].expert_ranks))]
    config = grown(configs, shared_rank=max(c.shared_rank for c in configs), expert_ranks=tuple(ranks))
    return config, [config.shared_rank] * (config.shared_rank > 0) + ranks


def updates_at(
    configs: Sequence[MoLEConfig], layers: Sequence[State], position: int, merged: MoLEConfig
) -> list[Tensor]:
    """Updates s B A (d, d) of the parts at one position: the shared LoRA's (0 if a part lacks it), then the
    experts'."""
    found = []
    for config, layer in zip(configs, layers, strict=True):
        own = loras(config, layer)
        if merged.shared_rank and not config.shared_rank:
            own.insert(0, (layer["lora_A"][:0], layer["lora_B"][:, :0]))
        a, b = own[position]
        found.append(b @ a)
    return found


def learn(
    tower: ViT,
    configs: Sequence[MoLEConfig],
    states: Sequence[State],
    weights: Sequence[float],
    preprocess: PreprocessConfig,
    samples: Sequence[Sample],
    progress: ProgressReporter,
) -> tuple[Combine, tuple[float, float]]:
    """Learn the curvature of each position on samples; the tower is changed in place.

    Learning uses differences cut to the rank that they have without the mask; in the end the whole ones are merged.

    Returns a function that merges the updates of a position, and the loss before and after.
    """
    config, ranks = cut_config(configs)
    every = [layers_of(each) for each in states]
    whole: dict[Position, Merging] = {}
    thin: dict[Position, list[tuple[Tensor, Tensor]]] = {}
    for prefix in every[0]:
        for position, rank in enumerate(ranks):
            updates = updates_at(configs, [each[prefix] for each in every], position, config)
            own = whole[prefix, position] = Merging.of(updates, weights)
            pairs = [low_rank(each, min(2 * rank, len(own.base))) for each in own.differences]
            thin[prefix, position] = [low_rank(own.base, rank), *pairs]
    wide = [sum(len(a) for a, _ in pairs) for pairs in thin.values()][: len(ranks)]
    shared = config.shared_rank > 0
    changes = {"shared_rank": wide[0] if shared else 0, "expert_ranks": tuple(wide[shared:])}
    _, state, _ = cut(configs, states, weights, _average)
    width = tower.config.width
    for prefix in every[0]:
        state |= {f"{prefix}lora_A": torch.zeros(sum(wide), width), f"{prefix}lora_B": torch.zeros(width, sum(wide))}
    network = MoLENetwork.with_weights(tower, grown(configs, **changes), lambda _names: state)
    tokens, labels = tokens_of(network, samples, preprocess, progress)
    curvature = CurvedNetwork(network, thin, whole[next(iter(whole))].weights)
    losses = curved(curvature, tokens, labels, progress)

    def combine(position: Position, _updates: Sequence[Tensor], _weights: Sequence[float]) -> Tensor:
        with torch.no_grad():
            return whole[position].merged(curvature.of(position))

    return combine, losses


def _average(_position: Position, updates: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return weighted_sum(updates, weights)


def _ties(_position: Position, updates: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    return ties(updates, weights, density)


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_k c_k of equal shapes."""
    return torch.einsum("k,k...->...", torch.tensor(weights, dtype=tensors[0].dtype), torch.stack(list(tensors)))


def ties(updates: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """TIES-merging of updates of equal shape (arXiv 2306.01708): trim, elect the sign, mean of those that agree.

    The mean is weighted, and scaled by the sum of the weights, so that weights of 1/K give the authors' with factor 1.
    """
    stacked = torch.stack(list(updates))
    flat = stacked.abs().flatten(1)
    kept = max(1, round(density * flat.shape[1]))
    least = flat.sort(dim=1, descending=True).values[:, kept - 1]
    trimmed = stacked * (stacked.abs() >= least.view(-1, *[1] * (stacked.dim() - 1)))
    c = torch.tensor(weights, dtype=stacked.dtype).view(-1, *[1] * (stacked.dim() - 1))
    sign = (c * trimmed).sum(0).sign()
    agree = (trimmed.sign() == sign) & (sign != 0)
    share = (c * agree).sum(0)
    return float(sum(weights)) * (c * trimmed * agree).sum(0) / torch.where(share > 0, share, 1.0)


def low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A (rank, d) and B (d, rank) whose product B A is the nearest to `matrix` (d, d) of that rank."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    root = s[:rank].sqrt()
    return (root[:, None] * v[:rank]).to(matrix.dtype), (u[:, :rank] * root).to(matrix.dtype)
