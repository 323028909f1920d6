"""Whether an exponential moving average of the weights (EMA) validates better than the weights themselves.

    python benchmarks/weight_average.py --corpus DIR --backbone DIR [--seeds 3] [--rates 0.001 0.003]

MoLE on a small ViT: 3 of 12 blocks, 18 epochs on 6 cached views, the corpus' train split. After each epoch `val`
(equalised centre crops, as training validates) is scored with the weights and with their averages of the same run, so
the two differ in nothing else. Only `val` is looked at. Prints JSON last.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from clipmole.config import PreprocessConfig, TrainConfig
from clipmole.data import labels_of, read_manifest, sample_lines, take_split
from clipmole.metrics import average_precision
from clipmole.models.backbone import load_backbone
from clipmole.models.network import MoLENetwork
from clipmole.plumbing.environment import environment
from clipmole.plumbing.progress import ProgressReporter
from clipmole.training.distributed import Distributed
from clipmole.training.loop import TrainingLoop
from clipmole.training.prefix_cache import PrefixCache, prefix_cache_folder, prefix_digest

DECAYS = (0.98, 0.995)
CONFIG = TrainConfig(
    backbone="given",
    epochs=18,
    cached_views=6,
    batch_size=32,
    preprocess=PreprocessConfig(mode="center_crop"),
)


def measure(config: TrainConfig, corpus: Path, place: Path) -> dict[str, Any]:
    """Average precision on `val` after each epoch: of the weights ("raw"), and of each average by its decay."""
    samples = read_manifest(corpus / "manifest.csv")
    train_set, val_set = take_split(samples, "train"), take_split(samples, "val")
    backbone = load_backbone(place)
    torch.manual_seed(config.seed)
    network = MoLENetwork(backbone.tower, config.mole)
    labels, trained = labels_of(val_set), network.trained_parameters()
    averages = {decay: {n: p.detach().clone() for n, p in trained.items()} for decay in DECAYS}
    found: dict[str, list[float]] = {"raw": []} | {str(decay): [] for decay in DECAYS}
    steps = 0

    def average(*_: Any) -> None:
        nonlocal steps
        steps += 1
        for decay, own in averages.items():
            kept = min(decay, (1 + steps) / (10 + steps))  # warmed up, as TensorFlow's and timm's are
            for name, parameter in trained.items():
                own[name].lerp_(parameter.detach(), 1 - kept)

    def say(line: str) -> None:
        print(line, file=sys.stderr)
        if not line.startswith("epoch "):
            return
        raw = {n: p.detach().clone() for n, p in trained.items()}
        for key, weights in {"raw": raw, **{str(d): own for d, own in averages.items()}}.items():
            network.load_state_dict(weights, strict=False)
            found[key].append(average_precision(labels, run.validate()))
        network.load_state_dict(raw, strict=False)

    with ThreadPoolExecutor(2) as pool, tempfile.TemporaryDirectory() as folder:
        shared: dict[str, Any] = {"distributed": Distributed(), "pool": pool, "progress": ProgressReporter(say=say)}
        key = prefix_digest(network, backbone.sha256, sample_lines(train_set), config)
        cache = PrefixCache(network, train_set, config, prefix_cache_folder(), key, **shared)
        state = Path(folder) / "state"
        run = TrainingLoop(network, train_set, val_set, config, cache=cache, state=state, digest="", log=None, **shared)
        run.optimizer.register_step_post_hook(average)
        run.fit()
    return {"seed": config.seed, "learning_rate": config.learning_rate, "val_ap": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--epochs", type=int, default=CONFIG.epochs)
    arguments = parser.parse_args()
    rows = []
    for seed in range(arguments.seeds):
        for rate in arguments.rates:
            changes = {"seed": seed, "learning_rate": rate, "epochs": arguments.epochs}
            rows.append(measure(CONFIG.model_copy(update=changes), arguments.corpus, arguments.backbone))
            summary = {k: (round(max(v), 4), round(v[-1], 4)) for k, v in rows[-1]["val_ap"].items()}
            print(f"seed {seed}, rate {rate:g}, best and last epoch: {summary}", file=sys.stderr)
    print(json.dumps({"epochs": arguments.epochs, "environment": environment(), "rows": rows}))


if __name__ == "__main__":
    main()
