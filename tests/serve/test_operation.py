"""Starting, stopping and lasting: a server as `clipmole serve` runs it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import httpx
import pytest
from processes import clipmole, start_clipmole
from tiny import encoded, picture, write_adapter

pytest.importorskip("fastapi")
from serving import running, tiny_detector, until

from clipmole.cli.serve import read_token
from clipmole.errors import CheckpointError, ConfigError
from clipmole.inference.detector import Detector
from clipmole.inference.export import export_detector
from clipmole.serve.server import bind
from clipmole.serve.settings import ServeSettings

ROOT = Path(__file__).resolve().parents[2]
GOOD = encoded(picture(0))


@contextmanager
def command(*options: str, **environment: str) -> Iterator[tuple[BaseProcess, int, Callable[[], list[str]]]]:
    """`clipmole serve` with the embedded detector on a free port: the process, the port, what it said so far."""
    detector = [] if "--detector" in options else ["--detector", "embedded"]
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "stderr"
        process = start_clipmole(
            "serve", "--port", "0", *detector, *options, streams=Path(folder), environment=os.environ | environment
        )

        def lines() -> list[str]:
            return said.read_text().splitlines() if said.exists() else []

        try:
            until(lambda: any(line.startswith("ready: ") for line in lines()) or not process.is_alive(), 120)
            (port,) = re.findall(r"listening on http://127\.0\.0\.1:(\d+)", "\n".join(lines())) or ["0"]
            yield process, int(port), lines
        finally:
            process.kill()
            process.join()


def ended(process: BaseProcess) -> int | None:
    """The exit code of a process that ends by itself soon."""
    process.join(30)
    return process.exitcode


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except OSError:
            continue
    return found


def test_the_command_line_and_the_server_say_the_same_and_a_signal_loses_nothing() -> None:
    image = ROOT / "examples" / "rocket.jpg"
    with command("--detector", "embedded") as (process, port, lines):
        url = f"http://127.0.0.1:{port}/v1/detect"
        answer = httpx.post(url, files={"images": image.read_bytes()}, timeout=120).json()["results"][0]["detection"]
        own = json.loads(clipmole("detect", "--json", "--detector", "embedded", str(image)).stdout)
        assert answer | {"source": ""} == own | {"source": ""}  # to the last bit

        def ask(_: int) -> float:
            files = [("images", ("a.jpg", image.read_bytes()))] * 2
            return httpx.post(url, files=files, timeout=120).json()["results"][1]["detection"]["logit"]

        headers = {"Content-Type": "multipart/form-data; boundary=edge"}
        assert httpx.post(url, content=b"--edgy secret", headers=headers).status_code == 400
        assert process.pid is not None
        workers = children(process.pid)
        assert len(workers) >= 2
        with ThreadPoolExecutor(8) as pool:
            under_way = [pool.submit(ask, number) for number in range(8)]
            metrics = f"http://127.0.0.1:{port}/metrics"
            until(lambda: "clipmole_queue_images 16.0" in httpx.get(metrics).text)  # all are accepted
            process.terminate()
            assert [future.result() for future in under_way] == [pytest.approx(own["logit"], abs=1e-4)] * 8
        assert ended(process) == 0
        until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
        with pytest.raises(httpx.ConnectError):
            httpx.get(metrics)
        said = lines()
    assert sum("POST /v1/detect 200" in line for line in said) == 9
    assert not any("rocket" in line or "Traceback" in line for line in said)
    log = [line for line in said if not line.startswith(("listening on ", "ready: "))]
    assert all(re.search(r" INFO \S+ (GET|POST) /\S+ \d+ \S+ \d+ ms$", line.rstrip()) for line in log), log


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter directory, its backbone in the folder `tiny` beside it; two blocks, for exports take their time."""
    folder = tmp_path_factory.mktemp("serve")
    write_adapter(folder, depth=2)
    return folder / "adapter"


@pytest.mark.parametrize(("runtime", "library"), [("openvino", "openvino"), ("onnx", "onnxruntime")])
def test_a_runtime_is_served_and_answers_as_the_command_line_does(
    adapter: Path, tmp_path: Path, runtime: str, library: str
) -> None:
    pytest.importorskip(library, reason=f"needs {library}: pip install 'clipmole[{runtime}]'")
    if runtime == "onnx":
        pytest.importorskip("onnxscript")
    image = tmp_path / "image.png"
    image.write_bytes(GOOD)
    options = ["--detector", str(adapter), "--backbone", str(adapter.parent / "tiny"), "--runtime", runtime]
    with command(*options) as (process, port, _), httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        answer = client.post("/v1/detect/bytes", content=GOOD, timeout=120).json()
        refused = client.post("/v1/detect/bytes", content=GOOD, params={"evidence": "tokens"})
        assert refused.json()["error"]["code"] == "evidence_unavailable"
        process.terminate()
        assert ended(process) == 0
    own = json.loads(clipmole("detect", "--json", *options, str(image)).stdout)
    assert answer["result"]["detection"] | {"source": ""} == own | {"source": ""}
    assert own["logit"] == pytest.approx(
        Detector.from_pretrained(adapter, backbone=adapter.parent / "tiny").score([image])[0], abs=1e-4
    )


def test_an_export_is_served_as_it_was_checked(adapter: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs openvino: pip install 'clipmole[openvino]'")
    pictures = [picture(i, 70, 50) for i in range(8)]
    export_detector(adapter, tmp_path / "out", "openvino", lambda: iter(pictures), backbone=adapter.parent / "tiny")
    with running(lambda: Detector.from_pretrained(tmp_path / "out")) as server:
        logit = server.post(("a.png", GOOD)).json()["results"][0]["detection"]["logit"]
        assert logit == pytest.approx(Detector.from_pretrained(tmp_path / "out").detect(GOOD).logit, abs=1e-5)
        (described,) = server.client.get("/v1/detectors").json()["detectors"]
        assert described["evidence"] == ["none", "tiles"]


def test_open_shows_the_page_in_the_browser(tmp_path: Path) -> None:
    opened = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {opened}\n')
    browser.chmod(0o755)
    with command("--open", BROWSER=f"{browser} %s") as (_, port, _lines):
        until(lambda: opened.is_file() and bool(opened.read_text()))
        assert opened.read_text() == f"http://127.0.0.1:{port}/"


def test_what_cannot_start_says_why_in_one_line(tmp_path: Path) -> None:
    with command("--detector", str(tmp_path / "none")) as (process, _, lines):
        assert ended(process) == 2
        said = lines()
    (line,) = [line for line in said if line.startswith("clipmole: ")]
    assert "none" in line
    assert not any("Traceback" in each for each in said)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match=r"already in use.*--port"):
        bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ConfigError, match="nowhere"):
        bind("nowhere.invalid", 0)


def test_it_is_not_ready_while_the_detector_is_loaded() -> None:
    go = threading.Event()

    def load() -> Detector:
        assert go.wait(30)
        return tiny_detector()

    with running(load, wait=False) as server:
        assert server.client.get("/healthz").json() == {"status": "ok"}
        ready = server.client.get("/readyz")
        assert (ready.status_code, ready.json()) == (503, {"status": "loading"})
        for response in (server.post(("a.png", GOOD)), server.client.get("/v1/detectors")):
            assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready")
            assert response.headers["retry-after"]
        go.set()

        def ready() -> bool:
            try:
                return bool(server.client.get("/readyz").status_code == 200)
            except httpx.ReadError:  # the server closed an idle connection just then
                return False

        until(ready)
        assert server.client.get("/readyz").json() == {"status": "ready"}
        assert server.post(("a.png", GOOD)).status_code == 200
        server.service.drain()
        drained = server.client.get("/readyz")
        assert (drained.status_code, drained.json()) == (503, {"status": "draining"})
        assert server.post(("a.png", GOOD)).json()["error"]["code"] == "not_ready"


def test_a_detector_that_cannot_be_loaded_ends_the_server() -> None:
    def load() -> Detector:
        raise CheckpointError("nothing there")

    with running(load, wait=False) as server:
        until(lambda: server.service.state == "failed")
        assert isinstance(server.service.failure, CheckpointError)


def test_a_failure_of_the_network_is_an_error_of_its_batch_and_not_the_end(caplog: pytest.LogCaptureFixture) -> None:
    with running() as server:
        detector = server.service.detector
        finish = detector.finish

        def broken(*_: object) -> object:
            raise RuntimeError("secret words")

        detector.finish = broken  # type: ignore[method-assign, assignment]
        result = server.post(("a.png", GOOD)).json()["results"][0]
        assert result["error"]["code"] == "internal"
        assert "secret" not in result["error"]["message"] + caplog.text
        assert "RuntimeError at broken" in caplog.text
        detector.finish = finish  # type: ignore[method-assign]
        assert server.post(("a.png", GOOD)).json()["results"][0]["detection"]


@pytest.mark.slow
def test_memory_is_flat_over_many_requests() -> None:
    with command("--workers", "2") as (process, port, _), httpx.Client(timeout=120) as client:
        url = f"http://127.0.0.1:{port}/v1/detect/bytes"
        files = [encoded(picture(i, 200, 150 + i), format) for i, format in enumerate(["PNG", "JPEG", "BMP"] * 3)]
        files.append(b"not an image" * 5000)

        def resident() -> float:
            assert process.pid is not None
            pids = [process.pid, *children(process.pid)]
            texts = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
            return sum(int(text.split("VmRSS:")[1].split()[0]) for text in texts) / 1024

        sizes = []
        for _ in range(4):
            for number in range(30):
                assert client.post(url, content=files[number % len(files)]).status_code == 200
            sizes.append(resident())
        assert sizes[-1] - sizes[1] < 10, sizes  # MiB, after the first two rounds have warmed up


def test_a_token_comes_from_a_file_or_the_environment_and_is_long_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CLIPMOLE_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("CLIPMOLE_TOKEN", "from-the-environment")
    assert read_token(None) == "from-the-environment"
    file = tmp_path / "token"
    file.write_text("from-the-file-of-mine\n")
    assert read_token(file) == "from-the-file-of-mine"
    for bad in ("short", "", "with a blank in the middle", "\N{LATIN SMALL LETTER U WITH DIAERESIS}" * 20):
        file.write_text(bad)
        with pytest.raises(ConfigError, match="16 ASCII characters"):
            read_token(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_image_bytes": 2**40}, "max_request_bytes"),
        ({"max_request_bytes": 2**40}, "max_buffered_bytes"),
        ({"max_images": 1000}, "max_queue"),
        ({"workers": 0}, "workers"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServeSettings.parse(changes, "options")


def test_the_decoder_imports_no_torch_and_no_web_framework() -> None:
    probe = (
        "import sys, clipmole.serve.decode_worker\nprint(sorted({'torch', 'fastapi', 'uvicorn'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-P", "-c", probe], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
