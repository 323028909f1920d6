"""What the faster arithmetics change: exported graphs and bfloat16 against float32, on labelled images.

    python benchmarks/export_accuracy.py --corpus DIR --detector embedded [--detector NAME=DIR --backbone DIR]

int8 of OpenVINO sees 128 images of split `train`, which fix the ranges of its activations; if that fails its check,
or as "dynamic", ranges are taken while it runs. Each export is checked on `val` and `calibration`, which is what may
refuse it; `test` and `test_unseen` are reported after that and decide nothing. As stored. Prints JSON last, and with
--out writes it, with a table as Markdown.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from clipmole.calibration import Calibration
from clipmole.data import labels_of, read_data, windows
from clipmole.inference.detector import RECHECK, Detector
from clipmole.inference.export import Check, ExportRefused, compare_detections, export_detector, failures
from clipmole.plumbing.environment import environment

PATHS = {
    "torch bfloat16": ("torch", "bfloat16"),
    "openvino float32": ("openvino", "float32"),
    "openvino bfloat16": ("openvino", "bfloat16"),
    "openvino int8": ("openvino", "int8"),
    "openvino int8, dynamic": ("openvino", "int8"),
    "onnx float32": ("onnx", "float32"),
    "onnx int8": ("onnx", "int8"),
}
SPLITS = {"val + calibration": ("val", "calibration"), "test": ("test",), "test_unseen": ("test_unseen",)}


def measure(name: str, spec: str, backbone: str | None, corpus: Path, folder: Path) -> list[dict[str, Any]]:
    """Rows of one detector: path, images, what changes."""
    everything = read_data(corpus / "manifest.csv")
    sets = {label: [s for s in everything if s.split in parts] for label, parts in SPLITS.items()}
    train = [s for s in everything if s.split == "train"]
    train = random.Random(0).sample(train, min(128, len(train)))
    exact = Detector.from_pretrained(spec, backbone=backbone)
    expected = {label: exact.detect_batch(windows(samples, "as stored")) for label, samples in sets.items()}
    rows = []
    for path, (runtime, precision) in PATHS.items():
        print(f"{name}: {path}", file=sys.stderr, flush=True)
        gate = sets["val + calibration"]
        if runtime == "torch":
            graph = Detector.from_pretrained(spec, backbone=backbone, precision=precision)
        else:
            try:
                record = export_detector(
                    spec,
                    folder / f"{name} {path}",
                    runtime,
                    lambda: windows(gate, "as stored"),  # noqa: B023
                    labels=labels_of(gate).tolist(),
                    precision=precision,
                    calibrate_on=() if path.endswith("dynamic") else windows(train, "as stored"),
                    backbone=backbone,
                )
            except ExportRefused as refused:
                rows.append(row(name, path, "val + calibration", refused.check, str(refused)))
                continue
            if path == "openvino int8" and not record.calibrated_on:
                continue  # refused with fixed ranges; the next path is what it became
            graph = Detector.from_pretrained(folder / f"{name} {path}")
        for label, samples in sets.items():
            found = graph.detect_batch(windows(samples, "as stored"))
            check = compare_detections(expected[label], found, labels_of(samples).tolist(), exact.families is not None)
            rows.append(row(name, path, label, check, "; ".join(failures(check, precision))))
            if precision == "bfloat16" and graph.calibration is not None:
                rows[-1]["near"] = float(np.mean([is_near(graph.calibration, each.logit) for each in found]))
    return rows


def is_near(calibration: Calibration, logit: float) -> bool:
    """Whether an image is so near to a threshold that bfloat16 has it scored again in float32."""
    return calibration.verdict(logit - RECHECK) != calibration.verdict(logit + RECHECK)


def row(name: str, path: str, images: str, check: Check, remark: str) -> dict[str, Any]:
    """One line of the result."""
    return {"detector": name, "path": path, "set": images, "remark": remark, **check.model_dump()}


def markdown(result: dict[str, Any]) -> str:
    """The result as a table."""
    env = result["environment"]
    heads = [
        "detector",
        "path",
        "images",
        "AP float32",
        "AP",
        "largest difference of a logit",
        "in standard deviations",
    ]
    heads += ["scored again in float32", "settled verdicts changed", "of them reversed", "outside the limits"]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|---|" + "--:|" * (len(heads) - 4) + "---|"]
    for r in result["rows"]:
        before, after = r["average_precision"]
        cells = [r["detector"], r["path"], f"`{r['set']}` ({r['images']})", f"{before:.4f}", f"{after:.4f}"]
        cells += [f"{r['max_difference']:.2g}", f"{r['max_difference'] / r['spread']:.2g}"]
        cells += [f"{r['near']:.1%}" if "near" in r else ""]
        cells += [str(r["changed"]), str(r["reversed"]), r["remark"].rsplit(": ", 1)[-1]]
        lines.append("| " + " | ".join(cells) + " |")
    note = f"As stored. {env['cpu']}, {env['threads']} threads, torch {env['torch']}, {env['date']}, seed 0."
    return "\n".join([*lines, "", note, "", f"`{result['command']}`"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--detector", action="append", required=True, help="NAME=SPEC, or embedded")
    parser.add_argument("--backbone", help="of every detector but the embedded one")
    parser.add_argument("--out", type=Path, help="folder for export-accuracy.json and .md")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for text in given.detector:
            name, _, spec = text.rpartition("=")
            backbone = None if spec == "embedded" else given.backbone
            rows += measure(name or spec, spec, backbone, given.corpus, Path(folder))
    named = " ".join(f"--detector {text.rpartition('=')[0] or text}" for text in given.detector)
    result = {
        "command": f"python benchmarks/export_accuracy.py --corpus CORPUS {named}",
        "environment": environment(),
        "rows": rows,
    }
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "export-accuracy.json").write_text(json.dumps(result, indent=1) + "\n")
        (given.out / "export-accuracy.md").write_text(markdown(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
