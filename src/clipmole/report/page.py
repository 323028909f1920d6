"""Sections of text, tables and plots -> one HTML page that loads nothing from elsewhere, and the same as Markdown.

In: `Section`s of blocks. Out: two strings. HTML is built as a tree, so a name can never become markup, and the page
forbids every script and every request by its Content-Security-Policy. Plots and pictures are in the HTML alone. It
knows nothing of detectors or metrics.
"""

from __future__ import annotations

import base64
import hashlib
import re
import xml.etree.ElementTree as ET
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from xml.etree.ElementTree import Element

from clipmole.plumbing.text import printable

URL = re.compile(r"https?://[^\s<>\"']*[^\s<>\"'.,;:)\]]")
ON_THEIR_OWN_LINE = frozenset(
    {"section", "figure", "table", "tr", "p", "li", "h2", "h3", "h4", "details", "nav", "header", "main"}
)


@dataclass(frozen=True)
class Value:
    """A number in a table: `text`, and `small` beneath it, such as an interval."""

    text: str
    small: str = ""


@dataclass(frozen=True)
class Name:
    """A name in a table with its drawing (in HTML) before it."""

    text: str
    drawing: Element


Cell = str | Value | Name | Element  # an Element is drawn in HTML and left out of Markdown


@dataclass(frozen=True)
class Table:
    """Rows under named columns.

    Attributes:
        caption: what it shows.
        columns: the heads; text after a line break is a second, smaller line of the head.
        rows: the cells of each row.
        names: how many of the first columns name the row.
        apart, apart_columns: indices of rows and of columns that are visibly set apart, because they cannot be compared
            with the others.
        sums: indices of rows that sum up the others.
        axes: column -> a drawing under its head, such as the axis of the drawings below.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    names: int = 1
    apart: frozenset[int] = frozenset()
    apart_columns: frozenset[int] = frozenset()
    sums: frozenset[int] = frozenset()
    axes: Mapping[int, Element] = field(default_factory=dict)


@dataclass(frozen=True)
class Note:
    """A caveat, visibly set apart."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Text that is shown as it is, such as a command."""

    text: str


@dataclass(frozen=True)
class Heading:
    """A heading within a section; those of sections are of level 2."""

    text: str
    level: int = 3


@dataclass(frozen=True)
class Drawings:
    """Plots or pictures, each with its caption, side by side where there is room; `kind` is a class of the style."""

    items: Sequence[tuple[Element, str]]
    kind: str = "plots"


@dataclass(frozen=True)
class Fold:
    """Blocks under a heading, folded away until they are opened (by the browser itself, without a script)."""

    title: str
    blocks: Sequence[str | Table | Note | Items | Heading | Drawings]


PageBlock = Fold | str | Table | Note | Items | Code | Heading | Drawings | Element


@dataclass(frozen=True)
class Section:
    """A part of the page with its heading; `id` is its anchor."""

    id: str
    title: str
    blocks: Sequence[PageBlock]


def element(tag: str, /, *children: Element | str, **attributes: str | float) -> Element:
    """An element with its children; the argument `class_` is the attribute class, `stroke_width` is stroke-width."""
    node = Element(tag, {k.rstrip("_").replace("_", "-"): printable(str(v), keep="\n") for k, v in attributes.items()})
    last: Element | None = None
    for child in children:
        if isinstance(child, str):
            if last is None:
                node.text = (node.text or "") + printable(child, keep="\n")
            else:
                last.tail = (last.tail or "") + printable(child, keep="\n")
        else:
            node.append(child)
            last = child
            if child.tag in ON_THEIR_OWN_LINE:
                child.tail = "\n"
    return node


def linked(text: str) -> Iterator[Element | str]:
    """`text` with its web addresses as links."""
    end = 0
    for match in URL.finditer(text):
        yield text[end : match.start()]
        yield element("a", match[0], href=match[0], rel="noopener noreferrer")
        end = match.end()
    yield text[end:]


def read_page(path: Path) -> None:
    """Raise `ValueError` unless a file is a page that `html_page` made."""
    with path.open("rb") as file:
        if not file.read(len(_HEAD)) == _HEAD:
            raise ValueError(f"{path.name} is not a page by clipmole")


_HEAD = (
    b'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    b"<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'sha256-"
)


def html_page(title: str, lead: Sequence[PageBlock], sections: Sequence[Section]) -> str:
    """The page as one file, which needs no script, and can be read in light and dark, on paper and on a phone."""
    style = files("clipmole.report").joinpath("report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    sheet = Element("style")
    sheet.text = style  # as it is: the policy names its sha256
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        sheet,
    )
    contents = [element("li", element("a", s.title, href=f"#{s.id}")) for s in sections]
    body = element(
        "body",
        element("header", element("h1", title), *(_html(block) for block in lead)),
        element("nav", element("ul", *contents), aria_label="Contents"),
        element("main", *(_section(section) for section in sections)),
    )
    return "<!DOCTYPE html>\n" + ET.tostring(element("html", head, body, lang="en"), encoding="unicode", method="html")


def _section(section: Section) -> Element:
    head = element("h2", section.title, id=section.id)
    return element("section", head, *(_html(block) for block in section.blocks), aria_labelledby=section.id)


def _html(block: PageBlock) -> Element:
    made: Element
    match block:
        case str():
            made = element("p", *linked(block))
        case Note():
            made = element("p", *linked(block.text), class_="note")
        case Items():
            made = element("ul", *(element("li", *linked(item)) for item in block.items))
        case Code():
            made = element("pre", element("code", block.text), tabindex=0)
        case Heading():
            made = element(f"h{block.level}", block.text)
        case Fold():
            made = element("details", element("summary", block.title), *(_html(part) for part in block.blocks))
        case Table():
            made = _html_table(block)
        case Drawings():
            drawings = [element("figure", drawing, element("figcaption", text)) for drawing, text in block.items]
            made = element("div", *drawings, class_=block.kind)
        case _:
            made = block
    return made


def _html_table(table: Table) -> Element:
    numbers = {i for row in table.rows for i, cell in enumerate(row) if isinstance(cell, Value)}
    heads = []
    for i, column in enumerate(table.columns):
        first, _, second = column.partition("\n")
        small = [element("small", second)] if second else []
        small += [table.axes[i]] if i in table.axes else []
        heads.append(element("th", first, *small, scope="col", class_="number" if i in numbers else "words"))
    rows = []
    for index, row in enumerate(table.rows):
        cells = [_html_cell(cell, i < table.names) for i, cell in enumerate(row)]
        for i in table.apart_columns:
            cells[i].set("class", f"{cells[i].get('class', '')} apart".strip())
        kinds = ["apart"] * (index in table.apart) + ["sum"] * (index in table.sums)
        kinds += ["next"] * (table.names > 1 and index > 0 and row[0] != table.rows[index - 1][0])
        rows.append(element("tr", *cells, **({"class_": " ".join(kinds)} if kinds else {})))
    grid = element(
        "table",
        element("caption", element("span", table.caption)),
        element("thead", element("tr", *heads)),
        element("tbody", *rows),
    )
    # A box of its own scrolls sideways, so that the page never does. The label and the tab stop are for those who
    # scroll with the keyboard.
    return element("div", grid, class_="box", role="region", aria_label=table.caption, tabindex=0)


def _html_cell(cell: Cell, names_row: bool) -> Element:
    match cell:
        case Value():
            return element("td", cell.text, *([element("small", cell.small)] if cell.small else []), class_="number")
        case Name():
            content: list[Element | str] = [cell.drawing, cell.text]
        case Element():
            content = [cell]
        case _:
            content = list(linked(cell))
    return element("th", *content, scope="row") if names_row else element("td", *content)


def markdown_page(title: str, lead: Sequence[PageBlock], sections: Sequence[Section]) -> str:
    """The text and tables of the page as Markdown, with tables as GitHub writes them."""
    return "\n\n".join([f"# {_plain(title)}", *_all_markdown(lead), *markdown_sections(sections)]) + "\n"


def markdown_sections(sections: Sequence[Section]) -> list[str]:
    """The headings and blocks of sections as Markdown; a section of drawings alone is left out."""
    parts = []
    for section in sections:
        if blocks := _all_markdown(section.blocks):
            parts += [f"## {_plain(section.title)}", *blocks]
    return parts


def _all_markdown(blocks: Sequence[PageBlock]) -> list[str]:
    """The blocks that Markdown can hold; a heading with nothing beneath it is left out."""
    found: list[str] = []
    heading = ""
    for block in blocks:
        if isinstance(block, Heading):
            heading = f"{'#' * block.level} {_plain(block.text)}"
        elif isinstance(block, Fold):
            found += _all_markdown([Heading(block.title), *block.blocks])
        elif text := _markdown(block):
            found += [heading, text] if heading else [text]
            heading = ""
    return found


def _markdown(block: PageBlock) -> str:
    match block:
        case str():
            return _plain(block)
        case Note():
            return f"> {_plain(block.text)}"
        case Items():
            return "\n".join(f"- {_plain(item)}" for item in block.items)
        case Code():
            return "\n".join("    " + printable(line) for line in block.text.splitlines())
        case Table():
            return _markdown_table(block)
        case _:
            return ""


def _markdown_table(table: Table) -> str:
    drawn = {i for row in table.rows for i, cell in enumerate(row) if isinstance(cell, Element)}
    kept = [i for i in range(len(table.columns)) if i not in drawn]
    heads = [_plain(table.columns[i].replace("\n", ", ")) for i in kept]
    rows = []
    for row in table.rows:
        cells = [row[i] for i in kept]
        rows.append([_plain(f"{c.text} {c.small}") if isinstance(c, Value) else _plain(_cell_text(c)) for c in cells])
    left = [i for i, column in enumerate(kept) if column < table.names]
    return "\n".join([f"{_plain(table.caption)}:", "", *markdown_table(heads, rows, left)])


def markdown_table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], left: Container[int] = frozenset({0})
) -> list[str]:
    """The lines of a Markdown table; its texts are not escaped.

    Args:
        heads: of the columns.
        rows: a text for each column.
        left: indices of the columns that are aligned to the left, those of words; numbers are aligned to the right.
    """
    sides = ["---" if i in left else "--:" for i in range(len(heads))]
    return ["| " + " | ".join(heads) + " |", "|" + "|".join(sides) + "|", *("| " + " | ".join(r) + " |" for r in rows)]


def _cell_text(cell: Cell) -> str:
    return cell.text if isinstance(cell, Name) else str(cell)


def _plain(text: str) -> str:
    """`text` on one line, without anything that Markdown or HTML would take for markup."""
    line = " ".join(printable(text, keep="\n").split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*|~$\[\]]|(?<!\w)_|_(?!\w)|^[#+-](?=\s)|^\d+(?=[.)]\s))", r"\\\1", line)
