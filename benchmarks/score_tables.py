"""The packaged detectors' figures, from the committed score of every image: no image is needed.

    python benchmarks/score_tables.py

In: `results/DETECTOR/scores.parquet`, which `recipes/mole-vit-b-16/score.py` wrote (sha256 of the file, label,
split, generator, source, kind, group, condition, logit, whether it looks drawn), and the packaged calibration. Out, in
`results/DETECTOR`: `report.json` with every estimate and its interval, `table.md` by split and condition,
`alarms.md` by kind of photograph.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy.stats import beta  # type: ignore[import-untyped]
from sklearn.metrics import average_precision_score

from clipmole.calibration import Calibration
from clipmole.data.sample import Sample
from clipmole.evaluation.estimates import report_table
from clipmole.evaluation.records import DetectorInfo, EvaluationReport, SetReport
from clipmole.evaluation.scores import ScoreTable
from clipmole.models.adapter import adapter_digest, find_adapter, read_calibration

NAMES = ("mole-vit-b-16", "embedded")
RESULTS = Path(__file__).parent / "results"
CONDITIONS = ("as stored", "equalised")
KINDS = {"": ("photo", "drawn"), "_photo": ("photo",), "_drawn": ("drawn",)}  # of generated images, in parts of a split
VERDICTS = ("false_alarm", "detected", "miss", "uncertain")  # shares of verdicts
RESAMPLES = 1000


def balanced_ap(own: list[dict[str, object]], condition: str) -> float:
    """Average precision with both classes weighing alike, so that it does not depend on their numbers."""
    pairs = [(row["label"], row["logit"]) for row in own if row["condition"] == condition]
    label, logit = (np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True))
    weight = np.where(label == 1, 1 / label.sum(), 1 / (1 - label).sum())
    return float(average_precision_score(label, logit, sample_weight=weight))


def sets_of(name: str, rows: list[dict[str, object]], calibration: Calibration) -> list[tuple[SetReport, float]]:
    """Estimates of each split, and of the reported ones with the photo-like or the drawn generated images alone.

    Beside each its `balanced_ap`.
    """
    found: list[tuple[SetReport, float]] = []
    parts = [(split, part) for split in ("test", "outside") for part in KINDS]
    for split, part in [*parts, ("calibration", "")]:
        kinds = KINDS[part]
        own = [row for row in rows if row["split"] == split and (row["label"] == 0 or row["kind"] in kinds)]
        conditions = [c for c in CONDITIONS if any(row["condition"] == c for row in own)]
        logit = {c: {row["sha256"]: row["logit"] for row in own if row["condition"] == c} for c in conditions}
        one = [row for row in own if row["condition"] == conditions[0]]
        samples = tuple(
            Sample(
                path=Path(str(row["sha256"])),
                label=int(str(row["label"])),
                generator=str(row["generator"]),
                split=split,
                source=str(row["source"]),
                kind="" if row["label"] else str(row["kind"]),
                group=str(row["group"]),
            )
            for row in one
        )
        logits = np.array([[[logit[c][row["sha256"]] for row in one] for c in conditions]], dtype=np.float64)
        table = ScoreTable(samples, np.array([split + part] * len(one)), (name,), tuple(conditions), logits)
        reports = report_table(table, {name: calibration}, RESAMPLES)[0]
        drawn = {(row["condition"], row["sha256"]) for row in own if row.get("drawn")}
        if drawn:
            reports = with_verdicts(reports, table, drawn, calibration)
        found += [(each, balanced_ap(own, each.condition)) for each in reports]
    return found


def with_verdicts(
    reports: Sequence[SetReport], table: ScoreTable, drawn: set[tuple[object, object]], calibration: Calibration
) -> list[SetReport]:
    """The reports, whose shares of verdicts count what looks drawn as uncertain, as the detector does."""
    thresholds = calibration.thresholds
    between = calibration.logit((thresholds.real + thresholds.generated) / 2)
    looks = np.array([[[(c, str(s.path)) in drawn for s in table.samples] for c in table.conditions]])
    judged = replace(table, logits=np.where(looks, between, table.logits))
    found = report_table(judged, {table.detectors[0]: calibration}, RESAMPLES)[0]
    return [
        old.model_copy(
            update={
                "estimates": old.estimates | {key: new.estimates[key] for key in VERDICTS},
                "kinds": new.kinds,
            }
        )
        for old, new in zip(reports, found, strict=True)
    ]


def by_split(sets: list[tuple[SetReport, float]]) -> str:
    """One row a set and condition."""
    lines = [
        "| images (photographs + generated) | condition | AUROC | AP, classes alike | found at 5 % false alarms "
        "| called AI-generated: photographs | generated | uncertain | calibration error |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for each, ap in sets:
        e = each.estimates
        shares = [f"{100 * e[key].value:.1f} %" for key in ("false_alarm", "detected", "uncertain")]
        found = f"{100 * e['tpr_at_5_percent_fpr'].value:.0f} %"
        cells = [str(e["auroc"]), f"{ap:.3f}", found, *shares, f"{e['calibration_error'].value:.3f}"]
        lines.append(f"| `{each.set}` ({each.n_real} + {each.n_generated}) | {each.condition} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def by_kind(calibration: Calibration) -> str:
    """False alarms on images made by people, of unknown sources, with 95 % Clopper-Pearson intervals."""
    lines = ["| made by people | number | called AI-generated |", "|---|--:|--:|"]
    for each in calibration.false_alarms:
        n, k = each.photographs, each.called_generated
        low = beta.ppf(0.025, k, n - k + 1) if k else 0.0
        high = beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
        lines.append(f"| {each.kind} | {n} | {100 * k / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}] |")
    return "\n".join(lines) + "\n"


def write_tables(name: str) -> None:
    """Report and tables of one detector."""
    folder, out = find_adapter(name)[1], RESULTS / name
    calibration = read_calibration(folder)
    assert calibration is not None
    sets = sets_of(name, pq.read_table(out / "scores.parquet").to_pylist(), calibration)
    info = DetectorInfo(
        name=name,
        id=f"{name}@{adapter_digest(folder)[:12]}",
        thresholds=calibration.thresholds,
        slope=calibration.slope,
        intercept=calibration.intercept,
    )
    report = EvaluationReport(title=f"The detector {name}", detectors=(info,), sets=tuple(each for each, _ in sets))
    (out / "report.json").write_text(
        json.dumps(report.model_dump(mode="json", by_alias=True), indent=1) + "\n", encoding="utf-8"
    )
    for file, text in (("table.md", by_split(sets)), ("alarms.md", by_kind(calibration))):
        (out / file).write_text(text, encoding="utf-8")
        print(f"{name}\n{text}")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for name in NAMES:
        write_tables(name)


if __name__ == "__main__":
    main()
