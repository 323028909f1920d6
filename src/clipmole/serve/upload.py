"""A request's body -> the images in it, held in memory, never on disk.

In: the pieces of a body as they arrive, raw or multipart/form-data. Out: `Upload`s. Limits are applied to what
arrives, whatever a header claims: a piece is counted before it is kept. A file's name is passed on to the answer and
used for nothing else. It knows nothing of images.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from clipmole.plumbing.text import printable
from clipmole.serve.errors import Problem
from clipmole.serve.settings import MIB, ServeSettings

FIELD = "images"
NAME_CHARACTERS = 255  # of a file's name that come back in the answer
_DRAIN_BYTES, _DRAIN_SECONDS = 64 * MIB, 2.0  # read on after a refusal, so that the client gets to see it


@dataclass
class Upload:
    """One file of a request.

    Attributes:
        name: what the client calls it: one line, printable, shortened; never the name of a file here.
        data: its bytes.
        too_large: it had more bytes than an image may have; `data` is then empty.
    """

    name: str
    data: bytearray = field(default_factory=bytearray)
    too_large: bool = False


class Memory:
    """Bytes of all uploads that are held at one time."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0

    def lease(self) -> Lease:
        """What one request holds: nothing yet."""
        return Lease(self)


class Lease:
    """The share of one request in `Memory`; given back at the end of the `with` block."""

    def __init__(self, memory: Memory) -> None:
        self._memory, self._held = memory, 0

    def take(self, count: int) -> None:
        """Hold `count` bytes more. Raises `Problem` "busy" if there is no room."""
        if self._memory.held + count > self._memory.most:
            raise Problem("busy", "the server holds as many uploads as it may; try again later", retry_after=2)
        self._memory.held += count
        self._held += count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._memory.held -= self._held
        self._held = 0


async def read_images(request: Request, settings: ServeSettings, lease: Lease) -> list[Upload]:
    """The files in the fields `images` of a multipart/form-data body, in order. Raises `Problem`."""
    form = _Form(settings, lease)
    async with _refusals_arrive(request):
        _check_encoding(request)
        kind, options = parse_options_header(request.headers.get("content-type"))
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise Problem(
                "unsupported_media_type",
                f"send multipart/form-data with files in the field {FIELD!r}, or one raw image to /v1/detect/bytes",
            )
        try:
            parser = MultipartParser(options[b"boundary"], form.callbacks())
            async for piece in _body_pieces(request, settings, settings.max_request_bytes):
                parser.write(piece)
            parser.finalize()
        except FormParserError as error:
            raise Problem("bad_request", "the body is not multipart/form-data as its header says") from error
    if not form.ended:
        raise Problem("bad_request", "the multipart body ends early: its last boundary is missing")
    if not form.uploads:
        raise Problem("no_images", f"there is no file in the field {FIELD!r}")
    return form.uploads


def _check_encoding(request: Request) -> None:
    """Raise `Problem` for a compressed body. Limits count bytes as they arrive; image files are compressed anyway."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Problem(
            "unsupported_media_type",
            "the body is compressed (Content-Encoding); send the bytes of the image file as they are, without it",
        )


async def read_body(request: Request, settings: ServeSettings, lease: Lease) -> Upload:
    """The whole body as one image. Raises `Problem`."""
    upload = Upload("image")
    async with _refusals_arrive(request):
        _check_encoding(request)
        kind, _ = parse_options_header(request.headers.get("content-type"))
        if kind.startswith(b"multipart/") or kind == b"application/x-www-form-urlencoded":
            raise Problem("unsupported_media_type", "send the raw bytes of one image; forms go to /v1/detect")
        async for piece in _body_pieces(request, settings, settings.max_image_bytes):
            lease.take(len(piece))
            upload.data += piece
    if not upload.data:
        raise Problem("no_images", "the body is empty; send the bytes of an image")
    return upload


class _Form:
    """What a multipart parser finds."""

    def __init__(self, settings: ServeSettings, lease: Lease) -> None:
        self.uploads: list[Upload] = []
        self.ended = False
        self._settings, self._lease = settings, lease
        self._field = self._value = b""
        self._disposition = b""

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._part,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    def _part(self) -> None:
        if len(self.uploads) >= self._settings.max_images:
            raise Problem("too_many_images", f"more than {self._settings.max_images} images; send several requests")
        self._field = self._value = self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if options.get(b"name") != FIELD.encode():
            raise Problem("bad_request", f"a form field that is not {FIELD!r}; there is no other")
        name = options.get(b"filename", b"").decode("utf-8", "replace")
        self.uploads.append(Upload(_shown(name) or f"image-{len(self.uploads) + 1}"))

    def _data(self, data: bytes, start: int, end: int) -> None:
        upload = self.uploads[-1]
        if len(upload.data) + end - start > self._settings.max_image_bytes:
            upload.too_large = True
            upload.data.clear()
        if not upload.too_large:
            self._lease.take(end - start)
            upload.data += data[start:end]

    def _end(self) -> None:
        self.ended = True


def _shown(name: str) -> str:
    """A name as it may appear in an answer: one printable line of bounded length."""
    return printable(name[:NAME_CHARACTERS])


async def _body_pieces(request: Request, settings: ServeSettings, most: int) -> AsyncIterator[bytes]:
    """The body as it arrives: `most` bytes at most, in time. Raises `Problem`."""
    too_large = Problem("too_large", f"the body has more than the {most:,} bytes that are allowed; send less at once")
    if int(request.headers.get("content-length", "0")) > most:
        raise too_large
    stream = request.stream()
    loop = asyncio.get_running_loop()
    end, got = loop.time() + settings.body_seconds, 0
    while True:
        try:
            async with asyncio.timeout_at(min(end, loop.time() + settings.chunk_seconds)):
                piece = await anext(stream, None)
        except TimeoutError:
            raise Problem("slow_body", "the body arrived too slowly, or not to its end; send it again") from None
        if piece is None:
            return
        got += len(piece)
        if got > most:
            raise too_large
        yield piece


@contextlib.asynccontextmanager
async def _refusals_arrive(request: Request) -> AsyncIterator[None]:
    """After a refusal read on for a moment: closing on unread bytes resets the connection, and the answer is lost.

    Not where the client waits to be told to go on ("Expect: 100-continue"): it reads the answer first.
    """
    try:
        yield
    except Problem as problem:
        if problem.code != "slow_body" and "expect" not in request.headers:
            got = 0
            # RuntimeError: the body was read to its end already.
            with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError):
                async with asyncio.timeout(_DRAIN_SECONDS):
                    async for piece in request.stream():
                        got += len(piece)
                        if got > _DRAIN_BYTES:
                            break
        raise
