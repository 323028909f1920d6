"""A finished training run -> one page: curves, use of the experts, validation, mistakes, and how it was trained.

In: the record of the run (`train.json`), and estimates and scores of its validation images. Out: HTML. It measures
nothing, and knows nothing of networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element

from clipmole.config import Families
from clipmole.evaluation.records import EvaluationReport
from clipmole.evaluation.scores import ScoreTable
from clipmole.plumbing.json_toml import flattened
from clipmole.report import curves, mistakes, plots, tables
from clipmole.report.content import Content, in_line, number
from clipmole.report.families import family_section
from clipmole.report.page import Cell, Drawings, Note, PageBlock, Section, Table, Value, element, html_page

TICKS = 6  # on the axis of epochs


def training_page(record: dict[str, Any], report: EvaluationReport, table: ScoreTable) -> str:
    """The page of a run.

    Args:
        record: of the run, as in `train.json`.
        report, table: estimates and scores of its validation images, as stored and equalised.
    """
    content = Content(report, table, {}, {})
    name, curve = content.names[0], record["curve"]
    best = curve[record["best_epoch"]]
    found = number(content.estimate(name, content.sets[0], content.main[-1], "average_precision"))
    verdict = (
        f"{name}: average precision {in_line(found)} on the validation images, {content.main[-1]}, "
        f"from epoch {record['best_epoch'] + 1} of {len(curve)}."
    )
    minutes = sum(epoch["seconds"] for epoch in curve) / 60
    data = record["data"]
    lead: list[PageBlock] = [
        element("p", verdict, class_="verdict"),
        f"{data['train']:,} training images, {data['val']:,} for validation, {data['calibration']:,} for calibration; "
        f"{record['trained_parameters']:,} trained parameters on {record['backbone']['id']} "
        f"({record['tower_parameters']:,}); {minutes:.1f} minutes of epochs.",
        Note(
            "The epoch was chosen by its result on these validation images, and perhaps the settings were as well, "
            "so it is too good. Expect less on others; clipmole evaluate measures it on images that played no part."
        ),
    ]
    sections = [
        Section("curves", "Curves", curve_charts(curve, record["best_epoch"])),
        Section("gates", "Use of the experts", gate_charts(curve, record.get("adapted_blocks", []), best)),
        Section("generators", "Validation by generator", tables.generator_tables(content)),
        *([family_section(Families.parse(record["families"], "families"))] if "families" in record else []),
        Section("validation", "Validation results", tables.estimate_tables(content)),
        Section("scores", "Scores by class", curves.histograms(content)),
        Section("mistakes", "Worst mistakes in validation", mistakes.worst(content)),
        Section("recipe", "Recipe", run_recipe(record)),
    ]
    return html_page(f"Training of {name}", lead, [section for section in sections if section.blocks])


def curve_charts(curve: Sequence[dict[str, Any]], best: int) -> list[PageBlock]:
    """Losses, validation and learning rate over the epochs."""
    charts = [
        epoch_chart(curve, [("loss", "training loss")]),
        epoch_chart(curve, [("val_ap", "AP"), ("val_mean_generator_ap", "mean AP over generators")], True),
        epoch_chart(curve, [("balance_loss", "balance loss")]),
        epoch_chart(curve, [("learning_rate", "learning rate")]),
    ]
    drawn = [
        (charts[0], "Training loss: cross-entropy, nats"),
        (charts[1], "Validation, equalised, percent: AP, and its mean over generators (dashed)"),
        (charts[2], "Balance loss: 1 if all experts are used equally"),
        (charts[3], "Learning rate of LoRAs, routers and head, at the end of the epoch"),
    ]
    heads = ["epoch", "loss", "validation AP", "mean over\ngenerators", "balance loss", "learning rate", "seconds"]
    rows: list[tuple[Cell, ...]] = [
        (
            f"{e['epoch'] + 1}",
            Value(f"{e['loss']:.4f}"),
            Value(f"{100 * e['val_ap']:.1f}"),
            Value(f"{100 * e['val_mean_generator_ap']:.1f}"),
            Value(f"{e['balance_loss']:.3f}"),
            Value(f"{e['learning_rate']:.2e}"),
            Value(f"{e['seconds']:.1f}"),
        )
        for e in curve
    ]
    shown = Table("Every epoch; the one that was kept is set apart", heads, rows, apart=frozenset({best}))
    return [Drawings(drawn), shown]


def epoch_chart(curve: Sequence[dict[str, Any]], keys: Sequence[tuple[str, str]], percent: bool = False) -> Element:
    """A line over the epochs for each of `keys`, pairs of a key of `curve` and its name.

    Args:
        curve: a record for each epoch.
        percent: the values are shares, to be shown in percent.
    """
    lines = [
        plots.Line(i, [e["epoch"] + 1 for e in curve], [e[key] for e in curve], marked=len(curve) < 2)
        for i, (key, _) in enumerate(keys)
    ]
    last = "; ".join(f"{called} {curve[-1][key]:.4g} at the end" for key, called in keys)
    return over_epochs(lines, f"Over the epochs: {last}", percent)


def over_epochs(lines: Sequence[plots.Line], label: str, percent: bool = False) -> Element:
    """A chart over epochs. Its y axis has no label, since its numbers may be long; the caption says what it shows."""
    values = [y for line in lines for y in line.y if math.isfinite(y)] or [0.0]
    low, high = min(values), max(values)
    room = (high - low) * 0.05 or max(abs(high) * 0.05, 1e-6)
    top = min(high + room, 1.0) if percent else high + room
    y_axis = plots.even_axis("", max(0.0, low - room), top, 4, percent)
    epochs = max(len(line.x) for line in lines)
    step = max(1, math.ceil(epochs / TICKS))
    ticks = [(float(x), str(x)) for x in range(1, epochs + 1, step)]
    return plots.chart(lines, plots.Axis("epoch", 1 if epochs > 1 else 0, max(epochs, 2), ticks), y_axis, label)


def gate_charts(curve: Sequence[dict[str, Any]], blocks: Sequence[int], best: dict[str, Any]) -> list[PageBlock]:
    """The mean gate of each expert over the epochs, one chart per block; nothing if there are no gates.

    Args:
        curve: a record for each epoch.
        blocks: indices of the adapted blocks.
        best: the record of the epoch that was kept.
    """
    if not best.get("gates"):
        return []
    experts = len(best["gates"][0])
    drawn = []
    for row, block in enumerate(blocks):
        epochs = [e["epoch"] + 1 for e in curve]
        lines = [
            plots.Line(i, epochs, [e["gates"][row][i] for e in curve], marked=len(curve) < 2) for i in range(experts)
        ]
        gates = "; ".join(f"expert {i + 1} {100 * g:.1f} %" for i, g in enumerate(best["gates"][row]))
        drawn.append((over_epochs(lines, f"Block {block}, in the epoch kept: {gates}", True), f"Block {block}"))
    said = f"The gates of a token sum to 100; {experts} experts that are used equally have {100 / experts:.3g} each."
    if abs(sum(best["gates"][0]) - 1) > 1e-3:  # sigmoids, softmaxes of groups, or a softmax that is cut
        said = "They need not sum to 100: an expert that was added later, for example, has a gate of its own."
    return [
        plots.legend([f"expert {i + 1}" for i in range(experts)], "Experts"),
        Drawings(drawn),
        f"Mean gate of each expert over all tokens of an epoch's training images, percent. {said}",
    ]


def run_recipe(record: dict[str, Any]) -> list[PageBlock]:
    """Settings, data and versions."""
    settings = flattened(record["config"])
    facts = {f"backbone {key}": value for key, value in record["backbone"].items() if value is not None}
    facts |= {f"data {key}": value for key, value in record["data"].items()} | record["environment"]
    return [
        Table("Settings", ["", ""], [(key, tables.as_text(value)) for key, value in settings.items()]),
        Table(
            "Backbone, data, versions and hardware",
            ["", ""],
            [(key, tables.as_text(value)) for key, value in facts.items()],
        ),
    ]
