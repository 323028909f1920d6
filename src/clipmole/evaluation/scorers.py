"""Everything that can score images: clipmole's detectors, Hugging Face classifiers, functions of your own.

In: its name, as a user writes it. Out: an `ImageScorer`, which an evaluation asks for logits. It knows nothing of
labels.

    default, embedded, DIR, owner/name  a clipmole detector
    univfd:fc_weights.pth             UnivFD's published head on CLIP ViT-L/14
    hf:owner/name#fake                an image classifier of the Hugging Face Hub (or hf:DIR#fake): the class that
                                      means AI-generated; several: #fake,deepfake
    python:module:function            a function: list of RGB arrays (H, W, 3) uint8 -> scores (n,), higher for images
                                      that are more likely AI-generated

A scorer's name identifies it down to the weights: scores that were kept under a name are used again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from clipmole.calibration import Calibration
from clipmole.config import PreprocessConfig, first_problem
from clipmole.errors import CheckpointError, ConfigError, MissingDependency, WeightsNotFound
from clipmole.evaluation.records import TrainedOn
from clipmole.images.transforms import RGB
from clipmole.inference.detector import Detector
from clipmole.inference.pytorch import TorchRuntime
from clipmole.inference.runtime import RuntimeName, batch_for, check_arithmetic, name_suffix
from clipmole.models.adapter import TRAIN, find_adapter
from clipmole.models.backbone import tower_sha256
from clipmole.models.hub import why_unreachable
from clipmole.models.univfd import UNIVFD_HEAD_SHA256, univfd_network
from clipmole.plumbing.json_toml import read_json


class ImageScorer(Protocol):
    """What an evaluation needs: a name, logits, and perhaps a calibration."""

    @property
    def name(self) -> str:
        """Its identity: two scorers of one name give the same logits."""
        ...

    @property
    def calibration(self) -> Calibration | None:
        """Turns its logits into probabilities and verdicts; None if it has none."""
        ...

    def score(self, images: Iterable[Any], /) -> NDArray[np.float32]:
        """Logits (n,) of n RGB arrays; the higher, the more likely AI-generated."""
        ...


class HuggingFaceScorer:
    """An image classifier of transformers: logit = logsumexp over the AI classes - logsumexp over the others.

    That is the log-odds of the softmax probability that the image is of one of the AI classes. The classifier's
    own preprocessing is used, which mostly resizes.

    Args:
        model: a hub id or a directory.
        ai_labels: names of its classes that mean AI-generated, any case.
    """

    calibration = None

    def __init__(self, model: str, ai_labels: Sequence[str], batch_size: int = 32, device: str = "cpu") -> None:
        try:
            from transformers import AutoImageProcessor, AutoModelForImageClassification
        except ImportError as error:
            raise MissingDependency("transformers", "transformers") from error
        self.batch_size = batch_size
        self.device = device
        local = Path(model).is_dir()
        parts: list[Any] = []
        for loader in (AutoImageProcessor, AutoModelForImageClassification):
            try:
                parts.append(loader.from_pretrained(model, local_files_only=True))
            except (OSError, ValueError) as error:
                reason = None if local else why_unreachable("https://huggingface.co")
                if local or reason:
                    raise WeightsNotFound(
                        f"{model}: not an image classifier that can be loaded here: {reason or error}"
                    ) from error
                parts.append(loader.from_pretrained(model))
        self.processor, self.network = parts[0], parts[1].eval()
        # transformers' pre-processors and classifiers differ between versions; the weights and the classes do not.
        self.name = f"hf:{model}#{','.join(ai_labels)}@{tower_sha256(self.network)[:12]}"
        self.network.to(device)
        names = {str(name).lower(): int(index) for index, name in self.network.config.id2label.items()}
        unknown = [label for label in ai_labels if label.lower() not in names]
        if unknown or not 0 < len(ai_labels) < len(names):
            raise ConfigError(f"hf:{model}: name the AI classes after #, out of its classes {', '.join(names)}")
        self.generated = [names[label.lower()] for label in ai_labels]
        self.real = [index for index in names.values() if index not in self.generated]

    @torch.inference_mode()
    def score(self, images: Iterable[RGB]) -> NDArray[np.float32]:
        """Logits (n,) of n RGB arrays; `ConfigError` if one is not finite."""
        parts = []
        for batch in _batches(images, self.batch_size):
            # Channels are last; this must be stated, or an image of three rows would be taken for one of three
            # channels.
            pixels = self.processor(images=batch, return_tensors="pt", input_data_format="channels_last")
            logits = self.network(**pixels.to(self.device)).logits.float()
            odds = logits[:, self.generated].logsumexp(1) - logits[:, self.real].logsumexp(1)
            parts.append(_one_each(self.name, odds.cpu().numpy(), batch))
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)


class FunctionScorer:
    """A Python function: list of RGB arrays (H, W, 3) uint8 -> scores (n,)."""

    calibration = None

    def __init__(self, name: str, function: Callable[[list[RGB]], Any], batch_size: int = 32) -> None:
        self.name = name
        self.function = function
        self.batch_size = batch_size

    def score(self, images: Iterable[RGB]) -> NDArray[np.float32]:
        """The function's scores (n,) of n RGB arrays; `ConfigError` if it does not give one finite score each."""
        parts = []
        for batch in _batches(images, self.batch_size):
            parts.append(_one_each(self.name, np.asarray(self.function(batch), dtype=np.float32), batch))
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)


def load_scorer(
    spec: str,
    *,
    backbone: str | None = None,
    device: str = "cpu",
    precision: Literal["float32", "bfloat16"] = "float32",
    runtime: RuntimeName | Literal["auto"] | None = None,
    batch_size: int | None = None,
) -> ImageScorer:
    """The scorer that `spec` names; see the top of this module.

    Args:
        runtime: of clipmole's detectors, as in `Detector.from_pretrained`; the others have their own.
    """
    check_arithmetic(runtime, precision)
    kind, _, rest = spec.partition(":")
    size = batch_for(device, batch_size)
    if kind == "hf" and rest:
        model, _, labels = rest.partition("#")
        return HuggingFaceScorer(model, [label for label in labels.split(",") if label], size, device)
    if kind == "python" and rest:
        module, _, function = rest.partition(":")
        try:
            found = import_module(module)
            scorer = FunctionScorer(spec, getattr(found, function), size)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(f"{spec}: cannot be imported: {error}; give python:MODULE:FUNCTION") from error
        if found.__file__:
            scorer.name += f"@{hashlib.sha256(Path(found.__file__).read_bytes()).hexdigest()[:12]}"
        return scorer
    if kind == "univfd" and rest:
        network, tower = univfd_network(rest, backbone or "vit-l-14")
        name = f"univfd@{UNIVFD_HEAD_SHA256[:12]} on {tower.id}@{tower.sha256[:12]}"
        computed = TorchRuntime(network, device, precision)
        settings = PreprocessConfig(mode="center_crop")
        return Detector(network, settings, None, name + name_suffix(computed), batch_size=size, runtime=computed)
    return Detector.from_pretrained(
        spec,
        backbone=backbone,
        device=device,
        precision=None if precision == "float32" else precision,  # an export brings its own
        runtime=runtime,
        batch_size=size,
    )


def trained_on(spec: str) -> TrainedOn | None:
    """The training data of the detector that `spec` names; None if that is not recorded.

    Raises `CheckpointError` if its `train.json` is damaged.
    """
    if spec.partition(":")[0] in ("hf", "python", "univfd"):
        return None
    _, folder = find_adapter(spec)
    path = folder / TRAIN
    if not path.is_file():
        return None
    cure = "delete it, and the detector's training counts as unknown"
    record = read_json(path, CheckpointError, cure)
    history = (record.get("history") or []) if isinstance(record, dict) else []
    if not isinstance(history, list):
        raise CheckpointError(f"{path}: history: is no list; {cure}")
    steps = [record, *history]  # of an extended one, all before
    data = [step["data"] for step in steps if isinstance(step, dict) and isinstance(step.get("data"), dict)]
    if len(data) < max(1, len(steps)) or not all({"generators", "sources"} <= each.keys() for each in data):
        return None
    try:
        seen = [TrainedOn(generators=each["generators"], sources=each["sources"]) for each in data]
        return TrainedOn(
            generators=tuple(sorted({name for each in seen for name in each.generators})),
            sources=tuple(sorted({name for each in seen for name in each.sources})),
        )
    except ValidationError as error:
        raise CheckpointError(f"{path}: data: {first_problem(error)}; {cure}") from error


def with_center_crop(scorer: ImageScorer) -> ImageScorer:
    """The same scorer with one centre crop, if it is a clipmole detector; other scorers are returned unchanged."""
    if not isinstance(scorer, Detector) or scorer.preprocess.mode == "center_crop":
        return scorer
    cropped = copy(scorer)
    cropped.preprocess = scorer.preprocess.model_copy(update={"mode": "center_crop", "whole_weight": 0.0})
    cropped.name = f"{scorer.name}, one centre crop"
    return cropped


def _one_each(name: str, scores: NDArray[np.float32], batch: Sequence[RGB]) -> NDArray[np.float32]:
    if scores.shape != (len(batch),) or not np.isfinite(scores).all():
        raise ConfigError(f"{name}: must give one finite score per image: got {scores.shape} for {len(batch)}")
    return scores


def _batches(images: Iterable[RGB], size: int) -> Iterator[list[RGB]]:
    iterator = iter(images)
    while batch := list(islice(iterator, size)):
        yield batch
