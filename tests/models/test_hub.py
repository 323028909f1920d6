"""Files of a hub repository: cache first, then the network, one line if neither gives them.

The hub is a stand-in on this machine's loopback; no test leaves it.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub import constants

from clipmole.errors import WeightsNotFound
from clipmole.models.hub import hub_files

OLD, NEW = "a" * 40, "b" * 40
FILES = {"config.json": b"{}", "model.safetensors": b"weights", "sub/extra.txt": b"extra"}
REFUSALS: dict[str, tuple[int, dict[str, str]]] = {
    "owner/nothing": (401, {"X-Error-Code": "RepoNotFound"}),
    "gated/name": (403, {"X-Error-Code": "GatedRepo"}),
    "broken/name": (400, {"X-Error-Message": "broken"}),
}


class FakeHub(ThreadingHTTPServer):
    """Answers as the hub does, with the API and with /owner/name/resolve/revision/file; `requests` holds the paths."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FakeHandler)
        self.requests: list[str] = []
        self.main = OLD

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class FakeHandler(BaseHTTPRequestHandler):
    server: FakeHub

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.path.startswith("/api/models/"):
            self.describe()
            return
        if "/resolve/" not in self.path:  # the question whether anybody is there
            self.answer(200, {})
            return
        repo_id, _, place = self.path[1:].partition("/resolve/")
        revision, _, file = place.partition("/")
        commit = {"X-Repo-Commit": self.server.main if revision == "main" else revision}
        refusal = REFUSALS.get(repo_id) or REFUSALS.get(f"{repo_id}/{file}")
        if refusal:
            self.answer(*refusal)
        elif revision not in ("main", OLD, NEW):
            self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        elif file not in FILES:
            self.answer(404, {"X-Error-Code": "EntryNotFound", **commit})
        else:
            self.answer(200, {"ETag": f'"{file.replace("/", "-")}"', **commit}, FILES[file])

    def describe(self) -> None:
        """What the API says of a repository at a revision, and the list of its files."""
        path = urlsplit(self.path).path.removeprefix("/api/models/")
        repo_id, kind, revision = re.fullmatch(r"([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path).groups("main")
        commit = self.server.main if revision == "main" else revision
        if refusal := REFUSALS.get(repo_id):
            self.answer(*refusal)
        elif revision not in ("main", OLD, NEW):
            self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        elif kind == "tree":
            files = [{"type": "file", "path": name, "size": len(FILES[name]), "oid": name} for name in FILES]
            self.answer(200, {"Content-Type": "application/json"}, json.dumps(files).encode())
        else:
            known = {"id": repo_id, "sha": commit, "siblings": [{"rfilename": name} for name in FILES]}
            self.answer(200, {"Content-Type": "application/json"}, json.dumps(known).encode())

    do_HEAD = do_GET  # noqa: N815 (the name that http.server asks for)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing to stderr."""


def use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What HF_ENDPOINT does when huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    use_endpoint(monkeypatch, server.url)
    yield server
    server.shutdown()
    server.server_close()


def closed_port() -> str:
    """The address of a port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def message(*args: object, **kwargs: object) -> str:
    with pytest.raises(WeightsNotFound) as caught:
        hub_files(*args, **kwargs)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_fetches_once_and_then_asks_nobody(hub: FakeHub, tmp_path: Path) -> None:
    wanted = ["model.safetensors", "sub/extra.txt"]
    folder = hub_files("owner/name", wanted, optional=["config.json", "absent.json"], cache_dir=tmp_path)
    assert folder.name == OLD
    assert {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == FILES
    asked = len(hub.requests)
    hub.main = NEW  # a newer commit does not matter: what is in the cache is used
    assert hub_files("owner/name", wanted, optional=["config.json", "absent.json"], cache_dir=tmp_path) == folder
    assert len(hub.requests) == asked
    assert hub_files("owner/name", wanted, revision=NEW, cache_dir=tmp_path).name == NEW


def test_adds_to_what_is_cached_from_the_same_commit(hub: FakeHub, tmp_path: Path) -> None:
    folder = hub_files("owner/name", ["config.json"], cache_dir=tmp_path)
    hub.main = NEW
    assert hub_files("owner/name", ["config.json", "model.safetensors"], cache_dir=tmp_path) == folder
    more = hub_files("owner/name", ["config.json", "model.safetensors"], optional=["absent.txt"], cache_dir=tmp_path)
    assert more == folder
    wanted = ["config.json", "sub/extra.txt"]
    assert hub_files("owner/name", wanted, optional=["model.safetensors"], cache_dir=tmp_path) == folder
    assert (folder / "sub/extra.txt").read_bytes() == b"extra"


@pytest.mark.usefixtures("hub")
def test_first_of_alternatives_that_the_repository_has(tmp_path: Path) -> None:
    folder = hub_files("owner/name", [("absent.bin", "model.safetensors", "config.json")], cache_dir=tmp_path)
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
    assert "has no absent.bin or other.bin: see" in message(
        "owner/name", [("absent.bin", "other.bin")], cache_dir=tmp_path
    )


@pytest.mark.usefixtures("hub")
def test_uses_the_cache_when_only_optional_files_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub_files("owner/name", ["config.json"], cache_dir=tmp_path)
    use_endpoint(monkeypatch, closed_port())
    assert hub_files("owner/name", ["config.json"], optional=["sub/extra.txt"], cache_dir=tmp_path) == folder


def test_an_optional_file_that_fails_is_not_one_that_is_not_there(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REFUSALS, "owner/name/sub/extra.txt", (400, {"X-Error-Message": "broken"}))
    said = message("owner/name", ["config.json"], optional=["sub/extra.txt"], cache_dir=tmp_path)
    assert said.startswith("owner/name: config.json, sub/extra.txt could not be fetched into")
    assert hub_files("owner/name", ["config.json"], cache_dir=tmp_path).name == hub.main
    # Now what is needed is in the cache, and a hub in trouble does not spoil it.
    assert hub_files("owner/name", ["config.json"], optional=["sub/extra.txt"], cache_dir=tmp_path).name == hub.main


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("repo_id", "revision", "said"),
    [
        ("owner/nothing", None, "owner/nothing does not exist at http"),
        ("gated/name", None, "gated/name is gated: accept its terms at http"),
        ("owner/name", "v9", "owner/name has no revision 'v9'"),
        ("broken/name", None, "broken/name: config.json could not be fetched into"),
        ("own er/name", None, "'own er/name' is not a hub id"),
    ],
)
def test_one_line_for_each_refusal(tmp_path: Path, repo_id: str, revision: str | None, said: str) -> None:
    assert said in message(repo_id, ["config.json"], revision=revision, cache_dir=tmp_path)


@pytest.mark.usefixtures("hub")
def test_a_wrong_file_name_is_named(tmp_path: Path) -> None:
    assert message("owner/name", ["absent.bin"], revision=OLD, cache_dir=tmp_path).startswith(
        "owner/name@aaaaaaaaaaaa has no absent.bin"
    )


def test_offline_mode_asks_nobody(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub_files("owner/name", ["config.json"], cache_dir=tmp_path)
    asked = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub_files("owner/name", ["config.json"], optional=["sub/extra.txt"], cache_dir=tmp_path) == folder
    said = message("owner/name", ["model.safetensors"], cache_dir=tmp_path)
    assert said.startswith(f"owner/name: model.safetensors not in the cache {tmp_path}, and HF_HUB_OFFLINE is set; ")
    assert len(hub.requests) == asked


def test_no_network_is_one_line_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = closed_port()
    use_endpoint(monkeypatch, endpoint)
    start = time.monotonic()
    said = message("owner/name", ["config.json", ("a.bin", "b.bin")], revision=OLD, cache_dir=tmp_path)
    assert time.monotonic() - start < 3
    assert said.startswith(f"owner/name@aaaaaaaaaaaa: config.json and a.bin or b.bin not in the cache {tmp_path}, and ")
    assert f"{endpoint} cannot be reached" in said
    assert "give a directory that holds the files" in said


def test_a_network_that_swallows_everything_costs_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes the connection and never answers
        use_endpoint(monkeypatch, f"http://127.0.0.1:{mute.getsockname()[1]}")
        monkeypatch.setattr("clipmole.models.hub.PROBE_SECONDS", 0.3)
        start = time.monotonic()
        assert "cannot be reached" in message("owner/name", ["config.json"], cache_dir=tmp_path)
        assert time.monotonic() - start < 3
