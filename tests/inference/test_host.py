"""A library in somebody's process: what it finds there, it leaves as it was; and what is not a number is no verdict."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import encoded, picture, write_adapter

from clipmole.errors import CheckpointError
from clipmole.inference.detector import Detector


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_adapter(tmp_path_factory.mktemp("host"))


def test_loading_and_scoring_leave_the_host_as_it_was(adapter: tuple[Path, Path]) -> None:
    torch.manual_seed(3)
    torch.set_float32_matmul_precision("high")

    def state() -> list[object]:
        return [
            torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),  # type: ignore[index,union-attr]
            random.getstate(),
            torch.get_float32_matmul_precision(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            dict(os.environ),
            list(warnings.filters),
            sys.modules.get("openvino_telemetry"),
        ]

    before = state()
    try:
        Detector.from_pretrained(adapter[0], backbone=adapter[1]).score([picture(0), picture(1)])
        assert state() == before
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("scored", [False, True])
def test_a_process_that_was_forked_after_loading_computes(adapter: tuple[Path, Path], scored: bool) -> None:
    """In a process of its own with two threads, since OpenMP's must have been started before the fork."""
    code = f"""
import os, sys, torch
torch.set_num_threads(2)
from clipmole import Detector
detector = Detector.from_pretrained({str(adapter[0])!r}, backbone={str(adapter[1])!r})
torch.randn(600, 600) @ torch.randn(600, 600)
torch.randn(3000000).add_(1)
data = open(sys.argv[1], "rb").read()
expected = detector.score([data])[0] if {scored} else None
child = os.fork()
if child == 0:
    found = detector.score([data])[0]
    torch.randn(3000000).add_(1)
    os._exit(0 if expected is None or abs(found - expected) < 1e-4 else 3)
print(child, flush=True)
print(os.waitpid(child, 0)[1], flush=True)
"""
    image = adapter[0].parent / "image.png"
    image.write_bytes(encoded(picture(0)))
    process = subprocess.Popen([sys.executable, "-c", code, image], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    if process.poll() is None:
        os.kill(child, signal.SIGKILL)
    assert process.communicate()[0].strip() == "0"


def changed(adapter: Path, folder: Path, **mole: object) -> Path:
    """A copy of an adapter with other settings of its MoLE."""
    folder.mkdir()
    for file in adapter.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["mole"] |= mole
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_weights_that_overflow_give_no_verdict(adapter: tuple[Path, Path], tmp_path: Path) -> None:
    scaled = changed(adapter[0], tmp_path / "scaled", alpha=1e300)
    large = changed(adapter[0], tmp_path / "large")
    tensors = load_file(large / "adapter.safetensors")
    tensors["head.weight"] += 3e38
    save_file(tensors, large / "adapter.safetensors")
    for folder in (scaled, large):
        detector = Detector.from_pretrained(folder, backbone=adapter[1])
        with pytest.raises(CheckpointError, match="gives a score that is not a finite number"):
            detector.detect(picture(0))


def test_a_tensor_of_integers_is_refused(adapter: tuple[Path, Path], tmp_path: Path) -> None:
    folder = changed(adapter[0], tmp_path / "integers")
    tensors = load_file(folder / "adapter.safetensors")
    tensors["head.bias"] = tensors["head.bias"].view(torch.int32)
    save_file(tensors, folder / "adapter.safetensors")
    with pytest.raises(CheckpointError, match=r"head\.bias holds torch\.int32, not floating-point weights"):
        Detector.from_pretrained(folder, backbone=adapter[1])


def test_sizes_beyond_reason_are_refused_before_memory_is_taken(adapter: tuple[Path, Path], tmp_path: Path) -> None:
    for number, mole in enumerate([{"shared_rank": 10**8}, {"expert_ranks": [8] * 20_000}, {"shared_rank": 2**63}]):
        folder = changed(adapter[0], tmp_path / str(number), **mole)
        with pytest.raises(CheckpointError, match=r"config\.json: mole"):
            Detector.from_pretrained(folder, backbone=adapter[1])


def test_one_image_may_stand_where_several_are_meant(adapter: tuple[Path, Path], tmp_path: Path) -> None:
    detector = Detector.from_pretrained(adapter[0], backbone=adapter[1])
    image, path = picture(0), tmp_path / "a.png"
    path.write_bytes(encoded(image))
    expected = detector.score([image])
    pixels = np.asarray(image)
    for one in (path, str(path), path.read_bytes(), image, pixels):
        assert detector.score(one) == expected
        assert [each.logit for each in detector.detect_batch(one)] == pytest.approx(expected.tolist())
    assert detector.score(np.stack([pixels, pixels])) == pytest.approx([expected[0]] * 2, abs=1e-5)


def test_a_detector_finds_the_backbone_that_it_was_trained_on(tmp_path: Path) -> None:
    from tiny import PREPROCESS, tiny_network

    from clipmole.models.adapter import save_adapter
    from clipmole.models.backbone import load_backbone

    _, place = write_adapter(tmp_path)
    loaded = load_backbone(place)
    save_adapter(tmp_path / "own", tiny_network(loaded), loaded, PREPROCESS)
    assert json.loads((tmp_path / "own" / "local.json").read_text()) == {"backbone": str(place.resolve())}
    named = Detector.from_pretrained(tmp_path / "own", backbone=place)
    assert (Detector.from_pretrained(tmp_path / "own").score(picture(0)) == named.score(picture(0))).all()
    for damage in (lambda: (place / "model.safetensors").write_bytes(b"x"), lambda: place.rename(tmp_path / "moved")):
        damage()
        with pytest.raises(CheckpointError, match=r"backbone directory 'tiny'.*--backbone"):
            Detector.from_pretrained(tmp_path / "own")
