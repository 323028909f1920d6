"""One connection, with limits on waiting for a request's head and for a client that does not read.

In: bytes of a socket. Out: uvicorn's own handling of HTTP/1.1, and JSON where the bytes are no HTTP. It knows nothing
of routes.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from clipmole.serve.errors import Problem
from clipmole.serve.middleware import SECURITY_HEADERS, new_request_id, refusal
from clipmole.serve.settings import ServeSettings


def protocol_class(settings: ServeSettings) -> type[H11Protocol]:
    """uvicorn's protocol with the waiting times and the number of connections of `settings`."""

    class Protocol(_Connection):
        limits = settings

    return Protocol


class _Connection(H11Protocol):
    limits: ServeSettings

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.access_log = False  # uvicorn's shows addresses and paths; `SecurityMiddleware` writes its own
        self._head: asyncio.TimerHandle | None = None
        self._write: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            transport.abort()
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head = stopped(self._head)
        self._write = stopped(self._write)
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        if self._answering():
            self._head = stopped(self._head)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._answering():  # of several requests sent at once the next one may have begun
            self._await_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write = self._write or self.loop.call_later(self.limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._write = stopped(self._write)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        body = refusal(Problem("bad_request", "this is not HTTP/1.1"), new_request_id())
        fields = SECURITY_HEADERS | {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
        }
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [(name.encode(), value.encode()) for name, value in fields.items()]
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_head(self) -> None:
        self._head = stopped(self._head)
        if not self.transport.is_closing():
            self._head = self.loop.call_later(self.limits.header_seconds, self.transport.abort)


def stopped(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """Stop the timer that is running, if any."""
    if timer is not None:
        timer.cancel()
    return None
