"""Several detectors on the corpus, side by side, and what others published on their own sets.

    python benchmarks/evaluate_detectors.py --corpus DIR --detector NAME=SPEC ... [--backbone [NAME=]DIR ...]

Reports `test` and `test_unseen`, as stored and equalised, and with `--conditions robustness` the curves too, into
results/evaluate: report.html, .json, .csv and .md, summary.md for the README, and published.md, the published rows on
UnivFD's 19 sets, which cannot be measured without CLIP's weights and those sets. Logits are kept in `--scores`: a run
that was stopped goes on, and a detector that is added or trained anew is scored alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from clipmole.cli.options import name_backbones, name_scorers
from clipmole.cli.render import TERMINAL
from clipmole.data import read_manifest, take_split
from clipmole.evaluation.evaluate import evaluate
from clipmole.evaluation.protocol import load_protocol, published_for
from clipmole.evaluation.records import ALL_SETS, EvaluationReport, PublishedResult
from clipmole.evaluation.scorers import load_scorer
from clipmole.images.conditions import load_conditions
from clipmole.report import write_report
from clipmole.report.page import markdown_table

RESULTS = Path(__file__).resolve().parent / "results" / "evaluate"
SETS = ("test", "test_unseen")
SUMMARY = {
    "average_precision": "AP",
    "auroc": "AUROC",
    "accuracy": "accuracy",
    "tpr_at_5_percent_fpr": "found at 5 % false alarms",
    "equal_error_rate": "EER",
    "uncertain": "uncertain",
}


def with_words(heads: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    """A Markdown table; the first `words` columns are words, the others numbers."""
    return "\n".join(markdown_table(heads, rows, range(words))) + "\n"


def summary(report: EvaluationReport) -> str:
    """A row a set and detector: average precision as stored, the rest equalised, with intervals."""
    found = {(s.set, s.detector, s.condition): s for s in report.sets}
    rows = []
    for name, detector in dict.fromkeys((s.set, s.detector) for s in report.sets if s.set != ALL_SETS):
        stored, equalised = (found[name, detector, condition] for condition in ("as stored", "equalised"))
        figures = [equalised.estimates.get(key) for key in SUMMARY]
        rows.append(
            [
                f"`{name}` ({stored.n_real} + {stored.n_generated})",
                detector,
                str(stored.estimates["average_precision"]),
                *("" if figure is None else str(figure) for figure in figures),
            ]
        )
    recipe = report.recipe
    made = (
        f"Images: photographs + generated. AP as stored, the rest equalised; 95 % bootstrap intervals, images of "
        f"one prompt drawn together. {recipe['date']}, seed {recipe['seed']}, {recipe['cpu']}, torch {recipe['torch']}."
    )
    heads = ["images", "detector", "AP, as stored", *SUMMARY.values()]
    return with_words(heads, rows, 2) + f"\n{made}\n"


def published(figures: Sequence[PublishedResult]) -> str:
    """What others published on UnivFD's sets: AP by set, the means, and the caveats."""
    own = {(f.set, f.method): f for f in figures if f.set}
    methods, sets = (list(dict.fromkeys(key[place] for key in own)) for place in (1, 0))
    rows = [[name, *(f"{own[name, method].value:.2f}" for method in methods)] for name in sets]
    rest = [[f.benchmark, f.method, f.metric, f"{f.value:.2f}", f.note] for f in figures if not f.set]
    return (
        "# Published figures on UnivFD's 19 sets\n\n"
        "None was measured here: neither the sets nor CLIP's weights could be had. Rows are not like for like.\n"
        "`clipmole evaluate --protocol univfd-19` puts them beside one's own.\n\n"
        "Average precision by set, percent (MoLE paper's table):\n\n"
        + with_words(["set", *methods], rows, 1)
        + "\nMeans over the sets, percent:\n\n"
        + with_words(["benchmark", "method", "figure", "value", "caveat"], rest, 3)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--detector", action="append", required=True, metavar="NAME=SPEC")
    parser.add_argument("--backbone", action="append", default=[], metavar="[NAME=]DIR")
    parser.add_argument("--conditions", default="default")
    parser.add_argument("--split", action="append", choices=SETS, help="default: both")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--scores", type=Path, default=Path("runs") / "evaluate")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    splits = arguments.split or SETS
    specs = name_scorers(arguments.detector)
    backbones = name_backbones(arguments.backbone, specs)
    manifest = read_manifest(arguments.corpus / "manifest.csv")
    conditions = load_conditions(arguments.conditions)
    report, table = evaluate(
        {name: load_scorer(spec, backbone=backbones.get(name)) for name, spec in specs.items()},
        {split: take_split(manifest, split) for split in splits},
        conditions,
        arguments.scores / f"{arguments.conditions}.jsonl",
        title="Detectors side by side",
        resamples=arguments.resamples,
        progress=TERMINAL,
    )
    command = "python benchmarks/evaluate_detectors.py --corpus CORPUS --backbone BACKBONE"
    command += "".join(f" --detector '{name}=...'" for name in specs) + f" --conditions {arguments.conditions}"
    command += "".join(f" --split {split}" for split in arguments.split or ())
    report = report.model_copy(update={"recipe": {"command": command} | report.recipe})
    write_report(report, table, arguments.out, conditions=conditions, gallery=False)
    (arguments.out / "summary.md").write_text(summary(report), encoding="utf-8")
    if arguments.conditions == "default":
        rows = published_for(load_protocol("univfd-19"))
        (arguments.out / "published.md").write_text(published(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
