"""The data of a report's sections: its estimates, its scores, and the names of metrics.

In: an `EvaluationReport` and its `ScoreTable`. Out: estimates by name, labels and probabilities by detector, set and
condition, and numbers as they are printed: percent for a share, a dash for nan.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from clipmole.calibration import sigmoid
from clipmole.data import VARIANTS, labels_of
from clipmole.evaluation.records import ALL_SETS, DetectorInfo, Estimate, EvaluationReport, SetReport
from clipmole.evaluation.scores import ScoreTable
from clipmole.report import plots
from clipmole.report.page import Drawings, Fold, Heading, Items, Name, Note, PageBlock, Table, Value, element

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
MANY = 4  # sets: if there are more, each is folded away
NAME_LENGTH = 30  # of a detector in tables; the list of detectors shows it in full
NOT_A_SHARE = frozenset({"negative_log_likelihood"})
METRIC_NAMES = {
    "average_precision": "AP",
    "auroc": "AUROC",
    "tpr_at_1_percent_fpr": "found at 1 % false alarms",
    "tpr_at_5_percent_fpr": "found at 5 % false alarms",
    "equal_error_rate": "equal error rate",
    "oracle_accuracy": "oracle accuracy (threshold searched on these very images: an upper bound, no result)",
    "alarm_accuracy": "accuracy at the threshold for AI-generated (no verdict counts as photograph)",
    "raw_accuracy": "accuracy at score 0 (before calibration)",
    "real_accuracy": "accuracy on photographs",
    "fake_accuracy": "accuracy on generated",
    "calibration_error": "calibration error (ECE)",
    "negative_log_likelihood": "negative log-likelihood, nats",
    "false_alarm": "false alarms: photographs called AI-generated",
    "detected": "generated called AI-generated",
    "miss": "generated called photographs",
    "uncertain": "no verdict (uncertain)",
    "selective_accuracy": "accuracy of the verdicts given",
}


@dataclass(frozen=True)
class ScoredImages:
    """The images of one set under one condition that got a finite logit from one detector."""

    labels: NDArray[np.int64]
    logits: NDArray[np.float64]
    probabilities: NDArray[np.float64] | None  # None: not calibrated


@dataclass(frozen=True)
class Content:
    """The report and the scores, with ways to find things in them."""

    report: EvaluationReport
    table: ScoreTable
    families: Mapping[str, tuple[str, float]]
    notes: Mapping[str, str]
    found: dict[tuple[str, str, str], SetReport] = field(init=False)
    labels: NDArray[np.int64] = field(init=False)
    generated: Counter[tuple[str, str]] = field(init=False)  # (set, generator) -> images

    def __post_init__(self) -> None:
        found = {(s.detector, s.set, s.condition): s for s in self.report.sets}
        object.__setattr__(self, "found", found)
        made = zip(self.table.sets.tolist(), self.table.samples, strict=True)
        object.__setattr__(self, "generated", Counter((name, s.generator) for name, s in made if s.label == 1))
        object.__setattr__(self, "labels", np.asarray(labels_of(self.table.samples), dtype=np.int64))

    @property
    def names(self) -> list[str]:
        """Of the detectors."""
        return [detector.name for detector in self.report.detectors]

    @property
    def sets(self) -> list[str]:
        return list(dict.fromkeys(s.set for s in self.report.sets if s.set != ALL_SETS))

    @property
    def main(self) -> list[str]:
        """The conditions in every table, or all if the report has neither."""
        conditions = list(dict.fromkeys(s.condition for s in self.report.sets))
        return [c for c in VARIANTS if c in conditions] or conditions[:1]

    @property
    def groups(self) -> list[str]:
        """The sets, and before them their mean if there are several."""
        return [ALL_SETS, *self.sets] if len(self.sets) > 1 else self.sets

    def estimate(self, detector: str, name: str, condition: str, key: str) -> Estimate | None:
        own = self.found.get((detector, name, condition))
        return own.estimates.get(key) if own else None

    def mean(self, detector: str, name: str, condition: str, key: str) -> Estimate | None:
        """The mean over generators."""
        own = self.found.get((detector, name, condition))
        return own.means.get(key) if own else None

    def info(self, detector: str) -> DetectorInfo:
        return next(d for d in self.report.detectors if d.name == detector)

    def scored_images(self, detector: str, name: str, condition: str) -> ScoredImages:
        """Empty where the scores do not hold it."""
        own = self.table.sets == name
        if detector in self.table.detectors and condition in self.table.conditions:
            d, c = self.table.detectors.index(detector), self.table.conditions.index(condition)
            logits = self.table.logits[d, c]
            own = own & np.isfinite(logits)
        else:
            logits, own = np.zeros(len(self.labels)), np.zeros(len(self.labels), dtype=bool)
        return ScoredImages(self.labels[own], logits[own], probabilities(self.info(detector), logits[own]))

    def named(self, detector: str) -> Name:
        return Name(self.brief(detector), plots.swatch(self.names.index(detector)))

    def brief(self, detector: str) -> str:
        """The name cut to `NAME_LENGTH` characters, where that is still only one detector's."""
        cut = {name: shortened(name) for name in self.names}
        return cut[detector] if list(cut.values()).count(cut[detector]) == 1 else detector

    def of_set(self, name: str, blocks: Sequence[str | Table | Note | Items | Heading | Drawings]) -> list[PageBlock]:
        """A set's blocks under its name; folded away where there are many sets."""
        if not blocks:
            return []
        return [Fold(name, blocks)] if len(self.sets) > MANY and name != ALL_SETS else [Heading(name), *blocks]

    def legend(self) -> Element:
        items = [element("li", plots.swatch(i), name) for i, name in enumerate(self.names)]
        return element("ul", *items, class_="legend", aria_label="Detectors")

    def count(self, name: str, label: int) -> int:
        return int((self.labels[self.table.sets == name] == label).sum())


def shortened(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def probabilities(info: DetectorInfo, logits: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Calibrated probabilities (n,) of logits (n,); None if the detector is not calibrated."""
    if info.slope is None or info.intercept is None:
        return None
    return np.array([sigmoid(info.slope * x + info.intercept) for x in logits.tolist()])


def metric_name(key: str) -> str:
    return METRIC_NAMES.get(key, key.replace("_", " "))


def number(estimate: Estimate | None, key: str = "", sign: bool = False) -> Value:
    """An estimate as a cell: percent for a share; a dash where there is none."""
    if estimate is None or math.isnan(estimate.value):
        return Value(DASH)
    scale, digits = (1, 3) if key in NOT_A_SHARE else (100, 1)

    def text(x: float, plus: str = "") -> str:
        return f"{x * scale:{plus}.{digits}f}".replace("-", MINUS)

    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return Value(text(estimate.value, "+" if sign else ""))
    return Value(text(estimate.value, "+" if sign else ""), f"[{text(estimate.low)}, {text(estimate.high)}]")


def in_line(value: Value) -> str:
    return f"{value.text} {value.small}".strip()


def bare(estimate: Estimate | None) -> tuple[float, float, float]:
    return (estimate.value, estimate.low, estimate.high) if estimate else (math.nan,) * 3


def mean_estimate(estimates: Sequence[Estimate | None]) -> Estimate | None:
    """Plain mean of the defined values, without an interval; None if there are none."""
    values = [f.value for f in estimates if f and not math.isnan(f.value)]
    return Estimate(value=sum(values) / len(values), low=math.nan, high=math.nan) if values else None


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def estimates_in_words(content: Content, name: str, condition: str, key: str) -> str:
    """An estimate of every detector in words, for those who do not see the plot."""
    values = [(d, number(content.estimate(d, name, condition, key), key)) for d in content.names]
    return f"{metric_name(key)} " + "; ".join(f"{d} {in_line(value)}" for d, value in values)
