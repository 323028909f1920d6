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
from numpy.typing import NDArray

from clipmole.calibration import Calibration
from clipmole.config import PreprocessConfig
from clipmole.errors import ConfigError, ImageError
from clipmole.exported import is_export, open_export
from clipmole.images import ImageSource, load_image, source_name
from clipmole.models.checkpoint import adapter_digest, find_adapter, load_adapter, read_calibration, read_config
from clipmole.models.detector import MoLEDetector
from clipmole.preprocess import crop_boxes, preprocess
from clipmole.records import Detection
from clipmole.runtimes import Precision, Runtime, RuntimeName, remark
from clipmole.runtimes.graph import cached_graph, installed
from clipmole.runtimes.pytorch import TorchRuntime

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
        network: the detector network; None if `runtime` needs none.
        preprocess: how an image becomes crops; an image's logit is the mean over its crops.
        calibration: None gives logits without probabilities and verdicts.
        name: what detections call this detector.
        device: "cpu", "cuda", ...
        precision: arithmetic of the network; bfloat16 is faster and differs in the third digit.
        batch_size: most crops in one forward pass. Logits do not depend on it beyond float rounding.
        runtime: what computes the logits; None: PyTorch, by `network`, `device` and `precision`.
    """

    def __init__(
        self,
        network: MoLEDetector | None,
        preprocess: PreprocessConfig,
        calibration: Calibration | None = None,
        name: str = "detector",
        *,
        device: str = "cpu",
        precision: Precision = "float32",
        batch_size: int = 32,
        runtime: Runtime | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: at least one crop is needed")
        self._network = network
        self.name = name
        self.runtime: Runtime = runtime or TorchRuntime(self.network, device, precision)
        self.device = self.runtime.device
        self.precision = self.runtime.precision
        self.preprocess = preprocess
        self.calibration = calibration
        self.batch_size = batch_size

    @property
    def network(self) -> MoLEDetector:
        """The network in PyTorch. Raises `ConfigError` for a detector that is a graph only."""
        if self._network is None:
            raise ConfigError(f"{self.name}: is a graph without a network; for this take the detector it came from")
        return self._network

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "embedded",
        *,
        backbone: str | Path | None = None,
        revision: str | None = None,
        cache_dir: Path | None = None,
        device: str = "cpu",
        precision: Precision | None = None,
        batch_size: int = 32,
        runtime: RuntimeName | Literal["auto"] | None = None,
    ) -> Self:
        """Load a detector with its backbone, preprocessing and calibration.

        Args:
            name: "embedded" (in the package, no download), an adapter directory, a directory that `clipmole export`
                wrote, or a hub id `owner/name`.
            backbone: where to take the backbone from, if not from where the adapter says.
            revision: of the adapter on the hub.
            cache_dir: of the hub's files; None: the Hugging Face cache.
            precision: None: that of an export, else float32.
            runtime: what computes: "torch", "torch-compile", "openvino" or "onnx" (converted at first use, then kept
                in the cache), or "auto": OpenVINO where it is installed and `device` is "cpu". None: that of an
                export, else "torch".

        The name says so where the arithmetic is not float32. Raises `CheckpointError`, `WeightsError`, `ConfigError` or
        `MissingDependency`, with one line that names the thing and the cure.
        """
        if is_export(name):
            return cls._from_export(Path(name), precision, batch_size, runtime)
        chosen = runtime or "torch"
        if chosen == "auto":
            chosen = "openvino" if device == "cpu" and installed("openvino") else "torch"
        precision = precision or "float32"
        if chosen in ("openvino", "onnx"):
            if device != "cpu":
                raise ConfigError(f"device={device}: runtime {chosen} computes on the cpu; leave one of the two out")
            label, folder = find_adapter(name, revision, cache_dir)
            config, digest = read_config(folder), adapter_digest(folder)

            def load() -> MoLEDetector:
                return load_adapter(name, backbone, revision, cache_dir).network

            graph = cached_graph(load, digest, config.preprocess.crop_size, chosen, precision)
            called = f"{label}@{digest[:12]}{remark(graph)}"
            calibration = read_calibration(folder)
            return cls(None, config.preprocess, calibration, called, batch_size=batch_size, runtime=graph)
        adapter = load_adapter(name, backbone, revision, cache_dir)
        torched = TorchRuntime(adapter.network, device, precision, compiled=chosen == "torch-compile")
        called = f"{adapter.name}@{adapter.digest[:12]}{remark(torched)}"
        settings = adapter.config.preprocess
        return cls(adapter.network, settings, adapter.calibration, called, batch_size=batch_size, runtime=torched)

    @classmethod
    def _from_export(cls, folder: Path, precision: Precision | None, batch_size: int, runtime: str | None) -> Self:
        """A detector that is a graph, as `clipmole export` wrote it; it runs as it was checked or not at all."""
        export = open_export(folder)
        made = export.record
        for what, asked, given in (("runtime", runtime, made.runtime), ("precision", precision, made.precision)):
            if asked not in (None, "auto", given):
                raise ConfigError(f"{folder}: was exported with {what} {given}, not {asked}; export it again with it")
        called = f"{made.detector}{remark(export.runtime)}"
        return cls(None, export.preprocess, export.calibration, called, batch_size=batch_size, runtime=export.runtime)

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

    def _logits(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Crops (n, 3, S, S) uint8 -> logits (n,), in forward passes of at most `batch_size`."""
        return self.runtime.logits(crops, self.batch_size)

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
