"""A server on a socket, from start to clean end.

In: settings and what loads the detector. Out: nothing; `serve` returns when the server was told to stop and what it
had accepted is answered. It knows nothing of the routes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from clipmole.errors import ConfigError
from clipmole.inference.detector import Detector
from clipmole.provenance.trust_list import TrustList
from clipmole.serve.app import create_app
from clipmole.serve.connection import protocol_class
from clipmole.serve.middleware import allowed_hosts
from clipmole.serve.service import Service
from clipmole.serve.settings import ServeSettings

_BACKLOG = 256  # connections that the system holds before they are taken


def serve(
    load: Callable[[], Detector],
    settings: ServeSettings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    trust_list: TrustList | None = None,
    say: Callable[[str], None],
    ready: Callable[[str], object] = lambda _address: None,
) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what was accepted; a second Ctrl-C does not wait.

    Args:
        load: makes the detector; called once, while the server already answers /healthz.
        port: 0 takes a free one.
        token: a bearer token that /v1 and /metrics ask for.
        trust_list: whose content credentials to trust; None: that is not checked.
        say: told where the server is, and when it is ready.
        ready: called once, with the page's address on this machine, when images are taken.

    Raises `ConfigError` if the address cannot be used, and what `load` raises.
    """
    with bind(host, port) as listener:
        service = Service(settings, load, trust_list)
        app = create_app(service, token=token, hosts=allowed_hosts(host, settings.allowed_hosts))
        port = listener.getsockname()[1]
        say(f"listening on http://{_in_address(host)}:{port}")
        own = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)

        def started() -> None:
            say(f"ready: {service.detector.name}")
            ready(f"http://{_in_address(own)}:{port}/")

        asyncio.run(run(app, service, listener, started))


def _in_address(host: str) -> str:
    """A host as it is written in a URL."""
    return f"[{host}]" if ":" in host else host


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `ConfigError` if the address cannot be used."""
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, proto=socket.IPPROTO_TCP)[0]
        # asyncio sends small pieces at once (TCP_NODELAY) only on a socket that says it is TCP.
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":  # elsewhere it would let another program take the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        return listener
    except (OSError, OverflowError) as error:
        if listener is not None:
            listener.close()
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{host}, port {port}: cannot listen there: {reason}; try another --port") from error


async def run(
    app: object,
    service: Service,
    listener: socket.socket,
    started: Callable[[], None],
    made: Callable[[Server], object] = lambda _server: None,
) -> None:
    """Serve on a socket that listens, until `Server.handle_exit` is called and what was accepted is answered.

    Args:
        started: called once, when images are taken.
        made: called with the server before it begins, by whoever wants to stop it without a signal.

    Raises what loading the detector raised.
    """
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=protocol_class(service.settings),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(service.settings.header_seconds) or 1,
        timeout_graceful_shutdown=int(service.settings.shutdown_seconds) or 1,
        backlog=_BACKLOG,
    )
    server = Server(config, service)
    made(server)

    def loaded(task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is not None:
            server.should_exit = True
        else:
            started()

    loading = asyncio.create_task(service.start())
    loading.add_done_callback(loaded)
    try:
        await server.serve(sockets=[listener])
    finally:
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        await service.close()
    if isinstance(service.failure, Exception):
        raise service.failure


class Server(uvicorn.Server):
    """uvicorn's server, which tells the service when it has to stop, and then ends without an error."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self._service.drain()
        self.should_exit = True


def log_to_stderr() -> None:
    """Show the server's log: one line per request, of codes and times; nothing of an image, its name or the client."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("clipmole.serve", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # its warnings quote what was sent
