"""The data of a report's sections: its estimates, its scores, and the names of metrics.

In: an `EvaluationReport` and its `ScoreTable`. Out: estimates by name; labels and probabilities by detector, set and
condition; and numbers as they are printed: percent for a share, a dash for nan. It knows nothing of files or networks.
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
from clipmole.report.page import Drawings, Fold, Heading, Items, Name, Note, PageBlock, Table, Value

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
MANY = 4  # a report on more sets than this folds each of them away
NAME_LENGTH = 30  # characters of a detector's name in tables; the list of detectors shows it in full
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
    """The images of one set under one condition that got a finite logit from one detector.

    Attributes:
        labels: (n,), 1 = AI-generated, 0 = photograph.
        logits: (n,).
        probabilities: (n,); None if the detector is not calibrated.
    """

    labels: NDArray[np.int64]
    logits: NDArray[np.float64]
    probabilities: NDArray[np.float64] | None


@dataclass(frozen=True)
class Content:
    """The report and the scores, with ways to find things in them.

    Attributes:
        report: the estimates.
        table: the scores.
        families: condition -> its family and its strength, `Condition.family` and `.strength`.
        notes: condition -> its note.
        found: (detector, set, condition) -> the estimates.
        labels: (n,) of all images, 1 = AI-generated, 0 = photograph.
        generated: (set, generator) -> number of images.
    """

    report: EvaluationReport
    table: ScoreTable
    families: Mapping[str, tuple[str, float]]
    notes: Mapping[str, str]
    found: dict[tuple[str, str, str], SetReport] = field(init=False)
    labels: NDArray[np.int64] = field(init=False)
    generated: Counter[tuple[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        found = {(s.detector, s.set, s.condition): s for s in self.report.sets}
        object.__setattr__(self, "found", found)
        made = zip(self.table.sets.tolist(), self.table.samples, strict=True)
        object.__setattr__(self, "generated", Counter((name, s.generator) for name, s in made if s.label == 1))
        object.__setattr__(self, "labels", np.asarray(labels_of(self.table.samples), dtype=np.int64))

    @property
    def names(self) -> list[str]:
        """Names of the detectors."""
        return [detector.name for detector in self.report.detectors]

    @property
    def sets(self) -> list[str]:
        """Names of the sets, without the mean over them."""
        return list(dict.fromkeys(s.set for s in self.report.sets if s.set != ALL_SETS))

    @property
    def main(self) -> list[str]:
        """The conditions that every table shows: "as stored" and "equalised", or the first one if it has neither."""
        conditions = list(dict.fromkeys(s.condition for s in self.report.sets))
        return [c for c in VARIANTS if c in conditions] or conditions[:1]

    @property
    def groups(self) -> list[str]:
        """The sets; before them the mean over all sets, if there are several."""
        return [ALL_SETS, *self.sets] if len(self.sets) > 1 else self.sets

    def estimate(self, detector: str, name: str, condition: str, key: str) -> Estimate | None:
        """The estimate of the metric `key` on the set `name`; None if there is none."""
        own = self.found.get((detector, name, condition))
        return own.estimates.get(key) if own else None

    def mean(self, detector: str, name: str, condition: str, key: str) -> Estimate | None:
        """The estimate's mean over generators; arguments as in `estimate`."""
        own = self.found.get((detector, name, condition))
        return own.means.get(key) if own else None

    def info(self, detector: str) -> DetectorInfo:
        """What the report says about a detector."""
        return next(d for d in self.report.detectors if d.name == detector)

    def scored_images(self, detector: str, name: str, condition: str) -> ScoredImages:
        """The scores on the set `name`; empty if the table does not have them."""
        own = self.table.sets == name
        if detector in self.table.detectors and condition in self.table.conditions:
            d, c = self.table.detectors.index(detector), self.table.conditions.index(condition)
            logits = self.table.logits[d, c]
            own = own & np.isfinite(logits)
        else:
            logits, own = np.zeros(len(self.labels)), np.zeros(len(self.labels), dtype=bool)
        return ScoredImages(self.labels[own], logits[own], probabilities(self.info(detector), logits[own]))

    def named(self, detector: str) -> Name:
        """A detector's name with its line and marker, as a cell."""
        return Name(self.brief(detector), plots.swatch(self.names.index(detector)))

    def brief(self, detector: str) -> str:
        """A detector's name cut to `NAME_LENGTH` characters, unless two detectors then have the same name."""
        cut = {name: shortened(name) for name in self.names}
        return cut[detector] if list(cut.values()).count(cut[detector]) == 1 else detector

    def of_set(self, name: str, blocks: Sequence[str | Table | Note | Items | Heading | Drawings]) -> list[PageBlock]:
        """A set's blocks under its name; folded away if there are more than `MANY` sets."""
        if not blocks:
            return []
        return [Fold(name, blocks)] if len(self.sets) > MANY and name != ALL_SETS else [Heading(name), *blocks]

    def legend(self) -> Element:
        """The names of all detectors with their lines and markers."""
        return plots.legend(self.names, "Detectors")

    def count(self, name: str, label: int) -> int:
        """Number of images with a label in the set `name`."""
        return int((self.labels[self.table.sets == name] == label).sum())


def shortened(name: str) -> str:
    """A name cut to `NAME_LENGTH` characters."""
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def probabilities(info: DetectorInfo, logits: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Calibrated probabilities (n,) of logits (n,); None if the detector is not calibrated."""
    if info.slope is None or info.intercept is None:
        return None
    return np.array([sigmoid(info.slope * x + info.intercept) for x in logits.tolist()])


def metric_name(key: str) -> str:
    """The name of a metric, in words."""
    return METRIC_NAMES.get(key, key.replace("_", " "))


def number(estimate: Estimate | None, key: str = "", sign: bool = False) -> Value:
    """An estimate as a cell: percent for a share, with its interval; a dash if there is none.

    Args:
        key: the metric, if it may not be a share.
        sign: show a plus, for a difference.
    """
    if estimate is None or math.isnan(estimate.value):
        return Value(DASH)
    scale, digits = (1, 3) if key in NOT_A_SHARE else (100, 1)

    def text(x: float, plus: str = "") -> str:
        return f"{x * scale:{plus}.{digits}f}".replace("-", MINUS)

    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return Value(text(estimate.value, "+" if sign else ""))
    return Value(text(estimate.value, "+" if sign else ""), f"[{text(estimate.low)}, {text(estimate.high)}]")


def in_line(value: Value) -> str:
    """A number and what stands small beneath it, on one line."""
    return f"{value.text} {value.small}".strip()


def bare(estimate: Estimate | None) -> tuple[float, float, float]:
    """(value, low, high) of an estimate; nan if there is none."""
    return (estimate.value, estimate.low, estimate.high) if estimate else (math.nan,) * 3


def mean_estimate(estimates: Sequence[Estimate | None]) -> Estimate | None:
    """The mean of the values that are defined, without an interval; None if there are none."""
    values = [f.value for f in estimates if f and not math.isnan(f.value)]
    return Estimate(value=sum(values) / len(values), low=math.nan, high=math.nan) if values else None


def estimates_in_words(content: Content, name: str, condition: str, key: str) -> str:
    """An estimate of every detector in words, for those who do not see the plot."""
    values = [(d, number(content.estimate(d, name, condition, key), key)) for d in content.names]
    return f"{metric_name(key)} " + "; ".join(f"{d} {in_line(value)}" for d, value in values)
