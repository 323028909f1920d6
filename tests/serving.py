"""A server on a socket of this machine, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from tiny import CALIBRATION, PREPROCESS, tiny_network

from clipmole.errors import ClipmoleError
from clipmole.inference.detector import Detector
from clipmole.inference.pytorch import TorchRuntime
from clipmole.provenance.trust_list import TrustList
from clipmole.serve import server as runner
from clipmole.serve.app import create_app
from clipmole.serve.middleware import allowed_hosts
from clipmole.serve.service import Service
from clipmole.serve.settings import ServeSettings

FAST = {"workers": 2, "header_seconds": 2.0, "chunk_seconds": 1.0, "body_seconds": 3.0, "shutdown_seconds": 20.0}


@dataclass
class Running:
    """A server that runs."""

    service: Service
    port: int
    client: httpx.Client

    def post(self, *files: tuple[str, bytes], **query: Any) -> httpx.Response:
        """Send files as a form."""
        return self.client.post("/v1/detect", files=[("images", file) for file in files], params=query)

    def metric(self, name: str) -> float:
        """The value of a line of /metrics."""
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        return 0.0

    def raw(self, data: bytes, wait: float = 10.0) -> bytes:
        """Send bytes as they are; what comes back until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as connection:
            connection.sendall(data)
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
            return answer


def tiny_detector() -> Detector:
    """The same tiny detector each time."""
    return Detector(tiny_network(), PREPROCESS, CALIBRATION, "tiny", batch_size=8)


def graph_detector() -> Detector:
    """The same weights as a detector without its network, as an export is one."""
    return Detector(None, PREPROCESS, CALIBRATION, "tiny", batch_size=8, runtime=TorchRuntime(tiny_network(), "cpu"))


@contextmanager
def running(
    load: Callable[[], Detector] = tiny_detector,
    *,
    token: str | None = None,
    hosts: tuple[str, ...] | None = None,
    wait: bool = True,
    trust_list: TrustList | None = None,
    **settings: Any,
) -> Iterator[Running]:
    """Start a server on a free port, and stop it in the end as a signal would."""
    service = Service(ServeSettings.model_validate(FAST | settings), load, trust_list)
    app = create_app(service, token=token, hosts=allowed_hosts("127.0.0.1", ()) if hosts is None else hosts)
    servers: list[runner.Server] = []
    with runner.bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=_thread, args=(app, service, listener, servers.append))
        thread.start()
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                until(lambda: bool(servers))
                until(lambda: not wait or service.state == "ready" or not thread.is_alive())
                yield Running(service, port, client)
        finally:
            servers[0].handle_exit(15, None)
            thread.join(60)
            assert not thread.is_alive()


def _thread(app: Any, service: Service, listener: socket.socket, made: Callable[[Any], None]) -> None:
    with contextlib.suppress(ClipmoleError):  # of the detector; it stands in service.failure as well
        asyncio.run(runner.run(app, service, listener, lambda: None, made))


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
