"""Calibrating a detector again: the copy's thresholds, what is said of them, and what is refused."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from scipy.stats import beta  # type: ignore[import-untyped]
from tiny import CALIBRATION, PREPROCESS, encoded, picture, tiny_backbone, tiny_network, write_corpus
from typer.testing import CliRunner

from clipmole.calibration import Calibration, fit_calibration, sigmoid
from clipmole.cli import app
from clipmole.data import labels_of, read_manifest, windows
from clipmole.data.sample import Sample
from clipmole.errors import CheckpointError, ClipmoleError, ConfigError, DataError, ImageNotFound
from clipmole.evaluation.recalibrate import (
    fit_detector_calibration,
    recalibrate,
    recalibrate_on_photographs,
    recalibration_summary,
)
from clipmole.inference.detector import Detector
from clipmole.models.adapter import save_adapter, with_calibration
from clipmole.models.backbone import save_tower

CARD = "# A card\n\n## Verdicts\n- Real below 0.3.\n"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), {"calibration": 24, "few": 10, "other": 3})


@pytest.fixture(scope="module")
def samples(manifest: Path) -> list[Sample]:
    return [sample for sample in read_manifest(manifest) if sample.split == "calibration"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, samples: list[Sample]) -> Path:
    """A folder with a detector ("mine") that scores generated images higher, and its backbone ("tiny")."""
    folder = tmp_path_factory.mktemp("detector")
    backbone = tiny_backbone()
    network = tiny_network(backbone)
    logits = Detector(network, PREPROCESS).score(windows(samples, "as stored"))
    y = labels_of(samples)
    if logits[y == 1].mean() < logits[y == 0].mean():
        with torch.no_grad():
            network.head.weight.neg_()
            network.head.bias.neg_()
    save_tower(tiny_backbone().tower, folder / "tiny", torch.float32)
    save_adapter(folder / "mine", network, backbone, PREPROCESS, CALIBRATION, {"seed": 1}, CARD)
    save_adapter(folder / "raw", network, backbone, PREPROCESS)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 photographs that differ from the corpus's."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(40):
        (folder / f"{i:02}.png").write_bytes(encoded(picture(1000 + i, 80, 64)))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def load(home: Path, folder: Path) -> Detector:
    return Detector.from_pretrained(folder, backbone=home / "tiny")


# -- labelled images ------------------------------------------------------------------------------------------


def test_the_copy_holds_the_calibration_that_the_logits_give(home: Path, samples: list[Sample], tmp_path: Path) -> None:
    before = contents(home / "mine")
    result = recalibrate(
        home / "mine", samples, tmp_path / "new", max_false_alarm=0.2, max_miss=0.25, backbone=home / "tiny"
    )
    detector, y = load(home, home / "mine"), labels_of(samples).tolist()
    logits = {v: detector.score(windows(samples, v)).astype(float) for v in ("as stored", "equalised")}  # type: ignore[arg-type]
    expected = fit_calibration(logits, y, 0.2, 0.25)  # type: ignore[arg-type]
    copy = load(home, tmp_path / "new")
    assert copy.calibration == result.new == expected
    assert result.old == CALIBRATION
    assert fit_detector_calibration(detector, samples) == (fit_calibration(logits, y), {})  # type: ignore[arg-type]
    # The weights are the same to the last bit, the detector that was given is untouched, and the names differ.
    assert np.array_equal(copy.score(windows(samples, "as stored")), logits["as stored"].astype(np.float32))
    assert contents(home / "mine") == before
    assert copy.name.split("@")[1] != detector.name.split("@")[1]
    for file in ("config.json", "adapter.safetensors", "train.json"):
        assert (tmp_path / "new" / file).read_bytes() == before[file]


def test_shares_are_counted_on_the_images_as_stored(home: Path, samples: list[Sample], tmp_path: Path) -> None:
    result = recalibrate(home / "mine", samples, tmp_path / "new", backbone=home / "tiny", method="temperature")
    y = labels_of(samples)
    logits = load(home, home / "mine").score(windows(samples, "as stored")).astype(float)
    assert result.before is not None
    for shares, calibration in ((result.before, CALIBRATION), (result.after, result.new)):
        p = calibration.probabilities(logits)
        assert shares.false_alarm == pytest.approx((p[y == 0] > calibration.thresholds.generated).mean())
        assert shares.detected == pytest.approx((p[y == 1] > calibration.thresholds.generated).mean())
        assert shares.miss == pytest.approx((p[y == 1] < calibration.thresholds.real).mean())
    assert (result.n_real, result.n_generated, result.new.method) == (24, 24, "temperature")
    assert result.after.false_alarm <= 0.05
    assert result.after.miss <= 0.10


def test_what_is_said_is_computed_from_the_number_of_images(home: Path, samples: list[Sample], tmp_path: Path) -> None:
    result = recalibrate(home / "mine", samples, tmp_path / "new", backbone=home / "tiny")
    text = " ".join(recalibration_summary(result))
    # k = ceil(25 * 0.95) = 24 of 24 photographs and 229 of 240; ceil(25 * 0.9) = 23 of 24 generated images and 217
    for kind, rate, (m, k), (more_m, more_k) in (
        ("photographs", "5.0", (1, 24), (12, 229)),
        ("generated images", "10.0", (2, 23), (24, 217)),
    ):
        said = re.findall(r"(\d+\.\d) %", text[text.index(f"With 24 {kind}, at most") :])[:3]
        bounds = [100 * beta.ppf(0.95, m, k), 100 * beta.ppf(0.95, more_m, more_k)]
        assert said == [rate, *(f"{bound:.1f}" for bound in bounds)]
    assert "(before: 0.700 and 0.300)" in text
    assert "(platt scaling)" in text
    assert "calibrated again on 24 photographs and 24 generated images, as stored and equalised." in text


def test_the_model_card_says_what_holds_now_and_only_once(home: Path, samples: list[Sample], tmp_path: Path) -> None:
    first = recalibrate(home / "mine", samples, tmp_path / "first", backbone=home / "tiny")
    card = (tmp_path / "first" / "README.md").read_text()
    assert card.startswith(CARD)
    assert "This replaces what is said above of probabilities and thresholds." in card
    assert card.endswith("".join(f"- {line}\n" for line in recalibration_summary(first)))
    second = recalibrate(tmp_path / "first", samples, tmp_path / "second", max_miss=0.2, backbone=home / "tiny")
    card = (tmp_path / "second" / "README.md").read_text()
    assert card.startswith(CARD)
    assert card.count("## Calibrated again") == 1
    assert card.endswith("".join(f"- {line}\n" for line in recalibration_summary(second)))


def test_a_detector_without_calibration_or_card_gets_both(home: Path, samples: list[Sample], tmp_path: Path) -> None:
    result = recalibrate(home / "raw", samples, tmp_path / "new", backbone=home / "tiny")
    assert result.old is None
    assert result.before is None
    assert "before" not in " ".join(recalibration_summary(result))
    assert load(home, tmp_path / "new").calibration == result.new
    assert (tmp_path / "new" / "README.md").read_text().startswith("## Calibrated again\n")
    assert not (tmp_path / "new" / "train.json").exists()


# -- photographs alone ----------------------------------------------------------------------------------------


def test_photographs_move_the_threshold_to_their_rate(home: Path, photos: Path, tmp_path: Path) -> None:
    paths = sorted(photos.iterdir())
    result = recalibrate_on_photographs(
        home / "mine", paths, tmp_path / "new", max_false_alarm=0.1, backbone=home / "tiny"
    )
    logits = np.sort(load(home, home / "mine").score(paths).astype(float))
    # k = ceil(41 * 0.9) = 37 of 40: three photographs lie above
    bound = max(CALIBRATION.thresholds.real, sigmoid(2.0 * logits[36] + 0.1 + 1e-4))
    copy = load(home, tmp_path / "new")
    assert copy.calibration == result.new
    assert result.new.thresholds.generated == pytest.approx(bound, abs=1e-7)  # float32's rounding
    assert result.new.thresholds.real == CALIBRATION.thresholds.real
    assert (result.new.slope, result.new.intercept, result.new.n_real, result.new.n_generated) == (2.0, 0.1, 50, 50)
    assert (result.new.own_photographs, result.new.max_false_alarm) == (40, 0.1)
    assert (result.n_real, result.n_generated) == (40, 0)
    assert result.after.false_alarm <= 0.1
    assert math.isnan(result.after.miss)
    assert result.before is not None
    assert result.before.false_alarm == pytest.approx((CALIBRATION.probabilities(logits) > 0.7).mean())


def test_photographs_alone_promise_nothing_of_generated_images(home: Path, photos: Path, tmp_path: Path) -> None:
    paths = sorted(photos.iterdir())
    result = recalibrate_on_photographs(home / "mine", paths, tmp_path / "new", backbone=home / "tiny")
    text = " ".join(recalibration_summary(result))
    bound = 100 * beta.ppf(0.95, 2, 39)  # k = ceil(41 * 0.95) = 39 of 40
    promise = "at most 5.0 % of further ones like them are called AI-generated, on average over such sets of 40"
    assert f"With 40 photographs, {promise}; 19 such sets in 20 keep it to {bound:.1f} %" in text
    assert "They say nothing of generated images" in text
    assert "generated images, at most" not in text
    assert "calibrated again on 40 photographs, as stored." in text


def test_a_manifest_of_photographs_gives_what_its_files_give(home: Path, samples: list[Sample], tmp_path: Path) -> None:
    real = [sample for sample in samples if not sample.label]
    by_sample = recalibrate_on_photographs(home / "mine", real, tmp_path / "a", backbone=home / "tiny")
    by_path = recalibrate_on_photographs(
        home / "mine", [sample.path for sample in real], tmp_path / "b", backbone=home / "tiny"
    )
    assert by_sample == by_path
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_photographs_that_cannot_be_read_are_left_out_and_named(home: Path, photos: Path, tmp_path: Path) -> None:
    paths = sorted(photos.iterdir())
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    sample = Sample(path=tmp_path / "absent.png", label=0, generator="camera", split="own")
    given = [*paths[:10], broken, ImageNotFound("x.png", "gone"), sample, *paths[10:]]
    result = recalibrate_on_photographs(home / "mine", given, tmp_path / "a", backbone=home / "tiny")
    clean = recalibrate_on_photographs(home / "mine", paths, tmp_path / "b", backbone=home / "tiny")
    assert result.new == clean.new
    assert [line.split(":")[0] for line in result.failed] == [str(broken), "x.png", str(tmp_path / "absent.png")]
    with pytest.raises(DataError, match="18 photographs that can be read cannot bound"):
        recalibrate_on_photographs(home / "mine", [*paths[:18], broken], tmp_path / "c", backbone=home / "tiny")
    assert not (tmp_path / "c").exists()


# -- refusals -------------------------------------------------------------------------------------------------


def test_thresholds_are_set_over_sources_where_the_data_name_enough(
    home: Path, samples: list[Sample], tmp_path: Path
) -> None:
    named = [s.model_copy(update={"source": f"p{i % 6}" if s.label == 0 else ""}) for i, s in enumerate(samples)]
    rates = {"max_false_alarm": 0.2, "max_miss": 0.25, "backbone": home / "tiny"}
    result = recalibrate(home / "mine", named, tmp_path / "new", **rates)  # type: ignore[arg-type]
    assert result.new.n_sources == 6
    assert set(result.left_out) == {f"p{i}" for i in range(6)}
    lines = recalibration_summary(result)
    assert any(line.startswith("The threshold was set over 6 sources of 24 photographs: 90 %") for line in lines)
    assert any(line.startswith("With each source left out in turn") for line in lines)
    assert load(home, tmp_path / "new").calibration == result.new
    assert "over 6 sources" in (tmp_path / "new" / "README.md").read_text()
    by_image = recalibrate(home / "mine", named, tmp_path / "plain", by_source=False, **rates)  # type: ignore[arg-type]
    assert by_image.new == recalibrate(home / "mine", samples, tmp_path / "plain", **rates).new  # type: ignore[arg-type]
    assert by_image.new.n_sources == 0
    few = [s.model_copy(update={"source": f"p{i % 4}"}) for i, s in enumerate(samples)]
    for given in (few, [*named[:-1], samples[0]]):
        with pytest.raises(DataError, match="need a source for every photograph, 5 sources or more"):
            recalibrate(home / "mine", given, tmp_path / "x", by_source=True, **rates)  # type: ignore[arg-type]


def test_too_few_images_are_refused_before_any_is_looked_at(home: Path, manifest: Path, tmp_path: Path) -> None:
    few = [sample for sample in read_manifest(manifest) if sample.split == "few"]
    unseen = [sample.model_copy(update={"path": tmp_path / "absent.png"}) for sample in few]
    for given, rates, message in (
        (unseen, (0.05, 0.1), "10 photographs cannot bound a share of 0.05: at least 19 are needed; give more images"),
        (unseen, (0.1, 0.05), "10 generated images cannot bound a share of 0.05: at least 19 are needed"),
        (unseen[:10], (0.1, 0.1), "0 generated images cannot bound a share of 0.1: at least 9 are needed"),
    ):
        with pytest.raises(DataError, match=message):
            recalibrate(home / "mine", given, tmp_path / "x", max_false_alarm=rates[0], max_miss=rates[1])
    with pytest.raises(DataError, match=r"10 photographs cannot bound a share of 0\.02: at least 49 are needed"):
        recalibrate_on_photographs(home / "mine", unseen[:10], tmp_path / "x", max_false_alarm=0.02)
    with pytest.raises(ConfigError, match="rate=5"):
        recalibrate_on_photographs(home / "mine", unseen[:10], tmp_path / "x", max_false_alarm=5)
    assert (
        recalibrate(
            home / "mine", few, tmp_path / "x", max_false_alarm=0.1, max_miss=0.1, backbone=home / "tiny"
        ).new.n_real
        == 10
    )  # 1 / 0.1 - 1 = 9 are enough


def test_photographs_alone_need_a_calibration_and_no_generated_image(
    home: Path, samples: list[Sample], photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"raw@.* is not calibrated, and photographs alone give no probability"):
        recalibrate_on_photographs(home / "raw", sorted(photos.iterdir()), tmp_path / "x", backbone=home / "tiny")
    with pytest.raises(DataError, match="24 of 48 images are labelled as generated"):
        recalibrate_on_photographs(home / "mine", samples, tmp_path / "x", backbone=home / "tiny")
    with pytest.raises(ImageNotFound, match="no images in this folder"):
        recalibrate_on_photographs(home / "mine", [ImageNotFound("x", "no images in this folder")], tmp_path / "x")


def test_the_detector_itself_and_other_folders_are_not_overwritten(
    home: Path, samples: list[Sample], photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(home / "mine")
    for out, message in ((tmp_path / "link", "is the detector itself"), (photos, "is not an adapter directory")):
        with pytest.raises(CheckpointError, match=message):
            recalibrate(home / "mine", samples, out, backbone=home / "tiny")
        with pytest.raises(CheckpointError, match=message):
            recalibrate_on_photographs(home / "mine", sorted(photos.iterdir()), out, backbone=home / "tiny")
        with pytest.raises(CheckpointError, match=message):
            with_calibration(home / "mine", out, CALIBRATION, [])
    with pytest.raises(CheckpointError, match="is not an adapter directory"):
        with_calibration(photos, tmp_path / "x", CALIBRATION, [])


def test_a_failed_copy_leaves_the_older_one(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    shutil.copytree(home / "mine", out)
    before = contents(out)

    def full(*_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(CheckpointError, match="No space left on device; nothing was changed"):
        with_calibration(home / "mine", out, CALIBRATION, [])
    monkeypatch.undo()
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    moved = CALIBRATION.model_copy(update={"own_photographs": 99})
    with_calibration(home / "mine", out, moved, ["why"])  # replaced as a whole
    assert Calibration.model_validate_json((out / "calibration.json").read_bytes()) == moved
    assert (out / "README.md").read_text().endswith("\n- why\n")


# -- the command ----------------------------------------------------------------------------------------------


def run(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return processes.clipmole("calibrate", *map(str, arguments), environment=environment)


def test_the_command_on_labelled_images(home: Path, manifest: Path, samples: list[Sample], tmp_path: Path) -> None:
    names = [home / "mine", "--backbone", home / "tiny", "--data", manifest, "--out", tmp_path / "new"]
    result = run(*names, "--split", "calibration", "--false-alarm", "0.2", "--miss", "0.3", "--method", "temperature")
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode() == f"{tmp_path / 'new'}\n"
    expected = recalibrate(
        home / "mine",
        samples,
        tmp_path / "expected",
        max_false_alarm=0.2,
        max_miss=0.3,
        method="temperature",
        backbone=home / "tiny",
    )
    assert result.stderr.decode().splitlines() == recalibration_summary(expected)
    assert contents(tmp_path / "new") == contents(tmp_path / "expected")


def test_the_command_on_a_folder_of_photographs(home: Path, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder / "below")
    (folder / "broken.jpg").write_bytes(b"no image")
    names = [home / "mine", "--backbone", home / "tiny", "--data", folder, "--out", tmp_path / "new", "--real-only"]
    result = run(*names)
    assert result.returncode == 1  # one could not be read; the rest is done
    assert result.stdout.decode() == f"{tmp_path / 'new'}\n"
    lines = result.stderr.decode().splitlines()
    assert lines[0].startswith(f"not scored: {folder / 'broken.jpg'}: ")
    assert lines[-1] == "1 of 41 photographs could not be read."
    found = load(home, tmp_path / "new").calibration
    assert found is not None
    assert found.own_photographs == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "{photos}", "--real-only", "--miss", "0.1"], "leave out --miss and --method"),
        (["--data", "{photos}", "--real-only", "--method", "platt"], "leave out --miss and --method"),
        (["--data", "{photos}", "--real-only", "--split", "test"], "--split needs a manifest"),
        (["--data", "{photos}", "--real-only", "--false-alarm", "0.01"], "40 photographs cannot bound a share of 0.01"),
        (["--data", "{photos}"], "is in no known layout"),
        (["--data", "absent", "--real-only"], "absent: there is no such file or folder"),
        (["--data", "{manifest}", "--split", "other"], "3 photographs cannot bound a share of 0.05: at least"),
        (["--data", "{manifest}", "--real-only"], "37 of 74 images are labelled as generated"),
    ],
)
def test_wrong_usage_is_refused_in_one_line(
    arguments: list[str], message: str, home: Path, photos: Path, manifest: Path, tmp_path: Path
) -> None:
    places = {"photos": photos, "manifest": manifest}
    words = [word.format(**places) for word in arguments]
    result = CliRunner().invoke(app, ["calibrate", str(home / "mine"), *words, "--out", str(tmp_path / "new")])
    assert result.exit_code != 0
    if isinstance(result.exception, ClipmoleError):  # of which `main` makes a line and exit code 2
        assert "\n" not in str(result.exception)
        assert message in str(result.exception)
    else:
        assert result.exit_code == 2
        assert message in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "new").exists()


def test_thresholds_are_not_set_on_a_sibling_of_the_backbone(tmp_path: Path) -> None:
    one = Sample(path=tmp_path / "a.png", label=0, generator="g", split="calibration")
    made = [one.model_copy(update={"label": label}) for label in (0, 1) for _ in range(30)]
    with pytest.raises(ConfigError, match="thresholds are set on the detector's own backbone"):
        recalibrate("mole-vit-b-16", made, tmp_path / "out", backbone="vit-b-16")
    assert not (tmp_path / "out").exists()
