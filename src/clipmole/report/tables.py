"""The sections of a report that are text and tables.

In: `Content`. Out: blocks of a page; none if there is nothing to show. It measures nothing.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from clipmole.data import VARIANTS
from clipmole.evaluation.records import ALL_SETS, Difference, Estimate, KindEstimate, PublishedResult
from clipmole.plumbing.text import plural
from clipmole.report import plots
from clipmole.report.content import (
    DASH,
    MANY,
    MINUS,
    Content,
    bare,
    in_line,
    mean_estimate,
    metric_name,
    number,
)
from clipmole.report.page import Cell, Code, Fold, Items, Name, Note, PageBlock, Table, Value, element

KINDS = {"false_alarm": "false alarms", "uncertain": "uncertain"}
NEUTRAL = 5  # index of the colour grey in `plots`
FILES_SHOWN = 200  # unreadable files that the page lists
LONG = 12  # a table of paired differences with more rows than this is folded away, unless it is the first
PUBLISHED = {"mean_ap": "average_precision", "mean_accuracy": "accuracy"}  # published metric -> key of `means`


def summary(content: Content) -> list[PageBlock]:
    """The text after the title: the result in a sentence or a few, and what was evaluated."""
    verdicts = comparison(content) if len(content.names) > 1 else [alone(content, name) for name in content.sets]
    table = content.table
    n_real, n_generated = int((content.labels == 0).sum()), int((content.labels == 1).sum())
    facts = (
        f"{plural(len(content.names), 'detector')}, {plural(len(table.samples), 'image')} ({n_real:,} photographs, "
        f"{n_generated:,} AI-generated) in {plural(len(content.sets), 'set')}, "
        f"{plural(len(table.conditions), 'condition')}. Percent; in brackets the 95 % "
        f"bootstrap interval{resampling_note(content)}."
    )
    blocks: list[PageBlock] = [element("p", verdicts[0], class_="verdict")] if verdicts else []
    note: list[PageBlock] = [Note(content.report.note)] if content.report.note else []
    return [*blocks, *([Items(verdicts[1:])] if len(verdicts) > 1 else []), facts, *note]


def resampling_note(content: Content) -> str:
    """What the bootstrap drew: images, or groups of them."""
    sets = {s.set: s for s in content.report.sets if s.set != ALL_SETS}.values()
    groups, images = sum(s.groups for s in sets), sum(s.n_real + s.n_generated for s in sets)
    if groups == images:
        return " over images"
    return f" over {groups:,} groups of images (those of one scene or prompt are drawn together)"


def alone(content: Content, name: str) -> str:
    """One sentence on the only detector's results on the set `name`."""
    detector, condition = content.names[0], content.main[-1]

    def of(key: str) -> Value:
        return number(content.estimate(detector, name, condition, key))

    parts = [f"average precision {in_line(of('average_precision'))}"] if of("average_precision").text != DASH else []
    if of("false_alarm").text != DASH:
        parts.append(f"{in_line(of('false_alarm'))} % of photographs called AI-generated")
    if of("uncertain").text != DASH:
        parts.append(f"{in_line(of('uncertain'))} % of images left without a verdict")
    return f"{detector} on {name}, {condition}: " + ("; ".join(parts) or "nothing could be measured") + "."


def outcome(difference: Difference) -> str:
    """The better detector, or "" if no difference could be shown.

    For the metrics that are compared, more is better.
    """
    estimate = difference.estimate
    if estimate.low > 0:
        return difference.first
    return difference.second if estimate.high < 0 else ""


def comparison(content: Content) -> list[str]:
    """Which detector is better on which sets: one sentence on all sets, then one on each of them."""
    chosen = [d for d in content.report.differences if d.condition == content.main[-1]]
    keys = [d.metric for d in chosen]
    key = "average_precision" if "average_precision" in keys else next(iter(keys), "")
    pairs = [d for d in chosen if d.metric == key]
    if not pairs:
        return ["The detectors were not compared with each other."]
    sentences, leaders, shown = [], [], False
    for name in content.sets:
        own = [d for d in pairs if d.set == name and not math.isnan(d.estimate.value)]
        if not own:
            sentences.append(f"{name}: no comparison, since the set does not hold both classes.")
            continue
        leader, sentence = set_verdict(content, name, own)
        sentences.append(sentence)
        leaders.append(leader)
        shown = shown or any(outcome(d) for d in own)
    where = f"by {metric_name(key)}, {content.main[-1]}"
    if len(content.sets) > MANY:
        overall = [d for d in pairs if d.set == ALL_SETS and not math.isnan(d.estimate.value)]
        means = [set_verdict(content, ALL_SETS, overall)[1]] if overall else []
        sentences = means + tallies([d for d in pairs if d.set != ALL_SETS], content)
    if len(sentences) == 1 and len(content.sets) == 1:
        return [f"{sentences[0].removesuffix('.')} ({where})."]
    if leaders and leaders[0] and len(set(leaders)) == 1:
        others = "the other detector" if len(content.names) == 2 else "every other detector"
        over = "" if len(leaders) == 1 else f" on all {len(leaders)} sets that can be compared"
        first = f"{content.brief(leaders[0])} is better than {others}{over} ({where})."
    elif not shown:
        first = f"No difference between the detectors could be shown ({where})."
    else:
        first = f"No detector is shown to be better than all others everywhere ({where}):"
    return [first, *sentences]


def tallies(pairs: Sequence[Difference], content: Content) -> list[str]:
    """For each pair of detectors, on how many sets each is better."""
    sentences = []
    for first, second in dict.fromkeys((d.first, d.second) for d in pairs):
        own = [d for d in pairs if (d.first, d.second) == (first, second) and not math.isnan(d.estimate.value)]
        found = [outcome(d) for d in own]
        sentences.append(
            f"Of {plural(len(own), 'set')}, {content.brief(first)} is better on {found.count(first)}, "
            f"{content.brief(second)} on {found.count(second)}; on {found.count('')} no difference could be shown."
        )
    return sentences


def set_verdict(content: Content, name: str, pairs: Sequence[Difference]) -> tuple[str, str]:
    """The detector that is shown to be better than all others on a set, "" if none is, and a sentence on it.

    Args:
        name: of the set.
        pairs: the differences between detectors on that set, of one metric under one condition.
    """
    key = pairs[0].metric

    def value(detector: str) -> float:
        estimate = content.estimate(detector, name, pairs[0].condition, key)
        return -1.0 if estimate is None or math.isnan(estimate.value) else estimate.value

    leader = max(content.names, key=value)
    better: list[str] = []
    open_: list[str] = []
    for d in pairs:
        if leader in (d.first, d.second):
            gap = d.estimate
            if leader == d.second:
                gap = Estimate(value=-gap.value, low=-gap.high, high=-gap.low)
            other = content.brief(d.second if leader == d.first else d.first)
            text = f"{other} ({in_line(number(gap, key, sign=True))} points)"
            (better if outcome(d) == leader else open_).append(text)
    brief = content.brief(leader)
    parts = [f"{brief} is better than {' and '.join(better)}"] if better else []
    parts += [f"between {brief} and {' and '.join(open_)} no difference could be shown"] if open_ else []
    return "" if open_ else leader, f"{name}: {'; '.join(parts)}."


def headline(content: Content) -> list[PageBlock]:
    """The most important metrics of every detector on every set, as stored and equalised."""

    def rows(groups: Sequence[str], keys: Sequence[tuple[str, str]]) -> Iterator[tuple[Cell, ...]]:
        for name in groups:
            for detector in content.names:
                cells = []
                for kind, key in keys:
                    of = content.mean if kind == "mean" else content.estimate
                    cells += [number(of(detector, name, condition, key)) for condition in VARIANTS]
                yield name, content.named(detector), *cells

    def columns(texts: Sequence[str]) -> list[str]:
        return ["set", "detector", *(f"{text}\n{condition}" for text in texts for condition in VARIANTS)]

    def both(groups: Sequence[str]) -> list[Table]:
        ranks = [(kind, key) for kind in ("mean", "set") for key in ("average_precision", "accuracy")]
        verdicts = [("set", key) for key in ("real_accuracy", "fake_accuracy", "false_alarm", "uncertain")]
        return [
            Table(
                "How well photographs and generated images are told apart, percent",
                columns(["mean AP over generators", "mean accuracy over generators", "AP", "accuracy"]),
                list(rows(groups, ranks)),
                names=2,
            ),
            Table(
                "What becomes of each class, percent",
                columns(["photographs right", "generated right", "false alarms", "uncertain"]),
                list(rows(groups, verdicts)),
                names=2,
            ),
        ]

    blocks: list[PageBlock] = []
    if set(VARIANTS) - set(content.main):
        blocks.append(
            Note(
                "Both variants are needed and one is missing: where photographs and generated images were compressed "
                "differently, a result as stored may measure that alone."
            )
        )
    many = len(content.sets) > MANY
    return [
        *blocks,
        *(both([ALL_SETS]) if many else both(content.groups)),
        *([Fold("Every set", both(content.sets))] if many else []),
        "Equalised: both classes compressed again with qualities of one distribution, so that a compression that "
        "differs between the classes cannot give the label away. The equalised results are the ones that count. "
        "Accuracy is at probability 0.5 (at score 0 where a detector is not calibrated); a false alarm is a "
        "photograph with the verdict AI-generated; uncertain is no verdict. A mean over sets is over those where "
        "the metric is defined; sets that share photographs draw them together in its interval.",
    ]


def detectors(content: Content) -> list[PageBlock]:
    """The detectors with their thresholds and caveats."""
    rows: list[tuple[Cell, ...]] = []
    for d in content.report.detectors:
        if d.thresholds is None:
            band = "not calibrated: no probability, no verdict"
        else:
            band = f"photograph below {d.thresholds.real:.3g}, AI-generated above {d.thresholds.generated:.3g}"
        rows.append((Name(d.name, content.named(d.name).drawing), d.id, band, d.note))
    return [Table("Detectors that were evaluated", ["detector", "id", "verdicts by probability", "caveat"], rows)]


def difference_tables(content: Content) -> list[PageBlock]:
    """The paired differences between detectors, one table per metric."""
    blocks: list[PageBlock] = []
    for key in dict.fromkeys(d.metric for d in content.report.differences):
        own = [d for d in content.report.differences if d.metric == key and not math.isnan(d.estimate.value)]
        reach = max((abs(x) for d in own for x in bare(d.estimate) if not math.isnan(x)), default=0) or 0.01
        axis = plots.even_axis("", -reach, reach, 5)
        rows: list[tuple[Cell, ...]] = []
        for d in own:
            better = outcome(d)
            f, colour = d.estimate, content.names.index(better) if better in content.names else NEUTRAL
            value = number(f, key, sign=True)
            verdict = f"{content.brief(better)} is better" if better else "no difference could be shown"
            pair = f"{content.brief(d.first)} {MINUS} {content.brief(d.second)}"
            label = f"{pair}: {in_line(value)} points"
            drawn = plots.strip([(colour, f.value, f.low, f.high)], axis, label, at=0)
            rows.append((d.set, d.condition, pair, drawn, value, verdict))
        if rows:
            sides = "\N{LEFTWARDS ARROW} second better, first better \N{RIGHTWARDS ARROW}"
            heads = ["set", "condition", "difference", sides, "points", "in words"]
            caption = f"{metric_name(key)}: paired differences, percentage points"
            table = Table(caption, heads, rows, names=3, axes={3: plots.strip_axis(axis)})
            folded = len(content.sets) > MANY or (blocks and len(rows) > LONG)
            blocks.append(Fold(caption, [table]) if folded else table)
    if blocks:
        blocks.append(
            "Both detectors saw the same images and the same resamples. An interval that contains 0 shows no "
            "difference; of pairs that do not differ, one interval in twenty would miss 0 by chance, and they are not "
            "widened for their number."
        )
    return blocks


def published(content: Content) -> list[PageBlock]:
    """Published results beside those of this report: means over generators, results by set, and under perturbations."""
    results = content.report.published
    means = [p for p in results if not p.set and not p.condition]
    blocks = [means_beside(content, *key, means) for key in dict.fromkeys((p.benchmark, p.metric) for p in means)]
    blocks += [table for table in (sets_beside(content), conditions_beside(content)) if table]
    if not blocks:
        return []
    text = (
        "Not like for like: published results (shaded) differ from ours and from each other in crops, resizing, "
        "training data and in how the threshold was found. They show the range of the field, not who is ahead."
    )
    return [Note(text), *blocks]


def means_beside(content: Content, benchmark: str, metric: str, results: Sequence[PublishedResult]) -> Table:
    """A table of published means of one metric on one benchmark, followed by the detectors of this report."""
    own = [p for p in results if (p.benchmark, p.metric) == (benchmark, metric)]
    rows: list[tuple[Cell, ...]] = [(p.method, as_published(p), Value(""), Value(""), p.note or DASH) for p in own]
    apart = frozenset(range(len(rows)))
    where = benchmark if benchmark in content.sets else content.groups[0]
    for detector in content.names:
        of, key = (content.mean, PUBLISHED[metric]) if metric in PUBLISHED else (content.estimate, metric)
        cells = [number(of(detector, where, condition, key)) for condition in VARIANTS]
        rows.append((content.named(detector), Value(""), *cells, ours(content, where)))
    mean = f"mean {metric_name(PUBLISHED[metric])} over generators" if metric in PUBLISHED else metric_name(metric)
    heads = ["method", "as published", "here\nas stored", "here\nequalised", "caveat"]
    return Table(f"{benchmark}: {mean}, percent", heads, rows, apart=apart)


def sets_beside(content: Content) -> Table | None:
    """One row per set, one column per published method and per detector; last, the means over the sets here."""
    own = {(p.set, p.method): p for p in content.report.published if p.set}
    if not own:
        return None
    names, methods = (list(dict.fromkeys(key[i] for key in own)) for i in (0, 1))
    metric = next(iter(own.values())).metric
    rows: list[tuple[Cell, ...]] = []
    for name in names:
        theirs = [as_published(own[name, m]) if (name, m) in own else Value(DASH) for m in methods]
        cells = [number(content.estimate(d, name, c, metric)) for d in content.names for c in VARIANTS]
        rows.append((name, *theirs, *cells))
    here = [name for name in names if name in content.sets]
    sums = frozenset({len(rows)} if here else set[int]())
    if here:
        values = [[100 * own[name, m].share for name in here if (name, m) in own] for m in methods]
        theirs = [Value(f"{sum(v) / len(v):.2f}" if len(v) == len(here) else DASH) for v in values]
        where = here[0] if len(here) == 1 else ALL_SETS if len(here) == len(content.sets) else ""
        cells = [number(content.estimate(d, where, c, metric)) for d in content.names for c in VARIANTS]
        rows.append((f"mean of the {plural(len(here), 'set')} here", *theirs, *cells))
    heads = ["set", *(f"{m}\npublished" for m in methods)]
    heads += [f"{content.brief(d)}\n{c}" for d in content.names for c in VARIANTS]
    notes = {p.method: p.note for p in own.values()}
    common = Counter(notes.values()).most_common(1)[0][0]
    others = [f"{method}: {note}" for method, note in notes.items() if note != common]
    caption = f"{metric_name(metric)} by set, percent (published: {', '.join([common, *others])})"
    return Table(caption, heads, rows, sums=sums, apart_columns=frozenset(range(1, 1 + len(methods))))


def conditions_beside(content: Content) -> Table | None:
    """Published results under a perturbation, beside the detectors of this report under the closest condition."""
    own = [p for p in content.report.published if p.condition]
    rows: list[tuple[Cell, ...]] = []
    for p in own:
        cells = [
            number(content.estimate(d, content.groups[0], p.condition, PUBLISHED[p.metric])) for d in content.names
        ]
        rows.append((p.benchmark, p.method, as_published(p), p.condition, *cells, p.note or DASH))
    heads = ["benchmark", "method", "as published", "condition here", *map(content.brief, content.names), "caveat"]
    caption = "Mean accuracy over generators under perturbations, percent (a dash: the condition was not measured)"
    return Table(caption, heads, rows, names=2, apart_columns=frozenset({2})) if rows else None


def as_published(result: PublishedResult) -> Value:
    """A published result in percent, whether it was published in percent or as a share."""
    return Value(f"{100 * result.share:.2f}")


def ours(content: Content, where: str) -> str:
    """Which sets the detectors' own rows, beside published ones, are about."""
    if where != ALL_SETS:
        return where
    short = len(content.sets) <= MANY
    return f"mean over {', '.join(content.sets)}" if short else f"mean over {plural(len(content.sets), 'set')}"


def generator_tables(content: Content) -> list[PageBlock]:
    """Results by generator: one table per set, or one for all sets if each holds one generator, as in benchmarks."""
    keys = ("average_precision", "accuracy")
    pairs = dict.fromkeys((s.set, g) for s in content.report.sets if s.condition in content.main for g in s.generators)
    blocks: list[PageBlock] = []
    if len(pairs) == len({name for name, _ in pairs}) > 1:
        found = [generator_table(content, "set", {name: (name, g) for name, g in pairs}, ALL_SETS, key) for key in keys]
        blocks += [table for table in found if table]
    else:
        for name in content.sets:
            own = {g: (s, g) for s, g in pairs if s == name}
            found = [generator_table(content, "generator", own, name, key) for key in keys]
            blocks += content.of_set(name, [table for table in found if table])
    if blocks:
        blocks.insert(0, content.legend())
        blocks.append("Each generator's images against all photographs of the set; the hardest generator first.")
    return blocks


def generator_table(
    content: Content, head: str, named: Mapping[str, tuple[str, str]], of_all: str, key: str
) -> Table | None:
    """The estimates of one metric as strips and numbers, one row per generator, and their mean in the last row.

    Args:
        head: the head of the first column.
        named: what a row is called -> its set and its generator.
        of_all: the set whose mean over generators is the last row.
        key: the metric.
    """

    def row_estimates(name: str, generator: str) -> dict[tuple[str, str], Estimate | None]:
        reports = {(d, c): content.found.get((d, name, c)) for c in content.main for d in content.names}
        return {pair: s.generators.get(generator, {}).get(key) if s else None for pair, s in reports.items()}

    def hardness(row: str) -> float:
        mean = mean_estimate([f for (_, condition), f in every[row].items() if condition == content.main[-1]])
        return mean.value if mean else math.inf

    every = {row: row_estimates(name, generator) for row, (name, generator) in named.items()}
    counts = {row: content.generated[name, generator] for row, (name, generator) in named.items()}
    bounds = [b for row in every.values() for f in row.values() if f for b in (f.low, f.value) if not math.isnan(b)]
    if not bounds:
        return None
    axis = plots.even_axis("", min(*bounds, 0.9), 1, 4)
    last = ALL_SETS if of_all == ALL_SETS else "mean over generators"
    means = {(d, c): content.mean(d, of_all, c, key) for c in content.main for d in content.names}
    rows: list[tuple[Cell, ...]] = []
    for row, estimates in [*((row, every[row]) for row in sorted(every, key=hardness)), (last, means)]:
        drawn = []
        for condition in content.main:
            values = [(i, *bare(estimates[d, condition])) for i, d in enumerate(content.names)]
            label = "; ".join(f"{d} {in_line(number(estimates[d, condition]))}" for d in content.names)
            drawn.append(plots.strip(values, axis, f"{condition}: {label}"))
        images = sum(counts.values()) if estimates is means else counts[row]
        rows.append((row, Value(f"{images:,}"), *drawn, *(number(f) for f in estimates.values())))
    heads = [head, "generated\nimages", *content.main, *(f"{content.brief(d)}\n{c}" for d, c in means)]
    axes = {2 + i: plots.strip_axis(axis) for i in range(len(content.main))}
    where = "" if of_all == ALL_SETS else f" on {of_all}"
    return Table(f"{metric_name(key)}{where}, percent", heads, rows, axes=axes, sums=frozenset({len(rows) - 1}))


def origin_tables(content: Content) -> list[PageBlock]:
    """AUROC for each detector and set on four parts of its images: known or new sources x known or new generators."""
    conditions = list(dict.fromkeys(s.condition for s in content.report.sets if s.origins))
    rows: list[tuple[Cell, ...]] = []
    for name in content.sets:
        for detector in content.names:
            reports = {c: content.found.get((detector, name, c)) for c in conditions}
            cells = {
                (o.known_source, o.known_generator, c): o
                for c, report in reports.items()
                if report
                for o in report.origins
            }
            if not cells:
                continue
            for known_source in (True, False):
                shown: list[Cell] = []
                for known_generator, condition in product((True, False), conditions):
                    cell = cells[known_source, known_generator, condition]
                    value = number(cell.auroc)
                    counts = f"{cell.n_real:,} + {cell.n_generated:,}"
                    shown.append(Value(value.text, f"{value.small} {counts}".strip()))
                rows.append((name, content.named(detector), known_or_new(known_source), *shown))
    if not rows:
        return []
    generators = [f"{known_or_new(known)} generators\n{c}" for known, c in product((True, False), conditions)]
    return [
        Table(
            "AUROC, percent; small: its interval, photographs + generated images",
            ["set", "detector", "sources of\nphotographs", *generators],
            rows,
            names=3,
        ),
        "Known: the detector's training record names it. A detector can look good because it knows the photographs' "
        "sources rather than the traces of generators; what counts for images of others is new sources and new "
        "generators. Detectors whose record names no sources are left out.",
    ]


def known_or_new(known: bool) -> str:
    """The word of a report for what a detector was trained on, or for the rest."""
    return "known" if known else "new"


def kind_tables(content: Content) -> list[PageBlock]:
    """False alarms and missing verdicts by kind of photograph, one row per kind."""
    blocks: list[PageBlock] = []
    conditions = [c for c in content.main if any(s.kinds for s in content.report.sets if s.condition == c)]
    for name in content.sets:
        columns = [(d, c) for d in content.names for c in conditions if _kinds(content, d, name, c)]
        kinds = {(d, c): _kinds(content, d, name, c) for d, c in columns}
        every = {kind: k.n_real for found in kinds.values() for kind, k in found.items()}
        rows: list[tuple[Cell, ...]] = [
            (
                kind,
                Value(f"{count:,}"),
                *(number(getattr(kinds[column][kind], key)) for key in KINDS for column in columns),
            )
            for kind, count in sorted(every.items())
        ]
        heads = [
            "kind",
            "photographs",
            *(f"{text}\n{content.brief(d)}, {c}" for text in KINDS.values() for d, c in columns),
        ]
        if rows:
            blocks += content.of_set(name, [Table(f"Photographs of {name} by kind, percent", heads, rows)])
    return blocks


def _kinds(content: Content, detector: str, name: str, condition: str) -> dict[str, KindEstimate]:
    report = content.found.get((detector, name, condition))
    return {each.kind: each for each in report.kinds} if report else {}


def estimate_tables(content: Content) -> list[PageBlock]:
    """All estimates of every detector under the main conditions, one table per set."""
    blocks: list[PageBlock] = []
    for name in content.sets:
        own = [s for s in content.report.sets if s.set == name and s.condition in content.main]
        keys = list(dict.fromkeys(key for s in own for key in s.estimates))
        columns = [(d, c) for d in content.names for c in content.main]
        rows: list[tuple[Cell, ...]] = []
        for key in keys:
            rows.append((metric_name(key), *(number(content.estimate(d, name, c, key), key) for d, c in columns)))
        caption = f"{content.count(name, 0):,} photographs and {content.count(name, 1):,} generated images of {name}"
        table = Table(caption, ["metric", *(f"{content.brief(d)}\n{c}" for d, c in columns)], rows)
        blocks += content.of_set(name, [table] if rows else [])
    return blocks


def missing(content: Content) -> list[PageBlock]:
    """Data sets that were not there, and files that could not be read."""
    blocks: list[PageBlock] = []
    if content.report.missing:
        blocks += ["Data sets of the protocol that were not there:", Items(content.report.missing)]
    if content.report.failed:
        rows = list(content.report.failed.items())
        blocks.append(Table(f"{plural(len(rows), 'file')} could not be read", ["file", "reason"], rows[:FILES_SHOWN]))
        if len(rows) > FILES_SHOWN:
            blocks.append(f"The first {FILES_SHOWN}; report.json names all.")
    return blocks


def recipe_blocks(recipe: Mapping[str, Any]) -> list[PageBlock]:
    """The command, and everything else as a table."""
    blocks: list[PageBlock] = []
    rows: list[tuple[Cell, ...]] = []
    for key, value in recipe.items():
        if key == "command":
            blocks.append(Code(as_text(value)))
        else:
            rows.append((key.replace("_", " "), as_text(value)))
    return [*blocks, *([Table("What makes these numbers again", ["", ""], rows)] if rows else [])]


def as_text(value: Any) -> str:
    """A value of a recipe as text: a string as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
