"""How cost grows: images/s against batch, threads, crops of an image and its size; memory against batch.

    python benchmarks/speed_growth.py [--shape vit-b-32] [--seconds 1] [--repeats 2] [--out benchmarks/results/speed]

Batch and threads: the network alone, by `clipmole.speed`, random weights. Crops and size: the embedded detector from
PNG bytes to verdict, decoding included, one image after the other. Prints JSON last; with --out writes growth.json
and one SVG a curve.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image

from clipmole.config import PreprocessConfig
from clipmole.inference.detector import Detector
from clipmole.plumbing.environment import environment
from clipmole.report.page import element
from clipmole.report.plots import HEIGHT, LEFT, WIDTH, Axis, Line, chart, even_axis, swatch
from clipmole.speed import measure_speed

BATCHES = (1, 2, 4, 8, 16, 32)
PATHS = ("torch-float32", "torch-bfloat16", "openvino-float32", "openvino-bfloat16", "openvino-int8", "onnx-int8")
SIDES = (224, 320, 512, 768, 1024, 1536, 2048, 3072)
TILES = (1, 2, 4, 6, 9)
RUNTIMES = {"torch-float32": ("torch", "float32"), "openvino-float32": ("openvino", "float32")}

Curve = list[tuple[float, float]]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def picture(side: int) -> bytes:
    """A PNG of smooth random colours."""
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def against_batch(shape: str, seconds: float, repeats: int) -> tuple[dict[str, Curve], dict[str, Curve]]:
    """Images a second, and MiB of the process, of each path."""
    report = measure_speed([shape], BATCHES, PATHS, seconds=seconds, repeats=repeats, say=say)
    paths = dict.fromkeys(row.path for row in report.rows)
    speed = {p: [(r.batch, r.images_per_second) for r in report.rows if r.path == p] for p in paths}
    memory = {p: [(r.batch, r.peak_memory / 2**20) for r in report.rows if r.path == p] for p in paths}
    return speed, memory


def against_threads(shape: str, most: int, seconds: float, repeats: int) -> dict[str, Curve]:
    """Images a second at batch 8."""
    curves: dict[str, Curve] = {}
    for threads in range(1, most + 1):
        report = measure_speed([shape], [8], PATHS, seconds=seconds, repeats=repeats, threads=threads, say=say)
        for row in report.rows:
            curves.setdefault(row.path, []).append((threads, row.images_per_second))
    return curves


def detectors(tiles: int) -> dict[str, Detector]:
    """The embedded detector on each path, looking at most at so many crops."""
    found = {}
    for name, (runtime, precision) in RUNTIMES.items():
        found[name] = Detector.from_pretrained("embedded", runtime=runtime, precision=precision)  # type: ignore[arg-type]
        found[name].preprocess = PreprocessConfig(mode="tiles", max_tiles=tiles)
    return found


def per_image(detector: Detector, data: bytes, seconds: float) -> float:
    """Images a second, one after the other, by the median."""
    detector.detect(data)
    took: list[float] = []
    while sum(took) < seconds or len(took) < 3:
        began = time.perf_counter()
        detector.detect(data)
        took.append(time.perf_counter() - began)
    return 1 / statistics.median(took)


def against_images(seconds: float) -> tuple[dict[str, Curve], dict[str, Curve]]:
    """Images a second of the embedded detector, against crops of a 1,024-pixel image, and against its side."""
    tiles: dict[str, Curve] = {}
    sides: dict[str, Curve] = {}
    data = picture(1024)
    for count in TILES:
        for name, detector in detectors(count).items():
            crops = detector.detect(data).tiles
            tiles.setdefault(name, []).append((crops, per_image(detector, data, seconds)))
    for side in SIDES:
        data = picture(side)
        for name, detector in detectors(9).items():
            sides.setdefault(name, []).append((side, per_image(detector, data, seconds)))
    return tiles, sides


def plot(curves: dict[str, Curve], x: str, y: str, label: str, ticks: Sequence[float]) -> str:
    """A file of one plot in the style of the reports, with its legend."""
    low, high = min(ticks), max(ticks)
    across = Axis(x, low, high, [(t, f"{t:g}") for t in ticks])
    top = max(value for curve in curves.values() for _, value in curve)
    lines = [Line(i, [a for a, _ in c], [b for _, b in c], marked=True) for i, c in enumerate(curves.values())]
    body = chart(lines, across, even_axis(y, 0, top, percent=False), label)
    legend = 8 + 15 * len(curves)
    svg = element("svg", viewBox=f"0 0 {WIDTH} {HEIGHT + legend}", width=2 * WIDTH, role="img", aria_label=label)
    svg.set("xmlns", "http://www.w3.org/2000/svg")
    sheet = ElementTree.Element("style")
    rules = files("clipmole.report").joinpath("report.css").read_text(encoding="utf-8")
    own = [line for line in rules.splitlines() if line.startswith(("svg", ".c0", ".grid", ".axis", ".line", ".marker"))]
    colours = rules[rules.index(":root {") : rules.index("* {")]
    sheet.text = "\n".join([colours, "svg { font-family: system-ui, sans-serif; }", *own])
    svg.append(sheet)
    svg.append(element("rect", width=WIDTH, height=HEIGHT + legend, fill="var(--page)"))
    svg.append(element("g", *body))
    for place, name in enumerate(curves):
        up = HEIGHT + 8 + 15 * place
        svg.append(element("g", *swatch(place), transform=f"translate({LEFT} {up - 8})"))
        svg.append(element("text", name, x=LEFT + 42, y=up + 2))
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="vit-b-32")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument(
        "--parts", nargs="+", choices=("batch", "threads", "images"), default=["batch", "threads", "images"]
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="most threads")
    parser.add_argument("--out", type=Path, help="folder of growth.json and the plots; parts that are there are kept")
    given = parser.parse_args()
    file = given.out / "growth.json" if given.out else None
    result: dict[str, Any] = json.loads(file.read_text()) if file and file.is_file() else {}
    result |= {"environment": environment(), "shape": given.shape}
    if "batch" in given.parts:
        result["batch"], result["memory"] = against_batch(given.shape, given.seconds, given.repeats)
    if "threads" in given.parts:
        result["threads"] = against_threads(given.shape, given.threads, given.seconds, given.repeats)
    if "images" in given.parts:
        result["tiles"], result["side"] = against_images(given.seconds)
    words = {
        "batch": ("batch, crops", "images/s", f"images per second against batch, {given.shape}", (1, 8, 16, 32)),
        "memory": (
            "batch, crops",
            "memory of the process, MiB",
            f"memory against batch, {given.shape}",
            (1, 8, 16, 32),
        ),
        "threads": ("threads", "images/s", f"images per second against threads, batch 8, {given.shape}", None),
        "tiles": ("crops of an image", "images/s", "images per second against crops, embedded detector", TILES),
        "side": (
            "side of the image, pixels",
            "images/s",
            "images per second against image size",
            (224, 1024, 2048, 3072),
        ),
    }
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "growth.json").write_text(json.dumps(result, indent=1) + "\n")
        for name, (x, y, label, ticks) in words.items():
            if name in result:
                places = ticks or sorted({a for curve in result[name].values() for a, _ in curve})
                (given.out / f"growth-{name}.svg").write_text(plot(result[name], x, y, label, places))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
