"""Detector: the one way from an image to a logit, a probability and a verdict.

In: image sources (path, bytes, PIL image, array). Out: logits or `Detection` records. Everything goes through here:
command line, server, scans, validation, evaluation. It knows nothing of how results are shown.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from operator import length_hint
from pathlib import Path
from typing import Literal, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmole.calibration import Calibration
from clipmole.config import Families, PreprocessConfig
from clipmole.errors import CheckpointError, ConfigError, ImageError, ImageUnreadable
from clipmole.images.crops import Box, Crops, cut_crops
from clipmole.images.loading import ImageSource, load_pixels, source_name
from clipmole.inference.export_directory import is_export, open_export
from clipmole.inference.graph import cached_graph, installed
from clipmole.inference.pytorch import TorchRuntime
from clipmole.inference.runtime import (
    Precision,
    Runtime,
    RuntimeName,
    batch_for,
    check_arithmetic,
    name_suffix,
)
from clipmole.models.adapter import (
    DEFAULT,
    adapter_digest,
    fallback_remark,
    find_adapter,
    load_adapter,
    read_calibration,
    read_config,
)
from clipmole.models.network import MoLENetwork
from clipmole.plumbing.prefetch import ahead, cores
from clipmole.records import Detection, Family, Verdict

MOST_WORKERS = 8  # by default: each may hold a decoded image, 50 to 800 MB
LOOKS_DRAWN = "the image looks drawn, painted or rendered, and this detector can only judge photographs"
RECHECK = 0.25  # of a logit: the differences due to bfloat16 are mostly smaller, see docs/performance.md


Other = TypeVar("Other")


@dataclass(frozen=True)
class Prepared:
    """One decoded image: its name, and its crops."""

    source: str
    crops: Crops


class Timings:
    """Seconds spent since the detector was made: decoding and cutting (summed over threads), and in the network."""

    def __init__(self) -> None:
        self.decode = self.network = 0.0
        self._lock = threading.Lock()

    @contextmanager
    def of(self, part: Literal["decode", "network"]) -> Iterator[None]:
        """Count the time of a block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                setattr(self, part, getattr(self, part) + time.perf_counter() - began)

    def __reduce__(self) -> tuple[type[Timings], tuple[()]]:
        return Timings, ()  # a copy of a detector, perhaps in another process, counts its own


def crop_count(item: object) -> int:
    """Crops of a prepared image; anything else counts as one, so that endless errors are bounded too."""
    return len(item.crops) if isinstance(item, Prepared) else 1


def each_image(images: Iterable[ImageSource | ImageError] | ImageSource) -> Iterable[ImageSource | ImageError]:
    """The images; a single path, bytes, or array of two or three axes counts as a list of one."""
    if isinstance(images, np.ndarray):
        return [images] if images.ndim < 4 else list(images)
    return [images] if isinstance(images, str | bytes | os.PathLike | Image.Image) else images


def _take_crops(crops: list[NDArray[np.uint8]], count: int) -> tuple[NDArray[np.uint8], list[NDArray[np.uint8]]]:
    """The first `count` crops in one array (all, if they are fewer), and those that are left."""
    taken: list[NDArray[np.uint8]] = []
    for i, part in enumerate(crops):
        taken.append(part[:count])
        count -= len(taken[-1])
        if count == 0:
            rest = part[len(taken[-1]) :]
            return np.concatenate(taken), [*([rest] if len(rest) else []), *crops[i + 1 :]]
    return np.concatenate(taken), []


def pooled(values: NDArray[np.float32], whole_weight: float) -> NDArray[np.float64]:
    """Values of an image's n views (n, ...) -> the image's own values (...).

    They are the mean over its crops; if `whole_weight` is above 0, a weighted mean of that and the view of the whole,
    which comes last.
    """
    crops = values[:-1] if whole_weight else values
    mean: NDArray[np.float64] = crops.mean(axis=0, dtype=np.float64)
    return (1 - whole_weight) * mean + whole_weight * values[-1].astype(np.float64) if whole_weight else mean


def shares_of(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of each family: the softmax of the families' logits (..., k)."""
    odds: NDArray[np.float64] = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: NDArray[np.float64] = odds / odds.sum(axis=-1, keepdims=True)
    return shares


def likely_family(families: Families, logits: NDArray[np.float64]) -> Family | None:
    """The family with a share over a half, by the families' logits (k,).

    None if there is no such family, or if at most half of the answers with it were right on validation images.
    """
    shares = shares_of(logits)
    best = int(shares.argmax())
    right, answers = families.answers(best)
    if shares[best] <= 0.5 or 2 * right <= answers:
        return None
    return Family(name=families.names[best], share=float(shares[best]), right=right, answers=answers)


class _Parts(NamedTuple):
    """The parts of a detector; `name` does not yet mention the arithmetic."""

    network: MoLENetwork | None
    preprocess: PreprocessConfig
    calibration: Calibration | None
    name: str
    runtime: Runtime
    families: Families | None


def _exported(folder: Path, precision: str | None, runtime: str | None) -> _Parts:
    """A detector that is a graph written by `clipmole export`; it runs as it was checked, or not at all."""
    export = open_export(folder)
    made = export.record
    for what, asked, given in (("runtime", runtime, made.runtime), ("precision", precision, made.precision)):
        if asked not in (None, "auto", given):
            raise ConfigError(f"{folder}: was exported with {what} {given}, not {asked}; export it again with it")
    return _Parts(None, export.preprocess, export.calibration, made.detector, export.runtime, export.families)


class Detector:
    """Scores images with one network, one preprocessing and, if there is one, one calibration.

    It has many parameters because every part and setting can be chosen separately; all but two have defaults.

    Args:
        network: the detector network; None if `runtime` needs none.
        preprocess: how an image becomes crops; an image's logit is the mean over its crops, or a weighted mean of that
            and the logit of a small view of the whole image.
        calibration: None gives logits without probabilities and verdicts.
        name: the name of this detector in detections.
        device: "cpu", "cuda", ...
        precision: arithmetic of the network; bfloat16 is faster and differs in the third digit. An image with a logit
            within `RECHECK` of a threshold is scored again in float32, so bfloat16 hardly ever changes a verdict.
        batch_size: crops in one forward pass, at most; None: 8 on a CPU, 32 elsewhere. Logits do not depend on it
            beyond float rounding.
        workers: threads that decode and cut images ahead of the network; 0: none; None: one per core, at most
            `MOST_WORKERS`. They do not change any number.
        runtime: what computes the logits; None: PyTorch, by `network`, `device` and `precision`.
        families: of generators, whose logits are the runtime's last outputs; None: those of the network, if any.
    """

    def __init__(
        self,
        network: MoLENetwork | None,
        preprocess: PreprocessConfig,
        calibration: Calibration | None = None,
        name: str = "detector",
        *,
        device: str = "cpu",
        precision: Precision = "float32",
        batch_size: int | None = None,
        workers: int | None = None,
        runtime: Runtime | None = None,
        families: Families | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: at least one crop is needed")
        if workers is not None and workers < 0:
            raise ConfigError(f"workers={workers}: give a number of threads, or 0 for none")
        self._network = network
        self.name = name
        self.runtime: Runtime = runtime or TorchRuntime(self.network, device, precision)
        self.device = self.runtime.device
        self.precision = self.runtime.precision
        self.preprocess = preprocess
        self.calibration = calibration
        self.families = families or (network.config.families if network else None)
        self.batch_size = batch_for(self.device, batch_size)
        self.workers = min(cores(), MOST_WORKERS) if workers is None else workers
        self.timings = Timings()

    @property
    def network(self) -> MoLENetwork:
        """The network in PyTorch. Raises `ConfigError` for a detector that is a graph only."""
        if self._network is None:
            raise ConfigError(
                f"{self.name}: is a graph without a network; for this use the detector that it was made from"
            )
        return self._network

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = DEFAULT,
        *,
        backbone: str | Path | None = None,
        revision: str | None = None,
        cache_dir: Path | None = None,
        device: str = "cpu",
        precision: Precision | None = None,
        batch_size: int | None = None,
        workers: int | None = None,
        runtime: RuntimeName | Literal["auto"] | None = None,
    ) -> Self:
        """Load a detector with its backbone, preprocessing and calibration.

        It has many parameters because it loads every kind of detector for every runtime; all have defaults.

        Args:
            name: "default" (the best that is installed) or another packaged detector, without a download;
                an adapter directory; a directory that `clipmole export` wrote; or a hub id `owner/name`.
            backbone: the backbone, instead of the one that the adapter names.
            revision: of the adapter on the hub.
            cache_dir: of the hub's files; None: the Hugging Face cache.
            device, batch_size, workers: as in `Detector`.
            precision: None: that of an export, else float32.
            runtime: what computes: "torch", "torch-compile", "openvino" or "onnx" (converted at first use, then kept
                in the cache), or "auto": OpenVINO where it is installed and `device` is "cpu". None: that of an
                export, else "torch".

        Returns:
            The detector; its name says so if the arithmetic is not float32.

        Raises:
            CheckpointError: there is no such adapter or export, or it is damaged.
            WeightsError: the backbone cannot be found or does not fit.
            ConfigError: options contradict each other, or those that an export was made with.
            MissingDependency: the runtime's library is not installed.

        Examples:
            >>> from clipmole import Detector
            >>> detector = Detector.from_pretrained("embedded")
            >>> detector.name.split("@")[0], detector.calibration is not None
            ('embedded', True)
        """
        check_arithmetic(runtime, precision)
        if name == DEFAULT and (line := fallback_remark()):
            warnings.warn(line, stacklevel=2)
        if runtime == "auto" and not is_export(name):
            runtime = "openvino" if device == "cpu" and installed("openvino") else "torch"
        if is_export(name):
            parts = _exported(Path(name), precision, runtime)
        elif runtime in ("openvino", "onnx"):
            if device != "cpu":
                raise ConfigError(f"device={device}: runtime {runtime} computes on the cpu; leave out one of the two")
            label, folder = find_adapter(name, revision, cache_dir)
            config, digest = read_config(folder), adapter_digest(folder)
            graph = cached_graph(
                lambda: load_adapter(name, backbone, revision, cache_dir).network,
                digest,
                config.preprocess.crop_size,
                runtime,
                precision or "float32",
            )
            called, families = f"{label}@{digest[:12]}", config.mole.families
            parts = _Parts(None, config.preprocess, read_calibration(folder), called, graph, families)
        else:
            adapter = load_adapter(name, backbone, revision, cache_dir)
            torched = TorchRuntime(adapter.network, device, precision or "float32", compiled=runtime == "torch-compile")
            called = f"{adapter.name}@{adapter.digest[:12]}"
            parts = _Parts(adapter.network, adapter.config.preprocess, adapter.calibration, called, torched, None)
        return cls(
            parts.network,
            parts.preprocess,
            parts.calibration,
            f"{parts.name}{name_suffix(parts.runtime)}",
            batch_size=batch_size,
            workers=workers,
            runtime=parts.runtime,
            families=parts.families,
        )

    def score(
        self, images: Iterable[ImageSource], *, max_tiles: int | None = None, region: Box | None = None
    ) -> NDArray[np.float32]:
        """Score images.

        Args:
            images: paths, bytes of files, PIL images, or arrays (H, W, 3) uint8.
            max_tiles: most crops of an image; None: what the preprocessing says, and more in a large image.
            region: (left, top, right, bottom), pixels of the upright image: the only part to look at; None: all of it.

        Returns:
            Logits (n,) float32 of n images, positive towards AI-generated.

        Raises:
            ImageError: the first image that cannot be scored.

        Examples:
            >>> from clipmole import Detector
            >>> Detector.from_pretrained().score(["photo.png", "photo.png"]).shape
            (2,)
        """
        detections = self.detect_batch(images, max_tiles=max_tiles, region=region)
        return np.array([detection.logit for detection in detections], dtype=np.float32)

    def detect(
        self, image: ImageSource, *, tiles: bool = False, max_tiles: int | None = None, region: Box | None = None
    ) -> Detection:
        """Judge one image.

        Args:
            image: a path, the bytes of a file, a PIL image, or an array (H, W, 3) uint8.
            tiles: also say each crop's logit and box.
            max_tiles: most crops of an image; None: what the preprocessing says, and more in a large image.
            region: (left, top, right, bottom), pixels of the upright image: the only part to look at; None: all of it.

        Returns:
            Logit, and from a calibrated detector probability and verdict.

        Raises:
            ImageError: the image cannot be scored.

        Examples:
            >>> from clipmole import Detector
            >>> detection = Detector.from_pretrained().detect("photo.png", tiles=True)
            >>> detection.width, detection.height, 0 <= detection.probability <= 1
            (300, 260, True)
            >>> len(detection.tile_logits) == detection.tiles
            True
        """
        return self.detect_batch([image], tiles=tiles, max_tiles=max_tiles, region=region)[0]

    def detect_batch(
        self,
        images: Iterable[ImageSource],
        *,
        tiles: bool = False,
        max_tiles: int | None = None,
        region: Box | None = None,
    ) -> list[Detection]:
        """Judge several images at once.

        Args:
            images: as `detect` takes them.
            tiles: also say each crop's logit and box.
            max_tiles: most crops of an image; None: what the preprocessing says, and more in a large image.
            region: (left, top, right, bottom), pixels of the upright image: the only part to look at; None: all of it.

        Returns:
            One detection per image, in their order.

        Raises:
            ImageError: the first image that cannot be scored; `stream` goes on after one.

        Examples:
            >>> from clipmole import Detector
            >>> [each.source for each in Detector.from_pretrained().detect_batch(["photo.png"])]
            ['photo.png']
        """
        detections = []
        for result in self.stream(images, tiles=tiles, max_tiles=max_tiles, region=region):
            if isinstance(result, ImageError):
                raise result
            detections.append(result)
        return detections

    def stream(
        self,
        images: Iterable[ImageSource | ImageError],
        *,
        tiles: bool = False,
        max_tiles: int | None = None,
        region: Box | None = None,
    ) -> Iterator[Detection | ImageError]:
        """One result for each image, in order; an `ImageError` for an image that cannot be scored.

        An `ImageError` among `images` (an input that was not even found) is given out at its position. `workers`
        threads decode ahead of the network; they also draw from `images`, one at a time. A forward pass may hold crops
        of several images; if `images` is slow, it does not wait for more. It holds the crops of about two batches and
        one decoded image for each worker, however many images there are. Closing it early ends the threads.

        Args:
            images: as `detect` takes them, or errors.
            tiles: also say each crop's logit and box.
            max_tiles: most crops of an image; None: what the preprocessing says, and more in a large image.
            region: (left, top, right, bottom), pixels of the upright image: the only part to look at. An image that
                does not contain it gives an `ImageUnreadable`. None: the whole image.

        Yields:
            A `Detection` or an `ImageError` for each image.

        Raises:
            ConfigError: `max_tiles` is under 1.
            ClipmoleError: the detector itself fails; the error of a single image is given out instead of raised.

        Examples:
            >>> from clipmole import Detector
            >>> [type(each).__name__ for each in Detector.from_pretrained().stream(["photo.png", "absent.png"])]
            ['Detection', 'ImageNotFound']
        """
        if max_tiles is not None and max_tiles < 1:
            raise ConfigError(f"max_tiles={max_tiles}: at least one crop is needed")
        one = length_hint(images := each_image(images), 2) < 2  # nothing to be ahead of
        workers = 0 if one else self.workers
        prepare = partial(self.prepare, max_tiles=max_tiles, region=region)
        prepared = ahead(prepare, images, workers=workers, limit=self.batch_size, weigh=crop_count)
        with closing(prepared):
            yield from self.finish(prepared, tiles)

    def prepare(
        self, source: ImageSource | ImageError, *, max_tiles: int | None = None, region: Box | None = None
    ) -> Prepared | ImageError:
        """Decode and cut one image: the first half of `stream`; safe from many threads.

        Args:
            source: as `detect` takes it; an error is returned as it is.
            max_tiles, region: as in `stream`.

        Returns:
            What `finish` takes, or what is wrong with the image.
        """
        if isinstance(source, ImageError):
            return source
        with self.timings.of("decode"):
            try:
                image = load_pixels(source)
            except ImageError as error:
                return error
            try:
                crops = cut_crops(image, self.preprocess, max_tiles=max_tiles, region=region)
            except ValueError as error:  # the region
                return ImageUnreadable(source_name(source), str(error))
        return Prepared(source_name(source), crops)

    def finish(self, prepared: Iterable[Prepared | Other | None], tiles: bool = False) -> Iterator[Detection | Other]:
        """Results of prepared images, in order: the second half of `stream`, for callers that decode elsewhere.

        None among `prepared` says that nothing more is coming for now. Anything else, such as an `ImageError`, is given
        out unchanged at its position.
        """
        waiting: deque[Prepared | Other] = deque()  # not given out yet
        crops: list[NDArray[np.uint8]] = []  # of these, not scored yet
        outputs = np.zeros((0, 1), dtype=np.float32)  # of these, scored
        for item in chain(prepared, [None]):
            if item is not None:
                waiting.append(item)
            if isinstance(item, Prepared):
                crops.append(item.crops.pixels)
            least = self.batch_size if item is not None else 1
            while sum(map(len, crops)) >= least:
                batch, crops = _take_crops(crops, self.batch_size)
                with self.timings.of("network"):
                    found = self._outputs(self.runtime, batch)
                outputs = np.concatenate([outputs, found]) if len(outputs) else found
            while waiting and (not isinstance(waiting[0], Prepared) or len(waiting[0].crops) <= len(outputs)):
                first = waiting.popleft()
                if not isinstance(first, Prepared):
                    yield first
                    continue
                own, outputs = outputs[: len(first.crops)], outputs[len(first.crops) :]
                yield self._detection(first, self._rechecked(first.crops.pixels, own), tiles)

    def _outputs(self, runtime: Runtime, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Crops (n, 3, S, S) uint8 -> (n, 1) their logits or, with further outputs, (n, m).

        Raises `CheckpointError` if one is not finite, because no verdict may follow from it.
        """
        outputs = runtime.outputs(crops, self.batch_size).reshape(len(crops), -1)
        if not np.isfinite(outputs).all():
            why = "its weights are damaged or far too large; fetch or train it again"
            if self.precision != "float32":
                why = f"{self.precision} does not work for it here; take precision float32, and try clipmole selftest"
            raise CheckpointError(f"{self.name}: gives a score that is not a finite number: {why}")
        return outputs

    @cached_property
    def _exact(self) -> Runtime | None:
        """Computes in float32 if `runtime` computes in bfloat16; loaded when it is first needed."""
        return self.runtime.exact()

    def _rechecked(self, crops: NDArray[np.uint8], outputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs (n, m) of an image's crops; in float32 where bfloat16 may have moved its verdict."""
        if self.calibration is None or self.precision != "bfloat16":
            return outputs
        logit, drawn = self._logit(outputs), self._drawn(outputs)
        settled = self.calibration.verdict(logit - RECHECK) == self.calibration.verdict(logit + RECHECK)
        if settled and (drawn is None or abs(drawn) > RECHECK):
            return outputs
        with self.timings.of("network"):
            return self._outputs(self._exact, crops) if self._exact else outputs

    def _logit(self, outputs: NDArray[np.float32]) -> float:
        """An image's logit, of the outputs (n, m) of its views."""
        return float(pooled(outputs[:, 0], self.preprocess.whole_weight))

    def _drawn(self, outputs: NDArray[np.float32]) -> float | None:
        """The output above 0 for an image that looks drawn, that of its last view, the whole; None: there is none."""
        further = outputs.shape[1] - len(self.families.names if self.families else ())
        return float(outputs[-1, 1]) if further > 1 else None

    def _family(self, outputs: NDArray[np.float32]) -> Family | None:
        """The likely family of an image, of the outputs (n, m) of its views; None if the detector cannot tell."""
        if self.families is None:
            return None
        own = outputs[:, -len(self.families.names) :]
        return likely_family(self.families, pooled(own, self.preprocess.whole_weight))

    def _detection(self, item: Prepared, outputs: NDArray[np.float32], tiles: bool) -> Detection:
        logits = outputs[:, 0]
        logit = self._logit(outputs)
        calibration, crops = self.calibration, item.crops
        reason = crops.no_content or (LOOKS_DRAWN if (self._drawn(outputs) or 0) > 0 else None)
        own = logits[: len(crops.windows)]
        verdict = calibration.verdict(logit) if calibration else None
        verdict = Verdict.UNCERTAIN if verdict and reason else verdict
        return Detection(
            source=item.source,
            logit=logit,
            probability=calibration.probability(logit) if calibration else None,
            verdict=verdict,
            thresholds=calibration.thresholds if calibration else None,
            detector=self.name,
            width=crops.width,
            height=crops.height,
            tiles=len(own),
            tile_logits=tuple(own.tolist()) if tiles else None,
            tile_boxes=crops.boxes if tiles else None,
            whole_logit=float(logits[-1]) if tiles and len(own) < len(logits) else None,
            coverage=crops.coverage,
            reason=reason,
            family=self._family(outputs) if verdict is Verdict.AI_GENERATED else None,
        )
