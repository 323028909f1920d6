"""The pipeline answers in the shapes of transformers' own, with the detector's numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import CALIBRATION, PREPROCESS, encoded, picture, tiny_network

from clipmole.errors import ImageNotFound
from clipmole.inference.detector import Detector
from clipmole.inference.pipeline import ImageClassificationPipeline


@pytest.fixture(scope="module")
def pipe() -> ImageClassificationPipeline:
    return ImageClassificationPipeline(Detector(tiny_network(), PREPROCESS, CALIBRATION))


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(encoded(picture(i)))
    return [str(tmp_path / f"{i}.png") for i in range(3)]


def test_the_scores_are_the_detectors_probability_and_what_is_left(
    pipe: ImageClassificationPipeline, files: list[str]
) -> None:
    for path in files:
        logit = float(pipe.detector.score([path])[0])
        generated = 1 / (1 + math.exp(-(2.0 * logit + 0.1)))  # CALIBRATION's slope and intercept
        found = {each["label"]: each["score"] for each in pipe(path)}
        assert found == {"ai_generated": pytest.approx(generated), "real": pytest.approx(1 - generated)}
        assert pipe(path)[0]["score"] == max(found.values())


def test_without_a_calibration_the_score_is_the_sigmoid_of_the_logit(files: list[str]) -> None:
    pipe = ImageClassificationPipeline(Detector(tiny_network(), PREPROCESS))
    logit = float(pipe.detector.score([files[0]])[0])
    found = {each["label"]: each["score"] for each in pipe(files[0])}
    assert found["ai_generated"] == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-6)


def test_an_image_that_cannot_be_scored_is_raised(pipe: ImageClassificationPipeline, files: list[str]) -> None:
    with pytest.raises(ImageNotFound, match=r"nothing\.png: no such file"):
        pipe([files[0], "nothing.png"])


def shape(value: Any) -> Any:
    """Types and keys, without the numbers and the labels."""
    if isinstance(value, dict):
        return {key: type(each).__name__ for key, each in sorted(value.items())}
    return [shape(each) for each in value]


def test_it_answers_in_the_shapes_of_transformers(pipe: ImageClassificationPipeline, files: list[str]) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra transformers")
    geometry = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.ViTConfig(**geometry, image_size=32, patch_size=16, num_labels=2)
    theirs = transformers.pipeline(
        "image-classification",
        model=transformers.ViTForImageClassification(config),
        image_processor=transformers.ViTImageProcessor(size={"height": 32, "width": 32}),
        device="cpu",
    )
    assert theirs.task == pipe.task
    for inputs in (files[0], files, files[:1], picture(0), [picture(0), picture(1)]):
        assert shape(pipe(inputs)) == shape(theirs(inputs))
        assert shape(pipe(inputs, top_k=1)) == shape(theirs(inputs, top_k=1))
    one, other = (call(path for path in files) for call in (pipe, theirs))
    assert isinstance(one, Iterator)
    assert shape(list(one)) == shape(list(other))
