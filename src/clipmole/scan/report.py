"""A scan's folder -> one HTML page: counts, scores, folders, formats, sizes, errors, and images.

In: parts and `scan.json`. Out: `report.html`, which loads nothing from elsewhere. Rows are read once, a batch at a
time; what is kept are counts. Images of the gallery are read again from where they are.
"""

from __future__ import annotations

import heapq
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from clipmole.data.containers.filesystems import read_location
from clipmole.errors import ClipmoleError, DataError
from clipmole.images.loading import load_image
from clipmole.plumbing.files import foreign_file, write_texts
from clipmole.plumbing.json_toml import read_json
from clipmole.plumbing.progress import Say, silent
from clipmole.records import Verdict
from clipmole.report.page import (
    Cell,
    Code,
    Drawings,
    Note,
    PageBlock,
    Section,
    Table,
    Value,
    element,
    html_page,
    read_page,
)
from clipmole.report.plots import even_axis, histogram
from clipmole.report.thumbnails import thumbnail
from clipmole.scan.containers import WorkItem, entries
from clipmole.scan.listing import SCAN, read_rows
from clipmole.scan.rows import in_utf8, out_of_utf8
from clipmole.scan.settings import ScanSettings

SHOWN = 12  # images of each kind
FOLDERS = 20  # rows of the table by folder
BINS = 40
LOGITS = 0.25  # width of the bins in which logits are counted before the axis is known
SIZES = (
    (256, "up to 256"),
    (512, "257 to 512"),
    (1024, "513 to 1,024"),
    (2048, "1,025 to 2,048"),
    (4096, "2,049 to 4,096"),
)
LARGER = "over 4,096"
COLUMNS = ["source", "container", "member", "logit", "probability", "verdict", "width", "height", "format"]
COLUMNS += ["reason", "error_code", "error", "duplicate_of", "bytes"]


@dataclass
class Tally:
    """Images of one kind: how many, verdicts, errors, sum of the logits."""

    rows: int = 0
    errors: int = 0
    logits: float = 0.0
    verdicts: Counter[str] = field(default_factory=Counter)

    def add(self, row: dict[str, Any]) -> None:
        self.rows += 1
        self.errors += row["error_code"] is not None
        self.logits += row["logit"] or 0.0
        self.verdicts[row["verdict"] or ""] += 1


@dataclass(order=True)
class _Shown:
    rank: float
    source: str
    row: dict[str, Any] = field(compare=False)


class Overview:
    """The counts that a page shows; rows are added one after another."""

    def __init__(self, middle: float) -> None:
        self.middle = middle  # the probability, or logit, that is most uncertain
        self.all = Tally()
        self.duplicates = 0
        self.without_content = 0
        self.bytes = 0
        self.folders: dict[str, Tally] = defaultdict(Tally)
        self.formats: dict[str, Tally] = defaultdict(Tally)
        self.sizes: dict[str, Tally] = defaultdict(Tally)
        self.scores: Counter[int] = Counter()  # of probabilities, or of logits by LOGITS
        self.calibrated = False
        self.errors: dict[tuple[str, str], list[str]] = {}
        self.error_counts: Counter[tuple[str, str]] = Counter()
        self.kept: dict[str, list[_Shown]] = {"highest": [], "lowest": [], "uncertain": []}

    def add(self, row: dict[str, Any]) -> None:
        self.all.add(row)
        self.bytes += row["bytes"] or 0
        self.duplicates += row["duplicate_of"] is not None
        self.folders[folder_of(row)].add(row)
        self.formats[row["format"] or "none that is known"].add(row)
        if row["error_code"] is not None:
            key = (row["error_code"], _kind(row["error"] or ""))
            self.error_counts[key] += 1
            self.errors.setdefault(key, [row["source"]])
            return
        self.sizes[_size_class(row["width"], row["height"])].add(row)
        score = row["logit"]
        if row["probability"] is not None:
            self.calibrated = True
            score = row["probability"]
            self.scores[min(BINS - 1, int(score * BINS))] += 1
        else:
            self.scores[math.floor(score / LOGITS)] += 1
        self.without_content += row["reason"] is not None
        if row["duplicate_of"] is None and row["reason"] is None:
            for name, rank in (
                ("highest", row["logit"]),
                ("lowest", -row["logit"]),
                ("uncertain", -abs(score - self.middle)),
            ):
                shown = _Shown(rank, row["source"], row)
                (heapq.heappush if len(self.kept[name]) < SHOWN else heapq.heappushpop)(self.kept[name], shown)


def folder_of(row: dict[str, Any]) -> str:
    """The folder of a file, the shard or table of what lies in one."""
    return str(row["container"] or row["source"].rpartition("/")[0] or ".")


def _kind(reason: str) -> str:
    """A reason without the parts that differ from image to image."""
    return "".join("#" if c.isdigit() else c for c in reason)[:120]


def _size_class(width: int, height: int) -> str:
    return next((name for most, name in SIZES if max(width, height) <= most), LARGER)


def write_page(folder: Path, out: Path | None = None, *, gallery: bool = True, say: Say = silent) -> Path:
    """Write the page of a scan, finished or not.

    Args:
        out: None: `report.html` in the folder.
        gallery: show images, read again from their sources. Turn it off if they must not be passed on.

    Raises `DataError` if the folder holds no scan, or the page cannot be written.
    """
    try:
        facts = read_json(folder / SCAN, DataError)
        configuration = dict(facts["configuration"])
        detector, thresholds = configuration["detector"], configuration.get("thresholds")
        middle = 0.0 if not thresholds else (thresholds["real"] + thresholds["ai"]) / 2
    except (DataError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder}: holds no scan; give the folder that clipmole scan --out wrote") from error
    overview = Overview(middle)
    for row in read_rows(folder, columns=COLUMNS):
        overview.add(row)
    if not overview.all.rows:
        raise DataError(f"{folder}: holds no rows yet; give the scan's command again to continue")
    parts = [
        Section("counts", "Counts", _totals(overview)),
        Section("scores", "Scores", _scores(overview, thresholds)),
        Section("folders", "By folder", _folders(overview)),
        Section("formats", "By format", [_tallies("Format of the file", overview.formats)]),
        Section("sizes", "By size", [_sizes(overview)]),
        Section("errors", "Not scored", _errors(overview)),
        Section("gallery", "Images", _gallery(overview, say) if gallery else []),
        Section("recipe", "Recipe", [Code(json.dumps({k: v for k, v in facts.items() if k != "counts"}, indent=2))]),
    ]
    lead: list[PageBlock] = [f"{overview.all.rows:,} images, {overview.bytes / 1e6:,.1f} MB, scored by {detector}."]
    if not facts.get("finished"):
        lead.append(Note("This scan is not finished; give its command again to continue."))
    lead.append(Note("Likelihoods, not proofs: new generators, edits and heavy compression mislead a detector."))
    page = out or folder / "report.html"
    if foreign_file(page.parent, {page.name: read_page}):
        raise DataError(f"{page}: exists and is not a page by clipmole; name another file")
    text = html_page(f"Scan: {folder.resolve().name}", lead, [part for part in parts if part.blocks]) + "\n"
    try:
        write_texts(page.parent, {page.name: text})
    except OSError as error:
        raise DataError(f"{page}: cannot be written: {error.strerror}; name another file or free some space") from error
    return page


def _share(count: int, of: int) -> Value:
    return Value(f"{count:,}", f"{100 * count / of:.1f} %" if of else "")


def _totals(overview: Overview) -> list[PageBlock]:
    whole, scored = overview.all.rows, overview.all.rows - overview.all.errors
    rows: list[list[Cell]] = [["Images", Value(f"{whole:,}")], ["Scored", _share(scored, whole)]]
    if overview.calibrated:
        rows += [[verdict.description, _share(overview.all.verdicts[verdict.value], scored)] for verdict in Verdict]
    rows += [["Uncertain because they show nothing to judge by", _share(overview.without_content, scored)]]
    rows += [["Copies of others, scored once", _share(overview.duplicates, whole)]]
    rows += [["Not scored", _share(overview.all.errors, whole)]]
    return [Table("Images; verdicts as shares of those scored", ["what", "images"], rows)]


def _scores(overview: Overview, thresholds: dict[str, float] | None) -> list[PageBlock]:
    if not overview.scores:
        return []
    if overview.calibrated:
        axis = even_axis("probability of being AI-generated, %", 0, 1)
        counts = [overview.scores[i] for i in range(BINS)]
        lines = [(thresholds[key], text) for key, text in (("real", "photograph"), ("ai", "AI"))] if thresholds else []
    else:
        low, high = min(overview.scores) * LOGITS, (max(overview.scores) + 1) * LOGITS
        axis = even_axis("score (not calibrated)", low, high, percent=False)
        width = (axis.high - axis.low) / BINS
        counts = [0] * BINS
        for number, count in overview.scores.items():
            counts[min(BINS - 1, int(((number + 0.5) * LOGITS - axis.low) / width))] += count
        lines = []
    drawn = histogram(counts, axis, "images", "Histogram of the scores of all images", lines=lines)
    return [Drawings([(drawn, "All images that could be scored")])]


def _tallies(caption: str, tallies: dict[str, Tally], names: Sequence[str] | None = None) -> Table:
    rows: list[list[Cell]] = []
    for name in names if names is not None else sorted(tallies, key=lambda name: (-tallies[name].rows, name)):
        tally = tallies[name]
        scored = tally.rows - tally.errors
        verdicts = [_share(tally.verdicts[verdict.value], scored) for verdict in Verdict]
        mean = Value(f"{tally.logits / scored:+.2f}" if scored else "\N{EN DASH}")
        rows.append([name, Value(f"{tally.rows:,}"), *verdicts, mean, _share(tally.errors, tally.rows)])
    columns = ["", "images", *(verdict.description for verdict in Verdict), "mean score", "not scored"]
    return Table(caption, columns, rows)


def _folders(overview: Overview) -> list[PageBlock]:
    tallies = dict(overview.folders)
    names = sorted(tallies, key=lambda name: (-tallies[name].rows, name))
    begin = _common(names)
    shown = {name[len(begin) :] or ".": tallies[name] for name in names[:FOLDERS]}
    blocks: list[PageBlock] = [f"Below {begin}"] if begin else []
    blocks.append(_tallies("Folder, shard or table", shown))
    if len(names) > FOLDERS:
        blocks.append(f"The {FOLDERS} with most images, of {len(names):,}.")
    return blocks


def _common(names: Sequence[str]) -> str:
    """The longest common prefix of all names that ends in a slash; "" if there is one name only."""
    if len(names) < 2:
        return ""
    low, high = min(names), max(names)
    same = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return low[: low[:same].rfind("/") + 1]


def _sizes(overview: Overview) -> Table:
    order = [name for _, name in SIZES] + [LARGER]
    return _tallies("Longer side, pixels", overview.sizes, [name for name in order if name in overview.sizes])


def _errors(overview: Overview) -> list[PageBlock]:
    rows: list[list[Cell]] = [
        [code, reason, Value(f"{count:,}"), overview.errors[code, reason][0]]
        for (code, reason), count in overview.error_counts.most_common(30)
    ]
    return [Table("Why, with one of each", ["code", "reason", "images", "for instance"], rows, names=2)] if rows else []


def _gallery(overview: Overview, say: Say) -> list[PageBlock]:
    titles = {"highest": "Highest scores:", "lowest": "Lowest scores:", "uncertain": "Most uncertain:"}
    chosen = {name: sorted(shown, reverse=True) for name, shown in overview.kept.items()}
    pictures = thumbnails([each.row for shown in chosen.values() for each in shown])
    blocks: list[PageBlock] = []
    for name, shown in chosen.items():
        items = []
        for each in shown:
            row, picture = each.row, pictures.get(each.source)
            said = (
                f"{100 * row['probability']:.1f} % AI"
                if row["probability"] is not None
                else f"score {row['logit']:+.2f}"
            )
            caption = f"{said} \N{MIDDLE DOT} {each.source.rpartition('/')[2]}"
            gone = element("span", "cannot be shown", class_="gone")
            items.append((gone if picture is None else element("img", alt=each.source, **picture), caption))
        blocks += [titles[name], Drawings(items, "gallery")] if items else []
    missing = sum(picture is None for picture in pictures.values())
    if missing:
        say(f"{missing} images of the gallery can no longer be read")
    return blocks


def thumbnails(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, str] | None]:
    """Source -> attributes of a small picture, read again; None where that cannot be. A container is opened once."""
    found: dict[str, dict[str, str] | None] = {row["source"]: None for row in rows}
    ordered = sorted(rows, key=lambda row: row["container"] or "")
    for container, own in groupby(ordered, key=lambda row: row["container"]):
        for source, data in _read_again(container, list(own)):
            try:
                found[source] = thumbnail(load_image(data))
            except ClipmoleError:
                continue
    return found


def _read_again(container: str | None, rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, bytes]]:
    """Source and bytes of images that can still be read."""
    if container is None:
        for row in rows:
            try:
                yield row["source"], read_location(out_of_utf8(row["source"]))
            except ClipmoleError:
                continue
        return
    item = WorkItem.of_container(out_of_utf8(container), tuple(sorted({row["member"] for row in rows})))
    try:
        for entry in entries(item, ScanSettings()):
            if isinstance(entry.data, bytes):
                yield in_utf8(entry.source), entry.data
    except ClipmoleError:
        return
