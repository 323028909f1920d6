"""Detector: the one way from an image to a logit, a probability and a verdict.

In: image sources (path, bytes, PIL image, array). Out: logits or `Detection` records. Every door goes through
here: command line, validation, evaluation. It knows nothing of how results are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from clipmole.calibration import Calibration
from clipmole.config import PreprocessConfig
from clipmole.errors import ConfigError, ImageError
from clipmole.images import ImageSource, load_image, source_name
from clipmole.models.checkpoint import load_adapter
from clipmole.models.detector import MoLEDetector
from clipmole.preprocess import crop_boxes, preprocess
from clipmole.records import Detection

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Prepared:
    """One decoded image: its crops (n, 3, S, S) uint8 and where they lie."""

    source: str
    width: int
    height: int
    tiles: NDArray[np.uint8]
    boxes: tuple[Box, ...]


class Detector:
    """Scores images with one network, one preprocessing and, if there is one, one calibration.

    Args:
        network: the detector network.
        preprocess: how an image becomes crops; an image's logit is the mean over its crops.
        calibration: None gives logits without probabilities and verdicts.
        name: what detections call this detector.
        device: "cpu", "cuda", ...
        precision: arithmetic of the network; bfloat16 is faster and differs in the third digit.
        batch_size: most crops in one forward pass. Logits do not depend on it beyond float rounding.
    """

    def __init__(
        self,
        network: MoLEDetector,
        preprocess: PreprocessConfig,
        calibration: Calibration | None = None,
        name: str = "detector",
        *,
        device: str = "cpu",
        precision: Literal["float32", "bfloat16"] = "float32",
        batch_size: int = 32,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: at least one crop is needed")
        try:
            self.device = torch.device(device)
            self.network = network.to(self.device).eval()
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"device={device}: cannot be used: {str(error).splitlines()[0]}") from error
        self.preprocess = preprocess
        self.calibration = calibration
        self.name = name
        self.precision = precision
        self.batch_size = batch_size

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "embedded",
        *,
        backbone: str | Path | None = None,
        revision: str | None = None,
        cache_dir: Path | None = None,
        device: str = "cpu",
        precision: Literal["float32", "bfloat16"] = "float32",
        batch_size: int = 32,
    ) -> Self:
        """Load a detector with its backbone, preprocessing and calibration.

        Args:
            name: "embedded" (in the package, no download), an adapter directory, or a hub id `owner/name`.
            backbone: where to take the backbone from, if not from where the adapter says.
            revision: of the adapter on the hub.
            cache_dir: of the hub's files; None: the Hugging Face cache.

        Raises `CheckpointError` or `WeightsError`, with one line that names the thing and the cure.
        """
        adapter = load_adapter(name, backbone, revision, cache_dir)
        return cls(
            adapter.network,
            adapter.config.preprocess,
            adapter.calibration,
            f"{adapter.name}@{adapter.digest[:12]}",
            device=device,
            precision=precision,
            batch_size=batch_size,
        )

    def score(self, images: Iterable[ImageSource]) -> NDArray[np.float32]:
        """Logits (n,) of n images, positive towards AI-generated. Raises the first `ImageError`."""
        return np.array([detection.logit for detection in self.detect_batch(images)], dtype=np.float32)

    def detect(self, image: ImageSource, *, tiles: bool = False) -> Detection:
        """The verdict on one image; with `tiles` also each crop's logit and place. Raises `ImageError`."""
        return self.detect_batch([image], tiles=tiles)[0]

    def detect_batch(self, images: Iterable[ImageSource], *, tiles: bool = False) -> list[Detection]:
        """One detection an image, in order. Raises the first `ImageError`; `stream` goes on after one."""
        detections = []
        for result in self.stream(images, tiles=tiles):
            if isinstance(result, ImageError):
                raise result
            detections.append(result)
        return detections

    def stream(
        self, images: Iterable[ImageSource | ImageError], *, tiles: bool = False
    ) -> Iterator[Detection | ImageError]:
        """One result an image, in order, an `ImageError` standing for an image that cannot be scored.

        An `ImageError` among `images` (an input that was not even found) comes out at its place. Holds the
        crops of about one batch, however many images there are.
        """
        waiting: list[_Prepared | ImageError] = []
        crops = 0
        for image in images:
            item = image if isinstance(image, ImageError) else self._prepare(image)
            waiting.append(item)
            crops += len(item.tiles) if isinstance(item, _Prepared) else 0
            if crops >= self.batch_size:
                yield from self._finish(waiting, tiles)
                waiting, crops = [], 0
        yield from self._finish(waiting, tiles)

    def _prepare(self, source: ImageSource) -> _Prepared | ImageError:
        try:
            image = load_image(source)
        except ImageError as error:
            return error
        size = self.preprocess.crop_size
        left, top = max(0, size - image.width) // 2, max(0, size - image.height) // 2  # mirrored borders
        boxes = tuple(
            (
                max(0, x - left),
                max(0, y - top),
                min(image.width, x - left + size),
                min(image.height, y - top + size),
            )
            for x, y in crop_boxes(image.width, image.height, self.preprocess)
        )
        tiles = preprocess(image, self.preprocess)
        return _Prepared(source_name(source), image.width, image.height, tiles, boxes)

    def _finish(self, waiting: list[_Prepared | ImageError], tiles: bool) -> Iterator[Detection | ImageError]:
        crops = [item.tiles for item in waiting if isinstance(item, _Prepared)]
        logits = self._logits(np.concatenate(crops)) if crops else np.zeros(0, dtype=np.float32)
        start = 0
        for item in waiting:
            if isinstance(item, ImageError):
                yield item
                continue
            own = logits[start : start + len(item.tiles)]
            start += len(item.tiles)
            yield self._detection(item, own, tiles)

    @torch.inference_mode()
    def _logits(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Crops (n, 3, S, S) uint8 -> logits (n,), in forward passes of at most `batch_size`."""
        parts = []
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")
        for batch in torch.split(torch.from_numpy(crops), self.batch_size):
            with autocast:
                parts.append(self.network(batch.to(self.device)).float().cpu())
        return torch.cat(parts).numpy()

    def _detection(self, item: _Prepared, logits: NDArray[np.float32], tiles: bool) -> Detection:
        logit = float(logits.mean(dtype=np.float64))
        calibration = self.calibration
        return Detection(
            source=item.source,
            logit=logit,
            probability=calibration.probability(logit) if calibration else None,
            verdict=calibration.verdict(logit) if calibration else None,
            thresholds=calibration.thresholds if calibration else None,
            detector=self.name,
            width=item.width,
            height=item.height,
            tiles=len(logits),
            tile_logits=tuple(logits.tolist()) if tiles else None,
            tile_boxes=item.boxes if tiles else None,
        )
