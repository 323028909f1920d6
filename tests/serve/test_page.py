"""The page in a real browser, against the real server on a real socket."""

from __future__ import annotations

import asyncio
import base64
import csv
import hashlib
import html
import io
import json
import math
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs clipmole[serve]")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'clipmole[test]'")
axe_module = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")

import uvicorn  # noqa: E402
from serving import graph_detector  # noqa: E402
from tiny import CALIBRATION, PREPROCESS, encoded, picture, tiny_network  # noqa: E402

from clipmole.config import Families, MoLEConfig  # noqa: E402
from clipmole.inference.detector import Detector  # noqa: E402
from clipmole.inference.explain import explain  # noqa: E402
from clipmole.serve.app import create_app  # noqa: E402
from clipmole.serve.connection import protocol_class  # noqa: E402
from clipmole.serve.server import bind  # noqa: E402
from clipmole.serve.service import Service  # noqa: E402
from clipmole.serve.settings import ServeSettings  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on the PATH, such as Debian's")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TOKEN = "a token of the test"
EVIL = "=1+<img src=x onerror=alert(1)>\u202e.png"
expect = playwright.expect
expect.set_options(timeout=30_000)  # says how busy the machine may be, not how fast the page is


class Serving:
    """A server in a thread of its own, as `server.serve` sets it up, which can be stopped and started again."""

    def __init__(self, detector: Detector, token: str | None = None, port: int = 0, **limits: Any) -> None:
        self.settings = ServeSettings(workers=1, **limits)
        self.service = Service(self.settings, lambda: detector)
        self.app = create_app(self.service, token=token)
        self.socket = bind("127.0.0.1", port)
        self.port = self.socket.getsockname()[1]
        config = uvicorn.Config(
            self.app, http=protocol_class(self.settings), lifespan="off", log_config=None, access_log=False
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.thread.start()

    async def _run(self) -> None:
        await self.service.start()
        try:
            await self.server.serve(sockets=[self.socket])
        finally:
            await self.service.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        self.socket.close()


def tiny(calibrated: bool = True) -> Detector:
    return Detector(tiny_network(), PREPROCESS, CALIBRATION if calibrated else None, "tiny@0123456789ab")


@pytest.fixture(scope="module")
def detector() -> Detector:
    return tiny()


@pytest.fixture(scope="module")
def server(detector: Detector) -> Iterator[Serving]:
    serving = Serving(detector, max_image_bytes=100_000)
    yield serving
    serving.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any, server: Serving) -> Iterator[Callable[..., Any]]:
    """Opens the page. Afterwards: nothing was asked of anybody else, and nothing was refused or thrown."""
    contexts, asked, said = [], [], []

    def open_page(url: str = server.url, width: int = 1000, **options: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda message: said.append(message.text))
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [url for url in asked if not url.startswith(("http://127.0.0.1:", "blob:http://127.0.0.1:", "data:"))] == []
    # Chromium reports every answer of 400 and more, and every refused connection; all else is a mistake of the page.
    assert [text for text in said if not text.startswith("Failed to load resource")] == []


def file(name: str, data: bytes) -> dict[str, Any]:
    return {"name": name, "mimeType": "application/octet-stream", "buffer": data}


def choose(page: Any, *files: dict[str, Any]) -> None:
    page.set_input_files("#files", list(files))


def done(page: Any) -> None:
    expect(page.locator("#tally")).not_to_contain_text("to go")


def saved(page: Any, button: Any) -> bytes:
    with page.expect_download() as download:
        button.click()
    return Path(download.value.path()).read_bytes()


def in_page(page: Any, module: str, expression: str) -> Any:
    """The value of an expression of what a module of the page exports."""
    return page.evaluate(f"import('/static/{module}').then((m) => {expression})")


def serious(page: Any) -> list[str]:
    """What axe finds serious or critical."""
    found = axe_module.Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in ("serious", "critical")]


class Tags(HTMLParser):
    """The elements of a document."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_the_map_says_what_the_view_of_the_whole_says(visit: Callable[..., Any]) -> None:
    preprocess = PREPROCESS.model_copy(update={"whole_weight": 0.5})
    looks = Detector(tiny_network(), preprocess, CALIBRATION, "tiny@0123456789ab")
    said = looks.detect(EXAMPLES / "astronaut.png", tiles=True)
    assert said.whole_logit is not None
    assert CALIBRATION.probability(said.whole_logit) < 0.01
    for detector, words in (
        (looks, "made small. It alone would be under 1 % AI."),
        (tiny(), "outside counts for nothing"),
    ):
        serving = Serving(detector)
        try:
            page = visit(serving.url)
            page.set_input_files("#files", EXAMPLES / "astronaut.png")
            expect(page.locator("article.card figcaption").first).to_contain_text(words)
        finally:
            serving.stop()


def test_one_image_of_the_embedded_detector(visit: Callable[..., Any]) -> None:
    detector = Detector.from_pretrained("embedded")
    said = detector.detect(EXAMPLES / "astronaut.png", tiles=True)
    assert said.probability is not None
    serving = Serving(detector)
    try:
        page = visit(serving.url)
        page.set_input_files("#files", EXAMPLES / "astronaut.png")
        card = page.locator("article.card")
        expect(card.locator(".verdict")).to_contain_text("Uncertain")
        share = f"{100 * said.probability:.0f}"
        expect(card.locator(".percent")).to_have_text(f"{share} % AI")
        expect(card.locator(".meaning")).to_have_text(
            f"Of 100 images scored like this, about {share} were AI-generated, on the calibration data: "
            "637 photographs and 290 generated images."
        )
        expect(page.locator("#live")).to_have_text(f"astronaut.png: uncertain, {share} % AI")
        expect(page.locator("#about li")).to_have_count(5)
        card.get_by_text("For experts").click()
        scores = card.locator(".map tbody tr td:last-child").all_text_contents()
        assert [float(text.replace("\u2212", "-")) for text in scores] == pytest.approx(said.tile_logits, abs=0.0051)
        page.get_by_label("Patches").check()
        first = card.locator(".map tbody tr:first-child td")
        expect(first).to_have_count(4)
        evidence = explain(detector, EXAMPLES / "astronaut.png", tokens=True)
        values = np.array([tile.attribution for tile in evidence.tiles])  # (crops, rows, columns)
        crop, row, column = np.unravel_index(np.abs(values).argmax(), values.shape)
        expect(card.locator(".map tbody tr:first-child th")).to_have_text(f"Crop {crop + 1}")
        shown = [text.replace("\u2212", "-") for text in first.all_text_contents()]
        assert shown[:2] == [str(row + 1), str(column + 1)]
        assert float(shown[3]) == pytest.approx(values[crop, row, column], abs=0.00051)
        report = json.loads(saved(page, page.get_by_role("button", name="Save JSON")))
        assert len(report["evidence"]["tiles"][0]["attribution"]) == values.shape[1]
        assert report["detection"]["logit"] == pytest.approx(said.logit, abs=1e-4)
        assert report["sha256"] == hashlib.sha256((EXAMPLES / "astronaut.png").read_bytes()).hexdigest()
        assert report["file"] == "astronaut.png"
    finally:
        serving.stop()


def test_several_images_good_and_bad(visit: Callable[..., Any], detector: Detector) -> None:
    page = visit()
    good = {f"{i}.png": encoded(picture(i)) for i in range(3)}
    good[EVIL] = encoded(picture(7))
    tiff = encoded(picture(8), "TIFF")
    logits = {name: detector.detect(data).logit for name, data in (good | {"scan.tiff": tiff}).items()}
    files = [file(name, data) for name, data in good.items()]
    choose(page, *files, file("scan.tiff", tiff), file("cut.png", good["0.png"][:99]), file("big.png", bytes(100_001)))
    done(page)
    rows = page.locator("#table tbody tr")
    expect(rows).to_have_count(7)
    expect(page.locator("#tally")).to_contain_text("2 not scored")
    expect(rows.nth(5)).to_contain_text("not readable as an image")
    expect(rows.nth(6)).to_contain_text("too large")
    assert page.locator("main img[src=x]").count() == 0  # a name stays text

    head = page.locator("th[data-sort=probability]")
    for direction, reverse in (("ascending", False), ("descending", True)):
        head.get_by_role("button").click()
        expect(head).to_have_attribute("aria-sort", direction)
        order = sorted(logits, key=logits.__getitem__, reverse=reverse)
        names = [text.replace("\ufffd", "\u202e") for text in rows.locator("th").all_text_contents()]
        assert names == [*order, "cut.png", "big.png"]

    table = saved(page, page.get_by_role("button", name="Save CSV")).decode("utf-8-sig")
    read = list(csv.DictReader(io.StringIO(table)))
    assert {row["file"] for row in read} == {f"'{EVIL}", *(set(logits) - {EVIL}), "cut.png", "big.png"}
    by_name = {row["file"].removeprefix("'"): row for row in read}
    for name, logit in logits.items():
        assert float(by_name[name]["logit"]) == pytest.approx(logit, abs=1e-4)
        probability = 1 / (1 + math.exp(-(CALIBRATION.slope * logit + CALIBRATION.intercept)))
        assert float(by_name[name]["probability"]) == pytest.approx(probability, abs=1e-4)
    assert by_name["cut.png"]["error"] == "unreadable"
    assert by_name["big.png"]["error"] == "too_large"
    parsed = json.loads(saved(page, page.get_by_role("button", name="JSON", exact=True)))
    assert {one["file"] for one in parsed} == {*logits, "cut.png", "big.png"}
    tags = Tags(saved(page, page.get_by_role("button", name="Report", exact=True)).decode())
    assert len(tags.all("article")) == 7
    assert len(tags.all("figure")) == 5  # a map each, of those that have a score
    assert tags.all("img") == []

    rows.get_by_role("button", name="scan.tiff").click()
    expect(page.locator(".card h2")).to_be_focused()
    expect(page.get_by_text("This browser cannot draw the file")).to_be_visible()
    rows.get_by_role("button", name="cut.png").click()
    expect(page.locator("article.card")).to_contain_text("truncated")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#list")).to_be_hidden()
    expect(page.locator("article.card")).to_have_count(0)


def test_a_report_stands_alone_and_has_the_image_only_if_asked(visit: Callable[..., Any], tmp_path: Path) -> None:
    page = visit()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    choose(page, file(EVIL, encoded(Image.fromarray(pixels))))
    button = page.get_by_role("button", name="Save report")
    grey = np.asarray(Image.fromarray(pixels).convert("L"), dtype=float)
    for wanted in (False, True):
        page.get_by_label("with the image in the report").set_checked(wanted)
        text = saved(page, button).decode()
        tags = Tags(text)
        assert [attributes.get("class") for attributes in tags.all("div")].count("cell") == 4  # crops of 32 x 32
        # The map, and the strip of the four crops.
        assert len(tags.all("img")) == text.count("data:image") == 5 * int(wanted)
        assert "blob:" not in text
        for image in tags.all("img")[:1]:
            head, _, data = str(image["src"]).partition(",")
            assert head == "data:image/png;base64"
            shown = Image.open(io.BytesIO(base64.b64decode(data))).convert("L")
            np.testing.assert_allclose(np.asarray(shown, dtype=float), grey)
        for tag in ("script", "link", "button", "input", "canvas"):
            assert tags.all(tag) == []
        assert not any(name.startswith("on") for _, attributes in tags.found for name in attributes)
        assert "&lt;img src=x onerror=alert(1)&gt;" in text
    (tmp_path / "report.html").write_text(text)
    report = page.context.new_page()
    refused: list[str] = []
    report.on("console", lambda message: refused.append(message.text))
    report.goto((tmp_path / "report.html").as_uri())
    expect(report.locator(".verdict")).to_be_visible()
    expect(report.get_by_text("SHA-256 of the file")).to_be_visible()
    assert report.evaluate("getComputedStyle(document.querySelector('.verdict')).display") == "flex"
    assert report.evaluate("document.querySelector('.view img').naturalWidth") == 64
    box = report.locator(".view .cell").first.bounding_box()
    assert box["width"] > 100  # cells lie where their boxes are, by styles that the policy allows
    assert refused == []


def test_keyboard_alone(visit: Callable[..., Any]) -> None:
    page = visit()
    page.on("filechooser", lambda _chooser: None)  # has the browser hand choosers over before the key is pressed
    expect(page.locator("#about")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.locator("#files")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(file("one.png", encoded(picture(1, 80, 60))))
    expect(page.locator(".verdict")).to_be_visible()

    def tab_to(locator: Any) -> None:
        for _ in range(30):
            page.keyboard.press("Tab")
            if locator.evaluate("(element) => element === document.activeElement"):
                return
        pytest.fail("the tabulator key does not lead there")

    tab_to(page.get_by_text("For experts"))
    page.keyboard.press("Enter")
    crop = page.get_by_role("button", name="Crop 2")
    tab_to(crop)
    expect(page.locator(".readout")).to_contain_text("Crop 2, pixels")
    page.keyboard.press("Enter")
    expect(crop).to_have_attribute("aria-pressed", "true")
    expect(crop).to_be_focused()
    expect(page.get_by_role("button", name="Whole image")).to_be_visible()


PUT = """([kind, name, bytes]) => {
  const data = new DataTransfer();
  if (bytes) data.items.add(new File([new Uint8Array(bytes)], name)); else data.setData("text/plain", name);
  const event = kind === "paste" ? new ClipboardEvent(kind, { clipboardData: data, bubbles: true })
    : new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
  document.body.dispatchEvent(event);
}"""


PASTE = """(field) => {
  const data = new DataTransfer();
  data.setData("text/plain", "a forum");
  field.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));
}"""


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_pasted_and_dropped(visit: Callable[..., Any], kind: str) -> None:
    page = visit()
    page.evaluate(PUT, [kind, "http://example.invalid/a.png", None])
    expect(page.locator("#banner")).to_contain_text("does not fetch links")
    page.evaluate(PUT, [kind, "one.png", list(encoded(picture(2)))])
    expect(page.locator(".verdict")).to_be_visible()
    expect(page.locator(".card h2")).to_have_text("one.png")
    expect(page.locator("#banner")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_and_a_phone(visit: Callable[..., Any], scheme: str) -> None:
    page = visit(width=360, color_scheme=scheme, bypass_csp=True, reduced_motion="reduce")
    narrow = "document.documentElement.scrollWidth <= 360"
    expect(page.locator("#about")).to_be_visible()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, background[4:-1].split(","))) < 64) == (scheme == "dark")
    assert serious(page) == []
    choose(page, file("a-long-name-without-any-blank" * 4 + ".png", encoded(picture(1, 80, 60))))
    expect(page.locator(".verdict")).to_be_visible()
    page.get_by_text("For experts").click()
    page.get_by_text("Numbers to quote").click()
    assert serious(page) == []
    assert page.evaluate(narrow)
    choose(page, file("b.png", encoded(picture(2))), file("cut.png", b"\x89PNG"))
    done(page)
    page.get_by_role("button", name="cut.png").click()
    expect(page.locator("article.failed")).to_be_visible()
    assert serious(page) == []
    assert page.evaluate(narrow)


TILES = [
    {
        "box": [left, 0, left + 32, 32],
        "logit": logit,
        "grid_box": [left, 0, left + 32, 32],
        "attribution": [[0.5, -0.25], [0.0, 0.125]],
        "routing": [{"block": 7, "mean_gates": [0.25, 0.75], "experts": [[0, 1], [1, 1]]}],
    }
    for left, logit in ((0, 1.0), (16, -2.0))
]
EVIDENCE = {"tiles": TILES, "patch_size": 16, "expert_ranks": [2, 4], "method": "by hand", "caution": "No proof."}


def test_patches_and_router_on_request(visit: Callable[..., Any]) -> None:
    page = visit()
    asked: list[str] = []

    def answer(route: Any) -> None:
        asked.append(route.request.url)
        body = route.fetch().json()
        body["result"]["evidence"] = EVIDENCE
        route.fulfill(json=body)

    page.route("**/v1/detect/bytes?evidence=tokens*", answer)
    choose(page, file("one.png", encoded(picture(1, 48, 32))))
    expect(page.locator(".verdict")).to_be_visible()
    assert asked == []
    page.get_by_text("For experts").click()
    page.get_by_label("Patches").check()
    rows = page.locator(".map tbody tr")
    expect(rows.nth(0)).to_contain_text("+0.500")
    assert rows.nth(0).locator("td").all_text_contents() == ["1", "1", "0\u201316 \u00d7 0\u201316", "+0.500"]
    page.get_by_label("Experts", exact=True).check()
    expect(page.locator(".legend")).to_contain_text("expert 2 (rank 4)")
    assert rows.locator("th, td").all_text_contents() == ["8", "0.250", "0.750"]
    assert len(asked) == 1
    view = page.locator(".view")
    box = view.bounding_box()
    view.hover(position={"x": 4, "y": 4})
    expect(page.locator(".readout")).to_contain_text("crop 1, row 1, column 1: expert 1")
    view.hover(position={"x": box["width"] - 4, "y": 4})
    expect(page.locator(".readout")).to_contain_text("crop 2, row 1, column 2: expert 2")


def test_a_graph_and_a_detector_without_experts_are_not_asked_for_what_they_lack(visit: Callable[..., Any]) -> None:
    linear = Detector(tiny_network(config=MoLEConfig(expert_ranks=())), PREPROCESS, CALIBRATION, "no experts")
    for detector, offered in ((graph_detector(), []), (linear, ["Crops", "Patches"])):
        serving = Serving(detector)
        try:
            page = visit(serving.url)
            choose(page, file("one.png", encoded(picture(1))))
            expect(page.locator(".view .cell").first).to_be_visible()
            page.get_by_text("For experts").click()
            assert page.locator("fieldset label:visible").all_text_contents() == offered
        finally:
            serving.stop()


def test_numbers_behind_the_words(visit: Callable[..., Any]) -> None:
    page = visit()
    shares = in_page(page, "words.js", "[0, 0.004, 0.01, 0.184, 0.5, 0.994, 1, null].map(m.percent)")
    assert shares == ["under 1 %", "under 1 %", "1 %", "18 %", "50 %", "over 99 %", "over 99 %", "\u2013"]
    tiles = [{"box": [0, 0, 20, 10], "logit": 3}, {"box": [10, 0, 30, 10], "logit": -1}]
    found = in_page(page, "geometry.js", f"m.cells({json.dumps(tiles)})")
    assert found == [[0, 0, 10, 10, 3], [10, 0, 20, 10, 1], [20, 0, 30, 10, -1]]
    fields = in_page(page, "save.js", "m.csv([{file: {name: '@SUM(A1), \"b\"\\n'}, result: null, error: null}])")
    assert fields.splitlines()[1] + "\n" + fields.splitlines()[2] == '"\'@SUM(A1), ""b""\n",,,,,,,,,,,,,,,'


def test_token_busy_and_a_server_that_goes_away(visit: Callable[..., Any]) -> None:
    serving = Serving(tiny(calibrated=False), token=TOKEN, max_requests=1)
    try:
        page = visit(serving.url)
        busy: list[int] = []
        page.on("response", lambda response: busy.append(response.status))
        choose(page, *(file(f"{i}.png", encoded(picture(i))) for i in range(6)))
        expect(page.locator("#banner")).to_contain_text("asks for an access token")
        expect(page.locator("#token")).to_be_focused()
        page.get_by_role("button", name="Save CSV").click()  # there is nothing to save, and no error
        page.locator("#token").focus()
        page.keyboard.type("not it")
        page.keyboard.press("Enter")
        expect(page.locator("#banner")).to_contain_text("does not accept")
        page.keyboard.type(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator("#banner")).to_be_hidden()
        expect(page.locator("#tally")).to_have_text("6 without a verdict")
        assert 429 in busy  # three are sent at a time, one is taken; the others were sent again

        serving.stop()
        choose(page, file("late.png", encoded(picture(9))))
        expect(page.locator("#banner")).to_contain_text("does not answer")
        serving = Serving(tiny(calibrated=False), token=TOKEN, port=serving.port)
        page.get_by_role("button", name="Try again").click()
        expect(page.locator("#tally")).to_have_text("7 without a verdict")
        page.get_by_role("button", name="late.png").click()
        expect(page.locator(".meaning")).to_contain_text("not calibrated")
    finally:
        serving.stop()


REFUSED = """(act) => new Promise((resolve) => {
  addEventListener("securitypolicyviolation", (event) => resolve([event.effectiveDirective, window.ran ?? null]));
  if (act === "fetch") fetch("http://127.0.0.1:9/").catch(() => null);
  else document.body.append(Object.assign(document.createElement("script"), { textContent: "window.ran = true" }));
})"""


@pytest.mark.parametrize(("act", "directive"), [("script", "script-src-elem"), ("fetch", "connect-src")])
def test_the_browser_enforces_the_policy(browser: Any, server: Serving, act: str, directive: str) -> None:
    page = browser.new_page()
    page.goto(server.url)
    assert page.evaluate(REFUSED, act) == [directive, None]
    page.close()


def test_static_files_hold_nothing_inline_and_name_nothing_elsewhere() -> None:
    folder = Path(__file__).resolve().parents[2] / "src" / "clipmole" / "serve" / "static"
    text = (folder / "index.html").read_text()
    tags = Tags(text)
    assert all(script.get("src") for script in tags.all("script"))  # none inline
    assert tags.all("style") == []
    assert not any(name == "style" or name.startswith("on") for _, attributes in tags.found for name in attributes)
    for attributes in tags.all("script") + tags.all("link"):
        assert (folder.parent / str(attributes.get("src") or attributes.get("href"))).is_file()
    assert "//" not in "".join(str(v) for _, a in tags.found for v in a.values())  # no address of elsewhere


def test_a_part_is_drawn_and_looked_at_alone(visit: Callable[..., Any], detector: Detector) -> None:
    data = encoded(picture(3, 160, 120))
    page = visit()
    choose(page, file("one.png", data))
    expect(page.locator(".verdict")).to_be_visible()
    page.locator(".view").scroll_into_view_if_needed()
    box = page.locator(".view").bounding_box()
    page.mouse.move(box["x"] + 0.25 * box["width"] + 0.5, box["y"] + 0.25 * box["height"] + 0.5)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.75 * box["width"] - 0.5, box["y"] + 0.75 * box["height"] - 0.5, steps=4)
    page.mouse.up()
    expect(page.get_by_role("button", name="Whole image")).to_be_hidden()  # it chose no crop
    given = [int(page.get_by_label(name, exact=True).input_value()) for name in ("Left", "Top", "Width", "Height")]
    assert given == [40, 30, 80, 60]
    page.get_by_role("button", name="Look at this part alone").click()
    expect(page.locator("article.card .banner").first).to_contain_text("pixels 40\u2013120 \u00d7 30\u201390")
    expected = detector.detect(data, region=(40, 30, 120, 90))
    report = json.loads(saved(page, page.get_by_role("button", name="Save JSON")))
    assert report["region"] == [40, 30, 120, 90]
    assert report["detection"]["logit"] == pytest.approx(expected.logit, abs=1e-4)
    expect(page.locator("#table tbody tr")).to_have_count(2)


def test_a_likely_family_is_said_with_how_often_it_was_right(visit: Callable[..., Any]) -> None:
    families = Families(names=("sdxl <b>", "flux"), confusion=((8, 1, 0), (2, 9, 0), (0, 0, 0)))
    network = tiny_network(config=MoLEConfig(families=families))
    certain = CALIBRATION.model_copy(update={"slope": 1e-6, "intercept": 3.0})
    detector = Detector(network, PREPROCESS, certain, "tiny@0123456789ab")
    image = picture(1, 80, 60)
    said = detector.detect(image).family
    assert said is not None
    serving = Serving(detector)
    try:
        page = visit(serving.url)
        choose(page, file("one.png", encoded(image)))
        line = page.locator("article.card p", has_text="Likely family")
        share = f"{min(99, round(100 * said.share))} %" if said.share <= 0.99 else "over 99 %"
        end = f"; on validation images {said.right} of {said.answers} such answers were right. Never a proof."
        start = f"Likely family of generators, if it is AI-generated: {said.name}"
        expect(line).to_have_text(f"{start} ({share} among the families that it knows){end}")
        page.get_by_label("Show percentages").uncheck()
        expect(line).to_have_text(f"{start}{end}")
    finally:
        serving.stop()


def test_verdicts_without_percentages(visit: Callable[..., Any]) -> None:
    page = visit()
    choose(page, file("one.png", encoded(picture(1, 80, 60))), file("two.png", encoded(picture(2))))
    done(page)
    page.get_by_role("button", name="one.png").click()
    assert re.search(r"\d %( AI)?", page.locator("article.card .verdict").inner_text())
    page.get_by_label("Show percentages").uncheck()
    expect(page.locator("article.card")).to_have_count(1)
    for place in ("#table", "article.card .verdict", "article.card blockquote", ".view", ".strip"):
        assert "%" not in page.locator(place).inner_text(), place
    assert page.locator(".gauge").count() == 0
    text = saved(page, page.get_by_role("button", name="Save report")).decode()
    assert "% AI" not in text.partition("</style>")[2]


def test_a_report_has_thresholds_the_map_of_crops_the_sentence_and_the_persons_words(visit: Callable[..., Any]) -> None:
    page = visit()
    choose(page, file("one.png", encoded(picture(1, 80, 60))))
    expect(page.locator(".verdict")).to_be_visible()
    page.get_by_label("The image is").select_option("AI-generated")
    page.get_by_label("Note").fill("Six <fingers>.\nSource: a forum.")
    page.get_by_label("Note").evaluate(PASTE)
    expect(page.locator("#banner")).to_be_hidden()  # a note is no image
    page.get_by_text("For experts").click()
    page.get_by_label("Patches").check()
    expect(page.locator(".legend")).to_contain_text("patch by patch")
    page.get_by_text("Traces of compression").click()
    page.get_by_role("button", name="Error levels").click()
    expect(page.locator(".traces figcaption")).to_contain_text("do not quote it as proof")
    sentence = page.locator("blockquote").inner_text()
    for part in ("clipmole (tiny@0123456789ab, 20", "with SHA-256 ", "probability of being AI-generated", "no proof"):
        assert part in sentence
    page.get_by_label("with the image in the report").check()
    text = saved(page, page.get_by_role("button", name="Save report")).decode()
    tags = Tags(text)
    assert len(tags.all("figure")) == 3  # crops, patches, error levels
    assert text.count('class="crop"') == 8
    assert "blue speaks for a photograph" in text
    assert "patch by patch" in text
    assert "Six &lt;fingers&gt;.\nSource: a forum." in text
    for part in ("Counts as AI-generated", "above 70 %", "Counts as a photograph", "below 30 %", html.escape(sentence)):
        assert part in text, part
    expect(page.locator(".traces figure")).to_have_count(1)  # it is still on the page
    assert json.loads(saved(page, page.get_by_role("button", name="Save JSON")))["human"] == {
        "verdict": "AI-generated", "note": "Six <fingers>.\nSource: a forum.",
    }  # fmt: skip


def test_traces_of_compression_are_those_of_the_file(visit: Callable[..., Any]) -> None:
    """A part that was saved at quality 60 before loses little at 60; noise that never was a JPEG does not."""
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    before = Image.fromarray(pixels)
    buffer = io.BytesIO()
    before.crop((0, 0, 64, 128)).save(buffer, "JPEG", quality=60, subsampling="4:2:0")
    before.paste(Image.open(buffer), (0, 0))
    page = visit()
    src = f"data:image/png;base64,{base64.b64encode(encoded(before)).decode()}"
    found = page.evaluate(
        """async ([src, qualities]) => {
          const { differences } = await import('/static/compression.js');
          const image = Object.assign(new Image(), { src });
          await image.decode();
          const found = [];
          for (const quality of qualities) found.push(await differences(image, quality, 16, (value) => value * value));
          return found.map(({ columns, rows, values }) => ({ columns, rows, values: [...values] }));
        }""",
        [src, [50, 60, 70, 80]],
    )
    assert {(one["columns"], one["rows"]) for one in found} == {(8, 8)}
    left, right = [], []
    for one in found:
        values = np.array(one["values"]).reshape(8, 8)
        left.append(values[1:-1, :3].mean())
        right.append(values[1:-1, 5:].mean())
    assert left[1] < left[0]
    assert left[1] < left[2]  # the ghost of quality 60
    assert right == sorted(right, reverse=True)  # the higher the quality the less is lost


def test_what_the_metadata_found_and_what_errors_say(visit: Callable[..., Any]) -> None:
    page = visit()
    findings = [
        {"title": "camera", "points_to": "photograph", "strength": "weak"},
        {"title": "a generator's prompt", "points_to": "ai-generated", "strength": "strong"},
        {"title": "resized", "points_to": "neither", "strength": "strong"},
    ]
    found = in_page(page, "words.js", f"[[], {json.dumps(findings[:1])}, {json.dumps(findings)}].map(m.found)")
    assert found == ["nothing", "camera", "a generator's prompt, and 2 more"]
    alarms = {"false_alarms": [{"kind": "stock photographs", "photographs": 50, "called_generated": 12}]}
    alarms["often_wrong"] = ["stock photographs", "clip art"]
    assert in_page(page, "words.js", f"m.alarms({json.dumps(alarms)})") == [
        "Images made by people that the detector wrongly called AI-generated, from sources it had never seen: 12 "
        "of 50 stock photographs (24 %)."
    ]
    said = f"['real', 'uncertain', 'ai_generated'].map((verdict) => m.caution({{ verdict }}, {json.dumps(alarms)}))"
    photograph, unsure, generated = in_page(page, "words.js", said)
    assert "12 of 50 stock photographs (24 %). Do not accuse anybody with it." in generated
    often = "Ignore this verdict on stock photographs, clip art: the detector often calls them AI-generated although"
    assert generated.startswith(often)
    assert "12" not in photograph
    assert "What to do: find the original file" in unsure
    choose(page, file("empty.png", b""))
    expect(page.locator(".state")).to_contain_text("the file is empty")
    page.get_by_role("button", name="empty.png").click() if page.locator("article.failed").count() == 0 else None
    failed = page.locator("article.failed")
    expect(failed).to_contain_text("Choose another file")
    expect(failed.get_by_role("button", name="Try again")).to_have_count(0)  # it cannot help


def test_printed_it_is_the_answer_without_what_is_for_the_screen(visit: Callable[..., Any]) -> None:
    page = visit(color_scheme="dark")
    choose(page, file("one.png", encoded(picture(1, 80, 60))))
    expect(page.locator(".verdict")).to_be_visible()
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    for hidden in ("#drop", "#percentages", ".judgment", ".traces"):
        expect(page.locator(hidden)).to_be_hidden()
    expect(page.get_by_role("button", name="Save report")).to_be_hidden()
    for shown in (".verdict", ".gauge", ".view", "blockquote"):
        expect(page.locator(shown)).to_be_visible()
    expect(page.get_by_text("SHA-256 of the file")).to_be_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
