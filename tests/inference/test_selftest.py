"""The logits of made images tell whether a machine agrees."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from clipmole.cli import app
from clipmole.inference import selftest
from clipmole.inference.selftest import made_crops, reference_logits, self_test
from clipmole.models.adapter import adapter_digest, find_adapter


def test_the_made_images_are_the_same_bytes_everywhere() -> None:
    crops = made_crops(224)
    assert (crops.shape, crops.dtype, len(np.unique(crops))) == ((6, 3, 224, 224), np.uint8, 256)
    assert hashlib.sha256(crops.tobytes()).hexdigest().startswith("8a112578155c6df1")


@pytest.mark.parametrize("name", ["embedded", "mole-vit-b-16"])
def test_logits_of_the_packaged_detectors_are_kept(name: str) -> None:
    kept = reference_logits(adapter_digest(find_adapter(name)[1]))
    assert kept is not None
    assert kept.shape == (6,)


def test_pytorch_agrees_with_the_kept_logits() -> None:
    first = next(self_test("embedded"))
    assert (first.runtime, first.precision, first.agrees) == ("torch", "float32", True)


def test_a_logit_that_differs_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = reference_logits(adapter_digest(find_adapter("embedded")[1]))
    assert kept is not None
    monkeypatch.setattr(selftest, "reference_logits", lambda _digest: kept + np.float32(0.02))
    monkeypatch.setattr(selftest, "get_args", lambda _name: ("torch",))
    monkeypatch.setattr(selftest, "bfloat16_is_slow", lambda _device: False)
    checks = list(self_test("embedded"))
    assert [(check.precision, check.agrees) for check in checks] == [("float32", False), ("bfloat16", True)]
    result = CliRunner().invoke(app, ["selftest", "embedded"])
    assert result.exit_code == 1
    assert "DIFFERS" in result.stdout


def test_a_processor_that_is_slow_in_bfloat16_is_not_asked_for_it_unless_somebody_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(selftest, "get_args", lambda _name: ("torch",))
    monkeypatch.setattr(selftest, "bfloat16_is_slow", lambda _device: True)
    assert [check.precision for check in self_test("embedded")] == ["float32"]
    assert [check.precision for check in self_test("embedded", precision="bfloat16")] == ["bfloat16"]


def test_a_detector_without_kept_logits_is_its_own_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(find_adapter("embedded")[1], tmp_path / "own")
    (tmp_path / "own" / "calibration.json").unlink()  # another digest
    monkeypatch.setattr(selftest, "get_args", lambda _name: ("torch",))
    (exact,) = self_test(str(tmp_path / "own"), precision="float32")
    assert exact.difference == 0
