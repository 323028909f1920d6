"""A report on a data set -> text for people.

In: the report of `check_data`. Out: lines with aligned tables. It finds nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clipmole.data.audit import DataReport, Duplicates
from clipmole.plumbing.text import plural

ROWS = 8  # of each table
SETS = 3  # of duplicates, to be named
FILES = 20  # that cannot be read, to be named


def report_lines(report: DataReport) -> Iterator[str]:
    """The report: counts, unreadable files, duplicates, shortcuts, and at the end the problems."""
    n_real, n_generated = (sum(pair[label] for pair in report.counts["split"].values()) for label in (0, 1))
    yield f"{plural(report.images, 'image')}: {plural(n_real, 'photograph')}, {n_generated:,} generated"
    for title, values in report.counts.items():
        if values:
            yield ""
            yield from _table(title, list(values.items()))
    if report.unreadable:
        yield ""
        yield f"Cannot be read: {len(report.unreadable)}"
        yield from (f"  {line}" for line in report.unreadable[:FILES])
        yield from _more(len(report.unreadable) - FILES)
    for title, sets in (("Same files", report.same), ("Look-alikes", report.alike)):
        yield ""
        yield from _sets(title, sets)
    yield ""
    if report.shortcuts:
        yield "Metadata alone separate the classes by (balanced accuracy, cross-validated; 50 % is chance)"
        for each in report.shortcuts:
            interval = f"[{100 * each.low:.1f}, {100 * each.high:.1f}]"
            mark = "  <- a shortcut" if each.warns else ""
            yield f"  {each.attribute:<18} {100 * each.balanced_accuracy:5.1f} %  {interval}{mark}"
    else:
        yield "Shortcuts: not looked for; at least ten independent images of each class are needed"
    if told := report.source_told:
        yield (
            f"Metadata alone tell the source of an image correctly in {100 * told.balanced_accuracy:.0f} % of "
            f"{told.images} images, mean over {told.sources} sources (chance: {100 / told.sources:.0f} %)"
        )
    yield ""
    if report.problems:
        yield f"Wrong: {len(report.problems)}"
        yield from (f"  - {line}" for line in report.problems)
    else:
        yield "No problem was found in the files."


def _table(title: str, rows: Sequence[tuple[str, tuple[int, int]]]) -> Iterator[str]:
    width = max(len(title), *(len(name) for name, _ in rows[:ROWS]))
    yield f"{title:<{width}}  {'real':>9}  {'generated':>9}"
    for name, (n_real, n_generated) in rows[:ROWS]:
        yield f"{name:<{width}}  {n_real:>9}  {n_generated:>9}"
    if len(rows) > ROWS:
        rest = [sum(pair[label] for _, pair in rows[ROWS:]) for label in (0, 1)]
        yield f"{f'{len(rows) - ROWS} more':<{width}}  {rest[0]:>9}  {rest[1]:>9}"


def _sets(title: str, sets: Sequence[Duplicates]) -> Iterator[str]:
    if not sets:
        yield f"{title}: none"
        return
    across = sum(len(each.splits) > 1 for each in sets)
    both = sum(len(each.labels) > 1 for each in sets)
    yield f"{title}: {plural(len(sets), 'set')}, {across} across splits, {both} with both labels"
    worst = sorted(sets, key=lambda each: (-len(each.splits), -len(each.labels)))
    for each in worst[:SETS]:
        rest = f" and {len(each.files) - 3} more" if len(each.files) > 3 else ""
        yield f"  {', '.join(each.files[:3])}{rest}"
    yield from _more(len(sets) - SETS)


def _more(count: int) -> Iterator[str]:
    if count > 0:
        yield f"  and {count} more; --json names all"
