"""Crops of several requests -> detections, together on the detector.

In: decoded images, one by one, of any request. Out: a `Detection` for each. While the network computes one batch, the
next one is collected; it waits for images that are on their way, but not long. A batch leaves about half of all
accepted images to the next one: if it took them all, the network would be idle while their clients send others.
Everything that uses the network runs in one thread, one thing at a time. It knows nothing of HTTP, uploads and
processes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from clipmole.inference.detector import Detector, Prepared
from clipmole.records import Detection
from clipmole.serve.decode_pool import Decoded

_FEW = 4  # images that are not divided between two batches
Returned = TypeVar("Returned")


@dataclass(frozen=True)
class _Waiting:
    name: str
    image: Decoded
    done: asyncio.Future[Detection]


class Batcher:
    """Puts images together on one detector.

    Args:
        wait: seconds that a batch may wait for images that are on their way.
        coming: whether there are any.
        accepted: images that are accepted and not yet answered.
        scored: called after each batch with its number of crops.
    """

    def __init__(
        self,
        detector: Detector,
        wait: float,
        coming: Callable[[], bool],
        accepted: Callable[[], int],
        scored: Callable[[int], None],
    ) -> None:
        self.detector = detector
        self._wait, self._coming, self._accepted, self._scored = wait, coming, accepted, scored
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "clipmole-model")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to take images; needs a running event loop."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop; images that still wait are cancelled."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        while not self._queue.empty():
            self._queue.get_nowait().done.cancel()
        self._thread.shutdown(wait=False)

    async def detect(self, name: str, image: Decoded) -> Detection:
        """The detection of an image, which may share a batch with others; with the logit of each crop."""
        waiting = _Waiting(name, image, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(waiting)
        return await waiting.done

    async def alone(self, work: Callable[[], Returned]) -> Returned:
        """Run something else that uses the network, between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _run(self) -> None:
        while True:
            batch = await self._gather()
            try:
                detections = await self.alone(lambda batch=batch: score(self.detector, batch))  # type: ignore[misc]
            except Exception as error:
                for waiting in batch:
                    if not waiting.done.done():
                        waiting.done.set_exception(error)
                continue
            self._scored(sum(len(waiting.image.crops) for waiting in batch))
            for waiting, detection in zip(batch, detections, strict=True):
                if not waiting.done.done():
                    waiting.done.set_result(detection)

    async def _gather(self) -> list[_Waiting]:
        """The next batch: at least one image, and no more crops than the detector takes at once if there are several.

        Images whose request was given up are left out.
        """
        batch: list[_Waiting] = []
        crops, deadline = 0, None
        loop = asyncio.get_running_loop()
        while crops < self.detector.batch_size and len(batch) < max(_FEW, (self._accepted() + 1) // 2):
            if batch and self._queue.empty() and not self._coming():
                break
            try:
                async with asyncio.timeout_at(deadline):
                    waiting = await self._queue.get()
            except TimeoutError:
                break
            if waiting.done.done():
                continue
            batch.append(waiting)
            crops += len(waiting.image.crops)
            deadline = deadline or loop.time() + self._wait
        return batch


def score(detector: Detector, batch: Sequence[_Waiting]) -> list[Detection]:
    """The detections of a batch, as `Detector.detect_batch(..., tiles=True)` gives them."""
    prepared = [Prepared(each.name, each.image.crops) for each in batch]
    return [result for result in detector.finish(prepared, True) if isinstance(result, Detection)]
