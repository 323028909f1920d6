"""The HTTP API over a socket: what is asked and answered, and that it is what Detector says."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from PIL.PngImagePlugin import PngInfo
from signing import CREATED, Signer
from tiny import CALIBRATION, PREPROCESS, encoded, picture

pytest.importorskip("fastapi")
from serving import Running, graph_detector, running, tiny_detector, until

from clipmole.images.crops import most_crops
from clipmole.inference.explain import explain
from clipmole.provenance.trust_list import read_trust_list
from clipmole.serve.errors import IMAGE_CODES, STATUS
from clipmole.serve.schemas import BytesAnswer, DetectAnswer

FILES = {f"image-{i}.png": encoded(picture(i, 40 + 16 * i, 40 + 8 * i)) for i in range(6)}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as started:
        yield started


def test_an_image_has_the_logit_that_the_detector_gives_it(server: Running, tmp_path: Path) -> None:
    detector = tiny_detector()
    for name, data in FILES.items():
        path = tmp_path / name
        path.write_bytes(data)
        own = detector.detect(path)
        sent = server.client.post("/v1/detect/bytes", content=data).json()
        detection = sent["result"]["detection"]
        assert detection["logit"] == own.logit  # alone in its batch: to the last bit
        assert detection | {"source": str(path)} == json.loads(own.model_dump_json())
        form = server.post((name, data)).json()["results"][0]
        assert form["detection"] == detection | {"source": name}
        assert form["name"] == name
        assert form["sha256"] == sent["result"]["sha256"] == hashlib.sha256(data).hexdigest()
        assert sent["detector"] == "tiny"


def test_many_images_come_back_in_order_each_with_its_own_answer(server: Running) -> None:
    names = [*FILES, "notes.txt", "image-2.png"]
    sent = [(name, FILES.get(name, b"hello")) for name in names]
    response = server.post(*sent)
    assert response.status_code == 200
    results = response.json()["results"]
    assert [result["name"] for result in results] == names
    expected = tiny_detector().score([FILES[name] for name in names if name in FILES])
    got = [result["detection"]["logit"] for result in results if result["detection"]]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    failed = results[names.index("notes.txt")]
    assert failed["error"]["code"] == "unreadable"
    assert failed["error"]["message"].startswith("not an image format clipmole reads")
    assert failed["sha256"] is failed["detection"] is failed["evidence"] is failed["provenance"] is None
    DetectAnswer.model_validate_json(response.text)


def test_requests_of_several_clients_go_through_the_network_together(server: Running) -> None:
    batches, crops = server.metric("clipmole_batch_crops_count"), server.metric("clipmole_batch_crops_sum")
    expected = dict(zip(FILES, tiny_detector().score(FILES.values()), strict=True))

    def ask(number: int) -> None:
        name = list(FILES)[number % len(FILES)]
        headers = {"X-Request-ID": f"ask-{number}"}
        url = f"http://127.0.0.1:{server.port}/v1/detect"
        answer = httpx.post(url, files={"images": (name, FILES[name])}, headers=headers, timeout=30)
        assert answer.json()["request_id"] == answer.headers["x-request-id"] == f"ask-{number}"
        result = answer.json()["results"][0]
        assert result["name"] == name
        assert result["detection"]["logit"] == pytest.approx(expected[name], abs=1e-5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(48)))
    took = server.metric("clipmole_batch_crops_count") - batches
    assert took < 48  # not one by one
    assert server.metric("clipmole_batch_crops_sum") - crops == sum(
        tiny_detector().detect(FILES[list(FILES)[i % 6]]).tiles for i in range(48)
    )


def test_evidence_is_what_explain_says(server: Running) -> None:
    data = FILES["image-5.png"]
    by_tile = server.post(("a.png", data), evidence="tiles").json()["results"][0]
    own = explain(tiny_detector(), data)
    assert by_tile["evidence"] == json.loads(own.model_copy(update={"source": "a.png"}).model_dump_json())
    assert by_tile["detection"]["tile_logits"] == [tile["logit"] for tile in by_tile["evidence"]["tiles"]]
    by_token = server.post(("a.png", data), evidence="tokens").json()["results"][0]["evidence"]
    deep = explain(tiny_detector(), data, tokens=True)
    np.testing.assert_allclose(by_token["tiles"][0]["attribution"], deep.tiles[0].attribution, atol=1e-5)
    assert by_token["tiles"][0]["routing"][0]["block"] == deep.tiles[0].routing[0].block
    plain = server.post(("a.png", data)).json()["results"][0]
    assert plain["evidence"] is plain["detection"]["tile_logits"] is None


def test_a_graph_has_evidence_by_tile_alone_and_says_so() -> None:
    data = FILES["image-5.png"]
    with running(graph_detector) as server:
        (described,) = server.client.get("/v1/detectors").json()["detectors"]
        assert described["evidence"] == ["none", "tiles"]
        assert described["backbone"] == "an exported graph"
        for response in (
            server.post(("a.png", data), evidence="tokens"),
            server.client.post("/v1/detect/bytes", content=data, params={"evidence": "tokens"}),
        ):
            assert response.status_code == STATUS["evidence_unavailable"] == 422
            assert response.json()["error"]["code"] == "evidence_unavailable"
            assert "evidence=tiles" in response.json()["error"]["message"]
        by_tile = server.post(("a.png", data), evidence="tiles").json()["results"][0]["evidence"]
        own = explain(graph_detector(), data)
        assert by_tile == json.loads(own.model_copy(update={"source": "a.png"}).model_dump_json())
        assert by_tile["logit"] == tiny_detector().detect(data).logit
        assert server.service.pending == server.service.memory.held == 0


def test_a_region_is_looked_at_alone(server: Running) -> None:
    data = encoded(picture(3, 160, 120))
    expected = tiny_detector().detect(data, tiles=True, region=(40, 30, 120, 90))
    for evidence in ("tiles", "tokens"):
        query = {"region": "40,30,80,60", "evidence": evidence}
        result = server.client.post("/v1/detect/bytes", content=data, params=query).json()["result"]
        assert result["region"] == [40, 30, 120, 90]
        assert result["detection"]["logit"] == pytest.approx(expected.logit, abs=1e-5)
        assert [tuple(tile["box"]) for tile in result["evidence"]["tiles"]] == list(expected.tile_boxes or ())
    first, second = server.post(
        ("a.png", data), ("small.png", encoded(picture(1, 50, 50))), region="40,30,80,60"
    ).json()["results"]
    assert first["detection"]["logit"] == pytest.approx(expected.logit, abs=1e-5)
    assert second["error"]["code"] == "unreadable"
    assert "does not lie in the image of 50 x 50" in second["error"]["message"]
    for wrong in ("1,2,3", "a,b,c,d", "-1,0,5,5", "0,0,0,5", "1.5,0,5,5"):
        refused = server.client.post("/v1/detect/bytes", content=data, params={"region": wrong})
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_query"), wrong


def test_provenance_is_apart_from_the_score(server: Running) -> None:
    text = PngInfo()
    text.add_text("parameters", "a castle\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 48x40, Model: x")
    buffer = io.BytesIO()
    picture(1).save(buffer, "PNG", pnginfo=text)
    tagged = server.post(("a.png", buffer.getvalue()), provenance=True).json()["results"][0]
    assert {finding["kind"] for finding in tagged["provenance"]["findings"]} >= {"generator"}
    assert tagged["provenance"]["source"] == "a.png"
    plain = server.post(("a.png", encoded(picture(1))), provenance=True).json()["results"][0]
    assert plain["provenance"]["findings"] == []
    assert plain["detection"]["logit"] == tagged["detection"]["logit"]


def test_signers_are_judged_by_the_list_that_the_server_was_given(tmp_path: Path) -> None:
    signer, others = Signer(), Signer().authority * 300  # longer than one argument of a command may be
    data = signer(encoded(picture(1), "JPEG"), [CREATED])
    status = []
    for text in (None, signer.authority + others, others):
        path = tmp_path / "list.pem"
        path.write_text(text or "")
        with running(trust_list=read_trust_list(path) if text else None, workers=1) as server:
            (result,) = server.post(("a.jpg", data), provenance=True).json()["results"]
            status.append(result["provenance"]["credentials"]["status"])
    assert status == ["valid, trust not checked", "trusted", "valid, signer not on the list"]


def test_detectors_says_what_runs_and_what_it_takes(server: Running) -> None:
    (detector,) = server.client.get("/v1/detectors").json()["detectors"]
    assert detector["name"] == detector["detector"] == "tiny"
    assert detector["calibration"]["thresholds"] == {"real": 0.3, "ai": 0.7}
    assert detector["calibration"]["max_false_alarm"] == CALIBRATION.max_false_alarm
    assert (detector["calibration"]["real"], detector["calibration"]["generated"]) == (50, 50)
    assert detector["evidence"] == ["none", "tiles", "tokens"]
    assert detector["crop_size"] == 32
    assert detector["max_tiles"] == most_crops(PREPROCESS)
    assert detector["calibration"]["false_alarms"] == detector["calibration"]["often_wrong"] == []
    assert detector["limits"]["max_images"] == 32
    assert ".png" in detector["limits"]["extensions"]
    assert len(detector["limitations"]) >= 3


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/detect", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/detect", 405, "method_not_allowed"),  # no CORS: other origins may not ask
        ("GET", "/docs", 404, "not_found"),
        ("GET", "/healthz/", 404, "not_found"),
        ("GET", "/redoc", 404, "not_found"),
        ("GET", "/static/..%2f..%2fapp.py", 404, "not_found"),
        ("POST", "/v1/detect?evidence=all", 422, "invalid_query"),
        ("POST", "/v1/detect/bytes?provenance=perhaps", 422, "invalid_query"),
        ("POST", "/v1/detect", 415, "unsupported_media_type"),
        ("POST", "/v1/detect/bytes", 400, "no_images"),
    ],
)
def test_refusals_have_one_form(server: Running, method: str, path: str, status: int, code: str) -> None:
    response = server.client.request(method, path)
    assert response.status_code == status == STATUS[code]
    body = response.json()
    assert body["error"]["code"] == code
    assert "\n" not in body["error"]["message"]
    assert body["request_id"] == response.headers["x-request-id"]
    assert set(body) == {"error", "request_id"}


def test_head_gives_the_headers_of_get_and_no_body(server: Running) -> None:
    for path in (
        "/",
        "/healthz",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/v1/detectors",
        "/static/app.js",
        "/nothing",
    ):
        got, head = server.client.get(path), server.client.head(path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        assert head.headers["content-type"] == got.headers["content-type"]
        if path != "/metrics":  # which counts these very requests
            assert head.headers["content-length"] == str(len(got.content)), path
    assert server.client.get("/healthz").json() == {"status": "ok"}  # the connection is still in step
    assert server.client.head("/v1/detect").status_code == 405


@pytest.mark.parametrize("path", ["/v1/detect", "/v1/detect/bytes"])
@pytest.mark.parametrize("encoding", ["gzip", "br", "Deflate, gzip"])
def test_a_compressed_body_is_refused_as_one(server: Running, path: str, encoding: str) -> None:
    body = gzip.compress(next(iter(FILES.values())))
    headers = {"Content-Encoding": encoding, "Content-Type": "image/png"}
    response = server.client.post(path, content=body, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert "compressed (Content-Encoding)" in response.json()["error"]["message"]
    plain = server.client.post(
        "/v1/detect/bytes", content=FILES["image-1.png"], headers={"Content-Encoding": "identity"}
    )
    assert plain.json()["result"]["detection"]


def test_every_answer_carries_the_security_headers(server: Running) -> None:
    for path in ("/healthz", "/v1/detectors", "/nothing", "/metrics", "/openapi.json"):
        headers = server.client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers


def test_request_ids_are_the_clients_if_they_are_harmless(server: Running) -> None:
    for sent in ("abc-1.2_X", "a" * 64):
        assert server.client.get("/healthz", headers={"X-Request-ID": sent}).headers["x-request-id"] == sent
    for sent in ("a b", "a" * 65, "<script>", ""):
        answered = server.client.get("/healthz", headers={"X-Request-ID": sent}).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{16}", answered)


def test_names_come_back_printable_and_short_and_mean_nothing(server: Running) -> None:
    data = FILES["image-0.png"]
    names = ["../../etc/passwd", "/etc/shadow", "C:\\x\\y.png", "bild ä 漢字.png", "x" * 400, "a\u202egnp.exe"]
    got = [result["name"] for result in server.post(*[(name, data) for name in names]).json()["results"]]
    assert got[0] == "../../etc/passwd"
    assert got[3] == "bild ä 漢字.png"
    assert got[4] == "x" * 255
    assert got[5] == "a\ufffdgnp.exe"
    assert all(name.isprintable() for name in got)


def test_files_without_a_name_are_numbered(server: Running) -> None:
    edge = "edge"
    part = b'--edge\r\nContent-Disposition: form-data; name="images"\r\n\r\n' + FILES["image-0.png"] + b"\r\n"
    headers = {"Content-Type": f"multipart/form-data; boundary={edge}"}
    answer = server.client.post("/v1/detect", content=part * 2 + b"--edge--\r\n", headers=headers)
    assert [result["name"] for result in answer.json()["results"]] == ["image-1", "image-2"]


def test_the_log_has_codes_and_times_and_nothing_of_an_image(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        server.post(("holiday-secret.png", FILES["image-0.png"]), ("other-secret.txt", b"secret words"))
        server.client.get("/secret-path?secret=1")
        deadline = time.monotonic() + 20  # the line is written once the answer has gone out
        while "GET other 404" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
    text = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("http"))
    assert "POST /v1/detect 200" in text
    assert "GET other 404 not_found" in text
    assert "secret" not in text
    assert "127.0.0.1" not in text


def test_metrics_count_verdicts_errors_and_requests(server: Running) -> None:
    before = {
        name: server.metric(name)
        for name in (
            'clipmole_images_total{outcome="unreadable"}',
            'clipmole_requests_total{code="-",route="/v1/detect",status="200"}',
        )
    }
    verdicts = [f'clipmole_images_total{{outcome="{verdict}"}}' for verdict in ("real", "uncertain", "ai_generated")]
    scored = sum(map(server.metric, verdicts))
    server.post(("a", FILES["image-0.png"]), ("b", FILES["image-1.png"]), ("c", b"none"))
    for name, value in before.items():
        assert server.metric(name) == value + 1
    assert sum(map(server.metric, verdicts)) == scored + 2
    assert server.metric("clipmole_ready") == 1
    until(lambda: server.metric("clipmole_queue_images") == 0)
    assert server.metric("clipmole_held_bytes") == 0
    assert server.metric("clipmole_requests_in_flight") == 0
    assert server.metric("process_resident_memory_bytes") > 1e6


def test_openapi_describes_what_is_answered(server: Running) -> None:
    schema = server.client.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        "/v1/detect", "/v1/detect/bytes", "/v1/detectors", "/healthz", "/readyz", "/metrics",
    }  # fmt: skip
    schemas = schema["components"]["schemas"]
    DetectAnswer.model_validate(schemas["DetectAnswer"]["examples"][0])
    BytesAnswer.model_validate(schemas["BytesAnswer"]["examples"][0])
    assert schemas["RequestErrorDetail"]["properties"]["code"]["enum"] == list(STATUS)
    assert schemas["ImageErrorDetail"]["properties"]["code"]["enum"] == list(IMAGE_CODES)
    assert "HTTPValidationError" not in schemas
    for path in schema["paths"].values():
        for operation in path.values():
            assert operation["summary"]
            assert operation["operationId"]


def test_schemathesis_finds_no_answer_that_the_description_does_not_have() -> None:
    schemathesis = pytest.importorskip("schemathesis")
    tried = []
    with running(max_images=8, max_token_images=8) as server:
        schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
        for operation in schema.get_all_operations():
            case_of = operation.ok().as_strategy()

            @settings(max_examples=12, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
            @given(case=case_of)
            def probe(case: Any) -> None:
                case.call_and_validate()
                tried.append(case)

            probe()
        assert server.client.get("/readyz").status_code == 200
    assert len(tried) >= 20
