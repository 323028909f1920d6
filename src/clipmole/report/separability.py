"""How separable generators are -> a page, and the same as JSON, Markdown and SVG files.

In: a `Separability`. Out: `separability.html`, `.json` and `.md`, and its two pictures as SVG files. It measures
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from clipmole.errors import DataError
from clipmole.evaluation.records import Separability, SeparabilityCurve
from clipmole.evaluation.separability import OTHERS, PHOTOGRAPHS
from clipmole.plumbing.files import foreign_file, write_texts
from clipmole.plumbing.json_toml import read_json
from clipmole.report import plots
from clipmole.report.content import DASH, number
from clipmole.report.page import (
    Cell,
    Drawings,
    Items,
    Note,
    PageBlock,
    Section,
    Table,
    Value,
    html_page,
    markdown_page,
    read_page,
)
from clipmole.report.tables import recipe_blocks

RECORD, PAGE, TEXT = "separability.json", "separability.html", "separability.md"
LEGEND = tuple(f"against {name}" for name in (PHOTOGRAPHS, OTHERS))
CURVES, MATRIX = "separability-curves.svg", "separability-transfer.svg"


def check_out_folder(folder: Path) -> None:
    """Raise `DataError` if files in `folder` that would be replaced were not written by `write_separability`."""

    def read_record(path: Path) -> None:
        Separability.model_validate(read_json(path.with_name(RECORD), DataError))

    files = {RECORD: read_record, TEXT: read_record, PAGE: read_page, CURVES: read_record, MATRIX: read_record}
    if path := foreign_file(folder, files):
        raise DataError(f"{path}: exists and was not written by clipmole separability; name another --out")


def write_separability(found: Separability, folder: Path) -> Path:
    """Write the record, the page, and both pictures; returns the path of the page.

    Raises `DataError` if they cannot be written, or would replace other files.
    """
    check_out_folder(folder)
    lead, parts = summary(found), sections(found)
    texts = {
        RECORD: found.model_dump_json(indent=1) + "\n",
        TEXT: markdown_page(found.title, lead, parts),
        PAGE: html_page(found.title, lead, parts) + "\n",
        CURVES: plots.standalone(
            plots.tiled(charts(found), "AUROC by the number of images that a head was trained on", LEGEND)
        ),
        MATRIX: plots.standalone(transfer_matrix(found)),
    }
    try:
        write_texts(folder, texts)
    except OSError as error:
        raise DataError(f"{folder}: the report cannot be written: {error.strerror}; name another folder") from error
    return folder / PAGE


def summary(found: Separability) -> list[PageBlock]:
    """The results in a few sentences, and what they do not show."""
    controls = {each.name for each in found.sets if each.control}
    by_n: dict[int | None, list[str]] = {}
    for curve in found.curves:
        if curve.against == PHOTOGRAPHS and curve.name not in controls:
            by_n.setdefault(curve.separable, []).append(curve.name)
    rest = by_n.pop(None, [])
    told = [
        f"{n} image{'s' * (n != 1)} of {in_words(names, 'or')}" for n, names in sorted(by_n.items()) if n is not None
    ]
    said = f"A head reaches an AUROC of {found.level:g} against photographs with {'; '.join(told)}." if told else ""
    are = "is" if len(rest) == 1 else "are"
    left = f"{in_words(rest, 'and')} {are} not told apart so well with what was tried." if rest else ""
    return [
        Note(
            "A head tells images apart by whatever differs: how they were made, but also what they show and which "
            "collection they come from. The controls are photographs of one source against photographs of others: what "
            f"a head reaches there has nothing to do with generators.{controls_reach(found, controls)}"
        ),
        " ".join(filter(None, [said, left])),
    ]


def in_words(names: Sequence[str], word: str) -> str:
    """ "a", "a or b", "a, b or c"."""
    return f" {word} ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def controls_reach(found: Separability, controls: Container[str]) -> str:
    """A sentence on the AUROC of the controls, for the largest n that all of them have; "" without controls."""
    points = [{point.n: point.auroc.value for point in c.points} for c in found.curves if c.name in controls]
    common = set.intersection(*(set(each) for each in points)) if points else set()
    if not common:
        return ""
    n = max(common)
    reached = sorted(f"{each[n]:.2f}" for each in points)
    return f" Here they reach an AUROC of {in_words(reached, 'and')} with n = {n}."


def sections(found: Separability) -> list[Section]:
    """All sections of the page."""
    recipe = {k: v for k, v in found.recipe.items() if k != "settings"} | found.recipe.get("settings", {})
    return [
        Section("curves", "How many images it takes", [curve_table(found)]),
        Section(
            "charts",
            "AUROC by number of images",
            [
                plots.legend(LEGEND, "Lines"),
                Drawings([(drawing, name) for name, drawing in charts(found)]),
            ],
        ),
        Section("transfer", "How far a head transfers", transfer_blocks(found)),
        Section("sets", "What was compared", [set_table(found)]),
        Section("recipe", "Recipe", [*recipe_blocks(recipe), *unread(found)]),
    ]


def curve_table(found: Separability) -> Table:
    """A row for each curve: from which n it is better than chance, from which n separable, and the AUROC for each n."""
    counts = sorted({point.n for curve in found.curves for point in curve.points})
    controls = {each.name for each in found.sets if each.control}
    rows: list[Sequence[Cell]] = []
    order = {each.name: position for position, each in enumerate(found.sets)}
    for curve in sorted(found.curves, key=lambda each: order[each.name]):
        by_n = {point.n: point for point in curve.points}
        cells = [number(by_n[n].auroc) if n in by_n else "" for n in counts]
        against = "other photographs (control)" if curve.name in controls else curve.against
        rows.append(
            (curve.name, against, Value(from_n(curve.better_than_chance)), Value(from_n(curve.separable)), *cells)
        )
    heads = [
        "",
        "against",
        "better than\nchance from n",
        f"AUROC {found.level:g}\nfrom n",
        *(f"n = {n}" for n in counts),
    ]
    apart = frozenset(i for i, row in enumerate(rows) if row[0] in controls)
    caption = "AUROC of heads trained on n images, percent, mean over the seeds, with 95 % bootstrap intervals"
    return Table(caption, heads, rows, names=2, apart=apart)


def from_n(n: int | None) -> str:
    """A number of images, or a dash for None."""
    return DASH if n is None else str(n)


def charts(found: Separability) -> list[tuple[str, Element]]:
    """One chart per set: lines against photographs and against other generators over n, on a logarithmic axis."""
    by_name: dict[str, list[SeparabilityCurve]] = {}
    for curve in found.curves:
        by_name.setdefault(curve.name, []).append(curve)
    counts = sorted({point.n for curve in found.curves for point in curve.points})
    lowest = min(point.auroc.low for curve in found.curves for point in curve.points)
    y = plots.even_axis("AUROC, percent", min(0.5, lowest), 1.0)
    span = (math.log2(counts[0]) - 0.2, math.log2(counts[-1]) + 0.2)
    x = plots.Axis("images n", *span, [(math.log2(n), str(n)) for n in counts])
    controls = {each.name for each in found.sets if each.control}
    drawn = []
    for name, own in by_name.items():
        lines = [
            plots.Line(
                int(curve.against == OTHERS),
                [math.log2(point.n) for point in curve.points],
                [point.auroc.value for point in curve.points],
                [point.auroc.low for point in curve.points],
                [point.auroc.high for point in curve.points],
                marked=True,
            )
            for curve in own
        ]
        last = [
            f"{100 * c.points[-1].auroc.value:.1f} % against {c.against} with {c.points[-1].n}" for c in own if c.points
        ]
        title = f"{name} (control)" if name in controls else name
        drawn.append((title, plots.chart(lines, x, y, f"AUROC by number of images of {name}: {'; '.join(last)}")))
    return drawn


def transfer_matrix(found: Separability) -> Element:
    """The AUROC of a head for each generator on the images of each other one, as shaded cells."""
    names = list(found.transfer)
    values = [[found.transfer[row][column].value for column in names] for row in names]
    label = (
        f"AUROC in percent of heads trained on {found.transfer_n} images of one generator, on another and photographs"
    )
    return plots.matrix(names, values, label, ("trained on", "tested on, against photographs: AUROC, percent"))


def transfer_blocks(found: Separability) -> list[PageBlock]:
    """The matrix as a picture, and its numbers."""
    names = list(found.transfer)
    rows: list[Sequence[Cell]] = [(row, *(number(found.transfer[row][column]) for column in names)) for row in names]
    said = (
        f"Heads were trained on {found.transfer_n} images of the row's generator and all photographs that are not held "
        "apart, and tested on images of the column's and photographs that are: AUROC, percent; 50 is chance."
    )
    caption = "AUROC in percent, with 95 % bootstrap intervals: trained on the row, tested on the column"
    return [
        said,
        Drawings([(transfer_matrix(found), "Trained on the row, tested on the column")], "wide"),
        Table(caption, ["", *names], rows),
    ]


def set_table(found: Separability) -> Table:
    """How many images each set has, and which groups of them are never divided between training and test."""
    rows: list[Sequence[Cell]] = [
        (
            f"{each.name} (control)" if each.control else each.name,
            Value(f"{each.images:,}"),
            Value(f"{each.trained:,}"),
            Value(f"{each.images - each.trained:,}"),
            Value(str(each.sources) if each.sources else "not named"),
            f"{each.held_by} ({each.groups:,})",
        )
        for each in found.sets
    ]
    heads = ["", "images", "may be trained on", "held apart", "sources", "what is never divided"]
    return Table("Images of each set", heads, rows)


def unread(found: Separability) -> list[PageBlock]:
    """The images that could not be read, if any."""
    return [Items([f"not read: {path}: {reason}" for path, reason in found.failed.items()])] if found.failed else []
