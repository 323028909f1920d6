"""Audits labelled images before anybody trains or measures on them.

In: samples. Out: a `DataReport`: counts, files that cannot be read, duplicates, and the shortcuts that metadata offer.
It changes nothing and does not judge content: it cannot know whether the labels are true.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from clipmole.data import labels_of
from clipmole.data.audit.duplicates import look_alikes, same_bytes
from clipmole.data.audit.files import FileFacts, file_facts
from clipmole.data.audit.shortcuts import ALL, Shortcut, SourceAccuracy, find_shortcuts, find_source_accuracy
from clipmole.data.reading import look_at_all
from clipmole.data.sample import Sample
from clipmole.data.splits import whole_groups
from clipmole.images.loading import source_name
from clipmole.plumbing.progress import Track, untracked
from clipmole.plumbing.text import plural
from clipmole.records import Record


class Duplicates(Record):
    """Files that are the same or look the same.

    Attributes:
        files: their paths.
        splits: the splits they are in.
        labels: the labels they have.
    """

    files: tuple[str, ...]
    splits: tuple[str, ...]
    labels: tuple[int, ...]


class DataReport(Record):
    """The content of a data set, and the problems found in it.

    Attributes:
        images: how many there are.
        counts: "split", "generator", "format", "size", "JPEG quality" -> value -> photographs and generated images,
            the most frequent value first; all but the first two count only images that can be read.
        unreadable: files that cannot be read, each with the reason; empty ones are among them.
        empty: those of no bytes.
        same: files of the same bytes.
        alike: files that differ and look the same.
        groups_across_splits: groups that are in train and in another split.
        sources_across_splits: sources, where they are named, that are in train and in another split.
        shortcuts: how well metadata alone separate the classes; () if there are too few images to tell.
        source_told: how well metadata tell the sources apart; None if fewer than two with enough images are named.
        problems: one line for each; () if there are none.
    """

    images: int
    counts: dict[str, dict[str, tuple[int, int]]]
    unreadable: tuple[str, ...]
    empty: tuple[str, ...]
    same: tuple[Duplicates, ...]
    alike: tuple[Duplicates, ...]
    groups_across_splits: tuple[str, ...]
    sources_across_splits: tuple[str, ...]
    source_told: SourceAccuracy | None
    shortcuts: tuple[Shortcut, ...]
    problems: tuple[str, ...]


def check_data(samples: Sequence[Sample], seed: int = 0, track: Track = untracked) -> DataReport:
    """Read every image once and report on all of them; `track` wraps them. Problems are reported, not raised."""
    facts = list(look_at_all(samples, file_facts, track, "checking"))
    groups = whole_groups(samples, [each.sha256 for each in facts])
    good = [i for i, each in enumerate(facts) if not each.problem]
    labels = labels_of(samples)
    good_facts, good_groups = [facts[i] for i in good], [groups[i] for i in good]
    shortcuts = find_shortcuts(good_facts, labels[good], good_groups, seed) if good else []

    def duplicates(sets: Sequence[Sequence[int]]) -> tuple[Duplicates, ...]:
        return tuple(
            Duplicates(
                files=tuple(source_name(samples[i].path) for i in members),
                splits=tuple(sorted({samples[i].split for i in members})),
                labels=tuple(sorted({samples[i].label for i in members})),
            )
            for members in sets
        )

    def across_splits(names: Sequence[str]) -> tuple[str, ...]:
        held: dict[str, set[str]] = defaultdict(set)
        for name, sample in zip(names, samples, strict=True):
            held[name].add(sample.split)
        return tuple(sorted(name for name, splits in held.items() if name and "train" in splits and len(splits) > 1))

    report = DataReport(
        images=len(samples),
        counts=_value_counts(samples, facts),
        unreadable=tuple(each.problem for each in facts if each.problem),
        empty=tuple(
            source_name(sample.path)
            for sample, each in zip(samples, facts, strict=True)
            if each.sha256 and not each.size
        ),
        same=duplicates(same_bytes(facts)),
        alike=duplicates(look_alikes(facts)),
        groups_across_splits=across_splits([sample.group for sample in samples]),
        sources_across_splits=across_splits([sample.source for sample in samples]),
        source_told=find_source_accuracy(good_facts, [samples[i].source for i in good], good_groups, seed),
        shortcuts=tuple(shortcuts),
        problems=(),
    )
    return report.model_copy(update={"problems": tuple(_problems(report))})


def _value_counts(samples: Sequence[Sample], facts: Sequence[FileFacts]) -> dict[str, dict[str, tuple[int, int]]]:
    pairs = list(zip(samples, facts, strict=True))
    good = [(sample, each) for sample, each in pairs if not each.problem]

    def count(
        of: Sequence[tuple[Sample, FileFacts]], name: Callable[[Sample, FileFacts], str | None]
    ) -> dict[str, tuple[int, int]]:
        found = Counter((name(sample, each), sample.label) for sample, each in of)
        values = {value for value, _ in found if value is not None}
        most = sorted(values, key=lambda value: (-found[value, 0] - found[value, 1], value))
        return {value: (found[value, 0], found[value, 1]) for value in most}

    return {
        "split": count(pairs, lambda sample, _: sample.split or "none"),
        "generator": count(pairs, lambda sample, _: sample.generator),
        "format": count(good, lambda _, each: each.format),
        "size": count(good, lambda _, each: f"{each.width} x {each.height}"),
        "JPEG quality": count(good, lambda _, each: None if each.quality is None else str(each.quality)),
    }


def _problems(report: DataReport) -> list[str]:
    """The problems, one line for each."""
    lines = []
    if report.unreadable:
        empty = f", {len(report.empty)} of them empty" if report.empty else ""
        lines.append(f"{len(report.unreadable)} of {report.images} images cannot be read{empty}: training refuses them")
    for kind, sets in (("are the same", report.same), ("look the same", report.alike)):
        across = sum(len(each.splits) > 1 for each in sets)
        if across:
            lines.append(
                f"files that {kind} are in several splits ({plural(across, 'set')}): results measured there are too "
                "good"
            )
    both = sum(len(each.labels) > 1 for each in report.same)
    if both:
        lines.append(f"{plural(both, 'file')} with both labels, photograph and generated: one of them is wrong")
    if report.groups_across_splits:
        lines.append(
            f"train shares {plural(len(report.groups_across_splits), 'group')} with another split, such as "
            f"{report.groups_across_splits[0]}: results measured there are too good"
        )
    if report.sources_across_splits:
        lines.append(
            f"train shares {plural(len(report.sources_across_splits), 'source')} with another split, such as "
            f"{report.sources_across_splits[0]}: results measured there say little of images from elsewhere"
        )
    telling = [each for each in report.shortcuts if each.warns]
    if telling:
        alone = [each for each in telling if each.attribute != ALL]
        names = " and ".join(f"{each.attribute} ({100 * each.balanced_accuracy:.0f} %)" for each in alone or telling)
        lines.append(
            f"a shortcut: {names} alone tells photographs from generated images (chance: 50 %); a detector "
            "can learn it in place of the images. Even it out, or train and report with both classes re-encoded alike"
        )
    missing = [name for name, label in (("photographs", 0), ("generated images", 1)) if not _of(report, label)]
    if missing:
        lines.append(f"there are no {' and no '.join(missing)}")
    return lines


def _of(report: DataReport, label: int) -> int:
    return sum(pair[label] for pair in report.counts["split"].values())
