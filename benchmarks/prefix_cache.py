"""Seconds per epoch with and without the prefix cache, measured in one run against the plain loop.

    python benchmarks/prefix_cache.py [--shapes vit-b-32 vit-b-16 vit-l-14] [--images 64] [--repeats 5]

The towers have random weights, which are as fast as trained ones; the images are made on the spot. Every loop trains
the same MoLE adapter (the last quarter of the blocks) on the same views for one epoch: augmentation, forward,
backward, clipping and optimiser; validation is left out. The frozen parameters require no gradient in any of them,
so autograd leaves their backward out by itself.

    float32     the plain loop as it comes: PyTorch's default arithmetic
    bfloat16    the same under autocast
    first pass  what the cache costs once for each view: augmentation, forward of the frozen blocks, writing
    cached      bfloat16 on kept tokens, read from the disk

The loops take turns, so what else the machine does hits all of them; medians over the repeats. Prints JSON last, and
with --out writes it, with a table as Markdown.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from clipmole.config import CLIP_TOWERS, TrainConfig
from clipmole.data.sample import Sample
from clipmole.models.network import MoLENetwork
from clipmole.models.vit import ViT
from clipmole.plumbing.environment import environment
from clipmole.plumbing.progress import SILENT
from clipmole.training.distributed import Distributed
from clipmole.training.loop import TrainingLoop
from clipmole.training.prefix_cache import PrefixCache, record_type
from clipmole.training.tensorboard import ScalarLog

BATCH = {"vit-b-32": 32, "vit-b-16": 16, "vit-l-14": 8}
TARGETS = {"over bfloat16": 2.2, "over float32": 6.5}  # of L/14, after the first epoch


def quiet(_line: str) -> None:
    pass


def make_images(folder: Path, count: int) -> list[Sample]:
    """JPEG files of 256 x 256 pixels, as the benchmarks of the field have them; every other one labelled generated."""
    rng = np.random.default_rng(0)
    samples = []
    for i in range(count):
        path = folder / f"{i}.jpg"
        coarse = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        coarse.resize((256, 256), Image.Resampling.BICUBIC).save(path, quality=90)
        samples.append(Sample(path=path, label=i % 2, generator="made" if i % 2 else "camera", split="train"))
    return samples


class Loop:
    """One training loop of which epochs are timed."""

    def __init__(self, shape: str, samples: list[Sample], config: TrainConfig, cache: bool, folder: Path) -> None:
        torch.manual_seed(0)
        self.network = MoLENetwork(ViT(CLIP_TOWERS[shape]).eval(), config.mole)
        torch.nn.init.normal_(self.network.tower.position_embedding, std=0.02)
        self.pool = ThreadPoolExecutor(2)
        self.distributed, self.samples, self.config, self.folder = Distributed(), samples, config, folder
        self.cache: PrefixCache | None = None
        self.first_pass = self.build() if cache else 0.0
        self.run = TrainingLoop(
            self.network,
            samples,
            samples,
            config,
            cache=self.cache,
            state=folder / f"{shape}.state",
            digest="",
            log=None,
            distributed=self.distributed,
            pool=self.pool,
            progress=SILENT,
            save_seconds=float("inf"),
        )

    def build(self) -> float:
        """Seconds to compute and write the cache of one view."""
        began = time.perf_counter()
        self.cache = PrefixCache(
            self.network,
            self.samples,
            self.config,
            self.folder / f"cache-{time.monotonic_ns()}",
            "0" * 64,
            distributed=self.distributed,
            pool=self.pool,
            progress=SILENT,
        )
        return time.perf_counter() - began

    def epoch(self) -> float:
        """Seconds of one epoch of training."""
        self.run.at.step, self.run.at.epoch = 0, 0
        with ScalarLog(None, 0, quiet) as log:
            began = time.perf_counter()
            self.run.train_epoch(log)
            return time.perf_counter() - began


def measure(shape: str, images: int, repeats: int, batch: int) -> dict[str, Any]:
    """Medians and ranges of one shape's loops."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        samples = make_images(folder, images)
        config = TrainConfig(backbone="random", batch_size=batch, learning_rate=1e-4, precision="bfloat16")
        kept = config.model_copy(update={"cached_views": 1})
        loops: dict[str, Callable[[], float]] = {
            "float32": Loop(shape, samples, config.model_copy(update={"precision": "float32"}), False, folder).epoch,
            "bfloat16": Loop(shape, samples, config, False, folder).epoch,
        }
        cached = Loop(shape, samples, kept, True, folder)
        loops |= {"first pass": cached.build, "cached": cached.epoch}
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        for turn in range(repeats + 1):
            for which, loop in loops.items():
                took = loop()
                if turn:  # the first turn warms up
                    seconds[which].append(took)
                print(f"{shape} {which} {took:.2f} s", file=sys.stderr)
        bytes_each = record_type(cached.network, kept).itemsize
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {
        name: [a / b for a, b in zip(seconds[of], seconds["cached"], strict=True)]
        for name, of in (("over bfloat16", "bfloat16"), ("over float32", "float32"))
    }
    return {
        "shape": shape,
        "images": images,
        "batch": batch,
        "adapted_blocks": len(cached.network.mole_layers),
        "blocks": CLIP_TOWERS[shape].depth,
        "bytes_per_view": bytes_each,
        "seconds": median,
        "range": {name: [min(values), max(values)] for name, values in seconds.items()},
        "speedup": {name: statistics.median(values) for name, values in ratios.items()},
        "speedup_range": {name: [min(values), max(values)] for name, values in ratios.items()},
        # Of 18 epochs on 6 views, the first passes counted.
        "speedup_over_bfloat16_with_first_passes": 18
        * median["bfloat16"]
        / (18 * median["cached"] + 6 * median["first pass"]),
    }


def markdown(result: dict[str, Any]) -> str:
    """The result as a page."""
    env = result["environment"]
    heads = ["shape", "images / s, float32", "bfloat16", "first pass", "cached", "cached over bfloat16", "over float32"]
    heads += ["over bfloat16 with the first passes (18 epochs, 6 views)", "kB a view"]
    lines = [
        "# The prefix cache",
        "",
        f"Training loop, medians of {result['repeats']} turns in one run, in brackets the range. {env['cpu']}, "
        f"{env['threads']} threads, torch {env['torch']}, {env['date']}, seed 0, random weights, the last quarter of "
        "the blocks adapted.",
        "",
        f"`{result['command']}`",
        "",
        "| " + " | ".join(heads) + " |",
        "|---|" + "--:|" * (len(heads) - 1),
    ]
    for row in result["rows"]:
        rates = [f"{row['images'] / row['seconds'][n]:.2f}" for n in ("float32", "bfloat16", "first pass", "cached")]
        gains = [
            f"{row['speedup'][n]:.2f} [{row['speedup_range'][n][0]:.2f}, {row['speedup_range'][n][1]:.2f}]"
            for n in ("over bfloat16", "over float32")
        ]
        both = f"{row['speedup_over_bfloat16_with_first_passes']:.2f}"
        kilobytes = f"{row['bytes_per_view'] / 1000:.0f}"
        what = f"{row['shape']}, {row['adapted_blocks']} of {row['blocks']} blocks, batch {row['batch']}"
        lines.append("| " + " | ".join([what, *rates, *gains, both, kilobytes]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(BATCH), default=list(BATCH))
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--batch", type=int, help="default: by shape, " + ", ".join(f"{k} {v}" for k, v in BATCH.items())
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="folder for prefix-cache.json and .md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = [
        measure(shape, arguments.images, arguments.repeats, arguments.batch or BATCH[shape])
        for shape in arguments.shapes
    ]
    given = [a for a in sys.argv[1:] if not a.startswith("--out") and a != str(arguments.out)]
    result = {
        "command": shlex.join(["python", "benchmarks/prefix_cache.py", *given]),
        "repeats": arguments.repeats,
        "targets": TARGETS,
        "environment": environment() | {"threads": arguments.threads},
        "rows": rows,
    }
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "prefix-cache.json").write_text(json.dumps(result, indent=1) + "\n")
        (arguments.out / "prefix-cache.md").write_text(markdown(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
