"""An address is read whole, and no further than an image may reach, whatever its server says or keeps to itself."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tiny import encoded, picture

from clipmole.data.containers import filesystems
from clipmole.errors import ImageTooLarge

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")
MOST = 2**20


class Unsized(BaseHTTPRequestHandler):
    """Says of nothing how large it is; /endless has no end."""

    sent = 0

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        if self.path == "/image.png":
            self.wfile.write(encoded(picture(0)))
            return
        with contextlib.suppress(OSError):  # until the reader has seen enough
            while True:
                Unsized.sent += self.wfile.write(bytes(2**16))

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Unsized)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_address_of_unknown_size_is_read_to_its_end_but_not_forever(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystems, "DEFAULT_LIMITS", replace(filesystems.DEFAULT_LIMITS, max_bytes=MOST))
    assert filesystems.read_location(f"{address}/image.png") == encoded(picture(0))
    with pytest.raises(ImageTooLarge, match=f"over the limit of {MOST:,}"):
        filesystems.read_location(f"{address}/endless")
    assert Unsized.sent < 64 * MOST  # what waits in buffers between the two is not counted as read
