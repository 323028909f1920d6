"""The embedded detector on images it never saw, next to a linear probe on the same frozen trunk.

    python benchmarks/embedded_detector.py --corpus DIR --probe DIR [--outside DIR] [--originals DIR]

Reports `test` and `test_unseen`; with `--outside` images of other generators and other photographs (see
outside/README.md), and with `--originals` whole full-size images of the validation groups, one centre crop against
several tiles. Always as stored and equalised. `--probe` is the adapter directory of
configs/embedded-linear-probe.toml. Writes a report for each into results/embedded, and the README's table.
A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from clipmole.cli.render import TERMINAL
from clipmole.data import limit_samples, read_manifest, take_split
from clipmole.data.sample import Sample
from clipmole.evaluation.evaluate import evaluate
from clipmole.evaluation.records import ALL_SETS, EvaluationReport
from clipmole.evaluation.scorers import Scorer, with_center_crop
from clipmole.images.conditions import load_conditions
from clipmole.inference.detector import Detector
from clipmole.report import write_report

HERE = Path(__file__).resolve().parent
RATES = {"false_alarm": "photographs called AI-generated", "detected": "generated found", "uncertain": "uncertain"}


def outside_sets(folder: Path) -> dict[str, Sequence[Sample]]:
    """The outside images in two sets with the same photographs: generated ones like photographs, and drawn ones."""
    with (HERE / "outside" / "outside.csv").open(newline="", encoding="utf-8") as file:
        drawn = {row["sha256"] for row in csv.DictReader(file) if row["note"].startswith("drawn")}
    samples = take_split(read_manifest(folder / "manifest.csv"), "outside")
    return {
        "outside": [s for s in samples if s.path.stem not in drawn],
        "outside_drawn": [s for s in samples if s.label == 0 or s.path.stem in drawn],
    }


def summary_table(reports: Sequence[EvaluationReport], probe: str, one_crop: str) -> list[str]:
    """The README's table: a row a set and condition of the embedded detector, others beside it by their AP."""
    heads = ["images", "AP", "AP of the probe", "AP of one crop", "AUROC", *RATES.values()]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)]
    for report in reports:
        found = {(s.detector, s.set, s.condition): s for s in report.sets}
        for (detector, name, condition), s in found.items():
            if detector != "embedded" or name == ALL_SETS:
                continue
            others = [found.get((other, name, condition)) for other in (probe, one_crop)]
            cells = [
                f"`{name}`, {condition} ({s.n_real} + {s.n_generated})",
                str(s.estimates["average_precision"]),
                *("" if o is None else f"{o.estimates['average_precision'].value:.3f}" for o in others),
                str(s.estimates["auroc"]),
                *(f"{s.estimates[key].value:.1%}" for key in RATES),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--probe", type=Path, required=True)
    parser.add_argument("--outside", type=Path)
    parser.add_argument("--originals", type=Path)
    parser.add_argument(
        "--whole-limit", type=int, default=8, help="whole images of each generator and of the photographs"
    )
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "embedded")
    arguments = parser.parse_args()

    embedded = Detector.from_pretrained("embedded")
    probe, one_crop = "linear probe on its trunk", "embedded, one centre crop"
    beside_probe: dict[str, Scorer] = {"embedded": embedded, probe: Detector.from_pretrained(arguments.probe)}
    beside_crop: dict[str, Scorer] = {"embedded": embedded, one_crop: with_center_crop(embedded)}
    manifest = read_manifest(arguments.corpus / "manifest.csv")
    jobs: dict[str, tuple[str, Mapping[str, Scorer], dict[str, Sequence[Sample]]]] = {
        "corpus": (
            "The embedded detector and a linear probe on its trunk",
            beside_probe,
            {split: take_split(manifest, split) for split in ("test", "test_unseen")},
        )
    }
    if arguments.outside:
        jobs["outside"] = ("Other generators, other photographs", beside_crop, outside_sets(arguments.outside))
    if arguments.originals:
        whole = take_split(read_manifest(arguments.originals / "manifest.csv"), "val")
        large = {"whole_val": limit_samples(whole, arguments.whole_limit, 0)}
        jobs["whole"] = ("Whole images of the validation groups: tiles against one crop", beside_crop, large)
    reports = []
    for name, (title, scorers, sets) in jobs.items():
        print(title, file=sys.stderr)
        folder = arguments.out / name
        report, table = evaluate(
            scorers,
            sets,
            load_conditions("default"),
            folder / "scores.jsonl",
            title=title,
            resamples=arguments.resamples,
            progress=TERMINAL,
        )
        command = "python benchmarks/embedded_detector.py --corpus CORPUS --probe PROBE"
        command += " --outside OUTSIDE" * (name == "outside") + " --originals ORIGINALS" * (name == "whole")
        report = report.model_copy(update={"recipe": {"command": command} | report.recipe})
        write_report(report, table, folder, gallery=False)
        (folder / "scores.jsonl").unlink()  # it names places of this machine
        reports.append(report)
    (arguments.out / "summary.md").write_text(
        "\n".join(summary_table(reports, probe, one_crop)) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
