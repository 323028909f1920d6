"""The default detector under what happens to images, and under what somebody may do to evade it.

    python benchmarks/robustness.py score --data score.csv --count 60 --out SCORES
    python benchmarks/robustness.py tables

`score` looks at images of a split under every condition of the presets `robustness` and `evasion` that `CHOSEN` names,
one image after the other, photographs and generated ones in turn, and appends to `SCORES/robustness.jsonl`: it goes on
where it was stopped, and may be stopped at any image. Images of more than `MOST` pixels are passed over. At its end it
writes `results/mole-vit-b-16/robustness.parquet` (sha256, label, condition, logit, and the PSNR against the image as
stored; no image). `tables` makes `robustness.md` of it, without any image.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmole import Detector
from clipmole.data import file_sha256, load_window, read_data
from clipmole.evaluation.bootstrap import bootstrap_indices
from clipmole.images.conditions import Condition, apply, load_conditions
from clipmole.metrics import auroc
from clipmole.models.adapter import find_adapter, read_calibration
from clipmole.plumbing.environment import environment
from clipmole.plumbing.seeding import sample_rng

NAME = "mole-vit-b-16"
FOLDER = Path(__file__).parent / "results" / NAME
MOST = 3_000_000  # pixels
FAMILIES = {  # of the preset `robustness`: the strengths that are scored
    "JPEG quality": (50, 70, 90),
    "WebP quality": (50, 90),
    "blur sigma, pixels": (1, 2),
    "resize scale": (0.5, 1.5),
    "crop share kept": (0.5,),
    "noise sigma, of 255": (5, 10),
    "screenshot scale": (0.5, 1.5),
    "times shared": (1, 2, 3),
    "random steps": (1, 2, 3, 4, 5),
}


def chosen() -> list[tuple[str, Condition]]:
    """(preset, condition) of all that is scored, as stored first."""
    ways = load_conditions("robustness")
    kept = [c for c in ways if not c.family or c.strength in FAMILIES[c.family]]
    return (
        [("", c) for c in kept if not c.family]
        + [("robustness", c) for c in kept if c.family]
        + [("evasion", c) for c in load_conditions("evasion")[2:]]
    )


def psnr(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float | None:
    """Peak signal-to-noise ratio, dB, at most 99; None of images of other sizes."""
    if first.shape != second.shape:
        return None
    error = float(np.square(first.astype(np.float32) - second).mean())
    return min(99.0, 10 * np.log10(255**2 / error)) if error else 99.0


def score(arguments: argparse.Namespace) -> None:
    """Append a line an image; then the table of all."""
    detector = Detector.from_pretrained(NAME, runtime="openvino", precision="bfloat16")
    conditions = [condition for _, condition in chosen()]
    samples = read_data(arguments.data, arguments.split)
    rng = np.random.default_rng(0)
    queues = [rng.permutation([i for i, s in enumerate(samples) if s.label == label]).tolist() for label in (0, 1)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "robustness.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {line["sha256"] for line in lines}
    found = 0
    for i in (i for pair in zip(*queues, strict=False) for i in pair):
        if found == 2 * arguments.count:
            break
        rgb, digest = load_window(samples[i]), file_sha256(samples[i])
        if rgb.shape[0] * rgb.shape[1] > MOST:
            continue
        found += 1
        if digest in done:
            continue
        changed = [apply(condition, rgb, sample_rng(0, digest)) for condition in conditions]
        line = {
            "sha256": digest,
            "label": samples[i].label,
            "logits": detector.score(changed).astype(float).tolist(),
            "psnr": [psnr(rgb, each) for each in changed],
        }
        with file.open("a", encoding="utf-8") as opened:
            opened.write(json.dumps(line) + "\n")
        lines.append(line)
        print(f"{len(lines)} images", flush=True)
    rows: list[dict[str, Any]] = [
        {"sha256": line["sha256"], "label": line["label"], "condition": c.name, "logit": logit, "psnr": change}
        for line in lines
        for c, logit, change in zip(conditions, line["logits"], line["psnr"], strict=True)
    ]
    about = {"split": arguments.split, **environment()}
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"about": json.dumps(about)})
    pq.write_table(table, FOLDER / "robustness.parquet")


def tables() -> None:
    """Write `robustness.md`."""
    calibration = read_calibration(find_adapter(NAME)[1])
    assert calibration is not None
    table = pq.read_table(FOLDER / "robustness.parquet")
    about = json.loads(table.schema.metadata[b"about"])
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in table.to_pylist():
        rows[row["condition"]].append(row)
    lines = []
    for preset, condition in chosen():
        own = rows[condition.name]
        label, logit = (np.array([row[key] for row in own]) for key in ("label", "logit"))
        drawn = [auroc(label[i], logit[i]) for i in bootstrap_indices(label, 1000)]
        low, high = np.quantile(drawn, [0.025, 0.975])
        called = calibration.probabilities(logit) > calibration.thresholds.generated
        changes = [row["psnr"] for row in own if row["psnr"] is not None]
        change = f"{np.median(changes):.0f}" if len(changes) == len(own) and condition.steps else ""
        lines.append(
            f"| {preset} | {condition.name} | {change} | {auroc(label, logit):.3f} [{low:.3f}, {high:.3f}] "
            f"| {100 * called[label == 1].mean():.0f} % | {100 * called[label == 0].mean():.0f} % |"
        )
    real, generated = (int((label == each).sum()) for each in (0, 1))
    text = "\n".join(
        [
            f"{real} photographs and {generated} generated images of the split `{about['split']}`, drawn by seed 0, "
            f"of at most {MOST / 1e6:g} megapixels, looked at as `clipmole detect` does. PSNR: median, against "
            "the image as stored, where the size stays. AUROC with a 95 % bootstrap interval. No adaptive attack, "
            "one that follows the detector's gradient, was tried.",
            "",
            "| preset | condition | PSNR, dB | AUROC | generated, called AI-generated | photographs, called so |",
            "|---|---|--:|--:|--:|--:|",
            *lines,
            "",
            f"OpenVINO in bfloat16, {about['cpu']}, torch {about['torch']}, {about['date']}. "
            "`python benchmarks/robustness.py tables`",
        ]
    )
    (FOLDER / "robustness.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    scoring = commands.add_parser("score")
    scoring.add_argument("--data", required=True)
    scoring.add_argument("--split", default="test")
    scoring.add_argument("--count", type=int, default=60, help="images of a class")
    scoring.add_argument("--out", type=Path, required=True)
    commands.add_parser("tables")
    arguments = parser.parse_args()
    if arguments.command == "score":
        score(arguments)
    tables()


if __name__ == "__main__":
    main()
