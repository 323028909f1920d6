"""Evaluation: the same pixels for every scorer, once each, in bounded memory, and a run that goes on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from tiny import CALIBRATION, PREPROCESS, picture, tiny_backbone, tiny_network, write_corpus

from clipmole import Detector
from clipmole.augment import RGB
from clipmole.data import load_window, windows
from clipmole.errors import ConfigError, DataError
from clipmole.evaluate import chunks, evaluate, run_protocol, score_sets
from clipmole.models.backbone import save_tower
from clipmole.models.checkpoint import save_adapter
from clipmole.perturb import load_conditions
from clipmole.protocol import load_protocol
from clipmole.records import EvaluationReport, Sample

MAIN = load_conditions("default")


class Spy:
    """A scorer that keeps what it was shown; its score is the mean brightness."""

    name = "spy"
    calibration = None

    def __init__(self) -> None:
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
    one, two = Spy(), Spy()
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
    order = [(s.set, s.condition, s.detector, s.real, s.ai) for s in report.sets]
    expected = [
        (name, condition, who, count, count)
        for name, count in (("first", 8), ("second", 4))
        for condition in ("as stored", "equalised")
        for who in ("d", "spy")
    ]
    assert order == expected
    labels = [s.label for s in pictures]
    assert report.sets[0].figures["auroc"].value == pytest.approx(roc_auc_score(labels, table.logits[0, 0, :16]))
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
        score_sets({"other": Spy()}, {"s": pictures}, MAIN, file)
    with pytest.raises(DataError, match="another evaluation"):
        score_sets({"spy": Spy()}, {"s": pictures}, MAIN, file, seed=1)


KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from clipmole import evaluate
from clipmole.data import read_manifest
from clipmole.perturb import load_conditions

evaluate.CHUNK_IMAGES = 2

class Slow:
    name, calibration = "slow", None
    def score(self, images):
        images = list(images)
        time.sleep(0.02)
        with open(sys.argv[3], "a") as log:
            log.write("x" * len(images))
        return np.array([image.mean() for image in images], dtype=np.float32)

samples = read_manifest(sys.argv[1])
evaluate.score_sets({"slow": Slow()}, {"s": samples}, load_conditions("default"), Path(sys.argv[2]))
"""


def test_killed_at_any_moment_it_goes_on_without_scoring_a_written_image_again(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "corpus", {"test": 10})
    scores, log = tmp_path / "scores.jsonl", tmp_path / "log"
    command = [sys.executable, "-c", KILLED, str(manifest), str(scores), str(log)]
    kills = 0
    for lines in (3, 9, 14):  # killed with SIGKILL once the file holds so many lines
        process = subprocess.Popen(command)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if scores.exists() and scores.read_bytes().count(b"\n") >= lines:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        process.wait()
    subprocess.run(command, check=True)
    rows = [json.loads(line) for line in scores.read_text().splitlines()[1:]]
    paths = [row["path"] for row in rows]
    assert len(paths) == len(set(paths)) == 20
    assert kills >= 2
    # Each kill may lose the chunk under way, two images under two conditions, and no more.
    assert len(log.read_text()) <= 20 * 2 + kills * 4


def test_chunks_are_bounded_in_images_and_bytes(pictures: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    items = [("s", sample) for sample in pictures]
    monkeypatch.setattr("clipmole.evaluate.CHUNK_IMAGES", 5)
    assert [len(chunk) for chunk in chunks(items, MAIN, 0, 2)] == [5, 5, 5, 1]
    monkeypatch.setattr("clipmole.evaluate.CHUNK_BYTES", 2 * 2 * 70 * 60 * 3)
    assert [len(chunk) for chunk in chunks(items, MAIN, 0, 2)] == [2] * 8


def test_no_more_images_are_taken_than_are_needed_ahead(pictures: list[Sample]) -> None:
    taken = 0

    def items() -> Iterable[tuple[str, Sample]]:
        nonlocal taken
        for sample in pictures * 10:
            taken += 1
            yield "s", sample

    next(chunks(items(), MAIN, 0, 2))
    assert taken <= 32 + 4


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
    found = run_protocol(
        load_protocol("manifest"),
        specs,
        manifest,
        tmp_path / "out",
        backbone=str(tmp_path / "tiny"),
        resamples=10,
        command="clipmole evaluate ...",
    )
    assert {s.set for s in found.sets} == {"test"}
    assert len(found.missing) == 1
    assert found.missing[0].startswith("test_unseen: no images")
    assert found.recipe["command"] == "clipmole evaluate ..."
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"scores.jsonl", "report.html", "report.json", "report.csv", "report.md"}
    assert all(d.figure.value == 0 for d in found.differences)  # the same detector twice
    with pytest.raises(DataError, match="none of the data sets is there"):
        run_protocol(load_protocol("manifest"), specs, manifest, tmp_path / "other", splits=["nothing"])
