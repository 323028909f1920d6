"""Scanning many images: images a second against the network alone, the driver's memory, and how soon it goes on.

    python benchmarks/scan_scale.py --images DIR --count 10000 --detector embedded --engine local
    python benchmarks/scan_scale.py --images DIR --count 10000 --detector embedded --engine ray --workers 2
    python benchmarks/scan_scale.py --images DIR --count 10000 --detector embedded --runtime openvino
    python benchmarks/scan_scale.py --images DIR --count 100000 --detector tiny

One command measures one point, in a process of its own, and puts it into results/scan-scale.json, whose table it
writes anew. The images are made on the spot and kept in DIR: JPEGs of 224 pixels that all differ, of smooth colours
with grain, 1,000 in a folder. `tiny` is a random network that is so small that reading and decoding set the pace: it
shows the driver's memory and pace, not a share.

    network      crops of 1,024 of the images, already decoded, through the same detector in the same forward passes:
                 all that scoring computes, in bfloat16 also the images that are scored again in float32. In the
                 driver's process on all cores; for Ray in as many processes of one core as there are workers. The
                 mean of a run before and one after
    rate         rows from the first to the last that reaches the driver; of Ray's, which come a chunk at a time,
                 without those that may have been under way before
    with start   rows over the whole time of the command but the imports
    memory       resident memory of the driver when a tenth is done, and at the end
    going on     from calling the scan again to its first new row, the last part being gone; the detector's load is
                 part of it
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from clipmole.config import MoLEConfig, PreprocessConfig, TowerConfig
from clipmole.images.crops import cut_crops
from clipmole.images.loading import load_image
from clipmole.inference.detector import Detector, Prepared
from clipmole.models.network import MoLENetwork
from clipmole.models.vit import ViT
from clipmole.plumbing.environment import environment
from clipmole.scan.driver import scan
from clipmole.scan.ray_engine import Cluster
from clipmole.scan.settings import ScanSettings

RESULT = Path(__file__).resolve().parent / "results" / "scan-scale"
TINY = TowerConfig(image_size=224, patch_size=32, width=24, depth=2, heads=2, mlp_width=48)
SIDE = 224
PART = {"local": 500, "ray": 100}


def make_images(folder: Path, count: int, seed: int) -> list[str]:
    """Folders with `count` images in all; those that are there stay."""
    places = [folder / f"{start:07d}" for start in range(0, count, 1000)]
    for start, place in zip(range(0, count, 1000), places, strict=True):
        if (place / "whole").exists():
            continue
        place.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([seed, start])
        grain = rng.integers(-9, 10, (SIDE, SIDE, 3), dtype=np.int16)
        for i in range(1000):
            coarse = Image.fromarray(rng.integers(10, 246, (5, 5, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.int16)
            pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{start + i:08d}.jpg", quality=88)
        (place / "whole").touch()
    return [str(place) for place in places]


def tiny_detector() -> Detector:
    torch.manual_seed(0)
    network = MoLENetwork(ViT(TINY).requires_grad_(False), MoLEConfig()).eval()
    return Detector(network, PreprocessConfig(crop_size=SIDE), None, "random-tiny@0")


def network_rate(detector: Detector, sources: list[str], seconds: float) -> float:
    """Images a second of the network alone."""
    paths = [path for source in sources[:2] for path in sorted(Path(source).glob("*.jpg"))][:1024]
    images = [Prepared(path.name, cut_crops(load_image(path), detector.preprocess)) for path in paths]
    for _ in detector.finish(images[:128]):  # warms up
        pass
    count, began = 0, time.perf_counter()
    for _ in detector.finish(cycle(images)):
        count += 1
        if count % len(images) == 0 and time.perf_counter() - began >= seconds:
            break
    return count / (time.perf_counter() - began)


def _of_one_core(load: Callable[[], Detector], sources: list[str], seconds: float) -> float:
    torch.set_num_threads(1)
    return network_rate(load(), sources, seconds)


def together(load: Callable[[], Detector], sources: list[str], seconds: float, processes: int) -> float:
    """Images a second of the network alone in so many processes of one core at the same time."""
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        return sum(pool.map(_of_one_core, *zip(*[(load, sources, seconds)] * processes, strict=True)))


def resident() -> float:
    """MiB that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


class Watch:
    """Takes the time and the memory as rows pass."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.first = self.last = 0.0
        self.rows = self.at_once = 0
        self.memory: list[float] = []

    def __call__(self, rows: Iterable[Any], _description: str, total: int | None) -> Iterator[Any]:
        assert total
        for row in rows:
            now = time.perf_counter()
            self.rows += 1
            self.first = self.first or now
            self.at_once += now - self.first < 0.05  # of the first chunk
            if self.rows in (max(1, total // 10), total):
                self.memory.append(resident())
            self.last = now
            yield row

    def rate(self, under_way: int) -> float:
        """Rows after those that came first, and without those under way then, by the time since then."""
        return (self.rows - self.at_once - under_way) / (self.last - self.first)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One point."""
    sources = make_images(arguments.images, arguments.count, arguments.seed)
    load = tiny_detector
    if arguments.detector != "tiny":
        load = partial(
            Detector.from_pretrained,
            arguments.detector,
            runtime=arguments.runtime,
            precision=arguments.precision,
        )
    settings = ScanSettings(sources=tuple(sources), part_rows=PART[arguments.engine])
    cluster = Cluster(workers=(arguments.workers, arguments.workers)) if arguments.engine == "ray" else None
    detector = load()

    def network() -> float:
        if cluster is None:
            return network_rate(detector, sources, arguments.seconds)
        return together(load, sources, arguments.seconds, arguments.workers)

    alone = [network()]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "scan"
        watch = Watch()
        counts = scan(settings, out, load, cluster=cluster, track=watch)
        whole = time.perf_counter() - watch.began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        alone.append(network())
        stored = sum(path.stat().st_size for path in (out / "parts").iterdir()) / counts.rows
        sorted((out / "parts").iterdir())[-1].unlink()
        again = Watch()
        scan(settings, out, load, cluster=cluster, track=again)
        assert again.rows == (arguments.count % settings.part_rows or settings.part_rows)
    assert counts.rows == arguments.count
    assert not counts.failed
    assert not counts.duplicates
    mean = sum(alone) / 2
    rate = watch.rate(0 if cluster is None else (arguments.workers - 1) * settings.part_rows)
    return {
        "images": arguments.count,
        "detector": arguments.detector,
        "runtime": detector.runtime.name,
        "precision": detector.precision,
        "engine": arguments.engine if cluster is None else f"ray, {arguments.workers} workers",
        "network": round(mean, 1),
        "network_runs": [round(each, 1) for each in alone],
        "rate": round(rate, 1),
        "share": None if arguments.detector == "tiny" else round(rate / mean, 3),
        "with_start": round(counts.rows / whole, 1),
        "seconds": round(whole, 1),
        "mib_at_a_tenth": round(watch.memory[0], 1),
        "mib_at_the_end": round(watch.memory[-1], 1),
        "mib_peak": round(peak, 1),
        "seconds_to_go_on": round(again.first - again.began, 2),
        "bytes_a_row": round(stored, 1),
        "recipe": {
            "command": f"python benchmarks/scan_scale.py --images DIR --count {arguments.count} --detector "
            f"{arguments.detector} --runtime {detector.runtime.name} --precision {detector.precision} "
            f"--engine {arguments.engine} --workers {arguments.workers}",
            "seed": arguments.seed,
            **environment(),
        },
    }


def markdown(points: list[dict[str, Any]]) -> str:
    lines = [
        "| images | detector | runtime | engine | network alone, images/s | scan, images/s | share | with start "
        "| driver, MiB at a tenth | at the end | going on, s | bytes a row | machine |",
        "| --: | --- | --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --- |",
    ]
    for p in points:
        share = "" if p["share"] is None else f"{p['share']:.0%}"
        machine = "{cpu}, {threads} threads, {date}".format(**p["recipe"])
        lines.append(
            f"| {p['images']:,} | {p['detector']} | {p['runtime']}, {p['precision']} | {p['engine']} | "
            f"{p['network']:,} | {p['rate']:,} | {share} | {p['with_start']:,} | {p['mib_at_a_tenth']:,} | "
            f"{p['mib_at_the_end']:,} | {p['seconds_to_go_on']} | "
            f"{p['bytes_a_row']:.0f} | {machine} |"
        )
    recipe = points[-1]["recipe"]
    note = "JPEGs of 224 x 224 pixels, one crop each. `benchmarks/scan_scale.py`; "
    return "\n".join([*lines, "", f"{note}torch {recipe['torch']}, seed {recipe['seed']}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="where the images are, or are to be made")
    parser.add_argument("--count", type=int, default=10000, help="a multiple of 1,000")
    parser.add_argument("--detector", default="embedded", help="embedded, tiny, or an adapter directory")
    parser.add_argument("--runtime", choices=["torch", "torch-compile", "openvino", "onnx"], default="torch")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10, help="of each run of the network alone, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if arguments.detector == "tiny" and (arguments.runtime, arguments.precision) != ("torch", "float32"):
        parser.error("--detector tiny has no other --runtime or --precision than torch and float32")
    point = measure(arguments)
    file = arguments.out.with_suffix(".json")
    points = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    key = ("detector", "runtime", "precision", "engine", "images")
    points = [p for p in points if [p[k] for k in key] != [point[k] for k in key]] + [point]
    points.sort(key=lambda p: [p[k] for k in key])
    file.write_text(json.dumps(points, indent=2) + "\n", encoding="utf-8")
    arguments.out.with_suffix(".md").write_text(markdown(points), encoding="utf-8")
    print(json.dumps(point, indent=2))


if __name__ == "__main__":
    main()
