"""Tokens -> the adapter: a logistic regression as the head's start, then all LoRAs, routers and the head together.

    python recipes/mole-vit-b-16/fit.py TOKENS --out ADAPTER

In: what `tokens.py` wrote. Out: an adapter directory without a calibration, and on the way the figures on `val`
(unseen photographers and galleries, equalised), by which everything in the README was chosen.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from tokens import MOLE, PREPROCESS, SETS
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, layer_norm

from clipmole.data.samples import source_hash
from clipmole.models.adapter import save_adapter
from clipmole.models.backbone import load_backbone
from clipmole.models.network import MoLENetwork

TOKENS, CARRIED, WIDTH = 197, 9, 768
STEPS, BATCH, RATE, HEAD_RATE, WARM_UP = 120, 64, 1e-3, 2e-4, 20
SCHEDULE = 360  # steps after which the rate would be 0; stopping early was better on `val`
OLDER = 0.5  # weight of a stratum of the older list, beside 1 of the new one
KEPT = 0.5  # share of the patch tokens that a step sees, drawn anew each step: twice as fast, and it regularises
SMOOTHING = 0.05  # of labels, some of which rest on a gallery's word
AVERAGE = 0.98  # decay of the moving average of the weights, which is what is kept
POWER = 0.5  # a stratum of n views is drawn in proportion to n ** POWER
REGULARISATION = 0.1  # scikit-learn's C of the logistic regression


@dataclass(frozen=True)
class Views:
    """Tokens (n, 197 + 9, 768) of views, as bits of bfloat16 on disk, and what each is of."""

    tokens: NDArray[np.int16]
    sha256: NDArray[np.str_]
    label: NDArray[np.int64]
    stratum: NDArray[np.str_]
    source: NDArray[np.str_]
    kind: NDArray[np.str_]

    @classmethod
    def read(cls, folder: Path, file: str) -> Views:
        """One set that `tokens.py` wrote."""
        with (folder / f"{file}.csv").open(newline="", encoding="utf-8") as rows:
            columns = list(zip(*[row.values() for row in csv.DictReader(rows)], strict=True))
        shape = (len(columns[0]), TOKENS + CARRIED, WIDTH)
        tokens = np.memmap(folder / f"{file}.tokens", dtype=np.int16, mode="r", shape=shape)
        sha256, label, *rest = (np.array(column) for column in columns)
        return cls(tokens, sha256, label.astype(np.int64), *rest)

    def take(self, rows: Sequence[int] | slice) -> Tensor:
        """Tokens (B, 197 + 9, 768) bfloat16."""
        return torch.from_numpy(np.array(self.tokens[rows])).view(torch.bfloat16)

    def read_by_head(self) -> NDArray[np.float32]:
        """The normalised class tokens (n, 9 * 768) that the head reads of the frozen blocks."""
        parts = [self.take(slice(i, i + 512))[:, TOKENS:].float() for i in range(0, len(self.label), 512)]
        return layer_norm(torch.cat(parts), (WIDTH,)).flatten(1).numpy()


def regression(sets: Sequence[Views]) -> tuple[NDArray[np.float64], float]:
    """Weights and bias of a logistic regression on the class tokens of the frozen blocks; classes weigh alike."""
    label, stratum = (np.concatenate([getattr(each, name) for each in sets]) for name in ("label", "stratum"))
    count = Counter(zip(label, stratum, strict=True))
    weight = np.array([count[key] ** (POWER - 1) for key in zip(label, stratum, strict=True)])
    for each in (0, 1):
        weight[label == each] *= len(label) / 2 / weight[label == each].sum()
    features = np.concatenate([each.read_by_head() for each in sets])
    fitted = LogisticRegression(C=REGULARISATION, max_iter=600).fit(features, label, sample_weight=weight)
    return fitted.coef_[0], float(fitted.intercept_[0])


def drawer(sets: Sequence[tuple[Views, float]], rng: np.random.Generator) -> Callable[[int], tuple[int, int]]:
    """A function that draws (set, row) of a view of one class: a stratum by `POWER`, then its views in turn.

    The strata of a set weigh as much more as the number beside it says.
    """
    strata: dict[tuple[int, str], list[tuple[int, int]]] = defaultdict(list)
    factor: dict[tuple[int, str], float] = {}
    for place, (each, weight) in enumerate(sets):
        for row, key in enumerate(zip(each.label.tolist(), each.stratum.tolist(), strict=True)):
            strata[key].append((place, row))
            factor[key] = weight
    names = {label: [key for key in strata if key[0] == label] for label in (0, 1)}
    shares = {label: np.array([len(strata[key]) ** POWER * factor[key] for key in names[label]]) for label in (0, 1)}
    queues = {key: rng.permutation(len(views)).tolist() for key, views in strata.items()}

    def draw(label: int) -> tuple[int, int]:
        share = shares[label]
        key = names[label][rng.choice(len(share), p=share / share.sum())]
        if not queues[key]:
            queues[key] = rng.permutation(len(strata[key])).tolist()
        return strata[key][queues[key].pop(0)]

    return draw


@torch.inference_mode()
def image_logits(network: MoLENetwork, views: Views) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels and pooled logits of the images of a set of kind "score", in their order."""
    parts = []
    for start in range(0, len(views.label), BATCH):
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(network.suffix(views.take(slice(start, start + BATCH))).float())
    logits = torch.cat(parts).double().numpy()
    ends = np.flatnonzero(np.append(views.sha256[1:] != views.sha256[:-1], True))
    starts = np.concatenate([[0], ends[:-1] + 1])
    weight = PREPROCESS.whole_weight
    pooled = [(1 - weight) * logits[a:b].mean() + weight * logits[b] for a, b in zip(starts, ends, strict=True)]
    return views.label[ends], np.array(pooled)


def say(name: str, network: MoLENetwork, val: Views) -> None:
    """Print the figures on `val`."""
    network.eval()
    label, logit = image_logits(network, val)
    weight = np.where(label == 1, 0.5 / label.mean(), 0.5 / (1 - label.mean()))
    found = (logit[label == 1] > np.quantile(logit[label == 0], 0.95)).mean()
    ap = average_precision_score(label, logit, sample_weight=weight)
    auroc = roc_auc_score(label, logit)
    print(f"{name}: val AUROC {auroc:.4f}, AP {ap:.4f}, found at 5 % false alarms {found:.3f}", flush=True)


def train(network: MoLENetwork, sets: Sequence[tuple[Views, float]], val: Views, seed: int) -> None:
    """Train in place on sets and their weights; at the end the network holds the moving average of its weights."""
    rng = np.random.default_rng(seed)
    draw = drawer(sets, rng)
    weights = network.trained_parameters()
    groups = [
        {"params": [p for name, p in weights.items() if name.startswith("head") == head], "lr": rate, "top": rate}
        for head, rate in ((False, RATE), (True, HEAD_RATE))
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    average = {name: p.detach().clone() for name, p in weights.items()}
    network.train()
    network.keep_gates(True)
    for step in range(1, STEPS + 1):
        for group in optimizer.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * step / SCHEDULE))
            group["lr"] = group["top"] * (min(1, step / WARM_UP) * cosine + 0.01)
        drawn = [draw(label) for label in (0, 1) for _ in range(BATCH // 2)]
        tokens = torch.cat([sets[place][0].take([row]) for place, row in drawn])
        label = torch.tensor([float(sets[place][0].label[row]) for place, row in drawn])
        patches = 1 + np.sort(rng.permutation(TOKENS - 1)[: int(KEPT * (TOKENS - 1))])
        tokens = tokens[:, np.concatenate([[0], patches, range(TOKENS, TOKENS + CARRIED)])]
        with torch.autocast("cpu", torch.bfloat16):
            logits = network.suffix(tokens).float()
        loss = binary_cross_entropy_with_logits(logits, label * (1 - SMOOTHING) + SMOOTHING / 2)
        loss = loss + network.config.balance_weight * network.balance_loss()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
        optimizer.step()
        decay = min(AVERAGE, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, p in weights.items():
                average[name].lerp_(p, 1 - decay)
        if step % 20 == 0:
            print(f"step {step} of {STEPS}: loss {float(loss):.4f}", flush=True)
    network.keep_gates(False)
    with torch.no_grad():
        for name, p in weights.items():
            p.copy_(average[name])
    say("MoLE", network, val)


def record(sets: Sequence[Views], seed: int) -> dict[str, Any]:
    """What `train.json` says: settings, and what was trained on; sources are named by a hash."""
    seen = {row[0]: row[1:] for each in sets for row in zip(each.sha256, each.label, each.stratum, strict=True)}
    generated = [stratum for label, stratum in seen.values() if label]
    return {
        "recipe": "recipes/mole-vit-b-16",
        "seed": seed,
        "steps": STEPS,
        "views": sum(len(each.label) for each in sets),
        "images": {"real": len(seen) - len(generated), "generated": len(generated)},
        "data": {
            "generators": sorted({stratum.split("|")[0] for stratum in generated}),
            "sources": sorted({source_hash(stratum.split("|")[1]) for _, stratum in seen.values()}),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chosen = [each for each in SETS if each.kind != "score"]
    sets = [Views.read(arguments.tokens, each.file) for each in chosen]
    (val,) = (Views.read(arguments.tokens, each.file) for each in SETS if each.kind == "score")
    backbone = load_backbone("clip-vit-b-16-int8")
    torch.manual_seed(arguments.seed)
    network = MoLENetwork(backbone.tower, MOLE)
    weight, bias = regression(sets)
    with torch.no_grad():
        network.head.weight.zero_()
        own = backbone.tower.config.feature_dim
        network.head.weight[0, own : own + CARRIED * WIDTH] = torch.from_numpy(weight).float()
        network.head.bias.fill_(bias)
    say("linear probe on the class tokens of blocks 0 to 8", network, val)
    weights = [OLDER if each.list_name == "corpus" else 1.0 for each in chosen]
    train(network, list(zip(sets, weights, strict=True)), val, arguments.seed)
    save_adapter(arguments.out, network.eval(), backbone, PREPROCESS, train=record(sets, arguments.seed))


if __name__ == "__main__":
    main()
