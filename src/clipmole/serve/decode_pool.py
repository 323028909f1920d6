"""Decoding processes that are kept, watched and replaced.

In: the bytes of an image. Out: its crops, or an `ImageProblem` for that image alone. A process that dies or takes too
long is killed and another is started in its place. Only the image that it had begun to decode fails; one that it had
not begun goes to another process. It knows nothing of HTTP, of file names or networks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from clipmole.config import PreprocessConfig
from clipmole.errors import ClipmoleError
from clipmole.images.crops import Box, Crops, most_crops
from clipmole.plumbing.child import last_line, module_command
from clipmole.provenance.findings import Provenance
from clipmole.provenance.trust_list import TrustList
from clipmole.serve import TOKEN_VARIABLE
from clipmole.serve.decode_worker import FRAME
from clipmole.serve.errors import ImageProblem
from clipmole.serve.settings import ServeSettings

log = logging.getLogger("clipmole.serve")

COMMAND = module_command("clipmole.serve.decode_worker")
_PIPE_BYTES = 2**20  # of an asyncio stream's buffer: crops come in few pieces
_HEADER_BYTES = 2**24  # of an answer: what metadata say may be long
_START_SECONDS = 60.0
_OUT_OF_TIME = -signal.SIGXCPU if hasattr(signal, "SIGXCPU") else None  # how a process ends that `allow_time` ended
_GRACE_SECONDS = 1.0
_DIED = "the decoder ended while it read this file; open the image in an image editor and save it as a new file"
_LAST_BYTES = 4096  # of what a process says, which are kept for its last line


class DecoderStartFailed(ClipmoleError):
    """A decoding process did not start; the message has the last line that it wrote."""


class _NotBegun(Exception):
    """A process died before it began with the image that it was given."""


@dataclass(frozen=True)
class Decoded:
    """One decoded image.

    Attributes:
        crops: of the upright image.
        sha256: of the file's bytes, hexadecimal.
        provenance: what the metadata say, if it was asked for.
    """

    crops: Crops
    sha256: str
    provenance: Provenance | None


class DecodePool:
    """A fixed number of decoding processes, each with one image at a time.

    Args:
        restarted: called with the reason ("crashed", "timeout") whenever a process is replaced.
        command: what to run; the settings follow as one JSON argument.
        trust_list: whose content credentials to trust; None: that is not checked.
    """

    def __init__(
        self,
        settings: ServeSettings,
        preprocess: PreprocessConfig,
        restarted: Callable[[str], None],
        command: Sequence[str] = COMMAND,
        trust_list: TrustList | None = None,
    ) -> None:
        self.settings, self.crop_size = settings, preprocess.crop_size
        self._most = 3 * most_crops(preprocess) * preprocess.crop_size**2  # bytes of an answer
        self._restarted = restarted
        self._command = (*command, json.dumps(_worker_settings(settings, preprocess, trust_list is not None)))
        self._trust_list = trust_list
        self._idle: asyncio.Queue[asyncio.subprocess.Process] = asyncio.Queue()
        self._processes: set[asyncio.subprocess.Process] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """Process ids of the running processes."""
        return [process.pid for process in self._processes]

    async def start(self) -> None:
        """Start all processes, and wait until they are ready."""
        await asyncio.gather(*(self._spawn() for _ in range(self.settings.workers)))

    async def close(self) -> None:
        """End all processes, whatever they are doing."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for process in list(self._processes):
            await self._end(process)

    async def decode(self, data: bytes, *, provenance: bool = False, region: Box | None = None) -> Decoded:
        """Decode one image, or cut one region of it; waits for a free process. Raises `ImageProblem`.

        If the caller is cancelled, the process finishes its image first: it need not be replaced for that.
        """
        for _ in range(self.settings.workers + 2):  # all of them may have died while they were idle
            process = await self._idle.get()
            task = asyncio.create_task(self._exchange(process, data, {"provenance": provenance, "region": region}))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, even if nobody waits
            with contextlib.suppress(_NotBegun):
                return await asyncio.shield(task)
        raise ImageProblem("decoder_crashed", _DIED)

    async def _exchange(self, process: asyncio.subprocess.Process, data: bytes, request: dict[str, Any]) -> Decoded:
        """Give `data` to a process and take its answer; afterwards it is idle, or another is in its place."""
        reason, begun = "crashed", False
        try:
            async with asyncio.timeout(self.settings.decode_seconds):
                await _give(process, request, data)
                await _answer(process, 0)  # it has the image
                begun = True
                answer, payload = await _answer(process, self._most)
        except TimeoutError:
            reason = "timeout"
        except (OSError, EOFError, ValueError):  # a broken pipe, an early end, or an answer that is none
            pass
        else:
            self._idle.put_nowait(process)
            if "error" in answer:
                raise ImageProblem(answer["error"]["code"], answer["error"]["message"])
            return self._decoded(answer, payload)
        await self._end(process, _GRACE_SECONDS if reason == "crashed" else 0)
        if process.returncode == _OUT_OF_TIME:
            reason = "timeout"
        if not self._closed:
            self._restarted(reason)
            replacement = asyncio.create_task(self._replace())
            self._tasks.add(replacement)
            replacement.add_done_callback(self._tasks.discard)
        if reason == "timeout":
            raise ImageProblem(
                "decoder_timeout", f"decoding took more than {self.settings.decode_seconds:g} s; make it smaller"
            )
        if not begun:
            raise _NotBegun
        raise ImageProblem("decoder_crashed", _DIED)

    def _decoded(self, answer: dict[str, Any], payload: bytes) -> Decoded:
        windows, boxes = (tuple(map(tuple, answer[key])) for key in ("windows", "boxes"))
        pixels = np.frombuffer(payload, np.uint8).reshape(-1, 3, self.crop_size, self.crop_size)
        return Decoded(
            Crops(pixels, windows, boxes, answer["width"], answer["height"], answer["no_content"]),
            answer["sha256"],
            answer["provenance"] and Provenance.model_validate(answer["provenance"]),
        )

    async def _spawn(self) -> None:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            env={name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,  # which it closes when it is ready
            limit=_PIPE_BYTES,
            start_new_session=True,  # Ctrl-C is for the server, which lets the processes finish
        )
        self._processes.add(process)
        said = asyncio.create_task(_read_stderr(process))
        self._tasks.add(said)
        said.add_done_callback(self._tasks.discard)
        try:
            async with asyncio.timeout(_START_SECONDS):
                if self._trust_list is not None:
                    await _give(process, {"trust_list": asdict(self._trust_list)}, b"")
                await _answer(process, 0)
        except (OSError, EOFError, ValueError) as error:  # a TimeoutError is an OSError
            await self._end(process, _GRACE_SECONDS)
            reason = last_line(await said, f"it ended with exit code {process.returncode} and wrote nothing")
            raise DecoderStartFailed(f"a decoding process did not start: {reason}") from error
        except BaseException:
            said.cancel()
            await self._end(process)
            raise
        self._idle.put_nowait(process)

    async def _replace(self) -> None:
        """Start a process; if it fails try again, with growing pauses, until one is ready."""
        wait = 0.1
        while not self._closed:
            try:
                return await self._spawn()
            except (OSError, DecoderStartFailed) as error:
                log.error("%s", error)
            await asyncio.sleep(wait)
            wait = min(2 * wait, 10.0)

    async def _end(self, process: asyncio.subprocess.Process, grace: float = 0) -> None:
        """End a process. One that is ending already gets `grace` seconds, so that its exit code is known."""
        self._processes.discard(process)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await process.wait()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        if process.stdin is not None:
            process.stdin.close()
        await process.wait()


def _worker_settings(settings: ServeSettings, preprocess: PreprocessConfig, trusts: bool) -> dict[str, Any]:
    return {
        "trust_list": trusts,
        "preprocess": preprocess.model_dump(mode="json"),
        "max_bytes": settings.max_image_bytes,
        "max_pixels": settings.max_pixels,
        "memory": settings.worker_memory,
        "cpu_seconds": settings.decode_cpu_seconds,
    }


async def _give(process: asyncio.subprocess.Process, request: dict[str, Any], data: bytes) -> None:
    assert process.stdin is not None
    text = json.dumps(request).encode()
    process.stdin.write(FRAME.pack(len(text), len(data)) + text)
    process.stdin.write(data)
    await process.stdin.drain()


async def _read_stderr(process: asyncio.subprocess.Process) -> str:
    """The end of what a process writes to stderr until it closes it."""
    assert process.stderr is not None
    kept = b""
    while piece := await process.stderr.read(_LAST_BYTES):
        kept = (kept + piece)[-_LAST_BYTES:]
    return kept.decode("utf-8", "replace")


async def _answer(process: asyncio.subprocess.Process, most: int) -> tuple[dict[str, Any], bytes]:
    """The header and the payload, which has `most` bytes at most."""
    assert process.stdout is not None
    header, payload = FRAME.unpack(await process.stdout.readexactly(FRAME.size))
    if header > _HEADER_BYTES or payload > most:
        raise ValueError("an answer that is too long")
    return json.loads(await process.stdout.readexactly(header)), await process.stdout.readexactly(payload)
