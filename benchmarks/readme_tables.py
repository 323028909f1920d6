"""The small tables of the README and the results, from the reports that hold every number.

    python benchmarks/readme_tables.py

Out: `detector.md`, `methods.md`, `methods-vit-b-16.md`, `mole-minus-vit-b-16.md`, `speed.md` and `systems.md` in
`results/readme`; `insert_results.py` then puts them into the documents. To show another detector,
name its reports in `DETECTOR`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from clipmole.evaluation.records import Comparison, Estimate, EvaluationReport

RESULTS = Path(__file__).parent / "results"
DETECTOR = ("mole-vit-b-16/report.json",)  # of the first detector in each
METHODS = "compare-vit-tiny.json"
ON_CLIP = "methods-vit-b-16.json"
ON_TINY_SETS = {"test": "generators of the training", "test_unseen": "generators it never saw"}
ON_CLIP_SETS = {
    "known sources x known generators": "photo sources and generators of the training",
    "new sources x new generators": "photo sources and generators it never saw",
}
SYSTEMS = "systems-vit-tiny.json"
SETS = {
    "test": "from photographers, galleries and repositories that no training image came from",
    "test_photo": "the same photographs, and those generated images that look like photographs",
    "outside_photo": "another collection: photographs, and generated images that look like them",
}


def percent(estimate: Estimate) -> str:
    """A share and its interval in percent."""
    return f"{100 * estimate.value:.0f} % [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def detector_table(reports: list[EvaluationReport]) -> str:
    """One row a set of images, equalised, the first as stored too: what a verdict of the detector is worth."""
    lines = [
        "| photographs + generated images | AUROC | photographs called AI-generated | generated found | uncertain |",
        "|---|--:|--:|--:|--:|",
    ]
    for report in reports:
        for found in sorted(report.sets, key=lambda each: each.condition != "equalised"):
            if found.detector != report.detectors[0].name or found.set not in SETS:
                continue
            if found.condition != "equalised" and found.set != next(iter(SETS)):
                continue
            e = found.estimates
            shares = " | ".join(percent(e[key]) for key in ("false_alarm", "detected", "uncertain"))
            said = SETS[found.set] if found.condition == "equalised" else "those of the first row, as they are stored"
            name = f"{said} ({found.n_real} + {found.n_generated})"
            lines.append(f"| {name} | {e['auroc']} | {shares} |")
    return "\n".join(lines) + "\n"


def methods_table(comparison: Comparison, columns: dict[str, str]) -> str:
    """One row a method that is not MoLE: what MoLE is ahead of it by, paired, in average precision, equalised.

    Args:
        columns: set of images -> what stands above its column.
    """
    lines = [f"| MoLE minus | {' | '.join(columns.values())} |", "|---|" + "--:|" * len(columns)]
    names = dict.fromkeys(each.second for each in comparison.differences if each.first == "MoLE")
    for second in (name for name in names if not name.startswith("MoLE")):
        found = {
            each.set: each.estimate
            for each in comparison.differences
            if (each.first, each.second, each.condition) == ("MoLE", second, "equalised")
        }
        cells = [f"{e.value:+.3f} [{e.low:+.3f}, {e.high:+.3f}]" for e in map(found.get, columns) if e]
        lines.append(f"| {second} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def systems_table(comparison: Comparison) -> str:
    """One row a method: average precision on images of new sources, what MoLE is ahead of it by, cost."""
    parts = ("test", "known sources x known generators", "new sources x new generators")
    columns = [f"{part}, equalised" for part in parts]
    ahead = {
        each.second: each.estimate
        for each in comparison.differences
        if (each.first, f"{each.set}, {each.condition}") == ("MoLE", columns[0])
    }
    heads = ["method", "trained", "`test`", "known sources, known generators", "new sources, new generators"]
    heads += ["MoLE minus it, `test`", "s", "crops/s"]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "--:|" * (len(heads) - 1)]
    for each in comparison.methods:
        cells = [str(each.estimates[column]) for column in columns]
        e = ahead.get(each.name)
        cells.append(f"{e.value:+.3f} [{e.low:+.3f}, {e.high:+.3f}]" if e else "")
        cells += [f"{each.seconds_per_epoch:.0f}", f"{each.crops_per_second:.0f}" if each.crops_per_second else ""]
        lines.append(f"| {each.name} | {each.trained_parameters:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def speed_table(runs: list[dict[str, Any]]) -> str:
    """One row an execution path, one column a network: crops a second at batch 8, and the ratio to the baseline."""
    columns = [{row["path"]: row for row in run["rows"]} for run in runs if run["batch"] == 8]
    shapes = [run["shape"] for run in runs if run["batch"] == 8]
    lines = [f"| crops/s | {' | '.join(shapes)} |", "|---|" + "--:|" * len(shapes)]
    for path in columns[0]:
        cells = [f"{rows[path]['images_per_second']:.1f} ({rows[path]['over_baseline']:.2f})" for rows in columns]
        lines.append(f"| {path} | {' | '.join(cells)} |")
    made = runs[0]["environment"]
    lines += ["", f"{made['cpu']}, {made['threads']} threads, torch {made['torch']}, {made['date']}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    out = RESULTS / "readme"
    out.mkdir(exist_ok=True)
    reports = [EvaluationReport.model_validate_json((RESULTS / name).read_text(encoding="utf-8")) for name in DETECTOR]
    (out / "detector.md").write_text(detector_table(reports), encoding="utf-8")
    comparison = Comparison.model_validate_json((RESULTS / METHODS).read_text(encoding="utf-8"))
    (out / "methods.md").write_text(methods_table(comparison, ON_TINY_SETS), encoding="utf-8")
    on_clip = Comparison.model_validate_json((RESULTS / ON_CLIP).read_text(encoding="utf-8"))
    (out / "mole-minus-vit-b-16.md").write_text(methods_table(on_clip, ON_CLIP_SETS), encoding="utf-8")
    (out / "methods-vit-b-16.md").write_text(systems_table(on_clip), encoding="utf-8")
    systems = Comparison.model_validate_json((RESULTS / SYSTEMS).read_text(encoding="utf-8"))
    (out / "systems.md").write_text(systems_table(systems), encoding="utf-8")
    speed = json.loads((RESULTS / "speed" / "speed.json").read_text(encoding="utf-8"))
    (out / "speed.md").write_text(speed_table(speed), encoding="utf-8")


if __name__ == "__main__":
    main()
