"""What hostile, broken, slow and too many clients can do to the server: nothing to the others."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from tiny import PREPROCESS, encoded, picture

pytest.importorskip("fastapi")
from serving import Running, running, tiny_detector, until

from clipmole.images.crops import most_crops
from clipmole.records import Detection
from clipmole.serve.decode_pool import Decoded
from clipmole.serve.middleware import allowed_hosts
from clipmole.serve.settings import ServeSettings

GOOD = encoded(picture(0))
EDGE = b"edge"
PART = b'--edge\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
FORM = {"Content-Type": "multipart/form-data; boundary=edge"}
TOKEN = "a-token-of-enough-characters"


def head(path: str, *fields: str) -> bytes:
    """The head of a POST."""
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: 127.0.0.1", *fields, "", ""]).encode()


def png(width: int, height: int, data: bytes) -> bytes:
    """A grey PNG whose pixel data are `data`."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def hostile() -> dict[str, tuple[bytes, str | None]]:
    """Name -> file and the code of its error; None: it is an image all the same, or may be taken for one."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../../evil.sh", "rm -rf /")
    animation = io.BytesIO()
    frames = [picture(i) for i in range(3)]
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:])
    jpeg = encoded(picture(1), "JPEG")
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1:1/x"/><script>alert(1)</script></svg>'
    bmp = struct.pack("<IHHIIiiHHIIIIII", 100, 0, 0, 54, 40, 30_000, 30_000, 1, 24, *[0] * 6)
    return {
        "empty": (b"", "unreadable"),
        "text": (b"not an image\n" * 50, "unreadable"),
        "svg": (svg, "unreadable"),
        "html": (b"<html><script>alert(1)</script></html>", "unreadable"),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "unreadable"),
        "zip": (archive.getvalue(), "unreadable"),
        "pickle": (b"\x80\x04\x95cposix\nsystem\n(S'id'\ntR.", "unreadable"),
        "url": (b"http://127.0.0.1:1/image.png", "unreadable"),
        "path": (b"/etc/passwd", "unreadable"),
        "bomb of a PNG": (png(60_000, 60_000, zlib.compress(b"\0" * 1_000_000)), "too_large"),
        "wide PNG": (png(2**31 - 1, 1, b""), "too_large"),
        "PNG whose data unpack to more": (png(32, 32, zlib.compress(b"\0" * 50_000_000)), None),
        "cut PNG": (GOOD[:-20], "unreadable"),
        "flipped PNG": (GOOD[:60] + bytes([GOOD[60] ^ 1]) + GOOD[61:], "unreadable"),
        "cut JPEG": (jpeg[: len(jpeg) // 2], "unreadable"),
        "JPEG of markers": (b"\xff\xd8\xff" + b"\xff\xe1\xff\xff" * 5000, "unreadable"),
        "JPEG and ZIP": (jpeg + archive.getvalue(), None),
        "JPEG and HTML": (jpeg + b"<script>alert(1)</script>", None),
        "GIF of JavaScript": (b"GIF89a=1;alert(1)//" + b"\0" * 50, "unreadable"),
        "animation": (animation.getvalue(), None),
        "TIFF that points at itself": (b"II*\0" + struct.pack("<IHHHIII", 8, 1, 256, 4, 1, 8, 8), "unreadable"),
        "BMP of a claimed size": (b"BM" + bmp, "too_large"),
        "RIFF of nothing": (b"RIFF\xff\xff\xff\xffWEBPVP8X" + b"\xff" * 40, "too_large"),
        "AVIF of nothing": (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1" + b"\0" * 60, "unreadable"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(max_image_bytes=200_000, max_request_bytes=1_000_000, max_buffered_bytes=3_000_000) as started:
        yield started


def alive(server: Running) -> None:
    """The server answers, rightly."""
    logit = server.post(("a.png", GOOD)).json()["results"][0]["detection"]["logit"]
    assert logit == pytest.approx(tiny_detector().detect(GOOD).logit, abs=1e-5)


def test_hostile_files_are_errors_of_their_own_and_cost_no_process(server: Running) -> None:
    assert server.service.pool is not None
    pids = sorted(server.service.pool.pids)
    for name, (data, code) in hostile().items():
        result = server.post((name, data), ("good.png", GOOD), provenance=True).json()["results"]
        if code is not None:
            assert result[0]["error"]["code"] == code, (name, result[0])
        assert result[1]["detection"], name
    assert sorted(server.service.pool.pids) == pids
    alive(server)


def test_no_file_is_opened_for_writing(tmp_path: Path) -> None:
    """An audit hook in the server's process sees every file that Python opens; the workers may not write at all."""
    probe = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from serving import running
from tiny import encoded, picture
written = []
def hook(event, arguments):
    if event == "open" and watching and isinstance(arguments[2], int):
        if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and arguments[0] != os.devnull:
            written.append(arguments[0])
watching = False
sys.addaudithook(hook)
with running() as server:
    watching = True
    big = encoded(picture(0, 1500, 1200), "BMP")
    assert len(big) > 5_000_000
    assert server.post(("a.bmp", big), ("b.bmp", big)).status_code == 200
    assert server.client.post("/v1/detect/bytes", content=big).status_code == 200
    limits = open(f"/proc/{{server.service.pool.pids[0]}}/limits").read()
    watching = False
print(written, [line.split()[3:5] for line in limits.splitlines() if line.startswith("Max file size")])
"""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-P", "-c", probe], capture_output=True, text=True, check=False, env=environment
    )
    assert result.stdout.strip() == "[] [['0', '0']]", result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_over_the_limit_are_refused_whatever_they_claim(server: Running, chunked: bool) -> None:
    body = PART + b"x" * 1_100_000 + b"\r\n--edge--\r\n"
    content = (body[i : i + 50_000] for i in range(0, len(body), 50_000)) if chunked else body
    response = server.client.post("/v1/detect", content=content, headers=FORM)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")
    raw = server.client.post("/v1/detect/bytes", content=b"x" * 200_001)
    assert (raw.status_code, raw.json()["error"]["code"]) == (413, "too_large")
    alive(server)


def test_one_image_over_its_limit_does_not_fail_the_others(server: Running) -> None:
    results = server.post(("big", b"x" * 250_000), ("good.png", GOOD)).json()["results"]
    assert results[0]["error"]["code"] == "too_large"
    assert "200,000" in results[0]["error"]["message"]
    assert results[1]["detection"]


def test_a_claimed_length_that_is_a_lie_is_found_before_anything_is_read(server: Running) -> None:
    answer = server.raw(head("/v1/detect/bytes", "Content-Length: 99999999999", "Expect: 100-continue"))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in answer
    short = server.raw(head("/v1/detect/bytes", "Content-Length: 10", "Connection: close") + GOOD)
    assert b'"unreadable"' in short  # the first ten bytes, and no more
    more = head("/v1/detect/bytes", "Content-Length: 10") + GOOD  # what follows the body is no request
    assert server.raw(more).count(b"HTTP/1.1 ") <= 2
    alive(server)


def test_more_images_than_a_request_may_have(server: Running) -> None:
    response = server.post(*[("a.png", GOOD)] * 33)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "too_many_images")
    tokens = server.post(*[("a.png", GOOD)] * 5, evidence="tokens")
    assert (tokens.status_code, tokens.json()["error"]["code"]) == (413, "too_many_images")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "bad_request"),
        (b"--edge--\r\n", "no_images"),
        (b"nonsense", "bad_request"),
        (PART + GOOD, "bad_request"),
        (PART + GOOD + b"\r\n--edge", "bad_request"),
        (b'--edge\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n--edge--\r\n', "bad_request"),
        (b'--edge\r\nContent-Disposition: form-data; name="url"\r\n\r\nhttp://x/\r\n--edge--\r\n', "bad_request"),
        (b"--edge\r\n\r\nx\r\n--edge--\r\n", "bad_request"),
        (b"--edge\r\n" + b"A: " + b"x" * 100_000 + b"\r\n\r\nx\r\n--edge--\r\n", "bad_request"),
        (b"--edge\r\n" + b"A: b\r\n" * 5000 + b"\r\nx\r\n--edge--\r\n", "bad_request"),
        (b"--edge\r\nContent-Disposition: \xff\xfe\0\r\n\r\nx\r\n--edge--\r\n", "bad_request"),
    ],
)
def test_broken_forms(server: Running, body: bytes, code: str) -> None:
    response = server.client.post("/v1/detect", content=body, headers=FORM)
    assert (response.status_code, response.json()["error"]["code"]) == (400, code)


@pytest.mark.parametrize("header", [b"X: " + b"a" * 30_000_000, b"a" * 30_000_000 + b": x", b"a: b\r\n" * 3_000_000])
def test_a_huge_header_of_a_part_is_refused_at_once(header: bytes) -> None:
    """python-multipart before 0.0.27 computes for a minute, and nobody else is answered meanwhile."""
    with running() as server:
        server.client.post("/v1/detect/bytes", content=GOOD)
        began = time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            body = b"--edge\r\n" + header + b"\r\n\r\nx\r\n--edge--\r\n"
            sent = pool.submit(server.client.post, "/v1/detect", content=body, headers=FORM)
            alive(server)
            assert (sent.result().status_code, sent.result().json()["error"]["code"]) == (400, "bad_request")
        assert time.monotonic() - began < 10


def test_what_is_no_http_gets_one_answer_and_is_closed(server: Running) -> None:
    of_tls = b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + b"\0" * 50 + b"\r\n\r\n"
    for data in (of_tls, b"GET\r\n\r\n", b"\0" * 70_000):
        answer = server.raw(data)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b'"bad_request"' in answer
    alive(server)


def test_clients_that_send_half_and_wait_are_let_go_while_others_are_served(server: Running) -> None:
    half = [
        b"",  # nothing at all
        b"POST /v1/detect HTTP/1.1\r\nHost: 127.0.0.1\r\n",  # half a head
        head("/v1/detect/bytes", f"Content-Length: {len(GOOD)}") + GOOD[:100],  # half a body
        head("/v1/detect", "Content-Type: multipart/form-data; boundary=edge", "Transfer-Encoding: chunked"),
    ]

    def hold(data: bytes) -> tuple[bytes, float]:
        began = time.monotonic()
        try:
            return server.raw(data), time.monotonic() - began
        except ConnectionResetError:
            return b"", time.monotonic() - began

    with ThreadPoolExecutor(16) as pool:
        held = [pool.submit(hold, data) for data in half * 4]
        began = time.monotonic()
        alive(server)
        assert time.monotonic() - began < 2
        answers = [future.result() for future in held]
    for data, (answer, seconds) in zip(half * 4, answers, strict=True):
        assert seconds < 5
        assert (b" 408 " in answer.split(b"\r\n")[0]) == data.endswith((GOOD[:100], b"chunked\r\n\r\n"))
    assert server.metric("clipmole_requests_in_flight") == 0
    assert server.metric("clipmole_held_bytes") == 0


def test_a_body_that_trickles_is_ended(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head("/v1/detect/bytes", "Content-Length: 1000"))
        began = time.monotonic()
        try:
            while time.monotonic() - began < 8:
                connection.sendall(b"x")
                time.sleep(0.1)
        except OSError:
            pass
    assert 2 < time.monotonic() - began < 6  # body_seconds is 3


def test_an_image_whose_client_left_is_given_up(server: Running) -> None:
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head("/v1/detect/bytes", f"Content-Length: {len(GOOD)}") + GOOD)
    until(lambda: server.metric("clipmole_requests_in_flight") == 0)
    assert server.metric("clipmole_queue_images") == 0
    alive(server)


def test_a_client_that_does_not_read_is_let_go() -> None:
    with running(write_seconds=0.5) as server:
        asked = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            connection.settimeout(5)
            began = time.monotonic()
            with contextlib.suppress(OSError):
                while time.monotonic() - began < 15:
                    connection.sendall(asked * 100)
        assert time.monotonic() - began < 10
        alive(server)


def test_parts_of_a_file_are_not_given(server: Running) -> None:
    ranges = "bytes=" + ",".join(f"{i}-" for i in range(2000))
    response = server.client.get("/static/app.js", headers={"Range": ranges})
    assert (response.status_code, "content-range" in response.headers) == (200, False)
    assert response.content == server.client.get("/static/app.js").content


def test_decoding_processes_are_not_told_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPMOLE_TOKEN", TOKEN)
    with running(workers=1) as server:
        assert server.service.pool is not None
        environment = Path(f"/proc/{server.service.pool.pids[0]}/environ").read_bytes()
        assert b"PATH=" in environment
        assert TOKEN.encode() not in environment


def test_what_waits_for_evidence_holds_its_crops_and_not_the_image() -> None:
    """One small file may be 64 million pixels; as many as the queue takes may wait for the network at one time."""
    large = encoded(Image.new("RGB", (4000, 3000)))
    count = most_crops(PREPROCESS)
    crops = 3 * count * PREPROCESS.crop_size**2
    seen: list[int] = []
    with running() as server:
        batcher = server.service.batcher
        assert batcher is not None
        detect = batcher.detect

        async def watched(name: str, image: Decoded) -> Detection:
            seen.append(
                sum(
                    part.nbytes
                    for each in (image, image.crops)
                    for part in vars(each).values()
                    if isinstance(part, np.ndarray)
                )
            )
            return await detect(name, image)

        batcher.detect = watched  # type: ignore[method-assign]
        results = server.post(("a.png", large), ("b.png", large), evidence="tokens").json()["results"]
    assert [len(result["evidence"]["tiles"]) for result in results] == [count, count]
    assert seen == [crops, crops]


def test_a_token_is_asked_for_where_images_are_taken() -> None:
    with running(token=TOKEN) as server:
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
            for method, path in (("POST", "/v1/detect"), ("GET", "/v1/detectors"), ("GET", "/metrics")):
                response = server.client.request(method, path, headers=given)
                assert (response.status_code, response.json()["error"]["code"]) == (401, "unauthorized")
                assert response.headers["www-authenticate"] == "Bearer"
        assert server.client.get("/healthz").status_code == 200
        assert server.client.get("/readyz").status_code == 200
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert server.client.post("/v1/detect/bytes", content=GOOD, headers=right).json()["result"]["detection"]
        schema = server.client.get("/openapi.json").json()
        assert schema["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"


def test_names_of_other_hosts_and_pages_of_other_sites_are_refused(server: Running) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example:80", "localhost.evil.example"):
        response = server.client.get("/v1/detectors", headers={"Host": host})
        assert (response.status_code, response.json()["error"]["code"]) == (421, "wrong_host")
        assert server.client.get("/readyz", headers={"Host": host}).status_code == 200
    for host in ("localhost", f"127.0.0.1:{server.port}", "LOCALHOST:1", "[::1]:8000"):
        assert server.client.get("/v1/detectors", headers={"Host": host}).status_code == 200
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[::1"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        response = server.client.post("/v1/detect/bytes", content=GOOD, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "cross_origin")
    own = {"Origin": f"http://127.0.0.1:{server.port}", "Sec-Fetch-Site": "same-origin"}
    assert server.client.post("/v1/detect/bytes", content=GOOD, headers=own).status_code == 200


def test_which_hosts_are_answered_to() -> None:
    assert "localhost" in allowed_hosts("127.0.0.1", ())
    assert "localhost" in allowed_hosts("::1", ())
    assert allowed_hosts("0.0.0.0", ()) == ()
    assert allowed_hosts("127.0.0.1", ("detect.example",)) == ("detect.example",)


class Stopped:
    """The decoding processes, stopped in the middle of whatever they do."""

    def __init__(self, server: Running) -> None:
        assert server.service.pool is not None
        self.pids = list(server.service.pool.pids)

    def signal(self, number: int) -> None:
        for pid in self.pids:
            os.kill(pid, number)

    def __enter__(self) -> Stopped:
        self.signal(signal.SIGSTOP)
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.pids:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                continue


def test_a_full_queue_says_when_to_come_back_and_loses_nothing() -> None:
    with running(max_queue=4, max_images=4) as server, ThreadPoolExecutor(4) as pool:
        with Stopped(server):
            accepted = [pool.submit(server.post, ("a.png", GOOD), ("b.png", GOOD)) for _ in range(2)]
            until(lambda: server.service.pending == 4)
            refused = server.post(("c.png", GOOD))
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "busy")
            assert 1 <= int(refused.headers["retry-after"]) <= 60
        for future in accepted:
            assert [bool(result["detection"]) for result in future.result().json()["results"]] == [True, True]
        until(lambda: server.service.pending == 0)
        alive(server)


def test_requests_and_bytes_at_one_time_are_bounded() -> None:
    limits = {"max_image_bytes": 10**6, "max_request_bytes": 10**6, "max_buffered_bytes": 10**6}
    with running(max_requests=2, chunk_seconds=10.0, body_seconds=20.0, **limits) as server:
        begun = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2)]
        begun[0].sendall(head("/v1/detect/bytes", "Content-Length: 900000") + b"x" * 800_000)
        until(lambda: server.service.memory.held == 800_000)
        full = server.client.post("/v1/detect/bytes", content=b"x" * 300_000)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "busy")
        assert full.headers["retry-after"]
        begun[1].sendall(head("/v1/detect/bytes", "Content-Length: 10"))
        until(lambda: server.service.requests == 2)
        busy = server.client.post("/v1/detect/bytes", content=GOOD)
        assert (busy.status_code, busy.json()["error"]["code"]) == (429, "busy")
        for connection in begun:
            connection.close()
        until(lambda: server.service.requests == 0 and server.service.memory.held == 0)
        alive(server)


def test_connections_at_one_time_are_bounded() -> None:
    with running(max_connections=5) as server:
        held = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(10)]
        until(lambda: sum(_closed(connection) for connection in held) >= 5)
        for connection in held:
            connection.close()
        time.sleep(0.1)
        alive(server)


def _closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_a_decoder_that_died_while_idle_costs_no_image() -> None:
    expected = pytest.approx(tiny_detector().detect(GOOD).logit, abs=1e-5)
    with running(workers=2) as server:
        assert server.service.pool is not None
        for pid in server.service.pool.pids:  # both, so that whichever comes next is a dead one
            os.kill(pid, signal.SIGKILL)
        for _ in range(3):
            assert server.post(("good.png", GOOD)).json()["results"][0]["detection"]["logit"] == expected
        until(lambda: server.metric('clipmole_worker_restarts_total{reason="crashed"}') == 2)
        with Stopped(server) as processes, ThreadPoolExecutor(1) as pool:  # or while it was handed the image
            sent = pool.submit(server.post, ("a.png", GOOD), ("b.png", GOOD))
            until(lambda: server.service.decoding == 2)
            processes.signal(signal.SIGKILL)
            assert [each["detection"]["logit"] for each in sent.result().json()["results"]] == [expected] * 2


def test_a_decoder_that_does_not_end_is_killed_and_replaced() -> None:
    with running(decode_seconds=1.0) as server:
        assert server.service.pool is not None
        with Stopped(server) as processes:
            result = server.post(("slow.png", GOOD)).json()["results"][0]
        assert result["error"]["code"] == "decoder_timeout"
        assert server.metric('clipmole_worker_restarts_total{reason="timeout"}') == 1
        until(lambda: len(server.service.pool.pids) == 2)
        assert len(set(server.service.pool.pids) - set(processes.pids)) == 1
        alive(server)


def test_an_image_that_needs_more_memory_than_a_decoder_may_take() -> None:
    with running(memory_bytes=700 * 2**20, max_pixels=200_000_000) as server:
        bomb = io.BytesIO()
        Image.new("L", (14_000, 14_000)).save(bomb, "PNG")
        results = server.post(("bomb.png", bomb.getvalue()), ("good.png", GOOD)).json()["results"]
        assert results[0]["error"]["code"] in ("too_large", "decoder_crashed")
        assert results[1]["detection"]


def test_processor_time_of_one_image_is_bounded() -> None:
    probe = "from clipmole.serve.decode_worker import allow_time\nallow_time(0)\nwhile True: pass"
    began = time.monotonic()
    result = subprocess.run([sys.executable, "-P", "-c", probe], check=False, timeout=60)
    assert result.returncode == -signal.SIGXCPU
    assert time.monotonic() - began < 30


def test_decoding_processes_are_light_and_confined(server: Running) -> None:
    assert server.service.pool is not None
    settings = ServeSettings()
    assert settings.worker_memory == 512 * 2**20 + 2 * 40 * 2**20 + 20 * 64_000_000
    for pid in server.service.pool.pids:
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert "libtorch" not in maps
        rows = Path(f"/proc/{pid}/limits").read_text().splitlines()
        limits = {row[:26].strip(): row[26:].split()[0] for row in rows[1:]}
        assert int(limits["Max address space"]) == server.service.settings.worker_memory
        assert limits["Max file size"] == "0"
        assert limits["Max core file size"] == "0"


def test_many_bad_clients_at_once_do_not_disturb_the_good_ones(server: Running) -> None:
    stop = threading.Event()
    files = list(hostile().values())

    def annoy(number: int) -> None:
        while not stop.is_set():
            number += 1
            data = files[number % len(files)][0]
            try:
                with socket.create_connection(("127.0.0.1", server.port), timeout=2) as connection:
                    body = head("/v1/detect/bytes", f"Content-Length: {len(data) + number % 3}") + data
                    connection.sendall(body[: max(1, len(body) - number % 7)])
                    if number % 2:
                        connection.recv(100)
            except OSError:
                pass

    with ThreadPoolExecutor(4) as pool:
        for number in range(4):
            pool.submit(annoy, number * 11)
        expected = tiny_detector().detect(GOOD).logit
        try:
            for _ in range(40):
                answer = httpx.post(f"http://127.0.0.1:{server.port}/v1/detect/bytes", content=GOOD, timeout=20)
                assert answer.json()["result"]["detection"]["logit"] == pytest.approx(expected, abs=1e-5)
        finally:
            stop.set()
    until(lambda: server.metric("clipmole_requests_in_flight") == 0)
    assert server.service.memory.held == server.service.pending == 0
