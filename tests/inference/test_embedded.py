"""The embedded detector: what the package carries is small, complete, and what its record says."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from clipmole import Detector
from clipmole.data import labels_of, read_manifest, take_split, windows
from clipmole.metrics import average_precision

EMBEDDED = Path(str(resources.files("clipmole") / "detectors" / "embedded"))


def test_the_package_carries_at_most_12_megabytes_and_no_image() -> None:
    files = {file.relative_to(EMBEDDED).as_posix(): file.stat().st_size for file in EMBEDDED.rglob("*.*")}
    assert set(files) == {
        *("backbone/config.json", "backbone/model.safetensors"),
        *(f"adapter/{name}" for name in ("adapter.safetensors", "calibration.json", "config.json", "train.json")),
        "adapter/README.md",
    }
    assert sum(files.values()) <= 12_000_000


def test_it_scores_the_validation_windows_as_its_record_says(shared_dir: Path) -> None:
    record = json.loads((EMBEDDED / "adapter" / "train.json").read_text())
    val = take_split(read_manifest(shared_dir / "corpus" / "manifest.csv"), "val")
    scores = Detector.from_pretrained("embedded", precision="bfloat16").score(windows(val, "equalised", 0))
    recorded = record["curve"][record["best_epoch"]]["val_ap"]
    assert average_precision(labels_of(val), scores.astype(np.float64)) == pytest.approx(recorded, abs=2e-3)
