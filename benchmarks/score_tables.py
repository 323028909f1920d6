"""The default detector's table, from the committed scores of every image: no image is needed.

    python benchmarks/score_tables.py

In: `results/mole-vit-b-16/scores.parquet` (sha256 of the file, label, split, generator, source, kind, logit) and the
packaged calibration. Out: a Markdown table on stdout and in `results/mole-vit-b-16/table.md`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from clipmole.models.adapter import find_adapter, read_calibration

FOLDER = Path(__file__).parent / "results" / "mole-vit-b-16"


def main() -> None:
    calibration = read_calibration(find_adapter("mole-vit-b-16")[1])
    assert calibration is not None
    columns = pq.read_table(FOLDER / "scores.parquet").to_pydict()
    split, kind, label, logit = (np.array(columns[name]) for name in ("split", "kind", "label", "logit"))
    lines = [
        "| split (photographs + generated) | AUROC | AP | found at 5 % false alarms | AUROC, photo-like fakes "
        "| called AI-generated: photographs | generated | uncertain |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in ("val", "calibration", "test"):
        own = split == name
        y, z = label[own], logit[own]
        weight = np.where(y == 1, 0.5 / (y == 1).sum(), 0.5 / (y == 0).sum())
        photo = (y == 0) | (kind[own] == "photo")
        alarms, found, _ = roc_curve(y, z)
        p = calibration.probabilities(z)
        called, cleared = p > calibration.thresholds.generated, p < calibration.thresholds.real
        lines.append(
            f"| `{name}` ({(y == 0).sum()} + {(y == 1).sum()}) | {roc_auc_score(y, z):.3f} "
            f"| {average_precision_score(y, z, sample_weight=weight):.3f} | {100 * found[alarms <= 0.05].max():.0f} % "
            f"| {roc_auc_score(y[photo], z[photo]):.3f} | {100 * called[y == 0].mean():.1f} % "
            f"| {100 * called[y == 1].mean():.0f} % | {100 * (~called & ~cleared).mean():.0f} % |"
        )
    text = "\n".join(lines) + "\n"
    (FOLDER / "table.md").write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
