"""The report: every number that was measured, nothing that the names could smuggle in, and whole or not at all."""

from __future__ import annotations

import base64
import csv
import errno
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipmole import metrics
from clipmole.calibration import sigmoid
from clipmole.data.sample import Sample
from clipmole.errors import DataError
from clipmole.evaluation.records import (
    ALL_SETS,
    DetectorInfo,
    Difference,
    Estimate,
    EvaluationReport,
    KindEstimate,
    OriginEstimate,
    PublishedResult,
    SetReport,
)
from clipmole.evaluation.scores import ScoreTable
from clipmole.images.conditions import Condition
from clipmole.records import Thresholds
from clipmole.report import plots, write_report
from clipmole.report.content import DASH, MINUS, number
from clipmole.report.page import Section, Table, Value, html_page, markdown_page

HOSTILE = "<script>alert('x')</script>"
NASTY = 'a | b & "c" <img src=x onerror=alert(1)> *d* `e`'
CONDITIONS = ("as stored", "equalised", "JPEG 30", "JPEG 90", "chain")
PERTURBED = [
    Condition(name=f"JPEG {quality}", steps=(), family="JPEG quality", strength=quality) for quality in (30, 90)
]
FILES = ("report.html", "report.json", "report.csv", "report.md")


def estimate(value: float, spread: float = 0.05) -> Estimate:
    return Estimate(value=value, low=value - spread, high=value + spread)


def made(
    folder: Path, detectors: tuple[str, ...] = ("mole", NASTY, "third"), conditions: tuple[str, ...] = CONDITIONS
) -> tuple[EvaluationReport, ScoreTable]:
    """A report of two sets, one with photographs alone; the last detector is not calibrated."""
    rng = np.random.default_rng(0)
    samples, sets = [], []
    for i in range(60):
        path = folder / f"{i % 4}.png"
        if i < 3:
            Image.new("RGB", (400, 200), (40 * i, 90, 200)).save(path)
        name, label = ("test", i % 2) if i < 40 else ("photographs", 0)
        samples.append(Sample(path=path, label=label, generator=HOSTILE if label else "camera", split=name))
        sets.append(name)
    labels = np.array([s.label for s in samples])
    logits = rng.normal(size=(len(detectors), len(conditions), 60)) + 1.5 * labels
    table = ScoreTable(tuple(samples), np.array(sets), detectors, conditions, logits)
    infos, reports = [], []
    for d, name in enumerate(detectors):
        calibrated = d < 2
        infos.append(
            DetectorInfo(
                name=name,
                id=f"id of {name}",
                thresholds=Thresholds(real=0.2, generated=0.8) if calibrated else None,
                slope=1.0 if calibrated else None,
                intercept=0.0 if calibrated else None,
            )
        )
        for c, condition in enumerate(conditions):
            for which in ("test", "photographs"):
                own = table.sets == which
                y, s = labels[own], logits[d, c, own]
                figures = {"average_precision": estimate(metrics.average_precision(y, s))}
                figures["accuracy"] = estimate(metrics.accuracy(y, s, 0.0))
                if calibrated:
                    figures |= {
                        key: estimate(0.1 + d / 10) for key in ("false_alarm", "uncertain", "selective_accuracy")
                    }
                by = {HOSTILE: {"average_precision": estimate(0.7123456789)}} if y.any() else {}
                means = {"average_precision": estimate(0.7123456789 if y.any() else math.nan)}
                reports.append(
                    SetReport(
                        detector=name,
                        set=which,
                        condition=condition,
                        n_real=int((y == 0).sum()),
                        n_generated=int(y.sum()),
                        groups=len(y),
                        estimates=figures,
                        generators=by,
                        means=means,
                    )
                )
    reports += [s.model_copy(update={"set": ALL_SETS, "generators": {}}) for s in reports if s.set == "test"]
    differences = [
        Difference(first=a, second=b, set="test", condition=c, metric="average_precision", estimate=estimate(v, 0.03))
        for i, a in enumerate(detectors)
        for b, v in zip(detectors[i + 1 :], (0.051, 0.01), strict=False)
        for c in conditions[:2]
    ]
    report = EvaluationReport(
        title=f"Three {HOSTILE}",
        note="Caveats of the data.",
        detectors=tuple(infos),
        sets=tuple(reports),
        differences=tuple(differences),
        published=(PublishedResult(benchmark="test", method="Theirs", metric="mean_ap", value=93.38, note="a table"),),
        missing=("GenImage: its owners publish it at https://example.org/genimage; expected below data/.",),
        failed={f"{HOSTILE}.png": "truncated"},
        recipe={"command": f"clipmole evaluate --detector '{NASTY}'", "seed": 0, "versions": {"numpy": "2"}},
    )
    return report, table


class Page(HTMLParser):
    """Every element with its attributes, and the text outside the style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def written(folder: Path, conditions: Sequence[Condition] = PERTURBED, **options: object) -> tuple[Page, str]:
    report, table = made(folder)
    text = write_report(report, table, folder / "out", conditions=conditions, **options).read_text(encoding="utf-8")  # type: ignore[arg-type]
    return Page(text), text


def test_a_name_never_becomes_markup(tmp_path: Path) -> None:
    page, text = written(tmp_path)
    assert not page.open  # every element is closed
    assert not page.all("script")
    assert "onerror" not in {key for _, attributes in page.elements for key in attributes}
    assert HOSTILE in page.text
    assert NASTY in page.text
    assert "<script" not in re.sub('"[^"]*"', "", text)  # quoted attributes may hold it, as text
    markdown = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "<" not in re.sub(r"(?m)^    .*$", "", markdown)  # but for the command, which stands as code


def test_the_page_asks_nobody_for_anything(tmp_path: Path) -> None:
    page, text = written(tmp_path)
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    links = [a["href"] for a in page.all("a") if not a["href"].startswith("#")]
    assert links == ["https://example.org/genimage"]
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "form", "base", "script", "use", "image"}
        assert "src" not in attributes or attributes["src"].startswith("data:image/jpeg;base64,")
        assert "style" not in attributes  # the policy forbids it
    assert not re.search(r"url\(|@import", text)


def test_the_policy_holds_the_style_that_is_there(tmp_path: Path) -> None:
    _, text = written(tmp_path)
    style = text.split("<style>")[1].split("</style>")[0]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'" in text


def test_it_can_be_read_aloud(tmp_path: Path) -> None:
    page, _ = written(tmp_path)
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == len(page.all("main")) == 1
    assert page.all("img")
    assert all(img["alt"] for img in page.all("img"))
    for svg in page.all("svg"):
        assert svg.get("aria-hidden") == "true" or (svg["role"] == "img" and svg["aria-label"])
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(th["scope"] in {"row", "col"} for th in page.all("th"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")} == set(ids)


def test_json_holds_the_record(tmp_path: Path) -> None:
    written(tmp_path)
    report, _ = made(tmp_path)
    text = (tmp_path / "out" / "report.json").read_text(encoding="utf-8")
    again = EvaluationReport.model_validate_json(text)
    assert again.model_dump_json() == report.model_dump_json()
    assert "NaN" not in text


def test_csv_holds_every_number_once(tmp_path: Path) -> None:
    written(tmp_path)
    report, _ = made(tmp_path)
    with (tmp_path / "out" / "report.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:9] == ["detector", "set", "condition", "figure", "value", "low", "high", "real", "ai"]
    found = {
        (r["detector"], r["set"], r["condition"], r["figure"], r["scope"], r["generator"], r["minus"]): r for r in rows
    }
    assert len(found) == len(rows)
    for s in report.sets:
        for scope, generator, figures, ai in [
            ("set", "", s.estimates, s.n_generated),
            ("mean", "", s.means, s.n_generated),
            *(("generator", g, own, 20) for g, own in s.generators.items()),
        ]:
            for key, expected in figures.items():
                row = found.pop((s.detector, s.set, s.condition, key, scope, generator, ""))
                numbers = [float(row[column]) for column in ("value", "low", "high", "real", "ai")]
                np.testing.assert_array_equal(numbers, [expected.value, expected.low, expected.high, s.n_real, ai])
    assert len(found) == len(report.differences) + len(report.published)
    for p in report.published:
        row = next(row for row in rows if row["scope"] == "published" and row["detector"] == p.method)
        assert (float(row["value"]), row["figure"], row["note"]) == (pytest.approx(0.9338), p.metric, p.note)
    for d in report.differences:
        row = found[d.first, d.set, d.condition, d.metric, "difference", "", d.second]
        assert (float(row["value"]), float(row["low"])) == (d.estimate.value, d.estimate.low)


def test_no_cell_of_the_csv_is_a_formula(tmp_path: Path) -> None:
    report, table = made(tmp_path, detectors=("=cmd|'/C calc'!A0", "+1", "red\x1b[31m"))
    write_report(report, table, tmp_path / "out", gallery=False)
    with (tmp_path / "out" / "report.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["detector"] for row in rows if row["scope"] == "set"} == {
        "'=cmd|'/C calc'!A0",
        "'+1",
        "red\N{REPLACEMENT CHARACTER}[31m",
    }
    assert all(not cell.startswith(("=", "+", "@")) for row in rows for cell in row.values())


def test_markdown_has_a_row_for_every_detector_and_as_many_cells_as_heads(tmp_path: Path) -> None:
    written(tmp_path)
    lines = (tmp_path / "out" / "report.md").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| set | detector |"))
    table = lines[start : lines.index("", start)]
    cells = [re.split(r"(?<!\\)\|", line) for line in table]
    assert len({len(row) for row in cells}) == 1
    names = {row[2].strip() for row in cells[2:] if row[1].strip() == "test"}
    assert "mole" in names
    assert "third" in names
    assert any(name.startswith("a \\| b &amp;") for name in names)
    assert any(line.startswith("| test | mole | 71.2 \\[66.2, 76.2\\] |") for line in table)
    assert table[2].startswith("| mean over sets | mole | 71.2 \\[66.2, 76.2\\] |")
    assert any(row[1].strip() == "photographs" and row[3].strip() == DASH for row in cells)  # nan


def test_numbers_are_printed_in_percent_and_nan_as_a_dash() -> None:
    assert number(Estimate(value=0.93449, low=0.9, high=0.951)) == Value("93.4", "[90.0, 95.1]")
    assert number(Estimate(value=-0.02, low=-0.031, high=0.001), sign=True) == Value(
        f"{MINUS}2.0", f"[{MINUS}3.1, 0.1]"
    )
    assert number(Estimate(value=0.6931, low=0.5, high=0.9), "negative_log_likelihood") == Value(
        "0.693", "[0.500, 0.900]"
    )
    assert number(Estimate(value=math.nan, low=math.nan, high=math.nan)) == number(None) == Value(DASH)


def test_the_verdict_says_who_is_better_and_what_could_not_be_shown(tmp_path: Path) -> None:
    page, _ = written(tmp_path)
    report, table = made(tmp_path)
    best = max((d.name for d in report.detectors), key=lambda name: equalised_ap(report, name))
    assert page.text.count("no difference could be shown") >= 2
    assert "an interval that contains 0 shows no difference" in page.text.lower()
    flat = report.model_copy(
        update={"differences": tuple(d.model_copy(update={"estimate": estimate(0.0)}) for d in report.differences)}
    )
    text = Page(write_report(flat, table, tmp_path / "flat").read_text(encoding="utf-8")).text
    assert "No difference between the detectors could be shown (by AP, equalised)." in text
    ahead = tuple(
        d.model_copy(
            update={"estimate": estimate(0.051 if d.first == best else -0.051 if d.second == best else 0, 0.03)}
        )
        for d in report.differences
    )
    clear = report.model_copy(update={"differences": ahead})
    text = Page(write_report(clear, table, tmp_path / "clear").read_text(encoding="utf-8")).text
    assert "is better than every other detector (by AP, equalised)." in text
    assert "(+5.1 [2.1, 8.1] points)" in text


def equalised_ap(report: EvaluationReport, name: str) -> float:
    return next(
        s.estimates["average_precision"].value
        for s in report.sets
        if (s.detector, s.set, s.condition) == (name, "test", "equalised")
    )


def test_stored_and_equalised_stand_side_by_side_and_a_missing_one_is_said(tmp_path: Path) -> None:
    page, _ = written(tmp_path)
    assert "Both variants are needed" not in page.text
    report, table = made(tmp_path, conditions=("as stored",))
    text = Page(write_report(report, table, tmp_path / "one").read_text(encoding="utf-8")).text
    assert "Both variants are needed and one is missing" in text
    assert text.count("equalised") >= 8  # heads whose cells are dashes


def test_published_rows_stand_apart_with_their_caveat(tmp_path: Path) -> None:
    page, text = written(tmp_path)
    row = text.split('<tr class="apart">')[1].split("</tr>")[0]
    assert "Theirs" in row
    assert "93.38" in row
    assert "a table" in row
    assert "Not like for like" in page.text
    assert "Caveats of the data." in page.text


def test_published_figures_of_sets_and_perturbations_stand_beside_ours(tmp_path: Path) -> None:
    report, table = made(tmp_path)
    theirs = [("test", "Theirs", 80.5), ("elsewhere", "Theirs", 60.25), ("test", "Others", 0.905)]
    own = [
        PublishedResult(benchmark="b", method=m, metric="average_precision", value=v, note="a table", set=s)
        for s, m, v in theirs
    ]
    own += [
        PublishedResult(
            benchmark="b under JPEG", method="Theirs", metric="mean_accuracy", value=70.0, note="as run", condition=c
        )
        for c in ("JPEG 30", "JPEG 31")
    ]
    report = report.model_copy(update={"published": tuple(own)})
    write_report(report, table, tmp_path / "out")
    lines = (tmp_path / "out" / "report.md").read_text(encoding="utf-8").splitlines()

    def row(start: str) -> list[str]:
        line = next(line for line in lines if line.startswith(f"| {start} |"))
        return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]

    ap = next(s.estimates["average_precision"] for s in report.sets if s.set == "test")
    ours = f"{100 * ap.value:.1f} \\[{100 * ap.low:.1f}, {100 * ap.high:.1f}\\]"
    assert row("test | 80.50")[:4] == ["test", "80.50", "90.50", ours]
    assert row("elsewhere")[:4] == ["elsewhere", "60.25", DASH, DASH]
    assert row("mean of the 1 set here")[:3] == ["mean of the 1 set here", "80.50", "90.50"]  # of "test" alone
    accuracy = next(s.estimates["accuracy"] for s in report.sets if (s.set, s.condition) == (ALL_SETS, "JPEG 30"))
    measured = [line for line in lines if line.startswith("| b under JPEG |")]
    assert f"| 70.00 | JPEG 30 | {100 * accuracy.value:.1f} " in measured[0]
    assert f"| 70.00 | JPEG 31 | {DASH} |" in measured[1]
    assert measured[0].endswith("| as run |")


def test_the_page_says_what_the_bootstrap_drew(tmp_path: Path) -> None:
    page, _ = written(tmp_path)
    assert "95 % bootstrap interval over images." in page.text
    report, table = made(tmp_path)
    sets = tuple(s.model_copy(update={"groups": 15}) for s in report.sets)
    text = write_report(report.model_copy(update={"sets": sets}), table, tmp_path / "out").read_text(encoding="utf-8")
    assert "interval over 30 groups of images (those of one scene or prompt are drawn together)." in Page(text).text


def test_one_detector_and_one_condition_leave_no_empty_plot(tmp_path: Path) -> None:
    report, table = made(tmp_path, detectors=("mole",), conditions=("equalised",))
    text = write_report(report, table, tmp_path / "out", gallery=False).read_text(encoding="utf-8")
    page = Page(text)
    assert not page.all("img")
    assert "Paired differences" not in page.text
    assert "Robustness" not in page.text
    assert "mole on test, equalised: average precision" in page.text
    charts = text.split("<figure>")[1:]
    assert charts
    for chart in charts:
        assert re.search(r'class="(line|open) c0"', chart)


def test_a_set_of_one_class_has_no_ranking_curves(tmp_path: Path) -> None:
    page, _ = written(tmp_path)
    labels = [svg["aria-label"] for svg in page.all("svg") if "aria-label" in svg]
    assert not [label for label in labels if label.startswith(("ROC on photographs", "Reliability on photographs"))]
    assert [label for label in labels if label.startswith("ROC on test, equalised: AUROC")]
    assert "photographs: not defined with one class only." in page.text


def test_the_roc_curve_is_that_of_metrics(tmp_path: Path) -> None:
    report, table = made(tmp_path, detectors=("mole",))
    text = write_report(report, table, tmp_path / "out").read_text(encoding="utf-8")
    svg = text.split('aria-label="ROC on test, as stored')[1].split("</svg>")[0]
    path = re.search(r'<path class="line c0"[^>]*? d="([^"]*)"|<path d="([^"]*)" class="line c0"', svg)
    assert path is not None
    points = [tuple(map(float, p.split())) for p in re.split("[ML]", path[1] or path[2])[1:]]
    own = table.sets == "test"
    labels = np.array([s.label for s in table.samples])[own]
    x, y = metrics.roc_points(labels, table.logits[0, 0, own])
    width = plots.WIDTH - plots.LEFT - plots.RIGHT
    height = plots.HEIGHT - plots.TOP - plots.BOTTOM
    across = np.round(plots.LEFT + x * width, 1)
    up = np.round(plots.HEIGHT - plots.BOTTOM - y * height, 1)
    np.testing.assert_allclose(points, np.stack([across, up], axis=1), atol=0.051)


def test_thresholds_are_marked_where_they_are(tmp_path: Path) -> None:
    page, text = written(tmp_path)
    svg = text.split('aria-label="Scores of mole on test, as stored')[1].split("</svg>")[0]
    places = [float(x) for x in re.findall(r'<path d="M([\d.]+) [^"]*" class="mark"', svg)]
    edge = math.log(0.9999 / 0.0001)
    width = plots.WIDTH - plots.LEFT - plots.RIGHT
    probabilities = [sigmoid(((x - plots.LEFT) / width * 2 - 1) * edge) for x in places]
    assert probabilities == pytest.approx([0.2, 0.8], abs=0.01)
    assert "real &lt; 20" in svg
    assert "AI &gt; 80" in svg
    assert "photograph below 0.2, AI-generated above 0.8" in page.text


def test_the_gallery_shows_the_worst_small_and_without_metadata(tmp_path: Path) -> None:
    page, _ = written(tmp_path)
    report, table = made(tmp_path)
    images = page.all("img")
    assert len(images) <= 12 * 2 * 3
    for img in images:
        with Image.open(io.BytesIO(base64.b64decode(img["src"].split(",")[1]))) as image:
            assert image.size == (160, 80) == (int(img["width"]), int(img["height"]))
            assert not {"exif", "icc_profile", "comment"} & set(image.info)
    assert "cannot be shown" in page.text  # the fourth file is not there
    assert str(tmp_path) not in page.text
    labels = np.array([s.label for s in table.samples])
    worst = int(np.argmax(np.where(labels == 0, table.logits[0, 0], -np.inf)))
    said = f"{100 * sigmoid(table.logits[0, 0, worst]):.1f} %"
    first = page.text.split("Photographs that scored highest, as stored")[1]
    assert said in first[:200]
    assert report.detectors[2].slope is None
    assert "gave it score" in "".join(img["alt"] for img in images)


def many_sets(folder: Path, count: int = 6) -> tuple[EvaluationReport, ScoreTable]:
    """The set "test" of `made` under many names, as the benchmarks have one set a generator."""
    report, table = made(folder)
    own = table.sets == "test"
    names = [f"set {i}" for i in range(count)]
    one = [sample for sample, chosen in zip(table.samples, own, strict=True) if chosen]
    samples = tuple(sample.model_copy(update={"split": name}) for name in names for sample in one)
    scores = np.concatenate([table.logits[:, :, own]] * count, axis=2)
    table = ScoreTable(samples, np.repeat(names, len(one)), table.detectors, table.conditions, scores)
    names.append(ALL_SETS)
    sets = [s.model_copy(update={"set": name}) for name in names for s in report.sets if s.set == "test"]
    differences = [d.model_copy(update={"set": name}) for name in names for d in report.differences]
    return report.model_copy(update={"sets": tuple(sets), "differences": tuple(differences)}), table


def test_many_sets_are_summed_up_and_folded_away(tmp_path: Path) -> None:
    report, table = many_sets(tmp_path)
    text = write_report(report, table, tmp_path / "out", conditions=PERTURBED).read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    assert "Of 6 sets, mole is better on 6, " in page.text
    assert "mean over sets: " in page.text
    assert "Of 6 sets, mole is better on 0, third on 0; on 6 no difference could be shown" in page.text
    assert page.text.count("AP, percent") == 1  # one table by generator, not six
    assert "AP against JPEG quality on mean over sets" in text
    # ROC, reliability, scores, coverage, robustness and all figures of each; the results; the differences
    assert len(page.all("details")) == 6 * 6 + 2
    first = report.sets[0].estimates["average_precision"].value
    start = page.text.index("mean over sets", page.text.index("How well photographs"))
    assert f"{100 * first:.1f}" in page.text[start : start + 200]
    markdown = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "### set 5" in markdown


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    report, table = made(tmp_path)
    for name in ("one", "two"):
        write_report(report, table, tmp_path / name, conditions=PERTURBED)
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(os.listdir(tmp_path / "one")) == sorted(FILES)


@pytest.mark.parametrize("broken", [0, 1, 3])
def test_a_full_disk_leaves_the_older_report_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    report, table = made(tmp_path)
    out = tmp_path / "out"
    write_report(report, table, out)
    before = {name: (out / name).read_bytes() for name in FILES}
    calls = 0

    def full(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls > broken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        DataError, match="cannot be written: No space left on device; name another folder or free some space"
    ):
        write_report(report.model_copy(update={"title": "newer"}), table, out)
    assert {name: (out / name).read_bytes() for name in FILES} == before
    assert sorted(os.listdir(out)) == sorted(FILES)


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    report, table = made(tmp_path)
    (tmp_path / "out").write_text("mine")
    with pytest.raises(DataError, match="out: the report cannot be written"):
        write_report(report, table, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_conditions_of_a_family_are_one_curve_and_the_rest_are_rows(tmp_path: Path) -> None:
    page, _ = written(tmp_path, [*PERTURBED, Condition(name="chain", note="our own model of it")])
    labels = [svg["aria-label"] for svg in page.all("svg") if "aria-label" in svg]
    assert len([label for label in labels if label.startswith("AP against JPEG quality on test")]) == 1
    assert not [label for label in labels if "against chain" in label]
    robustness = page.text.split("Every condition, test, percent")[1]
    assert "chain" in robustness
    assert "chain: our own model of it" in page.text
    assert "not here" not in page.text


def test_the_recipe_and_what_was_not_evaluated_are_there(tmp_path: Path) -> None:
    page, _ = written(tmp_path)
    assert f"clipmole evaluate --detector '{NASTY}'" in page.text
    assert json.dumps({"numpy": "2"}) in page.text
    assert "1 file could not be read" in page.text
    assert "GenImage: its owners publish it at https://example.org/genimage; expected below data/." in page.text


def test_what_cannot_be_printed_is_replaced() -> None:
    hidden = "a\x00b\u202ec\udc80d"
    section = Section("s", hidden, ["text", Table(hidden, ["x", hidden], [(hidden, Value("1"))])])
    for page in (html_page(hidden, [], [section]), markdown_page(hidden, [], [section])):
        assert "a\ufffdb\ufffdc\ufffdd" in page
        page.encode("utf-8")


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, ["0", "20", "40", "60", "80", "100"]),
        (0.62, 1.0, ["60", "70", "80", "90", "100"]),
        (-0.11, 0.11, [f"{MINUS}15", f"{MINUS}10", f"{MINUS}5", "0", "5", "10", "15"]),
        (0.97, 1.0, ["97", "98", "99", "100"]),
    ],
)
def test_axes_have_round_ticks_that_hold_the_range(low: float, high: float, ticks: list[str]) -> None:
    axis = plots.even_axis("", low, high)
    assert axis.low <= low + 1e-9
    assert axis.high >= high - 1e-9
    assert [text for _, text in axis.ticks] == ticks


def test_detectors_differ_by_more_than_colour() -> None:
    looks = [(i % len(plots.DASHES), i % plots.COLOURS) for i in range(30)]
    assert len(set(looks)) == 30
    shapes = {plots.marker(i, 0, 0).get("d") for i in range(5)}
    assert len(shapes) == len(set(plots.DASHES)) == 5


def test_the_2_by_2_and_the_kinds_of_photographs_are_shown(tmp_path: Path) -> None:
    report, table = made(tmp_path)
    cells = list(product((True, False), (True, False)))
    origins = tuple(
        OriginEstimate(known_source=s, known_generator=g, n_real=20, n_generated=10 + i,
                       auroc=estimate((0.9, 0.8, 0.7, math.nan)[i]))
        for i, (s, g) in enumerate(cells)
    )  # fmt: skip
    kinds = (KindEstimate(kind=HOSTILE, n_real=12, false_alarm=estimate(0.08), uncertain=estimate(0.31)),)
    sets = [
        s.model_copy(update={"origins": origins, "kinds": kinds})
        if (s.set, s.detector) == ("test", "mole") and s.condition in ("as stored", "equalised")
        else s
        for s in report.sets
    ]
    report = report.model_copy(update={"sets": tuple(sets)})
    path = write_report(report, table, tmp_path / "out", conditions=PERTURBED)
    page, text = Page(path.read_text(encoding="utf-8")), (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "Known and new sources and generators" in page.text
    assert "By kind of photograph" in page.text
    known, new = (line for line in text.splitlines() if line.startswith("| test | mole | ") and "20 + 1" in line)
    assert [known.split("|")[3].strip(), new.split("|")[3].strip()] == ["known", "new"]
    assert "90.0" in known
    assert r"\[85.0, 95.0\] 20 + 10" in known
    assert "80.0" in known
    assert "70.0" in new
    assert "20 + 13" in new
    (row,) = (line for line in text.splitlines() if "script" in line and "8.0" in line and "31.0" in line)
    assert "| 12 |" in row
    rows = list(csv.DictReader((tmp_path / "out" / "report.csv").open(encoding="utf-8", newline="")))
    own = [r for r in rows if r["scope"] == "origin" and r["condition"] == "equalised"]
    assert [r["note"] for r in own][1] == "known sources of photographs, new generators"
    assert [float(r["value"]) for r in own][:3] == [0.9, 0.8, 0.7]
    alarms = [r for r in rows if r["scope"] == "kind" and r["figure"] == "false_alarm"]
    assert [(r["real"], float(r["value"])) for r in alarms] == [("12", 0.08)] * 2
    plain = write_report(made(tmp_path)[0], table, tmp_path / "plain").read_text(encoding="utf-8")
    assert "Known and new sources" not in plain
