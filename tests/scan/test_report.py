"""The page of a scan: its figures are the rows', it asks nobody for anything, and its pictures are the images."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from scanning import run, write_images, write_tar
from tiny import encoded, picture
from typer.testing import CliRunner

from clipmole.cli import app
from clipmole.errors import DataError
from clipmole.scan.report import write_page

pytest.importorskip("pyarrow")


class Rows(HTMLParser):
    """Texts of the cells of each row, by the caption of its table, and the attributes of pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.images: list[dict[str, str | None]] = []
        self.inside: str | None = None
        self.caption = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        elif tag == "caption":
            self.inside, self.caption = tag, ""
        elif tag == "tr":
            self.tables.setdefault(self.caption, []).append([])
        elif tag in ("td", "th"):
            self.inside = tag
            self.tables[self.caption][-1].append("")
        elif tag == "small" and self.inside in ("td", "th"):
            self.tables[self.caption][-1][-1] += " "

    def handle_endtag(self, tag: str) -> None:
        if tag == self.inside:
            self.inside = None

    def handle_data(self, data: str) -> None:
        if self.inside == "caption":
            self.caption += data
        elif self.inside:
            self.tables[self.caption][-1][-1] += data


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("page")
    write_images(place / "images" / "a", 20)
    write_images(place / "images" / "b", 5, first=100)
    (place / "images" / "b" / "text <b>.png").write_text("no image")
    picture(7, 600, 300).save(place / "images" / "wide.jpg")
    write_tar(place / "x.tar", {f"{i}.png": encoded(picture(200 + i, 40, 36)) for i in range(4)})
    run(place / "scan", place / "images", place / "x.tar")
    return place


def test_the_figures_are_the_rows(scanned: Path) -> None:
    result = CliRunner().invoke(app, ["scan", "report", str(scanned / "scan")])
    assert result.exit_code == 0, result.output
    text = Path(result.stdout.strip()).read_text(encoding="utf-8")
    page = Rows()
    page.feed(text)
    rows = {row[0]: row for row in page.tables["Images; verdicts as shares of those scored"]}
    counts = json.loads((scanned / "scan" / "scan.json").read_text())["counts"]
    assert rows["Images"][1] == "31"
    assert rows["Scored"][1] == "30 96.8 %"
    for name, words in (("real", "likely photograph"), ("ai_generated", "likely AI-generated")):
        count = counts["verdicts"][name]
        assert rows[words][1] == f"{count} {100 * count / 30:.1f} %"
    folders = {row[0]: row[1] for row in page.tables["Folder, shard or table"][1:]}
    assert folders == {"images/a": "20", "images/b": "6", "images": "1", "x.tar": "4"}
    assert {row[0]: row[1] for row in page.tables["Format of the file"][1:]} == {
        "PNG": "29", "JPEG": "1", "none that is known": "1",
    }  # fmt: skip
    sizes = {row[0]: row[1] for row in page.tables["Longer side, pixels"][1:]}
    assert sizes == {"up to 256": "29", "513 to 1,024": "1"}
    (why,) = page.tables["Why, with one of each"][1:]
    assert (why[0], why[2], why[3]) == ("unreadable", "1", f"{scanned}/images/b/text <b>.png")


def test_it_asks_nobody_and_shows_the_images(scanned: Path) -> None:
    text = write_page(scanned / "scan").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "default-src 'none'" in text
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    page = Rows()
    page.feed(text)
    assert len(page.images) == 3 * 12
    shown = Counter(str(image["alt"]) for image in page.images)
    assert max(shown.values()) <= 3
    for image in page.images:
        source = str(image["src"]).removeprefix("data:image/jpeg;base64,")
        with Image.open(io.BytesIO(base64.b64decode(source))) as thumbnail:
            assert thumbnail.size == (int(image["width"] or 0), int(image["height"] or 0))
            assert max(thumbnail.size) <= 160
    without = write_page(scanned / "scan", scanned / "without.html", gallery=False).read_text(encoding="utf-8")
    assert "<img" not in without


def test_images_that_are_gone_are_said(scanned: Path, tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 3)
    run(tmp_path / "scan", tmp_path / "images")
    paths[1].unlink()
    said: list[str] = []
    text = write_page(tmp_path / "scan", say=said.append).read_text(encoding="utf-8")
    assert text.count("cannot be shown") == 3
    assert said == ["1 images of the gallery can no longer be read"]
    with pytest.raises(DataError, match="holds no scan"):
        write_page(scanned / "images")
    for damaged in ("[]", '{"configuration": []}', '{"configuration": {"detector": "a", "thresholds": 1}}'):
        (tmp_path / "scan" / "scan.json").write_text(damaged)
        with pytest.raises(DataError, match="holds no scan"):
            write_page(tmp_path / "scan")


def test_the_query_of_the_documents_runs(scanned: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    (tmp_path / "photos-scan").symlink_to(scanned / "scan")
    monkeypatch.chdir(tmp_path)
    query = (Path(__file__).resolve().parents[2] / "examples" / "scan.sql").read_text(encoding="utf-8")
    rows = {row[0].rstrip("/").rpartition("/")[2]: row[1:] for row in duckdb.sql(query).fetchall()}
    assert {name: (row[0], row[3]) for name, row in rows.items()} == {
        "a": (20, 0), "b": (6, 1), "images": (1, 0), scanned.name: (4, 0),
    }  # fmt: skip
