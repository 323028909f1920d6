"""Evaluation: the same pixels for every scorer, once each, in bounded memory, and a run that goes on after a kill."""

from __future__ import annotations

import csv
import json
import shlex
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from processes import FORKS
from sklearn.metrics import roc_auc_score
from tiny import CALIBRATION, PREPROCESS, picture, tiny_backbone, tiny_network, write_corpus
from typer.testing import CliRunner

from clipmole import Detector
from clipmole.cli import app
from clipmole.data import load_window, read_manifest, windows
from clipmole.data.sample import Sample
from clipmole.errors import ConfigError, DataError, Stopped
from clipmole.evaluation import evaluate as evaluation
from clipmole.evaluation.evaluate import evaluate, prepared, run_protocol, score_sets
from clipmole.evaluation.protocol import load_protocol
from clipmole.evaluation.records import EvaluationReport
from clipmole.images.conditions import load_conditions
from clipmole.images.transforms import RGB
from clipmole.models.adapter import save_adapter
from clipmole.models.backbone import save_tower
from clipmole.plumbing.progress import ProgressReporter

MAIN = load_conditions("default")


class Spy:
    """A scorer that keeps what it was shown; its score is the mean brightness."""

    calibration = None

    def __init__(self, name: str = "spy") -> None:
        self.name = name
        self.seen: list[RGB] = []
        self.calls: list[int] = []

    def score(self, images: Iterable[RGB]) -> NDArray[np.float32]:
        own = list(images)
        self.calls.append(len(own))
        self.seen += own
        return np.array([image.mean() for image in own], dtype=np.float32)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    folder = tmp_path_factory.mktemp("pictures")
    samples = []
    for i in range(16):
        path = folder / f"{i}.png"
        picture(i, 70, 60).save(path)
        name = ("camera", "a", "camera", "b")[i % 4]
        samples.append(Sample(path=path, label=int(name != "camera"), generator=name, split="test"))  # type: ignore[arg-type]
    return samples


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(tiny_network(), PREPROCESS, CALIBRATION, "tiny@0")


def test_every_scorer_sees_the_same_pixels_once(pictures: list[Sample], tmp_path: Path) -> None:
    one, two = Spy("one"), Spy("two")
    table, failed = score_sets({"one": one, "two": two}, {"s": pictures}, MAIN, tmp_path / "scores.jsonl", seed=3)
    assert failed == {}
    assert all(np.array_equal(a, b) for a, b in zip(one.seen, two.seen, strict=True))
    stored, equalised = one.seen[0::2], one.seen[1::2]
    for sample, image in zip(pictures, stored, strict=True):
        assert np.array_equal(image, load_window(sample))
    for expected, image in zip(windows(pictures, "equalised", 3), equalised, strict=True):
        assert np.array_equal(image, expected)
    assert table.logits.shape == (2, 2, 16)
    assert table.logits[0, 1] == pytest.approx([image.mean() for image in equalised], rel=1e-6)
    assert np.array_equal(table.logits[0], table.logits[1])


def test_the_logits_are_the_detectors_own(detector: Detector, pictures: list[Sample], tmp_path: Path) -> None:
    table, _ = score_sets({"d": detector}, {"s": pictures}, MAIN, tmp_path / "scores.jsonl")
    assert table.logits[0, 0] == pytest.approx(detector.score([s.path for s in pictures]), abs=2e-5)
    assert table.logits[0, 1] == pytest.approx(detector.score(windows(pictures, "equalised")), abs=2e-5)


def test_a_report_has_every_set_condition_and_detector(
    detector: Detector, pictures: list[Sample], tmp_path: Path
) -> None:
    sets = {"first": pictures, "second": pictures[:8]}
    report, table = evaluate(
        {"d": detector, "spy": Spy()}, sets, MAIN, tmp_path / "scores.jsonl", title="T", resamples=30, seed=2
    )
    order = [(s.set, s.condition, s.detector, s.n_real, s.n_generated) for s in report.sets]
    expected = [
        (name, condition, who, count, count)
        for name, count in (("first", 8), ("second", 4), ("mean over sets", 8))
        for condition in ("as stored", "equalised")
        for who in ("d", "spy")
    ]
    assert order == expected
    labels = [s.label for s in pictures]
    assert report.sets[0].estimates["auroc"].value == pytest.approx(roc_auc_score(labels, table.logits[0, 0, :16]))
    assert [info.thresholds for info in report.detectors] == [CALIBRATION.thresholds, None]
    assert "not calibrated" in report.detectors[1].note
    assert report.recipe["images"] == 24
    assert len(report.recipe["data digest"]) == 64
    assert EvaluationReport.model_validate_json(report.model_dump_json()) == report


def test_an_image_that_cannot_be_read_is_recorded_and_left_out(pictures: list[Sample], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not an image")
    broken = Sample(path=tmp_path / "broken.png", label=1, generator="a", split="test")
    absent = Sample(path=tmp_path / "absent.png", label=0, generator="camera", split="test")
    spy = Spy()
    sets = {"s": [pictures[0], broken, pictures[1], absent]}
    table, failed = score_sets({"spy": spy}, sets, MAIN, tmp_path / "scores.jsonl")
    assert [s.path for s in table.samples] == [pictures[0].path, pictures[1].path]
    assert set(failed) == {str(broken.path), str(absent.path)}
    assert "not an image format" in failed[str(broken.path)]
    assert table.logits[0, 0, 1] == pytest.approx(load_window(pictures[1]).mean(), rel=1e-6)


def test_a_second_run_scores_only_what_is_missing(pictures: list[Sample], tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    score_sets({"spy": Spy()}, {"s": pictures[:10]}, MAIN, file)
    spy = Spy()
    table, _ = score_sets({"spy": spy}, {"s": pictures}, MAIN, file)
    assert sum(spy.calls) == 6 * len(MAIN)
    whole, _ = score_sets({"spy": Spy()}, {"s": pictures}, MAIN, tmp_path / "whole.jsonl")
    assert np.array_equal(table.logits, whole.logits)
    with pytest.raises(DataError, match="another evaluation"):
        score_sets({"spy": Spy()}, {"s": pictures}, MAIN, file, seed=1)


def test_an_image_that_has_changed_is_scored_again(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "corpus", {"test": 3})
    file, lines, samples = tmp_path / "scores.jsonl", list[str](), read_manifest(manifest)
    whole = samples[1].path.read_bytes()
    samples[1].path.write_bytes(b"not an image")
    assert set(score_sets({"spy": Spy()}, {"s": samples}, MAIN, file)[1]) == {str(samples[1].path)}
    samples[1].path.write_bytes(whole)  # repaired
    samples[0].path.write_bytes(samples[5].path.read_bytes())
    samples[2] = samples[2].model_copy(update={"ignore_bottom_px": 9})
    spy = Spy()
    table, failed = score_sets({"spy": spy}, {"s": samples}, MAIN, file, progress=ProgressReporter(say=lines.append))
    assert not failed
    assert sum(spy.calls) == 3 * len(MAIN)
    assert lines == ["3 images have changed since they were scored, and are scored again"]
    anew, _ = score_sets({"spy": Spy()}, {"s": samples}, MAIN, tmp_path / "anew.jsonl")
    assert np.array_equal(table.logits, anew.logits)
    again = Spy()
    score_sets({"spy": again}, {"s": samples}, MAIN, file)
    assert again.calls == []


def score_slowly(manifest: Path, scores: Path, log: Path) -> None:
    """In a process of its own: fifty images a second, each an "x" in `log`."""

    class Slow:
        name, calibration = "slow", None

        def score(self, images: Iterable[RGB]) -> NDArray[np.float32]:
            own = list(images)
            time.sleep(0.02)
            with log.open("a") as file:
                file.write("x" * len(own))
            return np.array([image.mean() for image in own], dtype=np.float32)

    evaluation.CHUNK_IMAGES = 2
    score_sets({"slow": Slow()}, {"s": read_manifest(manifest)}, load_conditions("default"), scores)


def test_killed_at_any_moment_it_goes_on_without_scoring_a_written_image_again(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "corpus", {"test": 10})
    scores, log = tmp_path / "scores.jsonl", tmp_path / "log"
    kills = 0
    for lines in (3, 9, 14, None):  # killed with SIGKILL once the file holds so many lines
        process = FORKS.Process(target=score_slowly, args=(manifest, scores, log))
        process.start()
        deadline = time.monotonic() + 60
        while process.is_alive() and time.monotonic() < deadline:
            if lines and scores.exists() and scores.read_bytes().count(b"\n") >= lines:
                process.kill()
                kills += 1
                break
            time.sleep(0.002)
        process.join()
    assert process.exitcode == 0
    rows = [json.loads(line) for line in scores.read_text().splitlines()[1:]]
    paths = [row["path"] for row in rows]
    assert len(paths) == len(set(paths)) == 20
    assert kills >= 2
    # Each kill may lose the chunk under way, two images under two conditions, and no more.
    assert len(log.read_text()) <= 20 * 2 + kills * 4


def test_a_detector_or_a_set_that_is_added_later_is_scored_alone(pictures: list[Sample], tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    first, second = Spy("first"), Spy("second")
    score_sets({"a": first}, {"s": pictures[:6]}, MAIN, file)
    sets = {"s": pictures[:6], "t": pictures[4:9]}  # two images stand in both
    table, _ = score_sets({"b": second, "a": first}, sets, MAIN, file)
    assert sum(first.calls) == sum(second.calls) == 9 * len(MAIN)
    assert table.detectors == ("b", "a")
    assert np.array_equal(table.logits[0], table.logits[1])
    assert np.array_equal(table.logits[:, :, 4:6], table.logits[:, :, 6:8])
    again = Spy("first")
    score_sets({"renamed": again}, sets, MAIN, file)
    assert again.calls == []


def test_chunks_are_bounded_in_images_and_bytes(
    pictures: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def calls(name: str) -> list[int]:
        spy = Spy()
        score_sets({"spy": spy}, {"s": pictures}, MAIN, tmp_path / name)
        return [count // len(MAIN) for count in spy.calls]

    monkeypatch.setattr("clipmole.evaluation.evaluate.CHUNK_IMAGES", 5)
    assert calls("images.jsonl") == [1, 2, 4, 5, 4]  # the first one alone: how long it takes is not known
    monkeypatch.setattr("clipmole.evaluation.evaluate.CHUNK_BYTES", 2 * len(MAIN) * 70 * 60 * 3)  # two images
    assert calls("bytes.jsonl") == [1] + [2] * 7 + [1]


def test_scores_are_on_the_disk_at_bounded_intervals(
    pictures: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that goes on by 8 s an image stands in for slow detectors: 20 s hold two images."""
    clock, file, kept = [0.0], tmp_path / "scores.jsonl", []

    class Slow(Spy):
        def score(self, images: Iterable[RGB]) -> NDArray[np.float32]:
            scores = super().score(images)
            clock[0] += 8 * len(scores) / len(MAIN)
            return scores

    def track(items: Iterable[Any], description: str, _total: int | None) -> Iterator[Any]:
        if description != "scoring":
            return iter(items)
        return followed(items)

    def followed(items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            kept.append((clock[0], file.read_bytes().count(b"\n") - 1))
            yield item

    monkeypatch.setattr("clipmole.evaluation.evaluate.time.monotonic", lambda: clock[0])
    score_sets({"slow": Slow()}, {"s": pictures}, MAIN, file, progress=ProgressReporter(track))
    assert kept[0] == (8.0, 1)  # seconds, images whose scores are kept
    assert max(later[0] - sooner[0] for sooner, later in pairwise(kept)) == 16
    assert [images for _, images in kept] == [1, *(n for n in range(3, 16, 2) for _ in range(2)), 16]


def test_it_stops_when_asked_keeps_what_is_scored_and_says_how_to_go_on(pictures: list[Sample], tmp_path: Path) -> None:
    file, spy, other = tmp_path / "scores.jsonl", Spy(), Spy("other")
    asked = ProgressReporter(stopping=lambda: sum(spy.calls) >= 3 * len(MAIN))
    with pytest.raises(Stopped, match=r"^stopped; the scores of 1 of 16 images are kept in .*jsonl: give the same"):
        score_sets({"spy": spy, "other": other}, {"s": pictures}, MAIN, file, progress=asked)
    assert [len(json.loads(line)["logits"]) for line in file.read_text().splitlines()[1:]] == [1, 1, 1, 1]
    again, late = Spy(), Spy("other")
    table, _ = score_sets({"spy": again, "other": late}, {"s": pictures}, MAIN, file)
    assert sum(again.calls) == 13 * len(MAIN)
    assert sum(late.calls) == 15 * len(MAIN)
    assert np.array_equal(table.logits[0], table.logits[1])


def test_images_are_prepared_ahead_within_a_bound(pictures: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def samples() -> Iterator[Sample]:
        for sample in pictures * 10:
            taken.append(sample)
            yield sample

    monkeypatch.setattr("clipmole.evaluation.evaluate.READY_BYTES", 3 * len(MAIN) * 70 * 60 * 3)  # three images
    with closing(prepared(samples(), MAIN, 0, 2)) as images:
        first = next(images)
        time.sleep(0.5)
    assert first[0] == pictures[0]
    assert 4 <= len(taken) <= 1 + 3 + 2 + 1


def test_both_main_conditions_are_always_reported(pictures: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="always reported together; given: as stored"):
        evaluate({"spy": Spy()}, {"s": pictures}, MAIN[:1], tmp_path / "scores.jsonl")
    with pytest.raises(DataError, match="nothing to do"):
        evaluate({"spy": Spy()}, {}, MAIN, tmp_path / "scores.jsonl")


def test_a_protocol_from_manifest_to_report(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "corpus", {"test": 4, "train": 2})
    backbone = tiny_backbone()
    save_tower(backbone.tower, tmp_path / "tiny", torch.float32)
    save_adapter(tmp_path / "mine", tiny_network(backbone), backbone, PREPROCESS, CALIBRATION)
    specs = {"a": str(tmp_path / "mine"), "b": str(tmp_path / "mine")}
    found, table, conditions = run_protocol(
        load_protocol("manifest"),
        specs,
        manifest,
        tmp_path / "out",
        backbones=dict.fromkeys("ab", str(tmp_path / "tiny")),
        resamples=10,
        command="clipmole evaluate ...",
    )
    assert {s.set for s in found.sets} == {"test"}
    assert len(found.missing) == 1
    assert found.missing[0].startswith("test_unseen: no images")
    assert found.recipe["command"] == "clipmole evaluate ..."
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["scores.jsonl"]  # pages are the door's
    assert {s.split for s in table.samples} == {"test"}
    assert list(conditions) == list(MAIN)
    assert all(d.estimate.value == 0 for d in found.differences)  # the same detector twice
    with pytest.raises(DataError, match="none of the data sets is there"):
        run_protocol(load_protocol("manifest"), specs, manifest, tmp_path / "other", splits=["nothing"])


def univfd_layout(root: Path) -> None:
    """Three of UnivFD's sets, two of them with the same photographs, six images a class."""
    for folder in (
        "progan/airplane/0_real",
        "progan/airplane/1_fake",
        "laion/0_real",
        "dalle/1_fake",
        "ldm_100/1_fake",
    ):
        place = root / ("diffusion_datasets" if "progan" not in folder else "test") / folder
        place.mkdir(parents=True)
        for i in range(6):
            picture(zlib.crc32(f"{folder}{i}".encode()), 60, 50).save(place / f"{i}.png")


def test_univfds_benchmark_from_the_command_line_beside_the_published_figures(tmp_path: Path) -> None:
    univfd_layout(tmp_path / "data")
    backbone = tiny_backbone()
    save_tower(backbone.tower, tmp_path / "tiny", torch.float32)
    save_adapter(tmp_path / "mine", tiny_network(backbone), backbone, PREPROCESS, CALIBRATION)
    command = ["evaluate", "-d", f"a={tmp_path / 'mine'}", "--protocol", "univfd-19", "--conditions", "rine"]
    command += ["--data", str(tmp_path / "data"), "--backbone", f"a={tmp_path / 'tiny'}"]
    command += ["--out", str(tmp_path / "out"), "--resamples", "20"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    report = EvaluationReport.model_validate_json((tmp_path / "out" / "report.json").read_text())
    assert list(dict.fromkeys(s.set for s in report.sets)) == ["progan", "ldm_100", "dalle", "mean over sets"]
    assert len(report.missing) == 16
    assert "1,000 images a class are public" in report.note
    assert shlex.split(report.recipe["command"])[1:] == [
        *("evaluate", "--out", "out", "--data", "data", "--detector"),
        *("a=mine", "--protocol", "univfd-19", "--conditions", "rine"),
        *("--backbone", "a=tiny", "--resamples", "20"),
    ]
    # The photographs of the two diffusion sets are the same files, and are scored once.
    assert len((tmp_path / "out" / "scores.jsonl").read_text().splitlines()) == 1 + 5 * 6
    overall = next(s for s in report.sets if (s.set, s.condition) == ("mean over sets", "equalised"))
    assert (overall.n_real, overall.n_generated) == (12, 18)
    own = [s.estimates["auroc"].value for s in report.sets if s.condition == "equalised" and s.set != "mean over sets"]
    assert overall.estimates["auroc"].value == pytest.approx(np.mean(own))
    assert overall.estimates["auroc"].low <= overall.estimates["auroc"].value <= overall.estimates["auroc"].high

    text = (tmp_path / "out" / "report.md").read_text()
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    sets = next(row for row in rows if row[:2] == ["set", "CNNSpot, published"])
    dalle = next(row for row in rows if row[0] == "dalle" and len(row) == len(sets))
    assert dalle[sets.index("UnivFD, published")] == "97.15"
    assert dalle[sets.index("MoLE ViT-L/14, published")] == "99.22"
    mean = next(row for row in rows if row[0] == "mean of the 3 sets here")
    assert mean[sets.index("UnivFD, published")] == f"{(100 + 99.17 + 97.15) / 3:.2f}"
    sitd = next(row for row in rows if row[0] == "sitd")
    assert sitd[-2:] == ["\N{EN DASH}"] * 2  # not there
    jpeg = next(row for row in rows if row[0] == "univfd-19 under JPEG q10-75")
    measured = next(s for s in report.sets if (s.set, s.condition) == ("mean over sets", "RINE JPEG as run"))
    assert jpeg[:4] == ["univfd-19 under JPEG q10-75", "RINE", "88.72", "RINE JPEG as run"]
    assert jpeg[4].startswith(f"{100 * measured.estimates['accuracy'].value:.1f} ")
    assert "measured at JPEG quality 95 and not at the 10-75 it states" in jpeg[5]
    with (tmp_path / "out" / "report.csv").open(newline="") as file:
        published = [row for row in csv.DictReader(file) if row["scope"] == "published"]
    assert {(r["detector"], r["set"], float(r["value"])) for r in published} >= {("UnivFD", "dalle", 0.9715)}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "passes the quality as the name of an option" in page
