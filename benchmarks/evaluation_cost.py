"""What evaluating costs: memory against the number of images, and the share of its time that the network has.

    python benchmarks/evaluation_cost.py [--images 1000 3000 10000] [--share-images 200]

Memory: that many small images made on the spot and a tiny network, each number in a process of its own: its resident
set once the first images are scored, when all are, and its peak with figures and intervals. Share: a network of
ViT-B/16's shape with random weights on images of mixed formats and sizes, as stored and equalised; the time inside of
the network over that of the whole scoring, both on the same busy or idle machine. Writes a JSON and a Markdown file
into results and prints the JSON last.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from clipmole.config import MoLEConfig, PreprocessConfig, TowerConfig
from clipmole.data.sample import Sample
from clipmole.evaluation.evaluate import CHUNK_IMAGES, evaluate, score_sets
from clipmole.images.conditions import load_conditions
from clipmole.inference.detector import Detector
from clipmole.models.network import MoLENetwork
from clipmole.models.vit import ViT
from clipmole.plumbing.environment import environment
from clipmole.plumbing.progress import ProgressReporter

RESULTS = Path(__file__).resolve().parent / "results"
TINY = TowerConfig(image_size=32, patch_size=16, width=24, depth=4, heads=2, mlp_width=48)
B16 = TowerConfig(image_size=224, patch_size=16, width=768, depth=12, heads=12, mlp_width=3072)
SIZES = ((256, 256), (512, 512), (640, 480), (1024, 1024), (1600, 1200))
FORMATS = (("jpg", {"quality": 90}), ("png", {}), ("webp", {"quality": 85}), ("jpg", {"quality": 75}))
MIB = 2**20


def detector(shape: TowerConfig, seed: int) -> Detector:
    """One with random weights and MoLE, that looks at one centre crop."""
    torch.manual_seed(seed)
    network = MoLENetwork(ViT(shape).requires_grad_(False), MoLEConfig()).eval()
    return Detector(network, PreprocessConfig(mode="center_crop", crop_size=shape.image_size), None, "random")


def picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Smooth colours with grain, about as hard to compress as a photograph."""
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    grain = rng.standard_normal((height, width, 1), dtype=np.float32) * 6
    return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))


def sample(path: Path, index: int) -> Sample:
    label = index % 2
    return Sample(path=path, label=1 if label else 0, generator="made" if label else "camera", split="test")


def resident() -> float:
    """MiB that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB


def memory_of(count: int, folder: Path, seed: int) -> dict[str, float]:
    """Evaluate the first `count` images of the folder in this process."""
    torch.set_num_threads(1)
    samples = [sample(folder / f"{i}.jpg", i) for i in range(count)]
    seen: list[float] = []

    def track(items: Iterable[Any], _description: str, _total: int) -> Iterator[Any]:
        for number, item in enumerate(items):
            if number in (4 * CHUNK_IMAGES, count - 1):
                seen.append(resident())
            yield item

    with tempfile.TemporaryDirectory() as scratch:
        scores = Path(scratch) / "scores.jsonl"
        conditions = load_conditions("default")
        evaluate(
            {"d": detector(TINY, seed)},
            {"s": samples},
            conditions,
            scores,
            resamples=100,
            seed=seed,
            progress=ProgressReporter(track),
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "images": count,
        "early_mib": round(seen[0], 1),
        "scored_mib": round(seen[-1], 1),
        "peak_mib": round(peak, 1),
    }


def share_of(count: int, seed: int, workers: int) -> dict[str, float]:
    """Share of the time of scoring that is spent inside of a network of ViT-B/16's shape."""
    own = detector(B16, seed)
    inside = 0.0
    began = 0.0

    def enter(*_: Any) -> None:
        nonlocal began
        began = time.perf_counter()

    def leave(*_: Any) -> None:
        nonlocal inside
        inside += time.perf_counter() - began

    own.network.register_forward_pre_hook(enter)
    own.network.register_forward_hook(leave)
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as scratch:
        samples = []
        for i in range(count):
            suffix, options = FORMATS[i % len(FORMATS)]
            path = Path(scratch) / f"{i}.{suffix}"
            picture(rng, *SIZES[i % len(SIZES)]).save(path, **options)  # type: ignore[arg-type]
            samples.append(sample(path, i))
        start = time.perf_counter()
        scores = Path(scratch) / "scores.jsonl"
        score_sets({"d": own}, {"s": samples}, load_conditions("default"), scores, seed=seed, workers=workers)
        seconds = time.perf_counter() - start
    return {
        "images": count,
        "seconds": round(seconds, 1),
        "in_network_seconds": round(inside, 1),
        "share_in_network": round(inside / seconds, 4),
    }


def markdown(result: dict[str, Any]) -> str:
    """Both tables and the recipe."""
    first, last = result["memory"][0], result["memory"][-1]
    more = last["images"] - first["images"]
    grown = (last["peak_mib"] - first["peak_mib"]) * 1024 / more if more else float("nan")
    lines = [
        "# What evaluating costs",
        "",
        "Resident memory, a tiny network, two conditions; MiB:",
        "",
        "| images | after the first images | when all are scored | peak, with figures and intervals |",
        "| --: | --: | --: | --: |",
        *(f"| {m['images']:,} | {m['early_mib']} | {m['scored_mib']} | {m['peak_mib']} |" for m in result["memory"]),
        "",
        f"The peak grows by {grown:.2f} KiB an image: its record and its logits, never its pixels.",
        "",
    ]
    share = result["share"]
    if share:
        lines += [
            f"Of {share['seconds']} s of scoring {share['images']} images of mixed formats (256 to 1,600 pixels) with "
            f"a network of ViT-B/16's shape, {share['in_network_seconds']} s were spent in the network: "
            f"{share['share_in_network']:.1%}.",
            "",
        ]
    recipe = ", ".join(f"{key} {value}" for key, value in result["recipe"].items())
    return "\n".join([*lines, f"Recipe: {recipe}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 3000, 10000])
    parser.add_argument("--share-images", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "evaluation-cost")
    parser.add_argument("--only", nargs=2, metavar=("COUNT", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    seed = arguments.seed
    if arguments.only:
        print(json.dumps(memory_of(int(arguments.only[0]), Path(arguments.only[1]), seed)))
        return

    memory = []
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(seed)
        for i in range(max(arguments.images)):
            picture(rng, 48, 40).save(Path(folder) / f"{i}.jpg", quality=90)
        for count in arguments.images:
            command = [sys.executable, __file__, "--seed", str(seed), "--only", str(count), folder]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            memory.append(json.loads(done.stdout))
            print(memory[-1], file=sys.stderr)
    result = {
        "memory": memory,
        "share": share_of(arguments.share_images, seed, arguments.workers) if arguments.share_images else None,
        "recipe": {
            "command": f"python benchmarks/evaluation_cost.py --workers {arguments.workers}",
            "seed": seed,
            **environment(),
        },
    }
    text = json.dumps(result, indent=2)
    arguments.out.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    arguments.out.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
