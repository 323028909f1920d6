"""Linear probe, plain LoRA, MoLE and full fine-tuning on one backbone and one corpus, over several seeds.

    python benchmarks/compare_methods.py --corpus DIR --backbone DIR

Each method's learning rate is the one of `--rates` with the best validation figure for the first seed; the
best epoch is chosen on validation too. `test` and `test_unseen` are scored once for each seed, after that.
A run that is already in `--runs` is not repeated. Writes a JSON and a Markdown file and prints the JSON last.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipmole.config import TrainConfig
from clipmole.data import VARIANTS, labels_of, read_manifest, take_split, windows
from clipmole.detect import Detector
from clipmole.environment import environment
from clipmole.metrics import average_precision
from clipmole.train import train

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
METHODS = {"linear probe": "linear-probe", "LoRA": "lora", "MoLE": "mole", "full fine-tuning": "full"}
SPLITS = ("val", "test", "test_unseen")


def run_one(config: TrainConfig, corpus: Path, backbone: Path, out: Path) -> dict[str, Any]:
    """Train one detector, unless it is there already; returns its `train.json`."""
    if not (out / "train.json").is_file():
        settings = config.model_copy(update={"backbone": str(backbone)})
        train(settings, out, data=corpus / "manifest.csv", say=lambda line: print(line, file=sys.stderr))
    record: dict[str, Any] = json.loads((out / "train.json").read_text())
    return record


def val_figure(record: dict[str, Any]) -> float:
    """The figure that validation chooses by: average precision, equalised."""
    return float(record["curve"][record["best_epoch"]]["val_ap"])


def with_rate(config: TrainConfig, rate: float) -> TrainConfig:
    """The configuration at another learning rate, of whatever it mainly trains."""
    return config.model_copy(update={"tower_learning_rate" if config.full_finetune else "learning_rate": rate})


def scores_of(out: Path, backbone: Path, samples: dict[str, list[Any]], scores: Path) -> dict[str, list[float]]:
    """Logits by "split, variant" of one trained detector, kept beside it."""
    if not scores.is_file():
        detector = Detector.from_pretrained(out, backbone=backbone)
        logits = {
            f"{split}, {variant}": detector.score(windows(samples[split], variant)).tolist()
            for split in SPLITS
            for variant in VARIANTS
        }
        scores.write_text(json.dumps(logits))
    loaded: dict[str, list[float]] = json.loads(scores.read_text())
    return loaded


def paired_difference(
    labels: np.ndarray, ours: np.ndarray, theirs: np.ndarray, resamples: int = 1000
) -> tuple[float, float, float]:
    """Mean over seeds of AP(ours) - AP(theirs) with a 95 % interval: the same resampled images for both.

    Args:
        labels: (n,). ours, theirs: (seeds, n) logits.
    """

    def difference(index: np.ndarray) -> float:
        aps = [[average_precision(labels[index], s[index]) for s in runs] for runs in (ours, theirs)]
        return float(np.mean(aps[0]) - np.mean(aps[1]))

    rng = np.random.default_rng(0)
    classes = [np.flatnonzero(labels == label) for label in (0, 1)]
    draws = [difference(np.concatenate([rng.choice(c, len(c)) for c in classes])) for _ in range(resamples)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return difference(np.arange(len(labels))), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--name", default="vit-tiny", help="prefix of the configurations and of the results")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--full-rates", type=float, nargs="+", default=[3e-5, 1e-4], help="for full fine-tuning")
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    manifest = read_manifest(arguments.corpus / "manifest.csv")
    samples = {split: take_split(manifest, split) for split in SPLITS}
    arguments.runs.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    logits: dict[str, dict[str, np.ndarray]] = {}
    for method in arguments.methods:
        file = METHODS[method]
        config = TrainConfig.from_toml(CONFIGS / f"{arguments.name}-{file}.toml")
        rates = arguments.full_rates if config.full_finetune else arguments.rates
        tried = {}
        for rate in rates:
            out = arguments.runs / f"{file}-{rate:g}-seed0"
            tried[rate] = val_figure(run_one(with_rate(config, rate), arguments.corpus, arguments.backbone, out))
        rate = max(tried, key=lambda r: tried[r])
        records, runs = [], []
        for seed in range(arguments.seeds):
            out = arguments.runs / f"{file}-{rate:g}-seed{seed}"
            chosen = with_rate(config, rate).model_copy(update={"seed": seed})
            records.append(run_one(chosen, arguments.corpus, arguments.backbone, out))
            runs.append(scores_of(out, arguments.backbone, samples, out.with_name(out.name + ".scores.json")))
        logits[method] = {key: np.array([run[key] for run in runs]) for key in runs[0]}
        aps = {
            key: [average_precision(labels_of(samples[key.split(",")[0]]), s) for s in seeds]
            for key, seeds in logits[method].items()
        }
        rows.append(
            {
                "method": method,
                "trained_parameters": records[0]["trained_parameters"],
                "learning_rate": rate,
                "val_by_rate": tried,
                "average_precision": aps,
                "seconds_per_epoch": float(np.median([e["seconds"] for r in records for e in r["curve"]])),
            }
        )
    differences = {
        f"MoLE - {other}": {
            key: paired_difference(labels_of(samples[key.split(",")[0]]), logits["MoLE"][key], logits[other][key])
            for key in logits["MoLE"]
            if not key.startswith("val")
        }
        for other in arguments.methods
        if "MoLE" in arguments.methods and other != "MoLE"
    }
    result = {
        "command": shlex.join(
            [
                *(
                    "python",
                    "benchmarks/compare_methods.py",
                    "--corpus",
                    "CORPUS",
                    "--backbone",
                    arguments.backbone.name,
                ),
                *("--rates", *map(str, arguments.rates), "--methods", *arguments.methods),
            ]
        ),
        "backbone": records[0]["backbone"]["id"],
        "data": records[0]["data"],
        "seeds": arguments.seeds,
        "environment": environment() | {"threads": arguments.threads},
        "rows": rows,
        "paired_differences": differences,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    target = arguments.out / f"compare-{arguments.name}"
    target.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    target.with_suffix(".md").write_text(markdown(result))
    print(json.dumps(result))


def markdown(result: dict[str, Any]) -> str:
    """The result as a page: average precision, mean over seeds and range, and the paired differences."""
    columns = [f"{split}, {variant}" for split in ("test", "test_unseen") for variant in VARIANTS]
    lines = [
        f"# Methods compared on `{result['backbone']}`",
        "",
        f"Average precision, mean over {result['seeds']} seeds and range. {result['data']['train']} training windows. "
        f"{result['environment']['cpu']}, {result['environment']['threads']} threads, torch "
        f"{result['environment']['torch']}, {result['environment']['date']}. Learning rate and epoch chosen on `val`.",
        "",
        f"`{result['command']}`",
        "",
        "| method | trained | rate | s / epoch | " + " | ".join(columns) + " |",
        "|---|--:|--:|--:|" + "--:|" * len(columns),
    ]
    for row in result["rows"]:
        cells = [
            f"{np.mean(a):.3f} ({min(a):.3f} to {max(a):.3f})"
            for a in (row["average_precision"][column] for column in columns)
        ]
        lines.append(
            f"| {row['method']} | {row['trained_parameters']:,} | {row['learning_rate']:g} | "
            f"{row['seconds_per_epoch']:.0f} | " + " | ".join(cells) + " |"
        )
    lines += ["", "Paired differences with 95 % bootstrap intervals over images:", ""]
    lines += ["| | " + " | ".join(columns) + " |", "|---|" + "--:|" * len(columns)]
    for name, by_column in result["paired_differences"].items():
        cells = ["{:+.3f} [{:+.3f}, {:+.3f}]".format(*by_column[column]) for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
