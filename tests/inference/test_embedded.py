"""The embedded detector: what the package carries is small, complete, and what it is said to be."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from clipmole import Detector
from clipmole.data import labels_of, read_manifest, take_split, windows
from clipmole.metrics import auroc
from clipmole.training.presets import load_train_config

EMBEDDED = Path(str(resources.files("clipmole") / "detectors" / "embedded"))


def test_the_package_carries_at_most_12_megabytes_and_no_image() -> None:
    files = {file.relative_to(EMBEDDED).as_posix(): file.stat().st_size for file in EMBEDDED.rglob("*.*")}
    assert set(files) == {
        *("backbone/config.json", "backbone/model.safetensors"),
        *(f"adapter/{name}" for name in ("adapter.safetensors", "calibration.json", "config.json", "train.json")),
        "adapter/README.md",
    }
    assert sum(files.values()) <= 12_000_000


def test_its_record_names_the_preset_that_made_it() -> None:
    recorded = json.loads((EMBEDDED / "adapter" / "train.json").read_text())["config"]
    preset = load_train_config("embedded").model_dump(mode="json")
    recorded["mole"] = preset["mole"] | recorded["mole"]  # settings that came later are at their defaults
    assert recorded == {key: preset[key] for key in recorded}
    assert set(recorded) >= {"mole", "preprocess", "augment", "epochs", "learning_rate", "head_start"}


@pytest.mark.slow
def test_it_tells_the_corpus_apart(shared_dir: Path) -> None:
    """Every third window, of known generators and of four that it never saw."""
    pytest.importorskip("openvino")
    detector = Detector.from_pretrained("embedded", runtime="openvino", precision="float32")
    for split, expected in (("test", 0.893), ("test_unseen", 0.883)):
        samples = take_split(read_manifest(shared_dir / "corpus" / "manifest.csv"), split)[::3]
        scores = detector.score(windows(samples, "equalised", 0)).astype(np.float64)
        assert auroc(labels_of(samples), scores) == pytest.approx(expected, abs=5e-3)
