"""Lists of certificates to trust: read, fetched from a server of this machine when asked for, kept, never unasked."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from tiny import encoded, picture, write_adapter
from typer.testing import CliRunner

from clipmole.cli import app
from clipmole.errors import ConfigError, TrustListError
from clipmole.provenance.trust_list import get_trust_list, kept_trust_list, read_trust_list


def pem(*bodies: bytes) -> str:
    """Certificates, as far as a list looks at them: DER sequences."""
    texts = [base64.b64encode(b"\x30" + body).decode() for body in bodies]
    return "".join(f"a remark\n-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n" for text in texts)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HTTPServer]:
    """A server that gives what its attribute `text` says, and counts who asks; with a cache of its own."""
    monkeypatch.setenv("CLIPMOLE_CACHE", str(tmp_path / "cache"))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked += 1  # type: ignore[attr-defined]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(made.text.encode())  # type: ignore[attr-defined]

        def log_message(self, *_: object) -> None: ...

    made = HTTPServer(("127.0.0.1", 0), Handler)
    made.asked, made.text = 0, pem(b"one", b"two")  # type: ignore[attr-defined]
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def address(server: HTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/list.pem"


def test_a_file_of_certificates_is_read_without_what_stands_between_them(tmp_path: Path) -> None:
    path = tmp_path / "anchors.pem"
    path.write_text(pem(b"one", b"two"))
    found = read_trust_list(path)
    assert (found.name, found.date, found.n_certificates) == ("anchors.pem", "", 2)
    assert "remark" not in found.pem
    assert found.sha256 == hashlib.sha256(found.pem.encode()).hexdigest()


@pytest.mark.parametrize("text", ["", "no list", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_list_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "anchors.pem"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"anchors\.pem: not a list of certificates"):
        read_trust_list(path)
    with pytest.raises(ConfigError, match=r"absent\.pem: cannot be read"):
        read_trust_list(tmp_path / "absent.pem")


def test_a_list_is_fetched_by_its_command_alone_and_kept_with_date_and_sha256(
    server: HTTPServer, tmp_path: Path
) -> None:
    assert kept_trust_list() is None
    result = CliRunner().invoke(app, ["provenance", "trust-list", "get", "--url", address(server)])
    assert result.exit_code == 0, result.output
    kept = kept_trust_list()
    assert kept is not None
    assert result.stdout.strip() == str(kept)
    assert kept.n_certificates == 2
    record = json.loads((tmp_path / "cache" / "trust" / "c2pa-trust-list.json").read_text())
    assert record["sha256"] == kept.sha256
    assert record["date"].startswith(kept.date)
    adapter, backbone = write_adapter(tmp_path, depth=1)
    (tmp_path / "a.png").write_bytes(encoded(picture(0)))
    detect = ["detect", str(tmp_path / "a.png"), "-d", str(adapter), "--backbone", str(backbone), "--provenance"]
    assert CliRunner().invoke(app, detect).exit_code == 0
    assert server.asked == 1  # type: ignore[attr-defined]


def test_a_list_that_cannot_be_fetched_leaves_the_older_one(server: HTTPServer) -> None:
    older = get_trust_list(address(server))
    server.text = "<html>"  # type: ignore[attr-defined]
    with pytest.raises(TrustListError, match="not a list of certificates"):
        get_trust_list(address(server))
    assert kept_trust_list() == older
    with pytest.raises(ConfigError, match="give an address that begins with https://"):
        get_trust_list("http://example.org/list.pem")
    with pytest.raises(ConfigError, match="give an address that begins with https://"):
        get_trust_list("https://[::1/list.pem")


@pytest.mark.parametrize("answer", [b"220 not a web server\r\n", b""])
def test_a_server_that_does_not_speak_http_is_one_clear_error(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(TrustListError, match="cannot be fetched"):
            get_trust_list(f"http://127.0.0.1:{listener.getsockname()[1]}/list.pem")
        thread.join()


def test_a_kept_list_that_was_changed_is_not_trusted(server: HTTPServer, tmp_path: Path) -> None:
    get_trust_list(address(server))
    (tmp_path / "cache" / "trust" / "c2pa-trust-list.pem").write_text(pem(b"one", b"other"))
    with pytest.raises(ConfigError, match="is not what was fetched; get it again: clipmole provenance trust-list get"):
        kept_trust_list()


def test_trust_anchors_need_the_metadata() -> None:
    result = CliRunner().invoke(app, ["detect", "x.png", "--trust-anchors", "list.pem"])
    assert result.exit_code == 2
    assert "--trust-anchors needs --provenance" in result.output
