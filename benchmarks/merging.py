"""Detectors of different generators, merged: against their parts, and against training on all images together.

    python benchmarks/merging.py run --table originals.csv --images DIR --work DIR [--seeds 3]
    python benchmarks/merging.py tables

In: images as for `arrivals.py`. Two families of generators with photographs of sources of their own train the first
detector, two others with other photographs the second, and all of them the joint one. The first two are merged in
every way of `clipmole merge`; camex learns on the calibration images of both. All score the same test images, as in
`arrivals.py`: average precision of each family against photographs of sources that were trained on (old), and of
sources that were not (new), and its difference from the joint detector with paired bootstrap intervals over images.
Test images are reported, and choose nothing. `run` writes `results/arrivals/merging.parquet`, the mean logit over the
seeds of each way and image; `tables` makes `results/merging.md` of it.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from arrivals import (
    FAMILIES,
    RESULTS,
    Run,
    about,
    ap_rows,
    command_line,
    read_scores,
    read_table,
    score_rows,
    write_scores,
)

from clipmole.training.merge import merge
from clipmole.training.presets import load_train_config, with_settings

METHODS = ("stack", "average", "ties", "camex")
WAYS = ("first", "second", "joint", *METHODS)
HALVES = {"first": list(FAMILIES)[:2], "second": list(FAMILIES)[2:]}
SCORES = RESULTS / "arrivals" / "merging.parquet"


def run(args: argparse.Namespace) -> None:
    """Train, merge and score with each seed."""
    config = with_settings(load_train_config("own-images"), args.set)
    steps, tested = read_table(args.table, args.images, args.per_step, args.test)
    scores: dict[str, list[np.ndarray]] = {}
    lost: dict[str, list[float]] = {}
    tokens = None
    for seed in range(args.seeds):
        detectors = Run(args.work / f"seed-{seed}", config.model_copy(update={"seed": seed}), args.backbone, tested)
        detectors.tokens = tokens
        images = {half: [sample for name in own for sample in steps[name]] for half, own in HALVES.items()}
        made = {half: detectors.make(half, own) for half, own in images.items()}
        together = images["first"] + images["second"]
        made["joint"] = detectors.make("joint", together)
        parts = [made["first"], made["second"]]
        learnt_on = [sample for sample in together if sample.split == "calibration"]
        for method in METHODS:
            out = detectors.folder / method
            samples: Any = {"samples": learnt_on} if method == "camex" else {}
            found = merge(parts, out, method, backbone=args.backbone, **samples)  # type: ignore[arg-type]
            lost.setdefault(method, []).append(found.lost)
            made[method] = out
        for way, detector in made.items():
            scores.setdefault(way, []).append(detectors.scores(detector))
        tokens = detectors.tokens
        print(f"seed {seed}", flush=True)
    mean = {way: np.mean(own, axis=0) for way, own in scores.items()}
    write_scores(SCORES, score_rows(tested, mean), about(args, lost=lost))


def tables() -> None:
    """Write `merging.md`."""
    table = pq.read_table(SCORES)
    facts = json.loads(table.schema.metadata[b"about"])
    tested, scores = read_scores(table.to_pylist())
    found = {(r["set"], r["photographs"], r["way"]): r for r in ap_rows(tested, scores, HALVES, "joint", 1000)}
    lines = []
    for way in WAYS:
        own = [found[half, kind, way] for half in HALVES for kind in ("old", "new")]
        cells = [f"{r['ap']:.3f}, {r['difference']:+.3f} [{r['low']:+.3f}, {r['high']:+.3f}]" for r in own]
        share = f"{100 * np.mean(facts['lost'][way]):.0f} %" if way in METHODS else ""
        lines.append(f"| {way} | {' | '.join(cells)} | {share} |")
    where = facts["environment"]
    text = "\n".join(
        [
            f"The first part was trained on {' and '.join(HALVES['first'])}, the second on "
            f"{' and '.join(HALVES['second'])}. Average precision of these generators against photographs of sources "
            "that were trained on (old) and of others (new), and its difference from the joint detector with a paired "
            f"95 % bootstrap interval; logits are means over {facts['arguments']['seeds']} seeds.",
            "",
            "| way | first's, old | first's, new | second's, old | second's, new | updates lost |",
            "|---|--:|--:|--:|--:|--:|",
            *lines,
            "",
            f"{where['cpu']}, {where['threads']} threads, torch {where['torch']}, {where['date']}. "
            "`python benchmarks/merging.py tables`",
        ]
    )
    (RESULTS / "merging.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def _seeds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=3)


if __name__ == "__main__":
    command_line(__doc__, run, tables, _seeds)
