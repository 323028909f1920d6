"""The paper's experiment on made copies of its layouts: from folders of images to the table beside the paper's."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import picture, tiny_backbone
from typer.testing import CliRunner, Result

from clipmole.cli import app
from clipmole.data.sample import Sample
from clipmole.evaluation.protocol import load_protocol
from clipmole.models.backbone import save_tower
from clipmole.reproduction.plan import Rates, paper_config, paper_data_set, plan, plan_lines

CLASSES = ("airplane", "bicycle")
UNIVFD = {"progan/airplane": "progan", "stylegan/bedroom": "stylegan", "seeingdark": "sitd"}
SMALL = ["preprocess.crop_size=32", "epochs=2", "batch_size=8", "learning_rate=1e-2", "cached_views=2", "per_class=8"]


def write(folder: Path, label: int, count: int, seed: int) -> None:
    """`count` images of a class: a generated one carries a checkerboard."""
    folder.mkdir(parents=True)
    checks = (np.indices((40, 48)).sum(0) % 2 * 60)[..., None]
    for i in range(count):
        pixels = np.asarray(picture(seed + i)).astype(int) * 0.75 + label * checks
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few images of each data set, as its owners lay them out; most test sets are not there."""
    folder = tmp_path_factory.mktemp("data")
    seed = 0
    for label, kind in ((0, "0_real"), (1, "1_fake")):
        for name in CLASSES:
            write(folder / "progan" / "train" / name / kind, label, 6, seed := seed + 100)
            write(folder / "progan" / "val" / name / kind, label, 3, seed := seed + 100)
        for place in UNIVFD:
            write(folder / "univfd" / "test" / place / kind, label, 4, seed := seed + 100)
    write(folder / "univfd" / "diffusion_datasets" / "laion" / "0_real", 0, 4, 10_000)
    write(folder / "univfd" / "diffusion_datasets" / "dalle" / "1_fake", 1, 4, 11_000)
    for kind, label in (("nature", 0), ("ai", 1)):
        write(folder / "genimage" / "Midjourney" / "val" / kind, label, 4, 12_000 + 100 * label)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone") / "tiny"
    save_tower(tiny_backbone().tower, folder, torch.float32)
    return folder


def reproduce(*arguments: str | Path) -> Result:
    options = [f"--set={each}" for each in SMALL]
    return CliRunner().invoke(app, ["reproduce", "paper-vit-l-14", "--few", *options, *map(str, arguments)])


@pytest.fixture(scope="module")
def out(root: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole experiment, run once."""
    folder = tmp_path_factory.mktemp("out") / "mine"
    result = reproduce("--data", root, "--out", folder, "--backbone", tiny, "--resamples", "20", "--incomplete")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(folder / "paper.md")
    return folder


def test_the_table_holds_the_papers_figures_those_of_the_reports_and_their_difference(out: Path) -> None:
    table = json.loads((out / "paper.json").read_text())
    rows = {(row["benchmark"], row["set"], row["metric"]): row for row in table["rows"]}
    assert table["method"] == "MoLE ViT-L/14"
    assert [name for benchmark, name, metric in rows if (benchmark, metric) == ("univfd-19", "accuracy")] == [
        "progan", "stylegan", "sitd", "dalle", "mean over sets"
    ]  # fmt: skip
    published = {"progan": 1.0, "stylegan": 0.9981, "sitd": 0.9093, "dalle": 0.9922}
    report = json.loads((out / "univfd-19" / "report.json").read_text())
    for name, share in published.items():
        row = rows["univfd-19", name, "average_precision"]
        own = next(each for each in report["sets"] if (each["set"], each["condition"]) == (name, "as stored"))
        assert row["published"] == pytest.approx(share)
        assert row["stored"] == own["figures"]["average_precision"]["value"]
        assert rows["univfd-19", name, "accuracy"]["stored"] == own["figures"]["accuracy"]["value"]
    mean = rows["univfd-19", "mean over sets", "average_precision"]
    assert mean["published"] == pytest.approx(sum(published.values()) / 4)
    assert mean["stored"] == pytest.approx(
        sum(rows["univfd-19", name, "average_precision"]["stored"] for name in published) / 4
    )
    assert rows["univfd-19", "mean over sets", "accuracy"]["published"] is None  # that of all 19
    assert rows["genimage-8", "Midjourney", "average_precision"]["published"] is None
    line = next(line for line in (out / "paper.md").read_text().splitlines() if line.startswith("| sitd | 90.93"))
    stored = rows["univfd-19", "sitd", "average_precision"]["stored"]
    assert line.split(" | ")[2:4] == [f"{100 * stored:.2f}", f"{100 * stored - 90.93:+.2f}"]


def test_it_learnt_on_what_the_layout_holds_and_says_what_was_not_as_published(out: Path) -> None:
    record = json.loads((out / "detector" / "train.json").read_text())
    assert record["data"]["train"] == 16  # 8 of each of two classes
    assert record["data"]["val"] == 12
    page = (out / "paper.md").read_text()
    assert "- Trained on 16 images, 8 of each class" in page
    assert "- progan/train: holds 24 images (12 of them generated), and about 720,119 are published" in page
    assert "- univfd/biggan: no folder biggan; expected biggan/" in page


def test_a_second_run_takes_what_is_there_and_gives_the_same(out: Path, root: Path, tiny: Path) -> None:
    trained = (out / "detector" / "adapter.safetensors").stat().st_mtime_ns
    before = (out / "paper.json").read_bytes()
    again = reproduce("--data", root, "--out", out, "--backbone", tiny, "--resamples", "20", "--incomplete")
    assert again.exit_code == 0, again.output
    assert (out / "detector" / "adapter.safetensors").stat().st_mtime_ns == trained
    assert (out / "paper.json").read_bytes() == before
    other = reproduce("--data", root, "--out", out, "--backbone", tiny, "--incomplete", "--set", "epochs=3")
    assert "was trained with another epochs; name another --out" in str(other.exception)


def test_a_detector_of_fewer_images_is_not_taken_for_one_of_all(
    out: Path, root: Path, tiny: Path, tmp_path: Path
) -> None:
    shutil.copytree(out, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "detector" / "train.json").read_text())
    record["data"]["train"] = 10
    (tmp_path / "out" / "detector" / "train.json").write_text(json.dumps(record))
    result = reproduce("--data", root, "--out", tmp_path / "out", "--backbone", tiny, "--incomplete")
    assert "was trained on 22 images, and there are 28 now; name another --out" in str(result.exception)


@pytest.mark.parametrize("name", ["paper.md", "paper.json"])
def test_a_file_of_somebody_elses_is_not_replaced(root: Path, tiny: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("years of work")
    result = reproduce("--data", root, "--out", tmp_path, "--backbone", tiny, "--incomplete")
    assert f"{name}: is there and was not written by clipmole reproduce; name another --out" in str(result.exception)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "years of work")]


def test_incomplete_data_stop_it_before_anything_is_done(root: Path, tiny: Path, tmp_path: Path) -> None:
    result = reproduce("--data", root, "--out", tmp_path / "new", "--backbone", tiny)
    assert "27 of 29 data sets are not as published: progan/train: holds 24 images" in str(result.exception)
    assert not (tmp_path / "new").exists()
    empty = reproduce("--data", tmp_path, "--out", tmp_path / "new", "--backbone", tiny, "--incomplete")
    assert str(empty.exception).startswith("nothing to train on: progan/train: ")
    absent = reproduce("--data", tmp_path / "none", "--out", tmp_path / "new")
    assert "there is no such folder; give the one that holds progan, univfd and genimage" in str(absent.exception)


def test_a_dry_run_names_steps_disk_and_time_and_writes_nothing(root: Path, tiny: Path, tmp_path: Path) -> None:
    result = reproduce("--data", root, "--out", tmp_path / "new", "--backbone", tiny, "--dry-run")
    assert result.exit_code == 1  # the data are not complete
    lines = result.stdout.splitlines()
    first = "  1. train paper-vit-l-14 on 16 images, at most 2 epochs, 12 images for validation: "
    assert lines[lines.index("Steps:") + 1] == f"{first}{tmp_path / 'new' / 'detector'}"
    assert "evaluate by univfd-19: 32 images, as stored and equalised" in result.stdout
    assert re.fullmatch(r"Time on .+, with random weights: training \d+ s at most .+", lines[-1])
    assert not (tmp_path / "new").exists()


def test_time_and_cache_follow_from_images_epochs_and_rates(root: Path, tmp_path: Path) -> None:
    few = plan("paper-vit-l-14", root, tmp_path / "out", paper_config("paper-vit-l-14", True, None, ["per_class=8"]))
    rates = Rates("a machine", prefix=2.0, train=4.0, score=1.0)
    training, measuring = few.seconds(rates)
    assert training == 30 * (16 / 4 + 12 / 1) + 6 * 16 / 2  # epochs, and six views through the frozen blocks once
    assert measuring == 2 * (32 + 8)
    assert few.cache_gib == pytest.approx(6 * 16 * ((257 + 18) * 1024 * 2 + 4) / 2**30)  # tokens, and 18 class tokens
    said = "Time on a machine, with random weights: training 9 min at most (4 images/s), evaluating 80 s"
    assert plan_lines(few, rates)[-1].startswith(said)
    whole = plan("paper-vit-l-14", root, tmp_path / "out", paper_config("paper-vit-l-14", False, None, []))
    assert (whole.train_images, whole.cache_gib) == (24, 0.0)


def test_only_the_papers_presets_are_taken() -> None:
    result = CliRunner().invoke(app, ["reproduce", "own-images", "--data", "."])
    assert "preset 'own-images': is none of the paper's, which are paper-vit-b-32" in str(result.exception)


def test_a_number_of_images_is_checked_where_one_is_published() -> None:
    univfd, genimage = (load_protocol(name).sets for name in ("univfd-19", "genimage-8"))
    assert {each.name: each.images for each in univfd}["progan"] == 8000
    assert all(each.images for each in univfd)
    assert not any(each.images for each in genimage)  # no number was found that could be checked
    samples = [Sample(path=Path(f"{i}.png"), label=i % 2, generator="", split="") for i in range(97)]
    said = "holds 97 images (48 of them generated), and about 100 are published"
    assert paper_data_set("a", 100, samples, "").problem == said
    assert paper_data_set("a", 98, samples, "").problem == ""
    assert paper_data_set("a", None, samples, "").problem == ""
    assert paper_data_set("a", None, samples[::2], "").problem == "holds 49 images of one class only"
