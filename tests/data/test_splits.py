"""Draws are seeded, keep groups whole, do not hang on order, and training records what it drew and skipped."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from tiny import PREPROCESS, encoded, picture, tiny_backbone, write_corpus
from typer.testing import CliRunner

from clipmole.cli import app
from clipmole.config import AugmentConfig, TrainConfig
from clipmole.data import Folders, file_sha256, read_data
from clipmole.data.sample import Sample
from clipmole.data.samples import source_hash
from clipmole.data.splits import draw_per_class, draw_splits, whole_groups
from clipmole.data.training_set import training_data
from clipmole.errors import ConfigError, DataError
from clipmole.plumbing.progress import ProgressReporter
from clipmole.training.train import train

CONFIG = TrainConfig(backbone="given", preprocess=PREPROCESS, epochs=1, batch_size=8, precision="float32")


def made(n: int, groups: int = 0, generators: int = 2, category: str = "") -> list[Sample]:
    return [
        Sample(
            path=Path(f"/{category}/{i}.png"),
            label=1 if i % 2 else 0,
            generator=f"g{i // 2 % generators}" if i % 2 else "camera",
            split="",
            group=f"s{i % groups}" if groups else "",
            category=category,
        )
        for i in range(n)
    ]


def digests(samples: list[Sample]) -> dict[Sample, str]:
    return {sample: hashlib.sha256(str(sample.path).encode()).hexdigest() for sample in samples}


# -- splits ---------------------------------------------------------------------------------------------------


def test_drawn_splits_are_eight_one_and_one_tenths_of_every_class_and_generator() -> None:
    samples = made(400)
    drawn = draw_splits(samples, digests(samples), 0)
    assert [s.path for s in drawn] == [s.path for s in samples]
    counts = Counter((s.split, s.generator) for s in drawn)
    for generator, total in (("camera", 200), ("g0", 100), ("g1", 100)):
        for split, share in (("train", 0.8), ("val", 0.1), ("calibration", 0.1)):
            assert counts[split, generator] == pytest.approx(share * total, abs=1)


def test_a_draw_depends_on_seed_and_content_not_on_order() -> None:
    samples = made(200)
    known = digests(samples)
    first = {s.path: s.split for s in draw_splits(samples, known, 3)}
    assert {s.path: s.split for s in draw_splits(samples[::-1], known, 3)} == first
    assert {s.path: s.split for s in draw_splits(samples, known, 4)} != first


def test_groups_and_equal_contents_stay_in_one_split() -> None:
    samples = made(300, groups=40)
    drawn = draw_splits(samples, digests(samples), 0)
    held = {group: {s.split for s in drawn if s.group == group} for group in {s.group for s in drawn}}
    assert all(len(splits) == 1 for splits in held.values())
    assert {s.split for s in drawn} == {"train", "val", "calibration"}
    alone = made(300)
    same = {sample: hashlib.sha256(b"%d" % (i // 3)).hexdigest() for i, sample in enumerate(alone)}
    drawn = draw_splits(alone, same, 0)
    assert all(len({s.split for s in drawn[i : i + 3]}) == 1 for i in range(0, 300, 3))


def test_groups_are_joined_by_names_and_by_contents() -> None:
    groups = ["a", "a", "", "b", "", "b"]
    samples = [s.model_copy(update={"group": g}) for s, g in zip(made(6), groups, strict=True)]
    numbers = whole_groups(samples, ["1", "2", "2", "3", "4", "5"])
    assert numbers[0] == numbers[1] == numbers[2]
    assert numbers[3] == numbers[5]
    assert len(set(numbers)) == 3


def test_too_few_to_draw_from_are_refused() -> None:
    samples = made(100, groups=9)
    with pytest.raises(DataError, match="9 photographs that are independent of one another: at least 10"):
        draw_splits(samples, digests(samples), 0)


# -- few samples ----------------------------------------------------------------------------------------------


def test_a_hundred_of_each_of_cnnspots_classes_are_its_0_28_percent() -> None:
    samples = [s for k in range(20) for s in made(300, category=f"c{k}")]
    drawn = draw_per_class(samples, 100, 0)
    assert len(drawn) == 2000
    assert round(100 * len(drawn) / 720_119, 2) == 0.28
    assert set(Counter((s.category, s.label) for s in drawn).values()) == {50}


def test_a_larger_draw_keeps_a_smaller_one_and_order_does_not_matter() -> None:
    samples = made(200)
    few, more = draw_per_class(samples, 10, 1), draw_per_class(samples, 50, 1)
    assert set(few) < set(more)
    assert set(draw_per_class(samples[::-1], 10, 1)) == set(few)
    assert set(draw_per_class(samples, 10, 2)) != set(few)
    assert Counter(s.label for s in draw_per_class(samples, 7, 0)) == {1: 4, 0: 3}
    expected = sorted(range(0, 200, 2), key=lambda i: hashlib.sha256(f"1\0\0000\0{i}.png".encode()).digest())[:5]
    assert {s.path.stem for s in few if s.label == 0} == set(map(str, expected))


def test_a_class_with_too_few_is_named() -> None:
    with pytest.raises(DataError, match="per_class = 30: 15 photographs are needed of each class, and cat has 10"):
        draw_per_class([*made(40, category="bird"), *made(20, category="cat")], 30, 0)


# -- training data --------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """Forty photographs and forty generated images."""
    for label, name in enumerate(("mine", "sdxl")):
        (tmp_path / name).mkdir()
        for i in range(40):
            (tmp_path / name / f"{i}.png").write_bytes(encoded(picture(100 * label + i)))
    return Folders(real=(tmp_path / "mine",), fake=(tmp_path / "sdxl",))


def test_two_folders_without_splits_train_and_the_record_says_what_was_drawn(folders: Folders, tmp_path: Path) -> None:
    said: list[str] = []
    gentle = CONFIG.model_copy(update={"augment": AugmentConfig(blur_probability=0), "per_class": 20, "seed": 5})
    train(gentle, tmp_path / "out", data=folders, backbone=tiny_backbone(), progress=ProgressReporter(say=said.append))
    written = (tmp_path / "out" / "train.json").read_text()
    record = json.loads(written)["data"]
    assert str(tmp_path) not in written  # where the images lay is nobody's business
    assert (record["train"], record["val"], record["calibration"]) == (20, 8, 8)
    assert record["seed"] == 5
    assert record["generators"] == ["sdxl"]
    everything = {file_sha256(s) for s in read_data(folders)}
    parts = [record["drawn_splits"]["val"], record["drawn_splits"]["calibration"], record["drawn_per_class"]["files"]]
    assert sum(map(len, parts)) == len({sha for part in parts for sha in part}) == 36
    assert {sha for part in parts for sha in part} < everything
    assert any("names no splits; drawn by seed 5" in line for line in said)
    again = training_data(gentle, folders)
    assert again.record == record
    lists = [{file_sha256(s) for s in part} for part in (again.val, again.calibration, again.train)]
    assert lists == [set(part) for part in parts]


def test_unreadable_images_are_refused_by_name_or_skipped_and_recorded(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "mine" / "3.png").write_bytes(b"")
    cut = tmp_path / "sdxl" / "7.png"
    cut.write_bytes(cut.read_bytes()[:-40])
    with pytest.raises(DataError, match="2 of 80 images cannot be read") as error:
        training_data(CONFIG, folders)
    assert "mine/3.png: is empty" in str(error.value)
    assert "sdxl/7.png: damaged or truncated PNG" in str(error.value)
    assert "--skip-unreadable" in str(error.value)
    said: list[str] = []
    data = training_data(
        CONFIG.model_copy(update={"skip_unreadable": True}), folders, progress=ProgressReporter(say=said.append)
    )
    assert len(data.train) + len(data.val) + len(data.calibration) == 78
    assert [Path(row["file"]).parts[-2:] for row in data.record["skipped"]] == [("mine", "3.png"), ("sdxl", "7.png")]
    assert sum(line.startswith("skipped: ") for line in said) == 2


def test_one_file_with_both_labels_is_refused(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "sdxl" / "new.png").write_bytes((tmp_path / "mine" / "0.png").read_bytes())
    with pytest.raises(DataError, match="are the same file, once labelled"):
        training_data(CONFIG, folders)


def test_files_that_training_shares_with_val_are_counted(tmp_path: Path) -> None:
    rows = ["path,label,generator,split"]
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(encoded(picture(i // 2 if i < 4 else i)))
        rows.append(f"{i}.png,{i // 2 % 2},g,{('train', 'val')[i % 2]}")
    (tmp_path / "m.csv").write_text("\n".join(rows))
    said: list[str] = []
    assert (
        training_data(CONFIG, tmp_path / "m.csv", progress=ProgressReporter(say=said.append)).record[
            "also_in_other_splits"
        ]
        == 2
    )
    assert any(line.startswith("2 training files are in val") for line in said)


def test_a_configuration_names_its_data_once() -> None:
    with pytest.raises(ConfigError, match="give folders for both"):
        TrainConfig.parse({"backbone": "x", "real": ["a"]}, "config")
    with pytest.raises(ConfigError, match="not all of them"):
        TrainConfig.parse({"backbone": "x", "data": "m.csv", "real": ["a"], "fake": ["b"]}, "config")
    with pytest.raises(ConfigError, match="no data: give --data"):
        training_data(CONFIG)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["evaluate", "--out", "o", "--data", "a", "--real", "b"], "--data excludes --real and --fake"),
        (["evaluate", "--out", "o", "--real", "b"], "give --data, or both --real and --fake"),
        (["calibrate", "embedded", "--out", "o"], "no images: give --data"),
        (["data", "check", "a", "--fake", "b"], "--data excludes"),
        (["train", "--config", "c", "--out", "o", "--fake", "b"], "give --data, or both --real and --fake"),
    ],
)
def test_the_command_line_takes_one_source(arguments: list[str], reason: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert reason in result.output


def test_the_record_names_sources_by_their_hash_if_every_photograph_has_one(tmp_path: Path) -> None:
    rows = write_corpus(tmp_path, {"train": 4, "val": 2}).read_text().splitlines()
    named = [f"{row},{'source' if i == 0 else f'Jane Doe {i % 2}'}" for i, row in enumerate(rows)]
    (tmp_path / "named.csv").write_text("\n".join(named))
    record = training_data(CONFIG, tmp_path / "named.csv").record
    assert record["sources"] == sorted(source_hash(f"Jane Doe {i}") for i in range(2))
    assert all(len(each) == 12 for each in record["sources"])
    assert "Jane" not in str(record)
    (tmp_path / "some.csv").write_text("\n".join([*named[:-1], named[-1].rpartition(",")[0] + ","]))
    assert "sources" in training_data(CONFIG, tmp_path / "some.csv").record  # the last row is of val
    (tmp_path / "fewer.csv").write_text("\n".join([named[0], named[1].rpartition(",")[0] + ",", *named[2:]]))
    assert "sources" not in training_data(CONFIG, tmp_path / "fewer.csv").record
