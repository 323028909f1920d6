"""Families of generators: told apart where they can be, counted truly, and never said where nothing is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny import CALIBRATION, PREPROCESS, picture, tiny_backbone, tiny_network

from clipmole.config import AugmentConfig, Families, MoLEConfig, PreprocessConfig, TrainConfig
from clipmole.data import read_manifest, windows
from clipmole.data.training_set import TrainingData
from clipmole.errors import ConfigError
from clipmole.inference.detector import Detector
from clipmole.models.backbone import save_tower
from clipmole.plumbing.progress import SILENT, ProgressReporter
from clipmole.records import Detection
from clipmole.training.families import card_lines, confusion, families_of, fit_families, fitted
from clipmole.training.merge import merge
from clipmole.training.train import train

CONFIG = TrainConfig(
    backbone="given",
    preprocess=PREPROCESS.model_copy(update={"whole_weight": 0.4}),
    whole_share=0.4,
    augment=AugmentConfig(blur_probability=0, jpeg_probability=0, equalise_quality=(90, 95)),
    epochs=2,
    batch_size=8,
    learning_rate=1e-2,
    precision="float32",
    families=True,
)
ALWAYS = CALIBRATION.model_copy(update={"slope": 1e-6, "intercept": 3.0})  # everything is AI-generated


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, generators with waves along rows or columns, and one with both that has few images."""
    folder, lines = tmp_path_factory.mktemp("corpus"), ["path,label,generator,split"]
    rows, columns = np.abs(np.indices((64, 64)) % 16 - 8) * 20  # slopes, which are neither even nor two tones
    patterns = {"camera": 0 * rows, "columns": columns, "rows": rows, "rare": (rows + columns) / 2}
    counts = {"train": (24, 4), "val": (8, 3), "calibration": (12, 0)}
    for split, (many, few) in counts.items():
        for generator, pattern in patterns.items():
            for i in range(few if generator == "rare" else 2 * many if generator == "camera" else many):
                name = f"{split}-{generator}-{i}.png"
                pixels = np.asarray(picture(len(lines), 64, 64)) * 0.3 + pattern[..., None]
                Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
                lines.append(f"{name},{int(generator != 'camera')},{generator},{split}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv"


def images(manifest: Path) -> TrainingData:
    samples = read_manifest(manifest)
    train, val = ([s for s in samples if s.split == split] for split in ("train", "val"))
    return TrainingData(train, val, [], [], {})


@pytest.fixture(scope="module")
def trained(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """An adapter directory with its tower `tiny` beside it, and what was said meanwhile."""
    out, lines = tmp_path_factory.mktemp("run") / "adapter", list[str]()
    train(CONFIG, out, data=manifest, backbone=tiny_backbone(), progress=ProgressReporter(say=lines.append))
    save_tower(tiny_backbone().tower, out.parent / "tiny", torch.float32)
    return out, lines


def test_a_detector_says_the_right_family_and_its_table_counts_what_it_says(manifest: Path) -> None:
    data, network = images(manifest), tiny_network()
    fit_families(network, families_of(True, data), data, CONFIG, SILENT)
    found = network.config.families
    assert found is not None
    assert found.names == ("columns", "rows")
    assert np.array(found.confusion)[:2].tolist() == [[8, 0, 0], [0, 8, 0]]
    detector = Detector(network, CONFIG.preprocess, ALWAYS, batch_size=3)
    val = [sample for sample in data.val if sample.label]
    counted = np.zeros((3, 3), dtype=int)
    for sample, said in zip(val, detector.detect_batch(windows(val, "equalised", CONFIG.seed)), strict=True):
        true = found.names.index(sample.generator) if sample.generator in found.names else 2
        counted[true, found.names.index(said.family.name) if said.family else 2] += 1
        if said.family:
            assert (said.family.right, said.family.answers) == found.answers(found.names.index(said.family.name))
    assert counted.tolist() == [list(row) for row in found.confusion]
    assert sum(counted[2]) == 3


def test_the_weights_are_those_of_scikit_learn_with_the_least_loss_on_val() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    rng = np.random.default_rng(0)
    for k in (2, 3):
        x, y = rng.normal(3, 5, (90, 6)), np.arange(90) % k
        x[np.arange(90), y] += 6
        mean, scale = x[:60].mean(axis=0), x[:60].std(axis=0)
        models = [
            LogisticRegression(C=c, max_iter=300, class_weight="balanced").fit((x[:60] - mean) / scale, y[:60])
            for c in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
        ]
        expected = min((m.predict_proba((x[60:] - mean) / scale) for m in models), key=lambda p: log_loss(y[60:], p))
        others = np.append(y[60:-1], k)  # the last one is of another generator
        assert fitted(x[:60], y[:60], x[60:], others)[0].shape == (k, 6)
        weight, bias = fitted(x[:60], y[:60], x[60:], y[60:])
        odds = np.exp(x[60:] @ weight.T + bias)
        assert odds / odds.sum(axis=1, keepdims=True) == pytest.approx(expected, abs=1e-6)


def test_the_table_has_a_row_for_other_generators_and_a_column_for_no_answer() -> None:
    shares = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.3, 0.7]])
    assert confusion(shares, np.array([0, 0, 0, 2])) == ((1, 1, 1), (0, 0, 0), (0, 1, 0))


def test_a_count_below_zero_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        Families(names=("a", "b"), confusion=((-1, 0, 0), (0, 1, 0), (-4, 0, 0)))


def test_a_trained_detector_keeps_its_families(trained: tuple[Path, list[str]], manifest: Path) -> None:
    out, lines = trained
    detector = Detector.from_pretrained(out, backbone=out.parent / "tiny")
    families = detector.families
    assert families is not None
    record, card = json.loads((out / "train.json").read_text()), (out / "README.md").read_text()
    assert Families.parse(record["families"], "train.json") == families
    assert "\n".join(card_lines(families)) in card
    assert "| true family | columns | rows | none named |\n|---|--:|--:|--:|\n| columns |" in card
    page = (out / "train.html").read_text()
    assert '<h2 id="families">Families of generators</h2>' in page
    row = "".join(f'<td class="number">{count}</td>' for count in families.confusion[2])
    assert f'<th scope="row">other generators</th>{row}</tr>' in page
    assert any(line.startswith("Of 19 generated validation images, equalised, ") for line in lines)
    detector.calibration = ALWAYS
    said = detector.detect_batch([s.path for s in read_manifest(manifest) if s.split == "calibration" and s.label])
    right = [said[i].family is not None and said[i].family.name == ("columns", "rows")[i // 12] for i in range(24)]
    assert sum(right) >= 20
    assert Detection.model_validate_json(said[0].model_dump_json()) == said[0]
    detector.calibration = ALWAYS.model_copy(update={"intercept": -3.0})
    assert detector.detect(picture(1)).family is None  # of what is no AI-generated image
    detector.calibration = None
    assert detector.detect(picture(1)).family is None


def test_extended_or_merged_it_has_none_because_its_features_are_others(
    trained: tuple[Path, list[str]], manifest: Path, tmp_path: Path
) -> None:
    tower = trained[0].parent / "tiny"
    kept = {"families": False, "epochs": 1, "whole_share": 0.0, "preprocess": PreprocessConfig()}
    train(
        CONFIG.model_copy(update=kept), tmp_path / "grown", extend=trained[0], data=manifest, backbone=tiny_backbone()
    )
    merge([trained[0], trained[0]], tmp_path / "merged", backbone=tower)
    for name in ("grown", "merged"):
        assert Detector.from_pretrained(tmp_path / name, backbone=tower).families is None
        assert not any(key.startswith("families.") for key in load_file(tmp_path / name / "adapter.safetensors"))
        for page in (tmp_path / name).glob("*.[hm][td]*"):
            assert "Families of generators" not in page.read_text()


def test_a_table_joins_generators_into_a_family(manifest: Path) -> None:
    data = images(manifest)
    assert families_of(True, data) == {"columns": "columns", "rows": "rows"}
    assert families_of({"rows": "lines", "columns": "lines"}, images_with(data, "rare", 5)) == {
        "rows": "lines", "columns": "lines", "rare": "rare",
    }  # fmt: skip
    assert families_of(False, data) == {}


def images_with(data: TrainingData, generator: str, times: int) -> TrainingData:
    """The data with each image of a generator several times."""
    more = [part + [s for s in part if s.generator == generator] * times for part in (data.train, data.val)]
    return TrainingData(*more, [], [], {})


def test_what_cannot_be_asked_for_is_one_line(manifest: Path, tmp_path: Path) -> None:
    data = images(manifest)
    reason = (
        r"families: two are needed with 20 training and 5 validation images each, and there are lines: 48 and 16, "
        r"rare: 4 and 3; add images"
    )
    with pytest.raises(ConfigError, match=reason):
        families_of({"rows": "lines", "columns": "lines"}, data)
    with pytest.raises(ConfigError, match=r"families: no training image is by 'sdxl'; there are columns, rare, rows"):
        families_of({"sdxl": "diffusion"}, data)
    written = MoLEConfig(families=Families(names=("a", "b"), confusion=((0,) * 3,) * 3))
    with pytest.raises(ConfigError, match=r"mole\.families: is written by training; ask for it with families = true"):
        train(CONFIG.model_copy(update={"mole": written}), tmp_path / "out", data=manifest, backbone=tiny_backbone())
    assert not (tmp_path / "out").exists()
