"""Answers a request once its body has arrived: admission, decoding, the network, evidence.

In: `Upload`s. Out: a `Result` each, in order. It knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
import traceback
from collections.abc import Callable, Iterator

from clipmole.images.crops import Box, most_crops
from clipmole.images.formats import IMAGE_EXTENSIONS
from clipmole.inference.detector import Detector
from clipmole.inference.explain import Evidence, explain_crops, network_of
from clipmole.provenance.trust_list import TrustList
from clipmole.records import Detection
from clipmole.serve.batching import Batcher
from clipmole.serve.decode_pool import Decoded, DecodePool
from clipmole.serve.errors import INTERNAL, ImageProblem, Problem
from clipmole.serve.metrics import Metrics
from clipmole.serve.schemas import (
    CalibrationInfo,
    DetectorAnswer,
    EvidenceKind,
    ImageErrorDetail,
    LimitsInfo,
    Result,
)
from clipmole.serve.settings import ServeSettings
from clipmole.serve.upload import Memory, Upload

log = logging.getLogger("clipmole.serve")

LIMITATIONS = (
    "A likelihood, not a proof: do not accuse anybody because of it.",
    "Generators newer than the training images, edits of a part of an image, resized images, screenshots and heavy "
    "compression mislead it.",
    "It can be misled on purpose.",
    "The probability assumes as many generated images as photographs; where generated images are rarer, more "
    "alarms are false.",
)
_FIRST_SECONDS = 1.0  # assumed for an image until one has been timed


class Service:
    """One detector that answers many requests.

    Args:
        load: makes the detector, in a thread of its own while the server answers /healthz already.
        trust_list: whose content credentials to trust; None: that is not checked.

    Attributes:
        state: "loading", "ready", "draining" or "failed".
        failure: what went wrong if it failed.
    """

    def __init__(
        self, settings: ServeSettings, load: Callable[[], Detector], trust_list: TrustList | None = None
    ) -> None:
        self.settings, self._load, self._trust_list = settings, load, trust_list
        self.metrics = Metrics()
        self.memory = Memory(settings.max_buffered_bytes)
        self.state = "loading"
        self.failure: BaseException | None = None
        self.requests = self.pending = self.decoding = 0
        self._seconds = _FIRST_SECONDS  # that an image takes, a moving mean
        self._detector: Detector | None = None
        self.pool: DecodePool | None = None
        self.batcher: Batcher | None = None
        self.metrics.watch("clipmole_ready", "1 if requests are taken.", lambda: self.state == "ready")
        self.metrics.watch("clipmole_requests_in_flight", "Requests being read or answered.", lambda: self.requests)
        self.metrics.watch("clipmole_queue_images", "Images accepted and not yet answered.", lambda: self.pending)
        self.metrics.watch("clipmole_held_bytes", "Bytes of uploads that are held.", lambda: self.memory.held)

    async def start(self) -> None:
        """Load the detector and start the decoding processes. Raises what `load` raises."""
        try:
            self._detector = await asyncio.to_thread(self._load)
            self.pool = DecodePool(
                self.settings,
                self._detector.preprocess,
                lambda reason: self.metrics.restarts.labels(reason).inc(),
                trust_list=self._trust_list,
            )
            await self.pool.start()
            self.batcher = Batcher(
                self._detector,
                self.settings.batch_wait,
                lambda: self.decoding > 0,
                lambda: self.pending,
                self.metrics.batch_crops.observe,
            )
            self.batcher.start()
        except BaseException as error:
            self.state, self.failure = "failed", error
            raise
        if self.state == "loading":
            self.state = "ready"

    def drain(self) -> None:
        """Accept no more requests; answer those that were accepted."""
        self.state = "draining"

    async def close(self) -> None:
        """End the processes."""
        if self.batcher is not None:
            await self.batcher.close()
        if self.pool is not None:
            await self.pool.close()

    @property
    def detector(self) -> Detector:
        """The detector. Raises `Problem` "not_ready" before it is loaded."""
        if self._detector is None:
            raise Problem("not_ready", "the detector is being loaded; try again in a moment", retry_after=2)
        return self._detector

    @property
    def evidence(self) -> tuple[EvidenceKind, ...]:
        """What may be asked for; "tokens" only where there is a network. Raises `Problem` as `detector` does."""
        return ("none", "tiles", "tokens") if network_of(self.detector) else ("none", "tiles")

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Counts one request while it is read and answered. Raises `Problem` if no more may be taken."""
        if self.state != "ready":
            raise Problem("not_ready", f"the server is {self.state}; try again in a moment", retry_after=2)
        if self.requests >= self.settings.max_requests:
            raise Problem("busy", "as many requests as the server may answer at once; try again later", self._later())
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    async def detect(
        self, uploads: list[Upload], evidence: EvidenceKind, provenance: bool, region: Box | None = None
    ) -> list[Result]:
        """One result for each image, in order. Raises `Problem` if the queue is full, or it takes too long.

        Only a few images of a request are processed at a time, so that other requests get their turn.
        """
        if evidence not in self.evidence:
            raise Problem(
                "evidence_unavailable",
                "evidence=tokens: this server's detector runs on a graph, which gives no evidence by patch; "
                "ask for evidence=tiles",
            )
        if evidence == "tokens" and len(uploads) > self.settings.max_token_images:
            raise Problem(
                "too_many_images", f"evidence=tokens takes {self.settings.max_token_images} images at most in a request"
            )
        if self.pending + len(uploads) > self.settings.max_queue:
            raise Problem("busy", "the queue of images is full; try again later", self._later())
        self.pending += len(uploads)
        left = len(uploads)
        turns = asyncio.Semaphore(2 * self.settings.workers)

        async def one(upload: Upload) -> Result:
            nonlocal left
            async with turns:
                began = time.monotonic()
                result = await self._one(upload, evidence, provenance, region)
                self._observe(result, time.monotonic() - began)
            self.pending -= 1
            left -= 1
            return result

        tasks = [asyncio.create_task(one(upload)) for upload in uploads]
        try:
            async with asyncio.timeout(self.settings.answer_seconds):
                return await asyncio.gather(*tasks)
        except TimeoutError:
            raise Problem("timeout", "the answer took too long; send fewer images", self._later()) from None
        finally:
            for task in tasks:
                task.cancel()
            self.pending -= left

    async def _one(self, upload: Upload, evidence: EvidenceKind, provenance: bool, region: Box | None) -> Result:
        assert self.pool is not None
        assert self.batcher is not None
        name = upload.name
        try:
            if upload.too_large:
                raise ImageProblem(
                    "too_large", f"more than the {self.settings.max_image_bytes:,} bytes that one image may have"
                )
            image = await self._decode(upload, provenance, region)
            detection = await self.batcher.detect(name, image)
            shown = await self._evidence(detection, image, evidence)
        except ImageProblem as problem:
            return Result(name=name, error=ImageErrorDetail(code=problem.code, message=problem.message))
        except Exception as error:
            log.error("image failed: %s", where(error))
            return Result(name=name, error=ImageErrorDetail(code="internal", message=INTERNAL))
        if evidence == "none":
            left_out = dict.fromkeys(("tile_logits", "tile_boxes", "whole_logit"))
            detection = detection.model_copy(update=left_out)
        found = image.provenance and image.provenance.model_copy(update={"source": name})
        return Result(
            name=name, sha256=image.sha256, region=region, detection=detection, evidence=shown, provenance=found
        )

    async def _decode(self, upload: Upload, provenance: bool, region: Box | None) -> Decoded:
        assert self.pool is not None
        began = time.monotonic()
        self.decoding += 1
        try:
            return await self.pool.decode(bytes(upload.data), provenance=provenance, region=region)
        finally:
            self.decoding -= 1
            upload.data.clear()
            self.metrics.decode_seconds.observe(time.monotonic() - began)

    async def _evidence(self, detection: Detection, image: Decoded, kind: EvidenceKind) -> Evidence | None:
        """What the score rests on; None if it was not asked for."""
        if kind == "none":
            return None
        if kind == "tiles":
            return explain_crops(self.detector, detection)
        assert self.batcher is not None
        return await self.batcher.alone(lambda: explain_crops(self.detector, detection, image.crops))

    def _observe(self, result: Result, seconds: float) -> None:
        self.metrics.image_seconds.observe(seconds)
        self.metrics.images.labels(_outcome(result)).inc()
        self._seconds += 0.1 * (seconds - self._seconds)

    def _later(self) -> int:
        """Seconds after which there may be room: about what half the images that wait will take."""
        return max(1, min(60, math.ceil(self._seconds)))

    def describe(self) -> DetectorAnswer:
        """The detector, as /v1/detectors shows it."""
        detector, settings = self.detector, self.settings
        network = network_of(detector)
        tower = network.tower.config if network else None
        calibration = detector.calibration
        return DetectorAnswer(
            name=detector.name.partition("@")[0],
            detector=detector.name,
            default=True,
            calibration=calibration
            and CalibrationInfo(
                thresholds=calibration.thresholds,
                max_false_alarm=calibration.max_false_alarm,
                max_miss=calibration.max_miss,
                n_real=calibration.n_real,
                n_generated=calibration.n_generated,
                own_photographs=calibration.own_photographs,
                slope=calibration.slope,
                intercept=calibration.intercept,
                false_alarms=calibration.false_alarms,
                often_wrong=tuple(each.kind for each in calibration.false_alarms if each.often),
            ),
            limits=LimitsInfo(
                max_image_bytes=settings.max_image_bytes,
                max_request_bytes=settings.max_request_bytes,
                max_pixels=settings.max_pixels,
                max_images=settings.max_images,
                max_token_images=settings.max_token_images,
                extensions=tuple(sorted(IMAGE_EXTENSIONS)),
            ),
            evidence=self.evidence,
            crop_size=detector.preprocess.crop_size,
            max_tiles=most_crops(detector.preprocess),
            backbone=f"ViT, {tower.depth} blocks of width {tower.width}, patches of {tower.patch_size} px"
            if tower
            else "an exported graph",
            limitations=LIMITATIONS,
        )


def _outcome(result: Result) -> str:
    if result.error is not None:
        return result.error.code
    assert result.detection is not None
    return str(result.detection.verdict or "uncalibrated")


def where(error: BaseException) -> str:
    """An error as the log may show it: its kind and the functions it passed through, but not its text.

    The text may quote what the client sent.
    """
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return f"{type(error).__name__} at " + " < ".join(f"{p.name}:{p.lineno}" for p in reversed(frames))
