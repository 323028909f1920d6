"""One training run on a tiny tower: it learns, it is reproducible, and it writes what it says."""

from __future__ import annotations

import json
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import PREPROCESS, tiny_backbone, tiny_network, write_corpus

from clipmole.config import AugmentConfig, MoLEConfig, TrainConfig
from clipmole.data import read_manifest, take_split
from clipmole.errors import CheckpointError, ConfigError, DataError, TrainingDiverged
from clipmole.evaluation.records import Estimate, EvaluationReport, SetReport
from clipmole.inference.detector import Detector
from clipmole.models.adapter import load_adapter
from clipmole.models.backbone import save_tower
from clipmole.models.network import MoLENetwork
from clipmole.plumbing.progress import ProgressReporter
from clipmole.training import train as training
from clipmole.training.augmented_views import shows_whole, views
from clipmole.training.model_card import model_card
from clipmole.training.optimizer import learning_rate_factor, make_optimizer
from clipmole.training.train import better_than_chance, train

GENTLE = AugmentConfig(blur_probability=0, jpeg_probability=0, equalise_quality=(90, 95))
CONFIG = TrainConfig(
    backbone="given",
    preprocess=PREPROCESS,
    augment=GENTLE,
    epochs=6,
    batch_size=8,
    learning_rate=1e-2,
    precision="float32",
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), {"train": 24, "val": 12, "calibration": 24, "test": 2})


@pytest.fixture(scope="module")
def trained(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "adapter"
    train(CONFIG, out, data=manifest, backbone=tiny_backbone())
    save_tower(tiny_backbone().tower, out.parent / "tiny", torch.float32)
    return out


def test_it_learns_what_can_be_learnt(trained: Path) -> None:
    record = json.loads((trained / "train.json").read_text())
    curve = record["curve"]
    assert curve[record["best_epoch"]]["val_ap"] > 0.9
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert curve[record["best_epoch"]]["val_ap"] == max(epoch["val_ap"] for epoch in curve)


def test_the_adapter_directory_holds_everything_and_loads(trained: Path, manifest: Path) -> None:
    detector = Detector.from_pretrained(trained, backbone=trained.parent / "tiny")
    assert detector.calibration is not None
    assert (detector.calibration.n_real, detector.calibration.n_generated) == (24, 24)
    assert detector.calibration.variants == ("as stored", "equalised")
    reals = [s.path for s in read_manifest(manifest) if s.split == "calibration" and s.label == 0]
    verdicts = [detection.verdict.value for detection in detector.detect_batch(reals) if detection.verdict]
    assert verdicts.count("ai_generated") <= 0.05 * len(reals)
    card = (trained / "README.md").read_text()
    assert "Generators seen: checks." in card
    assert "never a proof" in card


def test_it_ends_with_an_honest_sentence_on_the_images_and_one_on_the_verdicts(manifest: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    config = CONFIG.model_copy(update={"epochs": 2})
    progress = ProgressReporter(say=lines.append)
    train(config, tmp_path / "run", data=manifest, backbone=tiny_backbone(), progress=progress)
    images, photographs, generated = lines[-3:]
    found = re.fullmatch(
        r"Of the 12 photographs and 12 generated images for validation, equalised, a generated one scores above a "
        r"photograph in ([0-9.]+) % of pairs \[([0-9.]+), ([0-9.]+)\], where chance gives 50 %: that is better than "
        r"chance\. The epoch was chosen by these images, so it looks too good\.",
        images,
    )
    assert found is not None
    value, low, high = map(float, found.groups())
    assert 50 < low <= value <= high <= 100
    assert photographs.startswith("With 24 photographs, at most 5.0 % of further ones like them are called AI-generat")
    assert generated.startswith("With 24 generated images, at most ")
    card = (tmp_path / "run" / "README.md").read_text()
    assert all(f"- {line}" in card for line in (images, photographs, generated))


def test_it_says_when_chance_would_do_as_well() -> None:
    auroc = {"auroc": Estimate(value=0.61, low=0.48, high=0.74)}
    stored, found = (
        SetReport(detector="d", set="val", condition=condition, n_real=9, n_generated=8, groups=17, estimates=auroc,
                  generators={}, means={})
        for condition in ("as stored", "equalised")
    )  # fmt: skip
    line = better_than_chance(EvaluationReport(title="t", detectors=(), sets=(stored, found)))
    perfect = found.model_copy(update={"estimates": {"auroc": Estimate(value=1, low=1, high=1)}})
    assert "in 100.0 % of pairs [63.1, 100.0]" in better_than_chance(
        EvaluationReport(title="t", detectors=(), sets=(perfect,))
    )  # 0.025 ** (1 / 8)
    assert "in 61.0 % of pairs [48.0, 74.0], where chance gives 50 %: NOT shown to be better than chance." in line


def test_too_few_images_to_calibrate_on_are_said_before_training_and_give_no_verdicts(tmp_path: Path) -> None:
    few = write_corpus(tmp_path / "corpus", {"train": 8, "val": 4, "calibration": 12})
    lines: list[str] = []
    progress = ProgressReporter(say=lines.append)
    config = CONFIG.model_copy(update={"epochs": 1})
    detector = train(config, tmp_path / "run", data=few, backbone=tiny_backbone(), progress=progress)
    reason = "calibration: 12 photographs cannot bound a share of 0.05: at least 19 are needed"
    first = next(line for line in lines if reason in line)
    assert first.startswith("there will be no verdicts: ")
    assert lines.index(first) < next(i for i, line in enumerate(lines) if line.startswith("epoch 1"))
    assert detector.calibration is None
    assert lines[-1].startswith("It gives logits and no verdicts")


def test_the_record_says_how_it_was_made(trained: Path) -> None:
    record = json.loads((trained / "train.json").read_text())
    assert record["data"]["source"] == "manifest.csv"
    assert TrainConfig.model_validate(record["config"]) == CONFIG
    assert record["backbone"]["sha256"] == tiny_backbone().sha256
    assert record["data"]["train"] == 48
    assert len(record["data"]["digest"]) == 64
    assert record["trained_parameters"] == 2 * (18 * 48 + 3 * 24) + 25
    assert set(record["environment"]) >= {"torch", "cpu", "date", "clipmole", "python"}


def test_the_same_seed_gives_the_same_weights_and_another_does_not(
    manifest: Path, trained: Path, tmp_path: Path
) -> None:
    train(CONFIG, tmp_path / "again", data=manifest, backbone=tiny_backbone())
    train(CONFIG.model_copy(update={"seed": 1}), tmp_path / "other", data=manifest, backbone=tiny_backbone())
    first, again, other = (
        load_file(path / "adapter.safetensors") for path in (trained, tmp_path / "again", tmp_path / "other")
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_frozen_tower_is_left_as_it_was(manifest: Path, tmp_path: Path) -> None:
    backbone = tiny_backbone()
    train(CONFIG.model_copy(update={"epochs": 1}), tmp_path / "one", data=manifest, backbone=backbone)
    untouched = tiny_backbone().tower.state_dict()
    for name, value in backbone.tower.state_dict().items():
        if "lora" not in name and "router" not in name:
            assert torch.equal(value, untouched[name.replace(".mlp.mlp.", ".mlp.")]), name


@pytest.mark.parametrize(
    ("mole", "full", "stored"),
    [
        (MoLEConfig(shared_rank=0, expert_ranks=()), False, 2),
        (MoLEConfig(expert_ranks=()), False, 2 + 2 * 2),
        (MoLEConfig(), False, 2 + 2 * 3),
        (MoLEConfig(shared_rank=0, expert_ranks=()), True, 2 + len(tiny_backbone().tower.state_dict())),
    ],
    ids=["linear-probe", "lora", "mole", "full"],
)
def test_every_way_to_train_takes_a_step_and_comes_back(
    manifest: Path, tmp_path: Path, mole: MoLEConfig, full: bool, stored: int
) -> None:
    config = CONFIG.model_copy(update={"mole": mole, "full_finetune": full, "epochs": 1, "precision": "bfloat16"})
    train(config, tmp_path / "run", data=manifest, backbone=tiny_backbone())
    save_tower(tiny_backbone().tower, tmp_path / "tiny", torch.float32)
    adapter = load_adapter(tmp_path / "run", tmp_path / "tiny")
    assert len(load_file(tmp_path / "run" / "adapter.safetensors")) == stored
    assert adapter.config.full_finetune is full


@pytest.mark.parametrize("slow", [True, False])
def test_a_processor_that_is_slow_in_bfloat16_computes_in_float32_and_the_record_says_so(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    monkeypatch.setattr(training, "bfloat16_is_slow", lambda _device: slow)
    lines: list[str] = []
    config = CONFIG.model_copy(update={"precision": "bfloat16", "epochs": 1})
    progress = ProgressReporter(say=lines.append)
    train(config, tmp_path / "run", data=manifest, backbone=tiny_backbone(), progress=progress)
    used = json.loads((tmp_path / "run" / "train.json").read_text())["config"]["precision"]
    assert used == ("float32" if slow else "bfloat16")
    assert ("this processor has no fast bfloat16: the run computes in float32" in lines) is slow


def test_it_stops_when_patience_is_over(manifest: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    config = CONFIG.model_copy(update={"learning_rate": 1e-12, "patience": 2})
    train(
        config, tmp_path / "run", data=manifest, backbone=tiny_backbone(), progress=ProgressReporter(say=lines.append)
    )
    record = json.loads((tmp_path / "run" / "train.json").read_text())
    assert len(record["curve"]) == 3
    assert "stopped: no better epoch for 2" in lines


def test_weights_that_cannot_be_calibrated_are_kept_without_a_calibration(manifest: Path, tmp_path: Path) -> None:
    upside_down = manifest.read_text().replace(",1,checks,calibration", ",9,checks,calibration")
    upside_down = upside_down.replace(",0,camera,calibration", ",1,checks,calibration")
    swapped = manifest.with_name("swapped.csv")
    swapped.write_text(upside_down.replace(",9,checks,calibration", ",0,camera,calibration"))
    lines: list[str] = []
    detector = train(
        CONFIG, tmp_path / "run", data=swapped, backbone=tiny_backbone(), progress=ProgressReporter(say=lines.append)
    )
    assert detector.calibration is None
    reason, val, last = lines[-3:]
    assert reason.startswith("not calibrated: calibration: generated images do not score higher")
    assert "where chance gives 50 %: that is better than chance." in val
    assert last.startswith("It gives logits and no verdicts")
    assert not (tmp_path / "run" / "calibration.json").exists()
    assert "gives logits and no verdicts" in (tmp_path / "run" / "README.md").read_text()


def test_a_view_depends_on_seed_epoch_and_sample_alone(manifest: Path) -> None:
    samples = take_split(read_manifest(manifest), "train")
    config = TrainConfig(backbone="given", preprocess=PREPROCESS)
    with ThreadPoolExecutor(2) as pool:
        forward = torch.cat(
            list(views(samples, [[(i, 0) for i in range(3)], [(i, 0) for i in range(3, 8)]], config, pool))
        )
        backward = torch.cat(list(views(samples, [[(i, 0)] for i in range(7, -1, -1)], config, pool)))
        next_epoch = torch.cat(list(views(samples, [[(i, 1) for i in range(8)]], config, pool)))
    assert forward.shape == (8, 3, 32, 32)
    assert forward.dtype == torch.uint8
    assert torch.equal(forward, backward.flip(0))
    assert not torch.equal(forward, next_epoch)


def test_of_any_first_views_the_share_shows_the_whole() -> None:
    for share in (0.0, 0.25, 1 / 3, 0.5, 0.8):
        shown = np.cumsum([shows_whole(number, share) for number in range(40)])
        assert shown.tolist() == [int(n * share + 0.5) for n in range(1, 41)]
    assert [shows_whole(number, 1 / 3) for number in range(4)] == [False, True, False, False]


@pytest.mark.parametrize("mole", [MoLEConfig(), MoLEConfig(shared_rank=0, expert_ranks=())], ids=["mole", "probe"])
def test_training_on_cached_views_is_training_on_those_views(manifest: Path, tmp_path: Path, mole: MoLEConfig) -> None:
    """Two epochs on two cached views against two epochs that draw the same two views, to bfloat16 rounding."""
    config = CONFIG.model_copy(update={"epochs": 2, "mole": mole, "learning_rate": 1e-3})
    train(config, tmp_path / "drawn", data=manifest, backbone=tiny_backbone())
    cached = config.model_copy(update={"cached_views": 2})
    train(cached, tmp_path / "cached", data=manifest, backbone=tiny_backbone())
    curves = [json.loads((tmp_path / name / "train.json").read_text())["curve"] for name in ("drawn", "cached")]
    for drawn, kept in zip(*curves, strict=True):
        assert kept["loss"] == pytest.approx(drawn["loss"], rel=2e-2)
    one_view = config.model_copy(update={"cached_views": 1})
    train(one_view, tmp_path / "one", data=manifest, backbone=tiny_backbone())
    one = json.loads((tmp_path / "one" / "train.json").read_text())["curve"]
    assert one[0]["loss"] == curves[1][0]["loss"]  # the first view is the same,
    assert one[1]["loss"] != curves[1][1]["loss"]  # the second is not


def test_the_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    factors = [learning_rate_factor(step, 100, 10) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == pytest.approx(1.0)
    assert factors[55] == pytest.approx(0.5)
    assert factors[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_the_tower_has_its_own_learning_rate_only_when_it_is_trained() -> None:
    probe = MoLEConfig(shared_rank=0, expert_ranks=())
    config = CONFIG.model_copy(update={"full_finetune": True, "mole": probe})
    groups = make_optimizer(MoLENetwork(tiny_backbone().tower, probe, True), config).param_groups
    assert [len(group["params"]) for group in groups] == [0, 2, len(tiny_backbone().tower.state_dict())]
    assert [group["lr"] for group in groups] == [1e-2, 1e-2, 1e-4]
    groups = make_optimizer(MoLENetwork(tiny_backbone().tower, MoLEConfig()), CONFIG).param_groups
    assert [len(group["params"]) for group in groups] == [6, 2, 0]


def test_what_cannot_be_trained_is_refused_before_anything_is_written(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no data"):
        train(CONFIG, tmp_path / "run", backbone=tiny_backbone())
    second = CONFIG.model_copy(update={"mole": MoLEConfig(drawn=True)})
    with pytest.raises(ConfigError, match=r"mole\.drawn: is fitted to a detector after its training"):
        train(second, tmp_path / "run", data=manifest, backbone=tiny_backbone())
    only_train = write_corpus(tmp_path / "only-train", {"train": 2})
    with pytest.raises(DataError, match="split 'val'"):
        train(CONFIG, tmp_path / "run", data=only_train, backbone=tiny_backbone())
    gone = write_corpus(tmp_path / "gone", {"train": 2, "val": 2})
    (tmp_path / "gone" / "val-0-1.png").unlink()
    with pytest.raises(DataError, match=r"1 of 8 images cannot be read: .*val-0-1\.png: cannot be read: No such file"):
        train(CONFIG, tmp_path / "run", data=gone, backbone=tiny_backbone())
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="not an adapter directory"):
        train(CONFIG, tmp_path / "photos", data=manifest, backbone=tiny_backbone())
    assert not (tmp_path / "run").exists()


def test_full_finetuning_with_experts_is_a_contradiction() -> None:
    with pytest.raises(ConfigError, match="full_finetune trains the tower itself"):
        TrainConfig.parse({"backbone": "x", "full_finetune": True}, "config")
    probe = {"shared_rank": 0, "expert_ranks": []}
    with pytest.raises(ConfigError, match="leaves no block frozen"):
        TrainConfig.parse({"backbone": "x", "full_finetune": True, "cached_views": 2, "mole": probe}, "config")


def test_the_finished_detector_looks_at_no_more_validation_images_than_it_needs(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "MOST_SCORED", 5)
    val = take_split(read_manifest(manifest), "val")
    report, table = training.score_validation(Detector(tiny_network(), PREPROCESS), val, seed=0)
    assert {(each.n_real, each.n_generated) for each in report.sets} == {(5, 5)}
    assert [sample.label for sample in table.samples] == [0] * 5 + [1] * 5  # in the order of the split
    assert set(table.samples) < set(val)


def test_a_record_of_an_older_version_has_a_model_card(trained: Path) -> None:
    record = json.loads((trained / "train.json").read_text())
    del record["config"]["mole"]["companion"]
    assert f"{record['trained_parameters']:,} parameters were trained" in model_card(record, None, ())


@pytest.mark.parametrize(
    ("out", "reason"),
    [(".", "is the current directory"), ("..", "or holds it"), (os.fsdecode(b"\xff"), "has a name that is not UTF-8")],
)
def test_a_folder_that_could_not_be_used_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=f"{reason}.*; name another folder"):
        train(CONFIG, out, data="unread", backbone=tiny_backbone())


def test_a_name_that_a_terminal_would_act_on_is_escaped(tmp_path: Path) -> None:
    few = write_corpus(tmp_path / "corpus", {"train": 4, "val": 2})
    config = CONFIG.model_copy(update={"epochs": 1})
    detector = train(config, tmp_path / "a\n\x1b", data=few, backbone=tiny_backbone(), with_report=False)
    save_tower(tiny_backbone().tower, tmp_path / "tiny", torch.float32)
    assert detector.name == load_adapter(tmp_path / "a\n\x1b", tmp_path / "tiny").name == r"a\u000a\u001b"


def test_logits_of_validation_that_are_not_finite_are_a_run_that_diverged(tmp_path: Path) -> None:
    few = write_corpus(tmp_path / "corpus", {"train": 4, "val": 2})
    wild = CONFIG.model_copy(update={"epochs": 1, "learning_rate": 1e30})  # one step, whose loss is finite
    with pytest.raises(TrainingDiverged, match=r"the logits of validation are not finite; lower learning_rate"):
        train(wild, tmp_path / "run", data=few, backbone=tiny_backbone())


@pytest.mark.parametrize("setting", [{"seed": 2**32}, {"learning_rate": 1e300}, {"head_learning_rate": 1e300}])
def test_a_number_that_no_library_takes_is_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        TrainConfig.parse(CONFIG.model_dump() | setting, "options")


def test_a_path_that_no_file_can_have_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    few = write_corpus(tmp_path / "corpus", {"train": 4, "val": 2})
    few.write_text(few.read_text() + "a\0b.png,1,checks,train\n")
    with pytest.raises(DataError, match="1 of 13 images cannot be read"):
        train(CONFIG, tmp_path / "run", data=few, backbone=tiny_backbone())
