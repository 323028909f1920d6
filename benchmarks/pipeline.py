"""A folder of mixed images against the network alone, in one run: how much decoding costs on top, and what is held.

    python benchmarks/pipeline.py [--detector mole-vit-b-16] [--runtime openvino] [--precision bfloat16]
    python benchmarks/pipeline.py --memory [--out DIR]

The folder holds sets of three files made on the spot: a 12-megapixel JPEG (9 crops), a PNG of 512 pixels a side
(9 crops) and a WebP of 256 (1 crop). Detectors of the package have their weights, others random ones.

    network  the same crops in the same forward passes, already decoded
    folder   files in, detections out, for each number of decoding threads

They take turns, so what else the machine does hits all of them; medians over the repeats. `busy` is the share of
a folder's time in which the network ran: where it is high, the network is the bottleneck, and a rate below the
network's own means that decoding takes processor time from it. The timeline shows the last repeat. `--memory` is
another measurement: peak memory of processes that score 1, 4, ... times as many files (Linux only).

Prints JSON last, and with --out writes it with a table and pictures; rows of other detectors that the file holds stay.
"""

from __future__ import annotations

import argparse
import io
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from clipmole.config import CLIP_TOWERS, MoLEConfig, PreprocessConfig, TowerConfig
from clipmole.images.loading import load_image, load_pixels
from clipmole.inference.detector import Detector
from clipmole.inference.graph import convert, open_graph
from clipmole.inference.runtime import batch_for
from clipmole.models.adapter import PACKAGED
from clipmole.models.network import MoLENetwork
from clipmole.models.vit import ViT
from clipmole.plumbing.environment import environment

KINDS = {"12-megapixel JPEG": (4032, 3024, "JPEG"), "512 px PNG": (512, 512, "PNG"), "256 px WebP": (256, 256, "WEBP")}
MEMORY_SETS = (4, 16, 64, 128)
Span = tuple[str, float, float]  # row of the timeline, start, end in seconds


def make_file(kind: str, seed: int) -> bytes:
    """One image: smooth colours and sensor-like noise."""
    width, height, form = KINDS[kind]
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    noise = rng.normal(0, 5, (height, width, 3)).astype(np.float32)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8)).save(buffer, form, quality=90)
    return buffer.getvalue()


def make_folder(folder: Path, sets: int) -> list[Path]:
    """`sets` files of each kind, taking turns; four different ones of a kind, then the same again."""
    contents = {kind: [make_file(kind, seed) for seed in range(min(sets, 4))] for kind in KINDS}
    paths = []
    for number in range(sets):
        for kind, files in contents.items():
            paths.append(folder / f"{number:04}-{kind.split()[1]}.{KINDS[kind][2].lower()}")
            paths[-1].write_bytes(files[number % len(files)])
    return paths


def make_detector(name: str, runtime: str, precision: Any, batch_size: int) -> Detector:
    if name in PACKAGED:
        return Detector.from_pretrained(name, runtime=runtime, precision=precision, batch_size=batch_size)  # type: ignore[arg-type]
    torch.manual_seed(0)
    tower = (
        TowerConfig(patch_size=32, width=64, depth=2, heads=1, mlp_width=128) if name == "tiny" else CLIP_TOWERS[name]
    )
    network = MoLENetwork(ViT(tower).eval(), MoLEConfig())
    if runtime == "torch":
        return Detector(network, PreprocessConfig(), name=name, precision=precision, batch_size=batch_size)
    with tempfile.TemporaryDirectory() as folder:  # the graph is read whole before it goes
        convert(network, tower.image_size, "openvino", Path(folder))
        graph = open_graph(Path(folder), "openvino", precision)
    return Detector(None, PreprocessConfig(), name=name, batch_size=batch_size, runtime=graph)


def decode_milliseconds(paths: list[Path]) -> dict[str, dict[str, float]]:
    """Of one file of each kind, one thread: by Pillow alone, and as the detector decodes it. Best of five."""

    def best(load: Any, data: bytes) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            load(data)
            times.append(time.perf_counter() - began)
        return round(1000 * min(times), 2)

    data = {kind: path.read_bytes() for kind, path in zip(KINDS, paths, strict=False)}
    return {kind: {"pillow": best(load_image, each), "used": best(load_pixels, each)} for kind, each in data.items()}


def network_alone(detector: Detector, crops: NDArray[np.uint8]) -> float:
    """Seconds for all crops in full forward passes."""
    began = time.perf_counter()
    for start in range(0, len(crops), detector.batch_size):
        detector.runtime.outputs(crops[start : start + detector.batch_size], detector.batch_size)
    return time.perf_counter() - began


def folder_run(detector: Detector, paths: list[Path], workers: int) -> tuple[float, list[Span]]:
    """Seconds for the folder, and what ran when."""
    spans: list[Span] = []
    own = threading.current_thread()

    def timed(row: str, function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments, **named)
            thread = threading.current_thread()
            place = row if row == "network" or thread is own else f"{row} {thread.name.rsplit('-', 1)[-1]}"
            spans.append((place, start - began, time.perf_counter() - began))
            return result

        return call

    detector.workers = workers
    runtime: Any = detector.runtime
    detector.prepare = timed("decode", detector.prepare)  # type: ignore[method-assign]
    runtime.outputs = timed("network", runtime.outputs)
    began = time.perf_counter()
    count = sum(1 for _ in detector.stream(paths))
    seconds = time.perf_counter() - began
    del detector.prepare, runtime.outputs
    assert count == len(paths)
    return seconds, spans


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    detector = make_detector(arguments.detector, arguments.runtime, arguments.precision, arguments.batch_size)
    with tempfile.TemporaryDirectory() as name:
        paths = make_folder(Path(name), 1)
        one = np.concatenate([detector.prepare(path).crops.pixels for path in paths])  # type: ignore[union-attr]
        batch = np.concatenate([one] * (arguments.batch_size // len(one) + 1))[: arguments.batch_size]
        network_alone(detector, batch)  # warms up
        rate = len(batch) / network_alone(detector, batch)
        sets = max(2, round(arguments.seconds * rate / len(one)))
        paths = make_folder(Path(name), sets)
        crops = np.concatenate([detector.prepare(path).crops.pixels for path in paths])  # type: ignore[union-attr]
        alone: list[float] = []
        folder: dict[int, list[float]] = {workers: [] for workers in arguments.workers}
        busy: dict[int, list[float]] = {workers: [] for workers in arguments.workers}
        spans: list[Span] = []
        for _ in range(arguments.repeats):
            alone.append(network_alone(detector, crops))
            for workers in arguments.workers:
                seconds, spans = folder_run(detector, paths, workers)
                folder[workers].append(seconds)
                busy[workers].append(sum(end - start for row, start, end in spans if row == "network") / seconds)
                print(f"{workers} workers: {alone[-1] / seconds:.1%} of the network alone", file=sys.stderr)
        milliseconds = decode_milliseconds(paths)
    middle = statistics.median
    return {
        "detector": arguments.detector,
        "runtime": arguments.runtime,
        "precision": arguments.precision,
        "batch": arguments.batch_size,
        "files": len(paths),
        "crops": len(crops),
        "network_crops_per_second": len(crops) / middle(alone),
        "decode_ms": milliseconds,
        "simplejpeg": find_spec("simplejpeg") is not None,
        "folder": [
            {
                "workers": workers,
                "crops_per_second": len(crops) / middle(folder[workers]),
                "images_per_second": len(paths) / middle(folder[workers]),
                "of_network": middle([a / b for a, b in zip(alone, folder[workers], strict=True)]),
                "of_network_range": [
                    min(a / b for a, b in zip(alone, folder[workers], strict=True)),
                    max(a / b for a, b in zip(alone, folder[workers], strict=True)),
                ],
                "busy": middle(busy[workers]),
            }
            for workers in arguments.workers
        ],
        "timeline": [[row, round(start, 4), round(end, 4)] for row, start, end in spans if start < 8],
        "repeats": arguments.repeats,
        "environment": environment(),
    }


def memory(batch_size: int) -> list[dict[str, float]]:
    """Peak memory of a process of its own for each number of files, scored by a tiny network."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        make_folder(Path(name), max(MEMORY_SETS))
        for sets in MEMORY_SETS:
            command = [sys.executable, __file__, "--score", name, "--sets", str(sets), "--batch-size", str(batch_size)]
            peak = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            rows.append({"files": 3 * sets, "peak_mib": peak["peak_mib"]})
            print(rows[-1], file=sys.stderr)
    return rows


def score(folder: Path, sets: int, batch_size: int) -> dict[str, float]:
    detector = make_detector("tiny", "torch", "float32", batch_size)
    paths = sorted(folder.iterdir())[: 3 * sets]
    assert sum(1 for _ in detector.stream(paths)) == 3 * sets
    # Not getrusage: its peak is at least that of the process that started this one.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {"peak_mib": round(int(status["VmHWM"].split()[0]) / 1024, 1)}


def picture(spans: list[Any], title: str) -> str:
    """The timeline as SVG: a row a decoding thread and one for the network; what is blank waits."""
    rows = [*sorted({row for row, *_ in spans if row != "network"}), "network"]
    width, left, step, top = 900, 80, 26, 34
    last = max(end for *_, end in spans)
    scale = (width - left - 10) / last
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top + step * len(rows) + 30}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="10" y="18" fill="#222222">{title}</text>',
    ]
    for row, start, end in spans:
        y, colour = top + step * rows.index(row), "#b3541e" if row == "network" else "#3b6ea5"
        lines.append(
            f'<rect x="{left + scale * start:.1f}" y="{y}" width="{max(0.6, scale * (end - start)):.1f}" '
            f'height="{step - 8}" fill="{colour}" stroke="#ffffff" stroke-width="0.5"/>'
        )
    lines += [f'<text x="10" y="{top + step * i + 14}" fill="#222222">{row}</text>' for i, row in enumerate(rows)]
    foot = top + step * len(rows) + 16
    lines += [
        f'<text x="{left + scale * second:.1f}" y="{foot}" fill="#222222">{second} s</text>'
        for second in range(0, int(last) + 1, max(1, round(last / 8)))
    ]
    return "\n".join([*lines, "</svg>"]) + "\n"


def arithmetic(row: dict[str, Any]) -> str:
    return f"{row['runtime']} {row['precision']}"


def title(row: dict[str, Any]) -> str:
    return f"{row['detector']}, {arithmetic(row)}, batch {row['batch']}, {row['folder'][-1]['workers']} workers"


def markdown(result: dict[str, Any]) -> str:
    lines = [f"`{row['command']}`  " for row in result["rows"]]
    lines += [
        "",
        "Seed 0, random weights but for the packaged detectors. Medians of the repeats in one run, in brackets their",
        "range. *Of the network* is the folder's rate over that of the network alone on the same crops, *busy* the",
        "share of time in which the network ran.",
        "",
        "| detector | batch | network alone, crops/s | workers | folder, crops/s | images/s | of the network | busy | "
        "12 MP JPEG, ms: Pillow, used | machine |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in result["rows"]:
        env, decode = row["environment"], row["decode_ms"]["12-megapixel JPEG"]
        for each in row["folder"]:
            low, high = (f"{value:.0%}" for value in each["of_network_range"])
            lines.append(
                f"| {row['detector']}, {arithmetic(row)} | {row['batch']} | {row['network_crops_per_second']:.1f} | "
                f"{each['workers']} | {each['crops_per_second']:.1f} | {each['images_per_second']:.1f} | "
                f"{each['of_network']:.0%} [{low}, {high}] | {each['busy']:.0%} "
                f"| {decode['pillow']:.0f}, {decode['used']:.0f} | {env['cpu']}, "
                f"{env['threads']} threads, torch {env['torch']}, Pillow {env['pillow']}, {env['date']} |"
            )
    if result.get("memory"):
        lines += ["", "Peak memory of a process that scores this many files (a tiny network):", ""]
        machine = "{cpu}, {threads} threads, torch {torch}, {date}".format(**result["memory_environment"])
        lines += [f"`{result['memory_command']}`; {machine}", ""]
        lines += ["| files | peak, MiB |", "|--:|--:|"]
        lines += [f"| {row['files']} | {row['peak_mib']:.0f} |" for row in result["memory"]]
    return "\n".join(lines) + "\n"


def write(out: Path, command: str, row: dict[str, Any] | None, held: list[dict[str, float]] | None) -> None:
    """Add a row or the memory to what the folder holds."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "pipeline.json"
    result = json.loads(path.read_text()) if path.is_file() else {"rows": []}
    if row is not None:
        key = ("detector", "runtime", "precision")
        rows = [each for each in result["rows"] if [each[k] for k in key] != [row[k] for k in key]]
        name = f"pipeline-{'-'.join(row[k] for k in key)}.svg"
        (out / name).write_text(picture(row["timeline"], title(row)))
        result["rows"] = [*rows, {"command": command} | {key: row[key] for key in row if key != "timeline"}]
    if held is not None:
        result |= {"memory": held, "memory_command": command, "memory_environment": environment()}
    path.write_text(json.dumps(result, indent=1) + "\n")
    (out / "pipeline.md").write_text(markdown(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", default="vit-b-16", choices=[*PACKAGED, "tiny", *CLIP_TOWERS])
    parser.add_argument("--runtime", default="torch", choices=["torch", "openvino"])
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="the timeline is of the last")
    parser.add_argument("--batch-size", type=int, default=batch_for("cpu"))
    parser.add_argument("--seconds", type=float, default=10, help="about how long one pass over the folder takes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="measure memory instead")
    parser.add_argument("--out", type=Path, help="folder for pipeline.json, .md and pictures")
    parser.add_argument("--score", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--sets", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.score:
        print(json.dumps(score(arguments.score, arguments.sets, arguments.batch_size)))
        return
    given = [word for word in sys.argv[1:] if word not in ("--out", str(arguments.out))]
    command = shlex.join(["python", "benchmarks/pipeline.py", *given])
    held = memory(arguments.batch_size) if arguments.memory else None
    row = None if arguments.memory else measure(arguments)
    if arguments.out:
        write(arguments.out, command, row, held)
    print(json.dumps(row or held))


if __name__ == "__main__":
    main()
