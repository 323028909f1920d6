"""The results of an evaluation -> a page, `report.html`, and the same as JSON, CSV and Markdown.

In: an `EvaluationReport` and the `ScoreTable` that it was made from. Out: four files in a folder. Numbers come from
the report; the points of curves come from `metrics` and the scores. It measures nothing, and knows nothing of how
images are scored.

Shares are printed in percent, with their 95 % bootstrap interval beneath; nan is a dash. JSON and CSV hold them as
shares.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from clipmole.errors import DataError
from clipmole.evaluation.records import ALL_SETS, EvaluationReport
from clipmole.evaluation.scores import ScoreTable
from clipmole.images.conditions import Condition
from clipmole.plumbing.files import foreign_file, write_texts
from clipmole.plumbing.json_toml import read_json
from clipmole.plumbing.text import csv_cell, printable
from clipmole.report import curves, mistakes, tables
from clipmole.report.content import Content
from clipmole.report.page import Section, html_page, markdown_page, read_page

__all__ = ["write_report"]

COLUMNS = (  # of report.csv
    *("detector", "set", "condition", "figure", "value", "low", "high", "real", "ai"),
    *("scope", "generator", "minus", "note"),
)


def check_report_folder(folder: Path) -> None:
    """Raise `DataError` if files in `folder` that a report would replace are not an older report by clipmole."""

    def read_record(path: Path) -> None:
        values = read_json(path.with_name("report.json"), DataError)
        if not isinstance(values, dict) or not {"detectors", "sets"} <= values.keys():
            raise DataError(f"{path}: is not a report")

    def read_table(path: Path) -> None:
        with path.open(encoding="utf-8") as file:
            if not file.readline().startswith("detector,set,condition,"):
                raise DataError(f"{path}: is not a table of a report")

    files = {"report.json": read_record, "report.csv": read_table, "report.md": read_record, "report.html": read_page}
    if path := foreign_file(folder, files):
        raise DataError(f"{path}: exists and is not a report by clipmole; name another --out")


def write_report(
    report: EvaluationReport,
    table: ScoreTable,
    folder: Path,
    *,
    conditions: Sequence[Condition] = (),
    gallery: bool = True,
) -> Path:
    """Write `report.html`, `.json`, `.csv` and `.md` into `folder`, which is made if it is not there.

    All four are written before the first is moved to its place, so a full disk leaves an older report unchanged. The
    same report and scores give the same bytes.

    Args:
        report: the estimates.
        table: the scores that they were made from.
        folder: to write into.
        conditions: the conditions of the report. Their families and strengths place them on the robustness curves, and
            their notes are printed there. A condition without a family is shown as a row of a table.
        gallery: show the worst mistakes as thumbnails. Turn it off if the images must not be passed on.

    Returns the path of `report.html`. Raises `DataError` if the folder cannot be written.
    """
    check_report_folder(folder)
    families = {each.name: (each.family, each.strength) for each in conditions if each.family}
    notes = {each.name: each.note for each in conditions if each.note}
    content = Content(report, table, families, notes)
    lead, parts = tables.summary(content), sections(content, gallery)
    texts = {
        "report.json": report.model_dump_json(indent=2) + "\n",
        "report.csv": tidy(content),
        "report.md": markdown_page(report.title, lead, parts),
        "report.html": html_page(report.title, lead, parts) + "\n",
    }
    try:
        write_texts(folder, texts)
    except OSError as error:
        raise DataError(
            f"{folder}: the report cannot be written: {error.strerror}; name another folder or free some space"
        ) from error
    return folder / "report.html"


def tidy(content: Content) -> str:
    """The text of `report.csv`: one estimate per row.

    `scope` says what an estimate is about: "set": all images of the set; "generator": the images of `generator` and all
    photographs; "mean": the mean over generators; "difference": the estimate of `detector` minus that of `minus` on the
    same images; "published": what was published for `detector`, with a caveat in `note`; "origin": images of known or
    new sources and generators; "kind": the photographs of one kind, named in `note`. `set` may also be the mean over
    all sets.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")

    def write(row: Iterable[object]) -> None:
        writer.writerow([csv_cell(printable(value)) if isinstance(value, str) else value for value in row])

    write(COLUMNS)
    for s in content.report.sets:
        groups = [("set", "", s.estimates, s.n_generated), ("mean", "", s.means, s.n_generated)]
        groups += [("generator", g, estimates, content.generated[s.set, g]) for g, estimates in s.generators.items()]
        for scope, generator, estimates, n_generated in groups:
            for key, f in estimates.items():
                numbers = (f.value, f.low, f.high, s.n_real, n_generated)
                write((s.detector, s.set, s.condition, key, *numbers, scope, generator, "", ""))
        for origin in s.origins:
            f = origin.auroc
            numbers = (f.value, f.low, f.high, origin.n_real, origin.n_generated)
            source, generator = map(tables.known_or_new, (origin.known_source, origin.known_generator))
            note = f"{source} sources of photographs, {generator} generators"
            write((s.detector, s.set, s.condition, "auroc", *numbers, "origin", "", "", note))
        for kind in s.kinds:
            for key, f in (("false_alarm", kind.false_alarm), ("uncertain", kind.uncertain)):
                numbers = (f.value, f.low, f.high, kind.n_real, 0)
                write((s.detector, s.set, s.condition, key, *numbers, "kind", "", "", kind.kind))
    for d in content.report.differences:
        own = content.found.get((d.first, d.set, d.condition))
        counts = (own.n_real, own.n_generated) if own else ("", "")
        f = d.estimate
        numbers = (f.value, f.low, f.high, *counts)
        write((d.first, d.set, d.condition, d.metric, *numbers, "difference", "", d.second, ""))
    for p in content.report.published:
        where = p.set or f"{ALL_SETS} of {p.benchmark}"
        write((p.method, where, "", p.metric, p.share, *[""] * 4, "published", "", "", p.note))
    return file.getvalue()


def sections(content: Content, gallery: bool) -> list[Section]:
    """All sections that have something to show; the worst mistakes only if `gallery`."""
    made = [
        Section("results", "Results", tables.headline(content)),
        Section("detectors", "Detectors", tables.detectors(content)),
        Section("differences", "Paired differences", tables.difference_tables(content)),
        Section("published", "Published results beside these", tables.published(content)),
        Section("origins", "Known and new sources and generators", tables.origin_tables(content)),
        Section("kinds", "By kind of photograph", tables.kind_tables(content)),
        Section("generators", "By generator", tables.generator_tables(content)),
        Section("ranking", "ROC and precision-recall", curves.ranking(content)),
        Section("reliability", "Are the probabilities right?", curves.reliability(content)),
        Section("scores", "Scores by class", curves.histograms(content)),
        Section("coverage", "Accuracy against coverage", curves.coverage(content)),
        Section("robustness", "Robustness", curves.robustness(content)),
        Section("mistakes", "Worst mistakes", mistakes.worst(content) if gallery else []),
        Section("estimates", "All estimates", tables.estimate_tables(content)),
        Section("missing", "Not evaluated", tables.missing(content)),
        Section("recipe", "Recipe", tables.recipe_blocks(content.report.recipe)),
    ]
    return [section for section in made if section.blocks]
