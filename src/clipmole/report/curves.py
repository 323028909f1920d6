"""The sections of a report that are plots of the scores.

In: `Content`. Out: blocks of a page; none if there is nothing to show. The points of curves come from `metrics`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from clipmole import metrics
from clipmole.report import plots
from clipmole.report.content import DASH, MANY, Content, bare, estimates_in_words, metric_name, number
from clipmole.report.page import Cell, Drawings, Fold, Heading, Items, PageBlock, Table

BINS = 40  # of a histogram of scores


def ranking(content: Content) -> list[PageBlock]:
    """ROC and precision-recall curves of every set under the main conditions."""
    blocks: list[PageBlock] = []
    for name in content.sets:
        drawn = []
        for kind in ("ROC", "precision-recall"):
            for condition in content.main:
                lines = []
                for index, detector in enumerate(content.names):
                    view = content.scored_images(detector, name, condition)
                    if kind == "ROC":
                        x, y = metrics.roc_points(view.labels, view.logits)
                    else:
                        x, y = stairs(*metrics.precision_recall_points(view.labels, view.logits))
                    lines += [plots.Line(index, x.tolist(), y.tolist())] if len(x) else []
                if not lines:
                    continue
                key = "auroc" if kind == "ROC" else "average_precision"
                label = f"{kind} on {name}, {condition}: " + estimates_in_words(content, name, condition, key)
                texts = ("false alarms, %", "found, %") if kind == "ROC" else ("recall, %", "precision, %")
                x_axis, y_axis = (plots.even_axis(text, 0, 1) for text in texts)
                chart = plots.chart(lines, x_axis, y_axis, label, diagonal=kind == "ROC")
                drawn.append((chart, f"{kind}, {condition}"))
        one_class = f"{name}: not defined with one class only."
        blocks += content.of_set(name, [Drawings(drawn)]) if drawn else [one_class]
    return [content.legend(), *blocks]


def stairs(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points (m,) -> the corners (2 m,) of steps: each step has the height y of its point, from the x before it."""
    return np.repeat(np.append(0.0, x), 2)[1:-1] if len(x) else x, np.repeat(y, 2)


def calibrated(content: Content) -> list[tuple[int, str]]:
    """Index and name of each detector that is calibrated."""
    return [(i, d.name) for i, d in enumerate(content.report.detectors) if d.slope is not None]


def together(content: Content, drawn: Sequence[tuple[str, tuple[Element, str]]]) -> list[PageBlock]:
    """Drawings, each with its set: in one grid, or folded away by set if there are more than `MANY`."""
    if len(content.sets) <= MANY:
        return [Drawings([drawing for _, drawing in drawn])]
    sets = dict.fromkeys(name for name, _ in drawn)
    return [Fold(name, [Drawings([drawing for own, drawing in drawn if own == name])]) for name in sets]


def reliability(content: Content) -> list[PageBlock]:
    """Reliability diagrams of the calibrated detectors."""
    drawn = []
    for name in content.sets:
        for condition in content.main:
            lines, rows = [], []
            for index, detector in calibrated(content):
                view = content.scored_images(detector, name, condition)
                if view.probabilities is None or not 0 < view.labels.sum() < len(view.labels):
                    continue
                bins = metrics.reliability_bins(view.labels, view.probabilities)
                mean, share = bins.mean_probability.tolist(), bins.share_generated.tolist()
                lines.append(plots.Line(index, mean, share, marked=True))
                rows.append([short(n) for n in bins.images.tolist()])
            if lines:
                label = f"Reliability on {name}, {condition}: "
                label += estimates_in_words(content, name, condition, "calibration_error")
                x_axis = plots.even_axis("probability given, %", 0, 1)
                y_axis = plots.even_axis("share generated, %", 0, 1)
                chart = plots.chart(lines, x_axis, y_axis, label, diagonal=True, rows=rows)
                drawn.append((name, (chart, f"{name}, {condition}")))
    if not drawn:
        return []
    return [
        content.legend(),
        *together(content, drawn),
        "On the diagonal a probability means what it says. Probabilities are meant for as many generated images as "
        "photographs; a set with another share stands off the diagonal for that alone. Under each tenth of the axis "
        "stands the number of images in it, for each detector; points of few images mean little. Uncalibrated "
        "detectors give no probability and are left out.",
    ]


def short(count: int) -> str:
    """A count in at most four characters."""
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k" if count < 1_000_000 else f"{count / 1e6:.0f}M"


def histograms(content: Content) -> list[PageBlock]:
    """A histogram of scores for each detector, set and main condition."""
    blocks: list[PageBlock] = []
    for name in content.sets:
        drawn = [
            (score_histogram(content, i, detector, name, condition), f"{content.brief(detector)}, {condition}")
            for i, detector in enumerate(content.names)
            for condition in content.main
            if len(content.scored_images(detector, name, condition).labels)
        ]
        blocks += content.of_set(name, [Drawings(drawn)] if drawn else [])
    if blocks:
        blocks.append(
            "Photographs above the line, generated images below, each as shares of its class. Dashed: the thresholds; "
            "likely photograph to the left, likely AI-generated to the right, no verdict between. Scores beyond the "
            "axis stand in its outermost bins. Probabilities are drawn on the scale of log-odds."
        )
    return blocks


def score_histogram(content: Content, index: int, detector: str, name: str, condition: str) -> Element:
    """The scores of one detector on the set `name`: photographs above the base line, generated images below."""
    view, info = content.scored_images(detector, name, condition), content.info(detector)
    marks: list[tuple[float, str]] = []
    if info.slope is not None and info.intercept is not None:
        edge = log_odds(0.9999)
        values = info.slope * view.logits + info.intercept
        ticks = [(log_odds(p), f"{100 * p:g}") for p in (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)]
        axis = plots.Axis("probability of being AI-generated, %", -edge, edge, ticks)
        if info.thresholds:
            bounds = ((info.thresholds.real, "real < "), (info.thresholds.generated, "AI > "))
            marks = [(log_odds(p), f"{text}{100 * p:.3g}") for p, text in bounds if 0 < p < 1]
    else:
        every = [content.scored_images(detector, s, c).logits for s in content.sets for c in content.main]
        low, high = np.quantile(np.concatenate(every), [0.002, 0.998]).tolist()
        values = view.logits
        axis = plots.even_axis("score (not calibrated)", low, max(high, low + 1e-6), percent=False)
    values = np.clip(values, axis.low, axis.high)
    real, ai = values[view.labels == 0], values[view.labels == 1]
    up, down = (np.histogram(own, BINS, (axis.low, axis.high))[0] / max(len(own), 1) for own in (real, ai))
    texts = (f"{len(real):,} photographs", f"{len(ai):,} generated")
    label = f"Scores of {detector} on {name}, {condition}: {texts[0]} above, {texts[1]} below"
    return plots.mirrored_histogram(index, up.tolist(), down.tolist(), axis, label, corners=texts, lines=marks)


def log_odds(p: float) -> float:
    """ln(p / (1 - p)) for 0 < p < 1."""
    return math.log(p / (1 - p))


def coverage(content: Content) -> list[PageBlock]:
    """The calibrated detectors' accuracy on the most confident share of the images, for every share."""
    curves: dict[tuple[str, str], list[plots.Line]] = {}
    for name in content.sets:
        for condition in content.main:
            lines, points = [], []
            for index, detector in calibrated(content):
                view = content.scored_images(detector, name, condition)
                if view.probabilities is None or not len(view.labels):
                    continue
                x, y = metrics.risk_coverage(view.labels, view.probabilities)
                wide = x >= 0.05  # before, it is the accuracy of a few images
                lines.append(plots.Line(index, x[wide].tolist(), y[wide].tolist()))
                uncertain = content.estimate(detector, name, condition, "uncertain")
                given = content.estimate(detector, name, condition, "selective_accuracy")
                if uncertain and given:
                    points.append(plots.Line(index, [1 - uncertain.value], [given.value], marked=True))
            curves[name, condition] = lines + points
    lowest = [v for lines in curves.values() for line in lines for v in line.y if not math.isnan(v)]
    if not lowest:
        return []
    y_axis = plots.even_axis("accuracy, %", min(*lowest, 0.9), 1)
    drawn = []
    for (name, condition), lines in curves.items():
        if lines:
            label = f"Accuracy against coverage on {name}, {condition}: accuracy of the verdicts given "
            label += estimates_in_words(content, name, condition, "selective_accuracy").removeprefix(
                metric_name("selective_accuracy")
            )
            chart = plots.chart(lines, plots.even_axis("images answered, most confident first, %", 0, 1), y_axis, label)
            drawn.append((name, (chart, f"{name}, {condition}")))
    return [
        content.legend(),
        *together(content, drawn),
        "If only the most confident share of the images were answered, this share of the answers would be right. The "
        "marker: the verdicts as they are given, with the uncertain images left out.",
    ]


def robustness(content: Content) -> list[PageBlock]:
    """How the metrics change under other conditions: curves for families of conditions, and a table of all."""
    others = [c for c in dict.fromkeys(s.condition for s in content.report.sets) if c not in content.main]
    families: dict[str, list[tuple[float, str]]] = {}
    for condition in others:
        family, strength = content.families.get(condition, ("", 0.0))
        if family:
            families.setdefault(family, []).append((strength, condition))
    curves = {family: sorted(points) for family, points in families.items() if len(points) > 1}
    blocks: list[PageBlock] = []
    for name in content.groups if len(content.sets) > MANY else content.sets:
        own: list[Heading | Drawings | Table] = []
        for key in ("average_precision", "accuracy"):
            drawn = family_charts(content, name, key, curves)
            own += [Heading(metric_name(key), level=4), Drawings(drawn)] if drawn else []
        rows: list[tuple[Cell, ...]] = []
        keys = ("average_precision", "accuracy", "false_alarm")
        for condition in [*content.main, *others] if others else []:
            cells = [number(content.estimate(d, name, condition, key)) for key in keys for d in content.names]
            if any(cell.text != DASH for cell in cells):
                rows.append((condition, *cells))
        heads = [
            f"{metric_name(key).partition(':')[0]}\n{content.brief(detector)}"
            for key in keys
            for detector in content.names
        ]
        if rows:
            caption = f"Every condition, {name}, percent"
            own += [Heading("every condition", level=4), Table(caption, ["condition", *heads], rows)]
        blocks += content.of_set(name, own)
    if not blocks:
        return []
    caveats = [f"{condition}: {note}" for condition, note in content.notes.items() if note and condition in others]
    return [
        content.legend(),
        *blocks,
        *([Items(caveats)] if caveats else []),
        "All plots of one metric have the same vertical axis; thin dotted lines: as stored. Shaded: 95 % intervals. "
        "Every detector saw the same perturbed pixels.",
    ]


def family_charts(
    content: Content, name: str, key: str, curves: Mapping[str, Sequence[tuple[float, str]]]
) -> list[tuple[Element, str]]:
    """(chart, family) for each family of conditions, all with the same vertical axis on every set.

    Args:
        name: of the set.
        key: the metric.
        curves: family -> (strength, condition) of its points.
    """
    every = [f for s in content.report.sets if (f := s.estimates.get(key)) and not math.isnan(f.value)]
    if not every:
        return []
    bottom = min(f.value if math.isnan(f.low) else f.low for f in every)
    y_axis = plots.even_axis(f"{metric_name(key)}, %", min(bottom, 0.9), 1)
    drawn = []
    for family, points in curves.items():
        lines, levels = [], []
        for index, detector in enumerate(content.names):
            estimates = [(x, content.estimate(detector, name, condition, key)) for x, condition in points]
            values = [(x, *bare(f)) for x, f in estimates if f and not math.isnan(f.value)]
            if values:
                x, y, low, high = (list(column) for column in zip(*values, strict=True))
                lines.append(plots.Line(index, x, y, low, high, marked=True))
                levels.append((index, bare(content.estimate(detector, name, content.main[0], key))[0]))
        if lines:
            strengths = [x for x, _ in points]
            margin = (max(strengths) - min(strengths)) * 0.04 or 1
            ticks = [(x, f"{x:g}") for x in strengths]
            x_axis = plots.Axis("", min(strengths) - margin, max(strengths) + margin, plots.legible(ticks))
            label = f"{metric_name(key)} against {family} on {name}; the table below holds the numbers"
            drawn.append((plots.chart(lines, x_axis, y_axis, label, levels=levels), family))
    return drawn
