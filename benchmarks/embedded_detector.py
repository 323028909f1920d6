"""The embedded detector on images it never saw, next to a linear probe on the same frozen trunk.

    python benchmarks/embedded_detector.py --corpus DIR --probe DIR [--outside DIR] [--originals DIR]

Reports `test` and `test_unseen` as stored and equalised (a window of the corpus is one crop); with `--outside`
also images of other generators and other photographs (see outside/README.md), and with `--originals` whole
full-size images of the validation groups, one centre crop against several tiles. `--probe` is the adapter
directory of `configs/embedded-linear-probe.toml`. Writes a JSON file, all tables as Markdown and the README's
table, and prints the JSON last.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipmole.config import PreprocessConfig
from clipmole.data import read_manifest, take_split
from clipmole.detect import Detector
from clipmole.evaluate import EvaluationReport, SetReport, evaluate
from clipmole.records import Sample
from clipmole.train import environment

FIGURES = {
    "average_precision": "AP",
    "auroc": "AUROC",
    "accuracy": "accuracy",
    "real_accuracy": "real accuracy",
    "fake_accuracy": "fake accuracy",
    "calibration_error": "ECE",
    "false_alarm": "photographs called AI-generated",
    "miss": "generated called photographs",
    "uncertain": "uncertain",
}


def with_mode(detector: Detector, mode: str) -> Detector:
    """The same detector looking at one centre crop or at tiles."""
    changed = PreprocessConfig.model_validate(detector.preprocess.model_dump() | {"mode": mode})
    return Detector(detector.network, changed, detector.calibration, detector.name)


def figures_table(reports: dict[str, Sequence[SetReport]]) -> list[str]:
    """Markdown rows: one a detector, set and variant."""
    lines = ["| detector | set | images | " + " | ".join(FIGURES.values()) + " |"]
    lines.append("|---|---|--:|" + "--:|" * len(FIGURES))
    for detector, sets in reports.items():
        for report in sets:
            cells = [str(report.figures[name]) if name in report.figures else "" for name in FIGURES]
            count = f"{report.real} + {report.ai}"
            lines.append(f"| {detector} | {report.name}, {report.variant} | {count} | " + " | ".join(cells) + " |")
    return lines


def summary_table(runs: dict[str, EvaluationReport]) -> list[str]:
    """The README's table: what the embedded detector does on images it never saw, and the probe beside it."""
    probe = {(r.name, r.variant): r for r in runs["linear probe on its trunk"].sets}
    lines = [
        "| images | AP | AP of a linear probe | AUROC | photographs called AI-generated | generated called "
        "photographs | uncertain |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for report in runs["embedded"].sets:
        if (report.name, report.variant) not in probe:
            continue
        f = report.figures
        rates = [f"{f[name].value:.1%}" for name in ("false_alarm", "miss", "uncertain")]
        other = probe[report.name, report.variant].figures["average_precision"].value
        lines.append(
            f"| `{report.name}`, {report.variant} ({report.real} + {report.ai}) | {f['average_precision']} | "
            f"{other:.3f} | {f['auroc']} | " + " | ".join(rates) + " |"
        )
    return lines


def generators_table(sets: Sequence[SetReport]) -> list[str]:
    """Markdown rows: average precision of each generator's images against all photographs of its set."""
    lines = ["| set | generator | as stored | equalised |", "|---|---|--:|--:|"]
    by_name: dict[str, dict[str, SetReport]] = {}
    for report in sets:
        by_name.setdefault(report.name, {})[report.variant] = report
    for name, variants in by_name.items():
        rows = {
            g: [variants[v].generators[g] for v in ("as stored", "equalised")] for g in variants["equalised"].generators
        }
        rows["**mean**"] = [variants[v].mean_generator_ap for v in ("as stored", "equalised")]
        lines += [f"| {name} | {generator} | {stored} | {equal} |" for generator, (stored, equal) in rows.items()]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--probe", type=Path, required=True)
    parser.add_argument("--outside", type=Path)
    parser.add_argument("--originals", type=Path)
    parser.add_argument("--detector", default="embedded")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()

    detector = Detector.from_pretrained(arguments.detector)
    probe = Detector.from_pretrained(arguments.probe)
    manifest = read_manifest(arguments.corpus / "manifest.csv")
    sets: dict[str, Sequence[Sample]] = {split: take_split(manifest, split) for split in ("test", "test_unseen")}
    outside: dict[str, Sequence[Sample]] = {}
    if arguments.outside:
        outside = {"outside": take_split(read_manifest(arguments.outside / "manifest.csv"), "outside")}
    whole: dict[str, Sequence[Sample]] = {}
    if arguments.originals:
        whole = {"whole val images": take_split(read_manifest(arguments.originals / "manifest.csv"), "val")}

    runs: dict[str, EvaluationReport] = {}
    for name, (who, mode, what) in {
        "embedded": (detector, "tiles", sets | outside | whole),
        "embedded, one centre crop": (detector, "center_crop", outside | whole),
        "linear probe on its trunk": (probe, "tiles", sets | outside),
    }.items():
        if not what:
            continue
        print(f"scoring: {name}", file=sys.stderr)
        runs[name] = evaluate(with_mode(who, mode), what, resamples=arguments.resamples)

    result: dict[str, Any] = {
        "command": "python benchmarks/embedded_detector.py --corpus CORPUS --probe PROBE"
        + " --outside OUTSIDE" * bool(outside)
        + " --originals ORIGINALS" * bool(whole),
        "environment": environment(),
        "reports": {name: report.model_dump(mode="json") for name, report in runs.items()},
    }
    lines = [
        f"# {detector.name}",
        "",
        f"`{result['command']}`, {result['environment']['cpu']}, torch {result['environment']['torch']}, "
        f"{result['environment']['date']}, seed 0. In brackets: 95 % bootstrap interval over images "
        f"({arguments.resamples} resamples). Accuracies at the calibrated probability 0.5.",
        "",
        *figures_table({name: report.sets for name, report in runs.items()}),
        "",
        "## By generator: average precision against all photographs of the set",
        "",
        *generators_table(runs["embedded"].sets),
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "embedded.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / "embedded.md").write_text("\n".join(lines) + "\n")
    (arguments.out / "embedded-summary.md").write_text("\n".join(summary_table(runs)) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
