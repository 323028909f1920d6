"""Detector: the one way from an image to a logit, a probability and a verdict.

In: image sources (path, bytes, PIL image, array). Out: logits or `Detection` records. Every door goes through
here: command line, validation, evaluation. It knows nothing of how results are shown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from operator import length_hint
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from clipmole.calibration import Calibration
from clipmole.config import PreprocessConfig
from clipmole.errors import ConfigError, ImageError
from clipmole.images import ImageSource, load_pixels, source_name
from clipmole.models.checkpoint import load_adapter
from clipmole.models.detector import MoLEDetector
from clipmole.pipeline import ahead, cores
from clipmole.preprocess import crop_boxes, preprocess, size_of
from clipmole.records import Detection

Box = tuple[int, int, int, int]
MOST_WORKERS = 8  # by default: each may hold a decoded image, 50 to 800 MB


@dataclass(frozen=True)
class _Prepared:
    """One decoded image: its crops (n, 3, S, S) uint8 and where they lie."""

    source: str
    width: int
    height: int
    tiles: NDArray[np.uint8]
    boxes: tuple[Box, ...]


def _weight(item: _Prepared | ImageError) -> int:
    """Crops of an image; an error counts as one, so that endless errors are bounded too."""
    return len(item.tiles) if isinstance(item, _Prepared) else 1


def _split(crops: list[NDArray[np.uint8]], count: int) -> tuple[NDArray[np.uint8], list[NDArray[np.uint8]]]:
    """The first `count` crops in one array (all, if they are fewer), and those that are left."""
    taken: list[NDArray[np.uint8]] = []
    for place, part in enumerate(crops):
        taken.append(part[:count])
        count -= len(taken[-1])
        if count == 0:
            rest = part[len(taken[-1]) :]
            return np.concatenate(taken), [*([rest] if len(rest) else []), *crops[place + 1 :]]
    return np.concatenate(taken), []


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
        workers: threads that decode and cut images ahead of the network; 0: none; None: one a core, at most
            `MOST_WORKERS`. They change no number.
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
        workers: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: at least one crop is needed")
        if workers is not None and workers < 0:
            raise ConfigError(f"workers={workers}: give a number of threads, or 0 for none")
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
        self.workers = min(cores(), MOST_WORKERS) if workers is None else workers

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
        workers: int | None = None,
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
            workers=workers,
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

        An `ImageError` among `images` (an input that was not even found) comes out at its place. `workers` threads
        decode ahead of the network; they also draw from `images`, one at a time. Forward passes are filled across
        images, unless `images` keeps them waiting: then what is there is scored. Holds the crops of about two
        batches and a decoded image a worker, however many images there are. Closing it early ends the threads.
        """
        one = length_hint(images, 2) < 2  # nothing to be ahead of
        workers = 0 if one else self.workers
        prepared = ahead(self._prepare, images, workers=workers, limit=self.batch_size, weigh=_weight)
        with closing(prepared):
            yield from self._finish(prepared, tiles)

    def _prepare(self, source: ImageSource | ImageError) -> _Prepared | ImageError:
        """Decode and cut one image; safe from many threads. What is an error already stays what it is."""
        if isinstance(source, ImageError):
            return source
        try:
            image = load_pixels(source)
        except ImageError as error:
            return error
        size, (width, height) = self.preprocess.crop_size, size_of(image)
        left, top = max(0, size - width) // 2, max(0, size - height) // 2  # mirrored borders
        boxes = tuple(
            (max(0, x - left), max(0, y - top), min(width, x - left + size), min(height, y - top + size))
            for x, y in crop_boxes(width, height, self.preprocess)
        )
        return _Prepared(source_name(source), width, height, preprocess(image, self.preprocess), boxes)

    def _finish(
        self, prepared: Iterable[_Prepared | ImageError | None], tiles: bool
    ) -> Iterator[Detection | ImageError]:
        """Results of what is prepared, in order; None among it says that nothing more is coming for now."""
        waiting: deque[_Prepared | ImageError] = deque()  # not given out yet
        crops: list[NDArray[np.uint8]] = []  # of these, not scored yet
        logits = np.zeros(0, dtype=np.float32)  # of these, scored
        for item in chain(prepared, [None]):
            if item is not None:
                waiting.append(item)
            if isinstance(item, _Prepared):
                crops.append(item.tiles)
            least = self.batch_size if item is not None else 1
            while sum(map(len, crops)) >= least:
                batch, crops = _split(crops, self.batch_size)
                logits = np.concatenate([logits, self._logits(batch)])
            while waiting and (isinstance(waiting[0], ImageError) or len(waiting[0].tiles) <= len(logits)):
                first = waiting.popleft()
                if isinstance(first, ImageError):
                    yield first
                    continue
                own, logits = logits[: len(first.tiles)], logits[len(first.tiles) :]
                yield self._detection(first, own, tiles)

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
