"""Detectors of every kind give logits through one door."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CALIBRATION, PREPROCESS, picture, tiny_backbone, tiny_network, write_adapter

from clipmole import Detector
from clipmole.errors import CheckpointError, ConfigError, WeightsNotFound
from clipmole.evaluation.records import TrainedOn
from clipmole.evaluation.scorers import FunctionScorer, HuggingFaceScorer, load_scorer, trained_on, with_center_crop
from clipmole.models.adapter import save_adapter
from clipmole.models.backbone import save_tower

IMAGES = [np.asarray(picture(i, 40 + i, 50)) for i in range(5)]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random image classifier with three classes, as transformers saves it."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    folder = tmp_path_factory.mktemp("classifier")
    names = {0: "Real", 1: "fake", 2: "deepfake"}
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=32,
        id2label=names,
        label2id={name: index for index, name in names.items()},
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_classifiers_logit_is_the_log_odds_of_its_ai_classes(classifier: Path, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    scorer = load_scorer(f"hf:{classifier}#FAKE,deepfake", batch_size=2)
    network = AutoModelForImageClassification.from_pretrained(classifier).eval()
    pixels = AutoImageProcessor.from_pretrained(classifier)(images=IMAGES, return_tensors="pt")
    with torch.no_grad():
        p = network(**pixels).logits.softmax(-1)[:, 1:].sum(-1)
    assert scorer.score(IMAGES) == pytest.approx((p / (1 - p)).log().numpy(), abs=1e-5)
    assert scorer.calibration is None
    assert scorer.score([]).shape == (0,)
    assert re.fullmatch(rf"hf:{classifier}#FAKE,deepfake@[0-9a-f]{{12}}", scorer.name)
    with torch.no_grad():
        network.classifier.bias[0] += 1
    network.save_pretrained(tmp_path / "other")
    AutoImageProcessor.from_pretrained(classifier).save_pretrained(tmp_path / "other")
    changed = load_scorer(f"hf:{tmp_path / 'other'}#FAKE,deepfake").name
    assert changed.rpartition("@")[2] != scorer.name.rpartition("@")[2]
    with torch.no_grad():
        network.classifier.bias[0] = torch.nan
    network.save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="must give one finite score per image"):
        load_scorer(f"hf:{tmp_path / 'other'}#FAKE,deepfake").score(IMAGES)


def test_a_name_says_what_gives_the_logits(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    save_tower(backbone.tower, tmp_path / "tiny", torch.float32)
    save_adapter(tmp_path / "mine", tiny_network(backbone), backbone, PREPROCESS, CALIBRATION)
    tiles = load_scorer(str(tmp_path / "mine"), backbone=str(tmp_path / "tiny"))
    short = load_scorer(str(tmp_path / "mine"), backbone=str(tmp_path / "tiny"), precision="bfloat16")
    assert short.name == f"{tiles.name}, bfloat16"
    centre = with_center_crop(tiles)
    assert centre.name == f"{tiles.name}, one centre crop"
    assert with_center_crop(centre) is centre
    large = [np.asarray(picture(0, 128, 128))]
    assert centre.score(large) != pytest.approx(tiles.score(large), abs=1e-4)


@pytest.mark.parametrize("labels", ["", "#", "#painted", "#real,fake,deepfake"])
def test_the_ai_classes_must_be_named(classifier: Path, labels: str) -> None:
    with pytest.raises(ConfigError, match="out of its classes real, fake, deepfake"):
        load_scorer(f"hf:{classifier}{labels}")


def test_a_classifier_that_is_not_there_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipmole.evaluation.scorers.why_unreachable", lambda _: "the hub cannot be reached")
    with pytest.raises(WeightsNotFound, match=r"no/such: not an image classifier .* the hub cannot be reached"):
        HuggingFaceScorer("no/such", ["fake"])
    with pytest.raises(WeightsNotFound, match="not an image classifier that can be loaded here"):
        HuggingFaceScorer(str(tmp_path), ["fake"])


def test_a_function_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("def brightness(images):\n    return [image.mean() for image in images]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    scorer = load_scorer("python:mine:brightness", batch_size=2)
    digest = hashlib.sha256((tmp_path / "mine.py").read_bytes()).hexdigest()
    assert scorer.name == f"python:mine:brightness@{digest[:12]}"
    assert scorer.score(IMAGES) == pytest.approx([image.mean() for image in IMAGES], rel=1e-6)
    sys.modules.pop("mine")


@pytest.mark.parametrize("answer", [lambda _: [1.0], lambda images: [float("nan")] * len(images)])
def test_a_function_must_give_one_finite_score_an_image(answer: object) -> None:
    with pytest.raises(ConfigError, match="must give one finite score per image"):
        FunctionScorer("f", answer, batch_size=2).score(IMAGES)  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", ["python:no_such_module:f", "python:math", "python:math:no_such"])
def test_a_function_that_cannot_be_imported_is_named(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be imported.*python:MODULE:FUNCTION"):
        load_scorer(spec)


def test_a_detector_directory(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    save_tower(backbone.tower, tmp_path / "tiny", torch.float32)
    network = tiny_network(backbone)
    save_adapter(tmp_path / "mine", network, backbone, PREPROCESS, CALIBRATION)
    scorer = load_scorer(str(tmp_path / "mine"), backbone=str(tmp_path / "tiny"))
    assert scorer.calibration == CALIBRATION
    assert scorer.score(IMAGES) == pytest.approx(Detector(network, PREPROCESS).score(IMAGES), abs=1e-6)
    with pytest.raises(CheckpointError, match="no such detector"):
        load_scorer("no-such")


def test_univfd_head_without_a_directory(shared_dir: Path, tmp_path: Path) -> None:
    """On a random tower whose feature has CLIP ViT-L/14's 768 channels."""
    backbone = tiny_backbone(projection_dim=768)
    save_tower(backbone.tower, tmp_path / "wide", torch.float32)
    head = shared_dir / "reference" / "univfd_fc_weights.pth"
    scorer = load_scorer(f"univfd:{head}", backbone=str(tmp_path / "wide"))
    published = torch.load(head, map_location="cpu", weights_only=True)
    images = [np.asarray(picture(i, 224, 224)) for i in range(2)]
    crops = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        features = backbone.tower((crops - 0.5) / 0.5)
        expected = features @ published["weight"][0] + published["bias"]
    assert scorer.score(images) == pytest.approx(expected.numpy(), abs=1e-5)
    assert scorer.name == f"univfd@477100745713 on wide@{backbone.sha256[:12]}"


def test_what_a_detector_was_trained_on_stands_in_its_record(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    record = tmp_path / "adapter" / "train.json"
    assert trained_on(str(tmp_path / "adapter")) is None  # no record
    record.write_text('{"data": {"generators": ["sdxl"]}}')
    assert trained_on(str(tmp_path / "adapter")) is None  # of a time when sources were not recorded
    record.write_text('{"data": {"generators": ["sdxl"], "sources": ["0123456789ab"]}}')
    assert trained_on(str(tmp_path / "adapter")) == TrainedOn(generators=("sdxl",), sources=("0123456789ab",))
    for spec in ("hf:owner/name#fake", "python:module:function", "univfd:head.pth"):
        assert trained_on(spec) is None
    found = trained_on("embedded")
    assert found is not None
    assert len(found.sources) == 31
    for text in ('{"data": {"generators": 3, "sources": []}}', '{"data": ', "[" * 100_000):
        record.write_text(text)
        with pytest.raises(CheckpointError, match=r"train\.json: .*; delete it, and the detector's training counts"):
            trained_on(str(tmp_path / "adapter"))


def test_a_runtime_is_taken_for_clipmoles_own_detectors(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    adapter, tower = write_adapter(tmp_path)
    images = [np.asarray(picture(i, 64, 48)) for i in range(3)]
    plain, graph = (load_scorer(str(adapter), backbone=str(tower), runtime=name) for name in (None, "openvino"))
    assert (plain.runtime.name, graph.runtime.name) == ("torch", "openvino")  # type: ignore[attr-defined]
    assert graph.score(images) == pytest.approx(plain.score(images), abs=1e-4)
    with pytest.raises(ConfigError, match="runtime='foo': is unknown"):
        load_scorer(str(adapter), backbone=str(tower), runtime="foo")  # type: ignore[arg-type]
