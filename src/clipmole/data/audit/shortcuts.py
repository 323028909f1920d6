"""How well metadata alone tell photographs from generated images, or their sources: shortcuts for a detector.

In: facts of files, labels or sources, and groups. Out: for each attribute a cross-validated balanced accuracy with an
interval; and one for the sources, from all attributes together.
Only properties that leave a trace in pixels count: format, size, aspect and JPEG quantisation, not names, dates or
EXIF. It looks at no pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clipmole.data.audit.files import FileFacts
from clipmole.errors import MissingDependency
from clipmole.records import Record

WARN = 0.60
FOLDS = 5
MOST = 50_000  # images that are examined, at most
RESAMPLES = 1000
ALL = "all together"


class Shortcut(Record):
    """How well one attribute separates the classes.

    Attributes:
        attribute: "format", "size", "aspect", "JPEG quantisation", or "all together".
        balanced_accuracy: mean of the two classes' accuracies on images that the tree did not see; 0.5: not at all.
        low, high: 95 % bootstrap interval over groups.
        images: how many were examined.
    """

    attribute: str
    balanced_accuracy: float
    low: float
    high: float
    images: int

    @property
    def warns(self) -> bool:
        """Whether it is a shortcut: above 60 %, and not by chance."""
        return self.balanced_accuracy > WARN and self.low > 0.5


class SourceAccuracy(Record):
    """How well format, size and compression tell which source an image comes from.

    Attributes:
        balanced_accuracy: mean over the sources of the share of their images that a tree, which did not see them,
            assigns to the right source, in [0, 1].
        sources: how many there are; chance gives 1 / sources.
        images: how many were examined.
    """

    balanced_accuracy: float
    sources: int
    images: int


def attributes(facts: Sequence[FileFacts]) -> dict[str, NDArray[np.float64]]:
    """Attribute -> features (n, k) of each file."""
    formats = sorted({each.format for each in facts})
    kinds = np.array([[float(each.format == name) for name in formats] for each in facts])
    edges = np.array([[each.width, each.height] for each in facts], dtype=np.float64)
    wide, high = edges.max(axis=1), edges.min(axis=1)
    size = np.stack([edges[:, 0], edges[:, 1], edges.prod(axis=1), wide % 8, high % 8], axis=1)
    aspect = np.stack([edges[:, 0] / edges[:, 1], wide / high], axis=1)
    return {"format": kinds, "size": size, "aspect": aspect, "JPEG quantisation": np.array([_jpeg(f) for f in facts])}


def _jpeg(facts: FileFacts) -> list[float]:
    """Quality, coarseness and a few steps of the tables, subsampling; -1 where there are none."""
    if not facts.tables:
        return [-1.0] * 12
    luminance, chrominance = facts.tables[0], facts.tables[min(1, len(facts.tables) - 1)]
    steps = [float(table[i]) for table in (luminance, chrominance) for i in (0, 1, 9, 63)]
    sums = [float(sum(luminance)), float(sum(chrominance))]
    return [float(facts.quality or 0), *sums, *steps, float(facts.subsampling)]


def find_shortcuts(
    facts: Sequence[FileFacts], labels: NDArray[np.int64], groups: Sequence[int], seed: int = 0
) -> list[Shortcut]:
    """Each attribute by itself, the strongest first, then all together; [] with fewer than ten groups of a class.

    A decision tree (scikit-learn, classes weighted evenly, at least five images a leaf) is fitted five times on four
    fifths of the groups and tested on the rest, so that no group is on both sides. If there are more than 50,000
    images, that many are drawn.

    Args:
        labels: (n,), 1 = AI-generated.
        groups: a number (n,) for each file, the same for files that are not independent.
    """
    chosen = np.arange(len(facts))
    if len(chosen) > MOST:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, MOST, replace=False))
    y = labels[chosen]
    members = np.unique(np.array(groups)[chosen], return_inverse=True)[1]
    if min((len(np.unique(members[y == label])) for label in (0, 1)), default=0) < 2 * FOLDS:
        return []
    features = attributes([facts[i] for i in chosen.tolist()])
    features[ALL] = np.concatenate(list(features.values()), axis=1)
    right = np.stack([_right(values, y, members, seed) for values in features.values()], axis=1)
    accuracy, low, high = _balanced_accuracy(right, y, members, seed)
    found = [
        Shortcut(attribute=name, balanced_accuracy=accuracy[k], low=low[k], high=high[k], images=len(y))
        for k, name in enumerate(features)
    ]
    return sorted(found, key=lambda each: (each.attribute == ALL, -each.balanced_accuracy))


def find_source_accuracy(
    facts: Sequence[FileFacts], sources: Sequence[str], groups: Sequence[int], seed: int = 0
) -> SourceAccuracy | None:
    """How well all attributes together tell the sources of at least ten groups each; None with fewer than two of them.

    Args:
        sources: (n,) where each file comes from; "": not known, and left out.
        groups: as in `find_shortcuts`.
    """
    named = defaultdict(set)
    for source, group in zip(sources, groups, strict=True):
        named[source].add(group)
    known = sorted(source for source, held in named.items() if source and len(held) >= 2 * FOLDS)
    chosen = np.flatnonzero(np.isin(np.array(sources), known))
    if len(known) < 2:
        return None
    if len(chosen) > MOST:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, MOST, replace=False))
    y = np.searchsorted(known, np.array(sources)[chosen])
    members = np.unique(np.array(groups)[chosen], return_inverse=True)[1]
    values = np.concatenate(list(attributes([facts[i] for i in chosen.tolist()]).values()), axis=1)
    right = _right(values, y, members, seed)
    shares = [right[y == k].mean() for k in range(len(known)) if (y == k).any()]
    return SourceAccuracy(balanced_accuracy=float(np.mean(shares)), sources=len(shares), images=len(y))


def _right(
    values: NDArray[np.float64], y: NDArray[np.int64], groups: NDArray[np.int64], seed: int
) -> NDArray[np.bool_]:
    """Whether a tree that saw no image of its group tells the class of each image (n,) correctly."""
    try:
        from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
        from sklearn.tree import DecisionTreeClassifier
    except ImportError as error:
        raise MissingDependency("scikit-learn", "train") from error
    tree = DecisionTreeClassifier(min_samples_leaf=5, class_weight="balanced", random_state=seed)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    right: NDArray[np.bool_] = cross_val_predict(tree, values, y, groups=groups, cv=folds) == y
    return right


def _balanced_accuracy(
    right: NDArray[np.bool_], y: NDArray[np.int64], groups: NDArray[np.int64], seed: int
) -> tuple[list[float], list[float], list[float]]:
    """Balanced accuracy of each column of `right` (n, k), and the ends of its 95 % bootstrap interval over groups."""
    count, columns = int(groups.max()) + 1, right.shape[1]
    held = np.zeros((2, count))  # images of each class in each group,
    hits = np.zeros((2, count, columns))  # and those that are right
    np.add.at(held, (y, groups), 1)
    np.add.at(hits, (y, groups), right)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(RESAMPLES):
        times = np.bincount(rng.integers(count, size=count), minlength=count).astype(np.float64)
        total = held @ times
        if total.all():
            drawn.append((times @ hits / total[:, None]).mean(axis=0))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    accuracy = (hits.sum(axis=1) / held.sum(axis=1)[:, None]).mean(axis=0)
    return accuracy.tolist(), low.tolist(), high.tolist()
