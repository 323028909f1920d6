"""Generators that arrive one after another: what a detector gains and forgets when it is extended.

    python benchmarks/arrivals.py run --table originals.csv --images DIR --work DIR [--order 0 --order 1 ...]
    python benchmarks/arrivals.py tables

In: images with their generators and sources, as a table with the columns sha256, label, generator and source, and a
folder with the files `<sha256>.<suffix>`; HEIC among them needs the extra heif. Families of generators arrive in
several orders. The first one, with photographs, trains a detector; each further one, with photographs of sources of
its own, changes it in one of these ways:

    alone      nothing is changed
    extended   clipmole train --extend
    replayed   the same, with tokens kept from the steps before
    tuned      all its LoRAs, routers and the head are trained on the new images (extension_rank = 0)
    anew       a new detector from the images of all steps so far

After each step every detector scores the same test images (equalised centre crops, one forward pass of the frozen
blocks for all of them), which are reported and choose nothing. `run` writes `results/arrivals/order-N.parquet` (order,
step, way, sha256, label, family, category, group, logit; no image); what was trained in `--work` is not trained again.
`tables` makes `results/arrivals.md` of these files: average precision against photographs of sources that some step
trains on (old), and of sources that none does (new), with paired bootstrap intervals over images.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from clipmole import metrics
from clipmole.config import PreprocessConfig, TrainConfig
from clipmole.data import windows
from clipmole.data.sample import Sample
from clipmole.evaluation.bootstrap import bootstrap_interval
from clipmole.images.crops import cut_crops
from clipmole.models.adapter import load_adapter
from clipmole.models.backbone import load_backbone
from clipmole.models.network import MoLENetwork
from clipmole.plumbing.environment import environment
from clipmole.training.presets import load_train_config, with_settings
from clipmole.training.train import train

# Families: beginnings of the generators' names.
FAMILIES = {
    "sdxl": "sdxl",
    "sd-3.5-medium": "sd-3.5-medium",
    "gemini-3": "gemini-3-pro-image",
    "gpt-image": "gpt-image-2",
}
WAYS = ("alone", "extended", "replayed", "tuned", "anew")
ROWS = 16
SETS = ("first", "between", "last", "to come")  # the generators, as seen from a step
RESULTS = Path(__file__).parent / "results"


def shuffled(keys: Sequence[str]) -> list[str]:
    """In an order that depends on the names alone."""
    return sorted(keys, key=lambda key: hashlib.sha256(key.encode()).hexdigest())


def read_table(table: Path, images: Path, per_step: int, test: int) -> tuple[dict[str, list[Sample]], list[Sample]]:
    """Family -> the samples of its step (generated images and photographs of sources of its own); the test images.

    Test photographs have the category "old" if their source is one that a step trains on, else "new".
    """
    files = {path.stem: path for path in images.iterdir()}
    rows = [row for row in csv.DictReader(table.open(encoding="utf-8")) if row["sha256"] in files]
    by_sha = {row["sha256"]: row for row in rows}
    own = {name: [r["sha256"] for r in rows if r["generator"].startswith(start)] for name, start in FAMILIES.items()}
    sources = shuffled(sorted({row["source"] for row in rows if row["label"] == "0"}))
    bucket = {source: place % (len(FAMILIES) + 1) for place, source in enumerate(sources)}
    photographs: dict[int, list[str]] = {place: [] for place in range(len(FAMILIES) + 1)}
    for row in rows:
        if row["label"] == "0":
            photographs[bucket[row["source"]]].append(row["sha256"])

    def sample(sha: str, label: int, name: str, split: str, category: str = "") -> Sample:
        row = by_sha[sha]
        return Sample(
            path=files[sha],
            label=label,  # type: ignore[arg-type]
            generator=name,
            split=split,
            ignore_bottom_px=int(row.get("ignore_bottom_px") or 0),
            group=row.get("group", ""),
            source=row["source"],
            category=category,
        )

    steps: dict[str, list[Sample]] = {}
    tested: list[Sample] = []
    for place, (name, generated) in enumerate(own.items()):
        steps[name] = []
        for label, chosen in ((1, shuffled(generated)), (0, shuffled(photographs[place]))):
            kept = chosen[: min(test, len(chosen) // 3)]
            tested += [sample(sha, label, name if label else "camera", "test", "old") for sha in kept]
            for i, sha in enumerate(chosen[len(kept) : len(kept) + per_step]):
                split = ("val", "calibration")[i % 2] if i % 10 < 4 else "train"
                steps[name].append(sample(sha, label, name if label else "camera", split))
    new = shuffled(photographs[len(FAMILIES)])[: test * len(FAMILIES)]
    return steps, tested + [sample(sha, 0, "camera", "test", "new") for sha in new]


def write_manifest(path: Path, samples: Sequence[Sample]) -> Path:
    """A manifest that `train` reads."""
    columns = ("path", "label", "generator", "split", "group", "source", "ignore_bottom_px")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([getattr(sample, column) for column in columns] for sample in samples)
    return path


def tokens_of(network: MoLENetwork, samples: Sequence[Sample], crop: PreprocessConfig) -> torch.Tensor:
    """Tokens (n, T, d) before the first adapted block of equalised centre crops."""
    pixels = [cut_crops(image, crop).pixels[0] for image in windows(samples, "equalised")]
    with torch.inference_mode():
        parts = [torch.from_numpy(np.stack(pixels[i : i + ROWS])) for i in range(0, len(pixels), ROWS)]
        return torch.cat([network.prefix(part) for part in parts])


class Run:
    """One order of arrival: trains what is not there yet, and scores the test images.

    Args:
        backbone: a preset or a directory.
    """

    def __init__(self, folder: Path, config: TrainConfig, backbone: str, tested: list[Sample]) -> None:
        self.folder, self.config, self.backbone, self.tested = folder, config, backbone, tested
        self.tokens: torch.Tensor | None = None
        self.seconds: dict[str, float] = {}

    def make(self, name: str, samples: Sequence[Sample], extend: Path | None = None, **changes: Any) -> Path:
        """The detector `name`: trained from nothing, or from `extend` on."""
        out = self.folder / name
        if not (out / "config.json").is_file():
            data = write_manifest(self.folder / f"{name}.csv", samples)
            began = time.perf_counter()
            config = self.config.model_copy(update=changes)
            train(config, out, extend=extend, data=data, backbone=self.backbone, with_report=False)
            (out.with_suffix(".seconds")).write_text(f"{time.perf_counter() - began:.1f}\n")
        self.seconds[name] = float(out.with_suffix(".seconds").read_text())
        return out

    def scores(self, detector: Path) -> np.ndarray:
        """Logits (n,) of the test images."""
        network = load_adapter(detector, self.backbone).network
        if self.tokens is None:
            crop = PreprocessConfig(mode="center_crop", crop_size=self.config.preprocess.crop_size)
            self.tokens = tokens_of(network, self.tested, crop)
        with torch.inference_mode():
            return torch.cat([network.suffix(part) for part in self.tokens.split(ROWS)]).double().numpy()

    def go(self, order: Sequence[str], steps: dict[str, list[Sample]]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """After each step: its number, and way -> scores."""
        first = self.make("base", steps[order[0]], kept_tokens=100)
        at = dict.fromkeys(WAYS, first)
        for place, family in enumerate(order[1:], 1):
            seen = [sample for name in order[: place + 1] for sample in steps[name]]
            new = steps[family]
            at["extended"] = self.make(f"extended-{place}", new, at["extended"], replay_weight=0.0)
            at["replayed"] = self.make(f"replayed-{place}", new, at["replayed"], kept_tokens=100)
            at["tuned"] = self.make(f"tuned-{place}", new, at["tuned"], extension_rank=0, replay_weight=0.0)
            at["anew"] = self.make(f"anew-{place}", seen)
            yield place, {way: self.scores(detector) for way, detector in at.items()}


def ap_rows(
    tested: Sequence[Sample],
    scores: dict[str, np.ndarray],
    sets: dict[str, Sequence[str]],
    against: str,
    resamples: int,
) -> list[dict[str, Any]]:
    """Set by kind of photographs by way: average precision, and its difference from that of the way `against`.

    Args:
        sets: name -> families whose images are the generated ones.
        scores: way -> logits (n,) of the tested images.
    """
    rows = []
    for name, families in sets.items():
        for kind in ("old", "new"):
            chosen = [i for i, s in enumerate(tested) if (s.generator in families if s.label else s.category == kind)]
            labels, groups = np.array([tested[i].label for i in chosen]), [tested[i].group for i in chosen]
            for way, every in scores.items():
                pairs = np.stack([every[chosen], scores[against][chosen]], axis=1)

                def difference(y: Any, index: Any, pairs: np.ndarray = pairs) -> float:
                    both = pairs[np.asarray(index, dtype=int)]
                    return metrics.average_precision(y, both[:, 0]) - metrics.average_precision(y, both[:, 1])

                low, high = bootstrap_interval(difference, labels, np.arange(len(chosen)), resamples, groups=groups)
                rows.append(
                    {
                        "way": way,
                        "set": name,
                        "photographs": kind,
                        "ap": metrics.average_precision(labels, pairs[:, 0]),
                        "difference": difference(labels, np.arange(len(chosen))),
                        "low": low,
                        "high": high,
                    }
                )
    return rows


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what is trained on what."""
    for name in ("table", "images", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name, default in {"per-step": 150, "test": 60}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--backbone", default="clip-vit-b-16-int8")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of every run")


def about(args: argparse.Namespace, **facts: Any) -> dict[str, Any]:
    """What results were made from."""
    given = {key: value for key, value in vars(args).items() if not isinstance(value, Path) and key != "command"}
    given["backbone"] = Path(args.backbone).name
    return {"arguments": given, "weights": load_backbone(args.backbone).sha256, **facts, "environment": environment()}


def write_scores(path: Path, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Parquet of `rows`, with `facts` about them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata({"about": json.dumps(facts)}), path)


def score_rows(tested: Sequence[Sample], scores: dict[str, np.ndarray], **columns: Any) -> list[dict[str, Any]]:
    """A row for each way and tested image."""
    return [
        {
            **columns,
            "way": way,
            "sha256": sample.path.stem,
            "label": sample.label,
            "family": sample.generator,
            "category": sample.category,
            "group": sample.group,
            "logit": float(logit),
        }
        for way, logits in scores.items()
        for sample, logit in zip(tested, logits, strict=True)
    ]


def read_scores(rows: Sequence[dict[str, Any]]) -> tuple[list[Sample], dict[str, np.ndarray]]:
    """The inverse of `score_rows`: tested images, and way -> logits (n,)."""
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(row["way"], []).append(row["logit"])
    first = [row for row in rows if row["way"] == rows[0]["way"]]
    tested = [
        Sample(
            path=Path(r["sha256"]),
            split="test",
            label=r["label"],
            generator=r["family"],
            category=r["category"],
            group=r["group"],
        )
        for r in first
    ]
    return tested, {way: np.array(logits) for way, logits in scores.items()}


def run(args: argparse.Namespace) -> None:
    """Train and score each order."""
    config = with_settings(load_train_config("own-images"), args.set)
    steps, tested = read_table(args.table, args.images, args.per_step, args.test)
    names = list(FAMILIES)
    tokens: torch.Tensor | None = None
    for number in args.order or range(3):
        order = names[number:] + names[:number]
        detectors = Run(args.work / f"order-{number}", config, args.backbone, tested)
        detectors.tokens = tokens
        rows: list[dict[str, Any]] = []
        for place, scores in detectors.go(order, steps):
            rows += score_rows(tested, scores, order=number, step=place)
            print(f"order {number}, step {place}: {order[place]}", flush=True)
            counts = {name: len(own) for name, own in steps.items()}
            facts = about(args, families=order[: place + 1], seconds=detectors.seconds, training=counts)
            write_scores(RESULTS / "arrivals" / f"order-{number}.parquet", rows, facts)
        tokens = detectors.tokens


def tables() -> None:
    """Write `arrivals.md`."""
    lines: list[str] = []
    made: list[str] = []
    for path in sorted((RESULTS / "arrivals").glob("order-*.parquet")):
        table = pq.read_table(path)
        facts, rows = json.loads(table.schema.metadata[b"about"]), table.to_pylist()
        order = facts["families"]
        for place in range(1, len(order)):
            tested, scores = read_scores([row for row in rows if row["step"] == place])
            to_come = [name for name in FAMILIES if name not in order[: place + 1]]
            parts = (order[:1], order[1:place], order[place : place + 1], to_come)
            sets = {name: part for name, part in zip(SETS, parts, strict=True) if part}
            found = {(r["set"], r["photographs"], r["way"]): r for r in ap_rows(tested, scores, sets, WAYS[0], 1000)}
            for way in WAYS:
                cells = [
                    " / ".join(f"{found[name, kind, way]['ap']:.3f}" for kind in ("old", "new")) if name in sets else ""
                    for name in SETS
                ]
                lost = [found["first", kind, way] for kind in ("old", "new")]
                changes = [f"{r['difference']:+.3f} [{r['low']:+.3f}, {r['high']:+.3f}]" for r in lost]
                step, changes = (" → ".join(order[: place + 1]), ["", ""]) if way == WAYS[0] else ("", changes)
                lines.append(f"| {step} | {way} | {' | '.join([*cells, *changes])} |")
        counts = Counter(s.generator if s.label else f"{s.category} photographs" for s in tested)
        seconds = facts["seconds"]
        where = facts["environment"]
        median = {way: np.median([t for name, t in seconds.items() if name.startswith(way)]) for way in WAYS[1:]}
        made.append(
            f"{order[0]} first: {', '.join(f'{way} {t / 60:.1f} min' for way, t in median.items())} a step "
            "(median; without calibration and report; the machine had other work too); "
            f"{where['cpu']}, {where['threads']} threads, torch {where['torch']}, {where['date']}."
        )
    text = "\n".join(
        [
            f"Tested: {', '.join(f'{count} {name}' for name, count in counts.items())}. Average precision against old "
            "/ new photographs: of the first generator, of those between it and the last to arrive, of that one, and "
            "of those to come. The last columns: average precision of the first generator, minus that "
            "of the detector left alone, with a paired 95 % bootstrap interval.",
            "",
            "| arrived | way | first | between | last | to come | first, change, old | first, change, new |",
            "|---|---|--:|--:|--:|--:|--:|--:|",
            *lines,
            "",
            *(f"- {line}" for line in made),
            "",
            "`python benchmarks/arrivals.py tables`",
        ]
    )
    (RESULTS / "arrivals.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def command_line(
    doc: str | None,
    run: Callable[[argparse.Namespace], None],
    tables: Callable[[], None],
    options: Callable[[argparse.ArgumentParser], object],
) -> None:
    """The subcommands `run`, with what `add_options` and `options` add, and `tables`, which also follows a run."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    add_options(running)
    options(running)
    commands.add_parser("tables")
    args = parser.parse_args()
    if args.command == "run":
        run(args)
    tables()


def _orders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--order", type=int, action="append", choices=(0, 1, 2), help="default: all three")


if __name__ == "__main__":
    command_line(__doc__, run, tables, _orders)
