"""Evaluation reports -> the paper's table: published results beside those measured here, as a record and a page."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from clipmole.data import VARIANTS
from clipmole.evaluation.protocol import load_protocol, published_for
from clipmole.evaluation.records import ALL_SETS, EvaluationReport, Number, SetReport
from clipmole.records import Record
from clipmole.report.page import Items, Section, Table, Value, markdown_page
from clipmole.reproduction.plan import METHODS, ExperimentPlan

SURVEYED, SURVEYED_AS = ("MoLE", "mean_accuracy"), ("paper-vit-l-14", "univfd-19")  # a survey's result, and of what
OPEN = (
    "The paper leaves open which blocks are adapted in B/16 and L/14, the ranks, the router's details, the LoRA scale, "
    "the balance loss, the optimiser and its schedule. They are this project's choice here, so a difference may come "
    "from them."
)


class PaperRow(Record):
    """A published result beside the same one measured here, as shares of 1.

    Attributes:
        benchmark: the protocol.
        set: of images; `ALL_SETS` for the mean over those that are here.
        metric: "average_precision", or "accuracy" at logit 0, as the paper takes it.
        published: None: there is none, or it is of other sets than those that are here.
        stored, equalised: measured here, on the images as stored and all re-encoded by one rule.
    """

    benchmark: str
    set: str
    metric: str
    published: float | None
    stored: Number
    equalised: Number

    @property
    def difference(self) -> float | None:
        """Measured here as stored, less published."""
        return None if self.published is None else self.stored - self.published


class PaperTable(Record):
    """The paper's results beside those measured here; `notes` say what is not like for like."""

    method: str
    rows: tuple[PaperRow, ...]
    notes: tuple[str, ...]


def paper_table(plan: ExperimentPlan, reports: Mapping[str, EvaluationReport]) -> PaperTable:
    """The paper's results of the preset's method beside those of the reports."""
    method, rows = METHODS[plan.preset], []
    for name, report in reports.items():
        found = {(own.set, own.condition): own for own in report.sets}
        names = list(dict.fromkeys(own.set for own in report.sets if own.set != ALL_SETS))
        published = published_for(load_protocol(name))
        by_set = {p.set: p.share for p in published if p.set and p.method == method}
        known = {("average_precision", each): share for each, share in by_set.items()}
        if set(names) <= set(by_set):
            known["average_precision", ALL_SETS] = float(np.mean([by_set[each] for each in names]))
        if (plan.preset, name) == SURVEYED_AS and not report.missing:
            known["accuracy", ALL_SETS] = next(p.share for p in published if (p.method, p.metric) == SURVEYED)
        for metric in ("average_precision", "accuracy"):
            for each in [*names, *([ALL_SETS] if len(names) > 1 else [])]:
                stored, equalised = (estimate(found[each, variant], metric) for variant in VARIANTS)
                rows.append(PaperRow(benchmark=name, set=each, metric=metric, published=known.get((metric, each)),
                                     stored=stored, equalised=equalised))  # fmt: skip
    notes = [OPEN]
    if plan.config.per_class is not None:
        notes.append(
            f"Trained on {plan.train_images:,} images, {plan.config.per_class} of each class; the published results by "
            "set are of training on all."
        )
    notes.append(
        "The accuracy published for MoLE is as a survey quotes it (arXiv 2502.15176), taken to be of the largest "
        "backbone. No result of MoLE on GenImage comes with clipmole; those of other methods stand in the report."
    )
    return PaperTable(method=method, rows=tuple(rows), notes=(*notes, *plan.problems))


def estimate(report: SetReport, metric: str) -> float:
    """An estimate of a set; the accuracy at logit 0, also of a calibrated detector."""
    own = report.estimates
    return own["raw_accuracy" if metric == "accuracy" and "raw_accuracy" in own else metric].value


def paper_page(table: PaperTable) -> str:
    """The table as Markdown, in percent."""

    def percent(share: float | None, sign: str = "") -> Value:
        return Value("-" if share is None or math.isnan(share) else f"{100 * share:{sign}.2f}")

    sections = []
    for benchmark, metric in dict.fromkeys((row.benchmark, row.metric) for row in table.rows):
        own = [row for row in table.rows if (row.benchmark, row.metric) == (benchmark, metric)]
        name = metric.replace("_", " ")
        rows = [(r.set, percent(r.published), percent(r.stored), percent(r.difference, "+"), percent(r.equalised))
                for r in own]  # fmt: skip
        heads = ["set", "published", "here, as stored", "difference", "here, equalised"]
        shown = Table(f"{table.method}: {name}, percent", heads, rows)
        sections.append(Section(f"{benchmark}-{metric}", f"{benchmark}: {name}", [shown]))
    return markdown_page(f"{table.method} beside the paper", [Items(table.notes)], sections)
