"""Every execution path side by side, as `clipmole benchmark speed` measures it, kept as a dated result.

    python benchmarks/speed.py [--shapes vit-b-32 ...] [--batches 1 8 32] [--paths ...] [--seconds 2] [--repeats 3]

Each call is one run: all of its paths take turns, and its peaks and its baseline are its own. With --out the rows of
the shapes and batches that were measured replace older ones in speed.json, and speed.md is the table of all. Prints
JSON last. Random weights, but for the embedded detector; keep the machine quiet.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from clipmole.config import CLIP_TOWERS
from clipmole.speed import SpeedReport, SpeedRow, measure_speed, speed_table
from clipmole.speed.flops import activation_bytes, flops, products, weight_bytes
from clipmole.speed.paths import BASELINE, PATHS, adapter_of, tower_of

SHAPES = [*CLIP_TOWERS, "embedded"]


def merged(older: list[dict[str, Any]], report: SpeedReport) -> list[dict[str, Any]]:
    """Runs by shape and batch, the new one in the place of older ones of the same."""
    runs = {(run["shape"], run["batch"]): run for run in older}
    for row in report.rows:
        runs[row.shape, row.batch] = {
            "shape": row.shape,
            "batch": row.batch,
            "rows": [r.model_dump() for r in report.rows if (r.shape, r.batch) == (row.shape, row.batch)],
            "peaks": report.peaks,
            "left_out": report.left_out,
            "settings": report.settings,
            "environment": report.environment,
        }
    order = {shape: place for place, shape in enumerate(SHAPES)}
    return sorted(runs.values(), key=lambda run: (order.get(run["shape"], 99), run["batch"]))


def markdown(runs: list[dict[str, Any]]) -> str:
    """All runs as one table, with the peaks of each."""
    env = runs[-1]["environment"]
    rows = tuple(SpeedRow.model_validate(row) for run in runs for row in run["rows"])
    whole = SpeedReport(rows=rows, peaks={}, flops_per_image={}, left_out={}, settings={}, environment={})
    lines = [
        f'{env["cpu"]}, {env["threads"]} threads, torch {env["torch"]}, {env["date"]}; seed 0. "of peak": of the '
        "fastest matrix product in the same precision and run.",
        "",
        *speed_table(whole),
        "",
        "Peaks of the runs, GFLOP/s:",
        "",
    ]
    for run in runs:
        peaks = ", ".join(f"{name} {value:.0f}" for name, value in run["peaks"].items())
        turns = f"{run['settings']['repeats']} turns of {run['settings']['seconds']:g} s"
        lines.append(f"- {run['shape']}, batch {run['batch']} ({turns}): {peaks}")
    return "\n".join(lines) + "\n"


def adapter_cost(rows: list[dict[str, Any]], env: dict[str, Any]) -> str:
    """What the MoLE adapter costs, as a table: share of the time of a forward pass, by the medians."""
    heads = ["shape", "batch", "path", "ms with", "ms without", "the adapter's share"]
    lines = ["| " + " | ".join(heads) + " |", "|---|--:|---|--:|--:|--:|"]
    for row in (row for row in rows if row["adapter"]):
        same = [r for r in rows if not r["adapter"] and all(r[k] == row[k] for k in ("shape", "batch", "path"))]
        for bare in same:
            share = 1 - bare["p50"] / row["p50"]
            times = f"{1000 * row['p50']:.1f} | {1000 * bare['p50']:.1f} | {100 * share:.1f} %"
            lines.append(f"| {row['shape']} | {row['batch']} | {row['path']} | {times} |")
    note = f"Medians. {env['cpu']}, {env['threads']} threads, torch {env['torch']}, {env['date']}, seed 0."
    return "\n".join([*lines, "", note]) + "\n"


def write_adapter_cost(folder: Path, report: SpeedReport) -> None:
    """adapter.json and adapter.md; rows of an older run at other shapes, batches or paths are kept."""
    file = folder / "adapter.json"
    older = json.loads(file.read_text())["rows"] if file.is_file() else []
    rows = {(r["shape"], r["batch"], r["path"], r["adapter"]): r for r in older}
    rows |= {(r.shape, r.batch, r.path, r.adapter): r.model_dump() for r in report.rows if r.path != BASELINE}
    result = {"environment": report.environment, "settings": report.settings, "rows": list(rows.values())}
    file.write_text(json.dumps(result, indent=1) + "\n")
    (folder / "adapter.md").write_text(adapter_cost(result["rows"], report.environment))


def roofline() -> str:
    """What a forward pass costs by arithmetic, for each preset, as a table."""
    heads = ["shape", "10^9 operations an image", "whole last block", "adapter's share", "weights MB, bfloat16"]
    heads += ["activations MB an image, bfloat16", *(f"operations a byte, batch {n}" for n in (1, 8, 32))]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)]
    for shape in SHAPES:
        tower, mole = tower_of(shape), adapter_of(shape)
        each, whole = flops(tower, mole, class_token_only=True), flops(tower, mole)
        own = sum(p.flops for p in products(tower, mole, class_token_only=True) if p.name == "adapter")
        weights = weight_bytes(tower, mole, "bfloat16")
        moved = activation_bytes(tower, mole, "bfloat16", class_token_only=True)
        cells = [shape, f"{each / 1e9:.2f}", f"{whole / 1e9:.2f}", f"{100 * own / each:.2f} %"]
        cells += [f"{weights / 1e6:.0f}", f"{moved / 1e6:.1f}"]
        cells += [f"{n * each / (weights + n * moved):.0f}" for n in (1, 8, 32)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--paths", nargs="+", default=list(PATHS))
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for the paths of PyTorch")
    parser.add_argument("--bare", action="store_true", help="each path without the adapter too: adapter.md")
    parser.add_argument("--graphs", type=Path, help="folder where graphs are kept for a later run")
    parser.add_argument("--out", type=Path, help="folder of speed.json and speed.md")
    given = parser.parse_args()
    report = measure_speed(
        given.shapes,
        sorted(given.batches),
        given.paths,
        seconds=given.seconds,
        repeats=given.repeats,
        device=given.device,
        bare=given.bare,
        graphs=given.graphs,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print("\n".join(speed_table(report)))
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
    if given.out and given.bare:
        write_adapter_cost(given.out, report)
    elif given.out:
        file = given.out / "speed.json"
        runs = merged(json.loads(file.read_text()) if file.is_file() else [], report)
        file.write_text(json.dumps(runs, indent=1) + "\n")
        (given.out / "speed.md").write_text(markdown(runs))
        (given.out / "roofline.md").write_text(roofline())
    print(report.model_dump_json())


if __name__ == "__main__":
    main()
