"""A run that is killed, or that finds its disk full, loses nothing: it ends as one that was not disturbed."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from safetensors.torch import load_file
from tiny import PREPROCESS, tiny_backbone, write_corpus

from clipmole.config import AugmentConfig, MoLEConfig, TrainConfig
from clipmole.errors import CheckpointError, Stopped
from clipmole.plumbing.progress import ProgressReporter
from clipmole.training.run_state import load_state, save_state
from clipmole.training.train import run_folder, train

CONFIG = TrainConfig(
    backbone="given",
    preprocess=PREPROCESS,
    augment=AugmentConfig(equalise_quality=(90, 95)),
    epochs=4,
    batch_size=4,
    learning_rate=1e-2,
    cached_views=2,
    patch_dropout=0.25,
    head_start=0.1,
    mole=MoLEConfig(head_blocks=(0, 3, 6)),
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), {"train": 12, "val": 6})


@pytest.fixture(scope="module")
def whole(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter of a run that nothing disturbed, with a cache of its own."""
    out = tmp_path_factory.mktemp("whole") / "adapter"
    train(CONFIG, out, data=manifest, backbone=tiny_backbone(), cache_dir=out.parent / "cache")
    return out


def same(first: Path, second: Path) -> bool:
    """Whether two adapters have the same weights, bit for bit, and the same curve but for the seconds."""
    one, other = (load_file(path / "adapter.safetensors") for path in (first, second))
    curves = [json.loads((path / "train.json").read_text())["curve"] for path in (first, second)]
    for curve in curves:
        for epoch in curve:
            del epoch["seconds"], epoch["train_seconds"]
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one) and curves[0] == curves[1]


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "uncached"])
@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments_ends_as_if_it_had_not(
    manifest: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    monkeypatch.setenv("CLIPMOLE_CACHE", str(tmp_path / "cache"))
    config, out = CONFIG, tmp_path / "killed"
    if not cached:
        config = CONFIG.model_copy(update={"cached_views": None, "head_start": None})
        whole = tmp_path / "whole"
        train(config, whole, data=manifest, backbone=tiny_backbone())
    rng = random.Random(7)
    # In the first pass over the views and in the first epoch by count, then by the clock wherever it may be.
    for die_at in (1, 5):
        process = processes.start(config, out, manifest, die_at=die_at)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    for _ in range(3):
        process = processes.start(config, out, manifest)
        time.sleep(rng.uniform(0.1, 1.2))
        process.kill()
        process.join(60)
    process = processes.start(config, out, manifest)
    process.join(60)
    log = out.with_name("killed.log").read_text()
    assert process.exitcode == 0, log
    assert "continues at epoch" in log
    assert same(out, whole)
    assert not (run_folder(out) / "state.safetensors").exists()


def test_a_run_goes_on_in_the_middle_of_an_epoch(manifest: Path, whole: Path, tmp_path: Path) -> None:
    """Killed as step 8 of 6 an epoch would begin: three passes over views, then an epoch and two steps."""
    process = processes.start(CONFIG, tmp_path / "run", manifest, die_at=3 + 6 + 2)
    process.join(60)
    loaded = load_state(run_folder(tmp_path / "run") / "state.safetensors")
    assert loaded is not None
    progress = loaded[1]["progress"]
    assert (progress["epoch"], progress["step"], progress["images"]) == (1, 2, 8)
    lines: list[str] = []
    train(
        CONFIG, tmp_path / "run", data=manifest, backbone=tiny_backbone(), progress=ProgressReporter(say=lines.append)
    )
    assert any(line.startswith("continues at epoch 2, step 3") for line in lines)
    assert same(tmp_path / "run", whole)


def test_an_unfinished_run_is_not_taken_up_by_another_and_can_be_left(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    processes.start(CONFIG, out, manifest, die_at=4).join(60)
    other = CONFIG.model_copy(update={"learning_rate": 2e-2})
    with pytest.raises(CheckpointError, match=r"unfinished run with other settings or data.*--fresh"):
        train(other, out, data=manifest, backbone=tiny_backbone())
    assert load_state(run_folder(out) / "state.safetensors") is not None
    train(other, out, data=manifest, backbone=tiny_backbone(), fresh=True)
    assert (out / "adapter.safetensors").is_file()


def test_a_damaged_state_is_refused_with_the_cure(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, {"a": torch.arange(5.0)}, {"epoch": 3})
    tensors, facts = load_state(path) or ({}, {})
    assert tensors["a"].tolist() == [0, 1, 2, 3, 4]
    assert facts == {"epoch": 3}
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="is damaged; delete it to begin the run anew"):
        load_state(path)
    assert load_state(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("facts", "left_out"),
    [
        ([], ""),
        ({}, ""),
        ({"digest": None, "progress": {"epoch": 1}}, "exp_avg/"),
        ({"digest": None, "progress": {"epochs": 1}}, ""),
        ({"digest": None, "progress": 3}, ""),
        ({"digest": None}, ""),
    ],
)
def test_a_state_that_lacks_something_is_refused_with_the_cure(
    manifest: Path, tmp_path: Path, facts: Any, left_out: str
) -> None:
    out = tmp_path / "run"
    config = CONFIG.model_copy(update={"cached_views": None, "head_start": None})
    asked = ProgressReporter(stopping=lambda: True)
    with pytest.raises(Stopped):
        train(config, out, data=manifest, backbone=tiny_backbone(), progress=asked)
    path = run_folder(out) / "state.safetensors"
    tensors, own = load_state(path) or ({}, {})
    if isinstance(facts, dict) and "digest" in facts:
        facts = facts | {"digest": own["digest"]}
    kept = {name: tensor for name, tensor in tensors.items() if not (left_out and name.startswith(left_out))}
    save_state(path, kept, facts)
    with pytest.raises(CheckpointError, match=r"state\.safetensors: is damaged; delete it to begin the run anew"):
        train(config, out, data=manifest, backbone=tiny_backbone())


def test_a_full_disk_leaves_the_state_that_was_there(tmp_path: Path) -> None:
    """A limit on the size of a file stands in for the disk: writing fails in the middle of it."""
    path = tmp_path / "state.safetensors"
    save_state(path, {"a": torch.ones(10)}, {"epoch": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"cannot be written: .*free space"):
            save_state(path, {"a": torch.ones(100_000)}, {"epoch": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == ["state.safetensors"]
    assert (load_state(path) or ({}, {}))[1] == {"epoch": 1}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        done = False
    if not done:
        pytest.skip("may not mount a small tmpfs here; a limit on the size of files stands in for it in other tests")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=False)


def test_a_disk_that_is_really_full_leaves_the_state_that_was_there(small_disk: Path) -> None:
    path = small_disk / "run" / "state.safetensors"
    save_state(path, {"a": torch.ones(5_000)}, {"epoch": 1})  # 20 kB
    with pytest.raises(CheckpointError, match=r"cannot be written: .*free space"):
        save_state(path, {"a": torch.ones(15_000)}, {"epoch": 2})
    assert os.listdir(path.parent) == ["state.safetensors"]
    tensors, facts = load_state(path) or ({}, {})
    assert (len(tensors["a"]), facts) == (5_000, {"epoch": 1})


def test_a_run_whose_disk_fills_up_can_be_finished_once_there_is_room(
    manifest: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second epoch on no file may exceed 4 kB, so neither a state nor the adapter can be written."""
    monkeypatch.setenv("CLIPMOLE_CACHE", str(whole.parent / "unused"))
    out, config = tmp_path / "run", CONFIG.model_copy(update={"cached_views": None, "head_start": None, "epochs": 1})
    train(config, out, data=manifest, backbone=tiny_backbone())
    older = (out / "adapter.safetensors").read_bytes()
    longer = config.model_copy(update={"epochs": 2})
    process = processes.start(longer, out, manifest, file_size=4096, full_in="epoch 2")
    process.join(60)
    log = out.with_name("run.log").read_text()
    assert process.exitcode == 3
    assert "state not saved: " in log
    last = log.splitlines()[-1]
    assert last.startswith("CheckpointError: ")
    assert "cannot be written" in last
    assert "run.run/state.safetensors: free space and give the same command again to finish it" in last
    assert (out / "adapter.safetensors").read_bytes() == older
    process = processes.start(longer, out, manifest)
    process.join(60)
    assert "continues at epoch 2, step 1" in out.with_name("run.log").read_text()
    train(longer, tmp_path / "undisturbed", data=manifest, backbone=tiny_backbone())
    assert same(out, tmp_path / "undisturbed")


def test_where_nothing_can_be_written_no_step_is_trained(manifest: Path, tmp_path: Path, small_disk: Path) -> None:
    config = CONFIG.model_copy(update={"cached_views": None, "head_start": None})
    steps: list[str] = []

    def track(items: Iterable[Any], description: str, _total: int | None) -> Iterable[Any]:
        steps.append(description)
        return items

    progress = ProgressReporter(track)
    with pytest.raises(
        CheckpointError, match=r"run\.run: has room for 0\.. MiB, and 1\.. MiB are needed; free some space"
    ):
        train(config, small_disk / "run", data=manifest, backbone=tiny_backbone(), progress=progress)
    process = processes.start(config, tmp_path / "other", manifest, file_size=1024)
    process.join(60)
    log = (tmp_path / "other.log").read_text().splitlines()
    assert log[-1].startswith("CheckpointError: ")
    assert "cannot be written" in log[-1]
    assert not any(line.startswith("epoch") for line in [*steps, *log])
    assert os.listdir(small_disk) == []


def test_a_stop_signal_saves_the_run_and_says_how_to_go_on(manifest: Path, whole: Path, tmp_path: Path) -> None:
    out, asked = tmp_path / "run", []
    config = CONFIG.model_copy(update={"cached_views": 2})

    def track(items: Iterable[Any], description: str, _total: int | None) -> Iterator[Any]:
        for number, item in enumerate(items):
            if description == "epoch 2/4" and number == 3:
                asked.append(True)
            yield item

    progress = ProgressReporter(track, stopping=lambda: bool(asked))
    with pytest.raises(Stopped, match=r"^stopped after step 4 of 6 in epoch 2 of 4; the run is kept in .*: give the"):
        train(config, out, data=manifest, backbone=tiny_backbone(), progress=progress)
    assert not out.exists()
    train(config, out, data=manifest, backbone=tiny_backbone())
    assert same(out, whole)


def test_a_full_disk_under_the_cache_is_one_line_and_leaves_nothing_half_written(
    manifest: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = processes.start(
        CONFIG, out, manifest, file_size=4096, environment={"CLIPMOLE_CACHE": str(tmp_path / "cache")}
    )
    process.join(60)
    last = out.with_name("run.log").read_text().splitlines()[-1]
    assert process.exitcode == 3
    assert last.startswith("DataError: ")
    assert "the prefix cache cannot be written" in last
    assert list((tmp_path / "cache" / "prefix").iterdir()) == []
    assert not out.exists()


def test_a_flipped_bit_of_a_state_is_found(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    tensors = {"a": torch.ones(1000), "b": torch.ones(3, dtype=torch.bfloat16), "none": torch.zeros(0)}
    save_state(path, tensors, {"epoch": 1})
    loaded = load_state(path)
    assert loaded is not None
    assert loaded[1] == {"epoch": 1}
    assert torch.equal(loaded[0]["b"], tensors["b"])
    whole = path.read_bytes()
    for at in (len(whole) - 2001, whole.index(b'epoch\\": 1') + 9):  # of a tensor, of the facts
        data = bytearray(whole)
        data[at] ^= 0x40 if at > 1000 else 2
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="it is not what was saved; delete it"):
            load_state(path)
