"""What scanning a billion images would cost: core-hours for each network, bytes on the disk. On paper, from constants.

    python benchmarks/scan_cost.py [--images 1000000000]

Measured here, on one core: crops a second of each network alone (random weights are as fast as trained ones), and the
time to read, hash, decode and cut one image of two kinds. Taken from results/scan-scale.json: bytes of a row. The rest
is arithmetic, which `costs` writes out. Writes results/scan-cost.md and .json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from clipmole.config import CLIP_TOWERS, MoLEConfig, PreprocessConfig
from clipmole.images.crops import cut_crops
from clipmole.images.loading import load_image
from clipmole.inference.detector import Detector
from clipmole.models.network import MoLENetwork
from clipmole.models.vit import ViT
from clipmole.plumbing.environment import environment

RESULTS = Path(__file__).resolve().parent / "results"
KINDS = {"512 px JPEG": (512, 512), "12-megapixel JPEG": (4032, 3024)}
TILES = PreprocessConfig(mode="tiles", crop_size=224)
LISTED = 1000  # names in one answer of a bucket


def detectors() -> dict[str, Callable[[], Detector]]:
    """Name -> how to make it."""

    def made(name: str) -> Detector:
        torch.manual_seed(0)
        network = MoLENetwork(ViT(CLIP_TOWERS[name]).requires_grad_(False), MoLEConfig()).eval()
        return Detector(network, TILES, None, name, precision="bfloat16", batch_size=8)

    clip = {f"{name}, bfloat16": lambda name=name: made(name) for name in ("vit-b-32", "vit-b-16", "vit-l-14")}
    return {"embedded": lambda: Detector.from_pretrained("embedded", batch_size=8), **clip}


def timed(work: Callable[[], object], seconds: float) -> float:
    """Median seconds of a call, over calls that fill `seconds`, three at least; one before is not counted."""
    work()
    spans: list[float] = []
    while len(spans) < 3 or sum(spans) < seconds:
        began = time.perf_counter()
        work()
        spans.append(time.perf_counter() - began)
    return float(np.median(spans))


def constants(seconds: float, seed: int) -> dict[str, Any]:
    """Seconds on one core: of a crop in each network, of an image before it; and crops of an image."""
    rng = np.random.default_rng(seed)
    crops = rng.integers(0, 256, (8, 3, 224, 224), dtype=np.uint8)
    network = {}
    for name, make in detectors().items():
        detector = make()
        network[name] = timed(lambda run=detector.runtime: run.outputs(crops, len(crops)), seconds) / len(crops)
    before, tiles = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, size in KINDS.items():
            path = Path(folder) / "image.jpg"
            coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
            grain = rng.integers(-9, 10, smooth.shape, dtype=np.int16)
            Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(path, quality=88)

            def prepare(path: Path = path) -> int:
                data = path.read_bytes()
                hashlib.sha256(data).hexdigest()
                return len(cut_crops(load_image(data), TILES))

            tiles[name] = prepare()
            before[name] = timed(prepare, seconds)
    return {"network": network, "before": before, "tiles": tiles}


def costs(found: dict[str, Any], images: int) -> list[dict[str, Any]]:
    """Core-hours: images x (crops x seconds of a crop + seconds before it) / 3600."""
    return [
        {
            "network": name,
            "images": kind,
            "crops": found["tiles"][kind],
            "images_a_core_second": 1 / (found["tiles"][kind] * crop + before),
            "core_hours": images * (found["tiles"][kind] * crop + before) / 3600,
            "before_share": before / (found["tiles"][kind] * crop + before),
        }
        for name, crop in found["network"].items()
        for kind, before in found["before"].items()
    ]


def markdown(rows: list[dict[str, Any]], images: int, row_bytes: float, recipe: dict[str, Any]) -> str:
    lines = [
        "| network | images | crops of each | images/s on a core | core-hours | of them reading and decoding |",
        "| --- | --- | --: | --: | --: | --: |",
    ]
    for row in rows:
        lines.append(
            f"| {row['network']} | {row['images']} | {row['crops']} | {row['images_a_core_second']:.2f} | "
            f"{row['core_hours']:,.0f} | {row['before_share']:.0%} |"
        )
    shown = ", ".join(f"{key} {recipe[key]}" for key in ("date", "cpu", "torch", "threads", "seed"))
    lines += [
        "",
        f"For {images:,} images. Parts: {images * row_bytes / 1e9:,.0f} GB ({row_bytes:.0f} bytes a row, 32 of them "
        f"the digest, which nothing makes smaller). Index of copies: {images * 200 / 1e9:,.0f} GB in all. Listing "
        f"single files of a bucket: {images / LISTED:,.0f} requests. One crop in place of all (`center_crop`) divides "
        "the network's share by their number.",
        "",
        f"`benchmarks/scan_cost.py`; {shown}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10**9)
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "scan-cost")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    points = json.loads((RESULTS / "scan-scale.json").read_text(encoding="utf-8"))
    row_bytes = max(points, key=lambda point: point["images"])["bytes_a_row"]
    found = constants(arguments.seconds, arguments.seed)
    rows = costs(found, arguments.images)
    recipe = {"command": "python benchmarks/scan_cost.py", "seed": arguments.seed, **environment()}
    result = {"images": arguments.images, "constants": found, "row_bytes": row_bytes, "costs": rows, "recipe": recipe}
    text = json.dumps(result, indent=2)
    arguments.out.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    text_page = markdown(rows, arguments.images, row_bytes, recipe)
    arguments.out.with_suffix(".md").write_text(text_page, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
