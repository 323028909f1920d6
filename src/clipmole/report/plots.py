"""Numbers -> small SVG plots: lines, histograms, shaded matrices, and rows of points with their intervals.

In: numbers and labels. Out: elements for an HTML page, whose style sheet (`report.css`) gives them their colours in
light, dark and print. A detector has the same colour, dash and marker in every plot, so that detectors can be told
apart without colour too. It knows nothing of reports.

The SVG is written here and not by matplotlib: the style sheet can recolour it for dark mode, its text stays text, it
takes a tenth of the bytes, and the same numbers give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from xml.etree.ElementTree import Element, tostring

from clipmole.report.page import element

# Lengths are in units of the SVG, of which one is a pixel unless the page scales it.
WIDTH, HEIGHT = 300, 232
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 16, 38  # margins
STRIP, ROW = 200, 13  # width of a strip; height of one detector in it
CELL = 30  # side of a cell of a matrix
COLOURS, DASHES = 6, ("none", "7 3", "2 2.5", "9 3 2 3", "12 3")


@dataclass(frozen=True)
class Axis:
    """An axis: its label, its range from `low` to `high`, and its ticks as (position, text)."""

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Line:
    """One detector's points.

    Attributes:
        index: the detector's position among all, which gives it its colour, dash and marker.
        x, y: of the points.
        low, high: of a band around the line; () for no band.
        marked: put a marker on every point.
    """

    index: int
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    marked: bool = False


def even_axis(label: str, low: float, high: float, count: int = 5, percent: bool = True) -> Axis:
    """An axis with about `count` ticks at round numbers, from the tick below `low` to the one above `high`."""
    step = 10.0 ** math.floor(math.log10((high - low) / count))
    step *= next(f for f in (1, 2, 2.5, 5, 10) if f * step * count >= (high - low) * 0.999)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    scale = 100 if percent else 1
    ticks = [(i * step, f"{i * step * scale:.6g}".replace("-", "\N{MINUS SIGN}")) for i in range(first, last + 1)]
    return Axis(label, first * step, last * step, ticks)


def legible(ticks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """As many of the ticks as have room for their texts; the first and the last are always among them."""
    span = ticks[-1][0] - ticks[0][0] or 1.0
    kept: list[tuple[float, str]] = []
    for tick in ticks:
        room = (tick[0] - kept[-1][0]) / span * (WIDTH - LEFT - RIGHT) if kept else math.inf
        if room > 7 * len(tick[1]) + 4:
            kept.append(tick)
        elif tick is ticks[-1] and len(kept) > 1:
            kept[-1] = tick
    return kept


def chart(
    lines: Sequence[Line],
    x: Axis,
    y: Axis,
    label: str,
    *,
    diagonal: bool = False,
    levels: Sequence[tuple[int, float]] = (),
    rows: Sequence[Sequence[str]] = (),
) -> Element:
    """Lines over two axes; `label` describes the plot in words, for those who cannot see it.

    Args:
        diagonal: draw a thin line from corner to corner.
        levels: (index of a detector, y) of thin horizontal lines.
        rows: for each line, a text under each of the equally wide parts of the x axis, such as a count.
    """
    high = HEIGHT + 11 * len(rows) + (6 if rows else 0)
    svg = _canvas(WIDTH, high, label)
    _axes(svg, x, y)
    if diagonal:
        svg.append(element("path", d=_path([_xy(x, y, x.low, y.low), _xy(x, y, x.high, y.high)]), class_="guide"))
    for index, level in levels:
        if math.isfinite(level):
            ends = _path([_xy(x, y, x.low, level), _xy(x, y, x.high, level)])
            svg.append(element("path", d=ends, class_=f"level c{index % COLOURS}"))
    for line in lines:
        if len(line.low):
            there = [i for i, v in enumerate(line.low) if math.isfinite(v) and math.isfinite(line.high[i])]
            band = [_xy(x, y, line.x[i], line.high[i]) for i in there]
            band += [_xy(x, y, line.x[i], line.low[i]) for i in reversed(there)]
            svg.append(element("path", d=_path(band) + "Z", class_=f"band c{line.index % COLOURS}"))
    for line in lines:
        points = [_xy(x, y, a, b) for a, b in zip(line.x, line.y, strict=True) if math.isfinite(a + b)]
        if len(points) > 1:
            svg.append(element("path", d=_path(_thinned(points)), **_ink(line.index)))
        if line.marked:
            for point in points:
                svg.append(marker(line.index, *point))
    width = (WIDTH - LEFT - RIGHT) / max((len(row) for row in rows), default=1)
    for position, row in enumerate(rows):
        below = HEIGHT + 2 + 11 * position
        svg.append(marker(lines[position].index, LEFT - 12, below - 3))
        for column, text in enumerate(row):
            svg.append(element("text", text, x=_n(LEFT + (column + 0.5) * width), y=below, class_="count"))
    return svg


def mirrored_histogram(
    index: int,
    up: Sequence[float],
    down: Sequence[float],
    x: Axis,
    label: str,
    *,
    corners: tuple[str, str],
    lines: Sequence[tuple[float, str]] = (),
) -> Element:
    """Shares `up` above and `down` below one base line, in equally wide bins over `x`.

    Args:
        index: of the detector.
        label: describes the plot in words.
        corners: texts above and below the base line.
        lines: positions on `x` that are marked, each with a text.
    """
    tallest = max([*up, *down, 1e-9]) * 1.1
    y = Axis("share of the class", -tallest, tallest, [(0, "0")])
    svg = _canvas(WIDTH, HEIGHT, label)
    _axes(svg, x, y)
    for values, kind in ((up, "open"), ([-value for value in down], "full")):
        svg.append(_steps(values, x, y, f"{kind} c{index % COLOURS}"))
    _mark(svg, x, y, lines)
    svg.append(element("text", corners[0], x=WIDTH - RIGHT - 4, y=TOP + 14, class_="end strong"))
    svg.append(element("text", corners[1], x=LEFT + 5, y=HEIGHT - BOTTOM - 7, class_="start strong"))
    return svg


def histogram(
    values: Sequence[float], x: Axis, height: str, label: str, *, lines: Sequence[tuple[float, str]] = ()
) -> Element:
    """Counts in equally wide bins over `x`.

    Args:
        height: what is counted, the label of the y axis.
        label: describes the plot in words.
        lines: positions on `x` that are marked, each with a text.
    """
    y = even_axis(height, 0, max([*values, 1]), percent=False)
    svg = _canvas(WIDTH, HEIGHT, label)
    _axes(svg, x, y)
    svg.append(_steps(values, x, y, "open c0"))
    _mark(svg, x, y, lines)
    return svg


def _steps(values: Sequence[float], x: Axis, y: Axis, kind: str) -> Element:
    """The outline of equally wide bins over `x`, from 0."""
    width = (x.high - x.low) / len(values)
    points = [_xy(x, y, x.low, 0)]
    for i, value in enumerate(values):
        points += [_xy(x, y, x.low + (i + k) * width, value) for k in (0, 1)]
    points.append(_xy(x, y, x.high, 0))
    return element("path", d=_path(points) + "Z", class_=kind)


def _mark(svg: Element, x: Axis, y: Axis, lines: Sequence[tuple[float, str]]) -> None:
    """Draw vertical lines at positions on `x`, each with its text; the text of the first is to its left."""
    for position, text in lines:
        if x.low < position < x.high:
            across = _xy(x, y, position, 0)[0]
            svg.append(element("path", d=f"M{_n(across)} {TOP}V{HEIGHT - BOTTOM}", class_="mark"))
            first = position == min(p for p, _ in lines)
            svg.append(element("text", text, x=_n(across), y=TOP - 5, class_="end" if first else "start"))


def matrix(names: Sequence[str], values: Sequence[Sequence[float]], label: str, words: tuple[str, str]) -> Element:
    """A square of cells, each with an AUROC: the further it is from 0.5, the darker the cell.

    Values below 0.5 have another colour; a cell of nan is left empty.

    Args:
        names: of the rows, and of the columns.
        values: a row of numbers for each name.
        label: describes the plot in words.
        words: what the rows and the columns stand for.
    """
    left, top = 18 + 6 * max(map(len, names)), 18 + 4.6 * max(map(len, names))
    size = CELL * len(names)
    svg = _canvas(left + size + 4.6 * max(map(len, names)) / 2, top + size + 6, label)
    svg.append(
        element(
            "text",
            words[0],
            x=11,
            y=_n(top + size / 2),
            class_="middle title",
            transform=f"rotate(-90 11 {_n(top + size / 2)})",
        )
    )
    svg.append(element("text", words[1], x=_n(left + size / 2), y=11, class_="middle title"))
    for i, name in enumerate(names):
        across, down = left + (i + 0.5) * CELL, top + (i + 0.5) * CELL
        svg.append(element("text", name, x=_n(left - 5), y=_n(down + 3.5), class_="end"))
        turned = f"rotate(-45 {_n(across)} {_n(top - 5)})"
        svg.append(element("text", name, x=_n(across), y=_n(top - 5), transform=turned))
        for j, value in enumerate(values[i]):
            x, y = left + j * CELL, top + i * CELL
            if math.isfinite(value):
                shade = min(abs(value - 0.5) / 0.5, 1) * 0.6
                d = f"M{_n(x)} {_n(y)}h{CELL - 1}v{CELL - 1}h{1 - CELL}Z"
                svg.append(element("path", d=d, class_=f"cell c{int(value < 0.5)}", fill_opacity=f"{shade:.3f}"))
                text = f"{100 * value:.0f}"
                svg.append(element("text", text, x=_n(x + CELL / 2), y=_n(y + CELL / 2 + 3.5), class_="middle title"))
    return svg


def tiled(drawings: Sequence[tuple[str, Element]], label: str, legend: Sequence[str] = (), columns: int = 4) -> Element:
    """Charts with their titles as one drawing, in rows of `columns`; below them a legend, one text per line."""
    rows = -(-len(drawings) // columns)
    columns = min(columns, len(drawings))
    wide, high = WIDTH + 16, HEIGHT + 26
    svg = _canvas(columns * wide, rows * high + 20 * len(legend), label)
    for i, text in enumerate(legend):
        y = rows * high + 20 * i + 8
        svg.append(element("path", d=f"M{LEFT} {y}h32", **_ink(i)))
        svg.append(marker(i, LEFT + 16, y))
        svg.append(element("text", text, x=LEFT + 40, y=y + 4))
    for i, (title, drawing) in enumerate(drawings):
        x, y = i % columns * wide, i // columns * high
        svg.append(element("text", title, x=x + LEFT, y=y + 14, class_="strong"))
        placed = element("svg", *drawing, x=x, y=y + 18, width=WIDTH, height=HEIGHT, viewBox=f"0 0 {WIDTH} {HEIGHT}")
        svg.append(placed)
    return svg


def standalone(svg: Element) -> str:
    """A drawing as the text of an SVG file, with the style sheet of pages in it."""
    style = element("style")
    style.text = files("clipmole.report").joinpath("report.css").read_text(encoding="utf-8")
    ground = element("rect", width="100%", height="100%", style="fill: var(--page)")
    attributes = dict(svg.attrib) | {"xmlns": "http://www.w3.org/2000/svg", "font-family": "system-ui, sans-serif"}
    whole = Element("svg", attributes)
    whole.extend([style, ground, *svg])
    return tostring(whole, encoding="unicode") + "\n"


def strip(
    values: Sequence[tuple[int, float, float, float]], axis: Axis, label: str, at: float | None = None
) -> Element:
    """A drawing for one row of a table: for each detector a point on its interval, over `axis`.

    Args:
        values: (index, value, low, high) of each detector.
        axis: its ticks are drawn as a grid.
        label: describes the drawing in words.
        at: position of a reference line; None: no line.
    """
    height = ROW * len(values) + 7
    svg = _canvas(STRIP, height, label, fixed=True)
    for tick, _ in axis.ticks:
        svg.append(element("path", d=f"M{_n(_across(axis, tick))} 0V{height}", class_="grid"))
    if at is not None:
        svg.append(element("path", d=f"M{_n(_across(axis, at))} 0V{height}", class_="mark"))
    for position, (index, value, low, high) in enumerate(values):
        y = ROW * (position + 0.5) + 3.5
        if math.isfinite(low) and math.isfinite(high):
            ends = f"M{_n(_across(axis, low))} {_n(y)}H{_n(_across(axis, high))}"
            svg.append(element("path", d=ends, class_=f"range c{index % COLOURS}"))
        if math.isfinite(value):
            svg.append(marker(index, _across(axis, value), y))
    return svg


def strip_axis(axis: Axis) -> Element:
    """The numbers under the strips of a column."""
    svg = _canvas(STRIP, 16, f"axis from {axis.ticks[0][1]} to {axis.ticks[-1][1]}", fixed=True)
    for tick, text in axis.ticks:
        svg.append(element("text", text, x=_n(_across(axis, tick)), y=12, class_="middle"))
    return svg


def swatch(index: int) -> Element:
    """The line and marker of a detector, to be shown beside its name."""
    svg = element("svg", viewBox="0 0 34 12", width=34, height=12, aria_hidden="true", class_="swatch")
    svg.append(element("path", d="M1 6H33", **_ink(index)))
    svg.append(marker(index, 17, 6))
    return svg


def legend(names: Sequence[str], label: str) -> Element:
    """Names with their lines and markers, in the order of their indices; `label` says what they are."""
    items = [element("li", swatch(i), name) for i, name in enumerate(names)]
    return element("ul", *items, class_="legend", aria_label=label)


def marker(index: int, x: float, y: float) -> Element:
    """The detector's marker around a point."""
    r = 3.6
    shapes = (
        [(r * math.cos(a / 6 * math.pi), r * math.sin(a / 6 * math.pi)) for a in range(12)],  # round
        [(-r, -r), (r, -r), (r, r), (-r, r)],
        [(0, -1.25 * r), (1.2 * r, 0.9 * r), (-1.2 * r, 0.9 * r)],
        [(0, -1.4 * r), (1.4 * r, 0), (0, 1.4 * r), (-1.4 * r, 0)],
        [(0, 1.25 * r), (1.2 * r, -0.9 * r), (-1.2 * r, -0.9 * r)],
    )
    corners = [(x + dx, y + dy) for dx, dy in shapes[index % len(shapes)]]
    return element("path", d=_path(corners) + "Z", class_=f"marker c{index % COLOURS}")


def _ink(index: int) -> dict[str, str]:
    return {"class_": f"line c{index % COLOURS}", "stroke_dasharray": DASHES[index % len(DASHES)]}


def _canvas(width: float, height: float, label: str, fixed: bool = False) -> Element:
    size = {"width": width, "height": height} if fixed else {}
    return element("svg", viewBox=f"0 0 {width} {height}", role="img", aria_label=label, **size)


def _axes(svg: Element, x: Axis, y: Axis) -> None:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    for tick, text in x.ticks:
        across = _n(_xy(x, y, tick, y.low)[0])
        svg.append(element("path", d=f"M{across} {TOP}V{bottom}", class_="grid"))
        svg.append(element("text", text, x=across, y=bottom + 14, class_="middle"))
    for tick, text in y.ticks:
        up = _xy(x, y, x.low, tick)[1]
        svg.append(element("path", d=f"M{LEFT} {_n(up)}H{right}", class_="grid"))
        svg.append(element("text", text, x=LEFT - 6, y=_n(up + 3.5), class_="end"))
    svg.append(element("path", d=f"M{LEFT} {TOP}V{bottom}H{right}", class_="axis"))
    svg.append(element("text", x.label, x=_n((LEFT + right) / 2), y=bottom + 29, class_="middle title"))
    middle = _n((TOP + bottom) / 2)
    turned = f"rotate(-90 11 {middle})"
    svg.append(element("text", y.label, x=11, y=middle, transform=turned, class_="middle title"))


def _xy(x: Axis, y: Axis, a: float, b: float) -> tuple[float, float]:
    across = min(max((a - x.low) / (x.high - x.low), 0), 1)
    up = min(max((b - y.low) / (y.high - y.low), 0), 1)
    return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def _across(axis: Axis, value: float) -> float:
    return 12 + min(max((value - axis.low) / (axis.high - axis.low), 0), 1) * (STRIP - 24)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points, without any that lies within half a unit of the one before it; the last one is kept."""
    kept: list[tuple[float, float]] = []
    for i, point in enumerate(points):
        if not kept or i == len(points) - 1 or math.dist(kept[-1], point) >= 0.5:
            kept.append(point)
    return kept


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "".join(f"{'L' if i else 'M'}{_n(a)} {_n(b)}" for i, (a, b) in enumerate(points))


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
