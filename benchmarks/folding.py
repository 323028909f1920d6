"""How fast an adapter is as two thin products, and folded into one matrix an image.

Layers of random weights, gates of an image, one batch of tokens as in a forward pass; the MLP, which both share, is
left out. Medians over repeated, alternating calls; the last line is JSON. Without arguments it takes about half a
minute.

    python benchmarks/folding.py [--width 768] [--images 8] [--repeats 50] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
from torch import nn

from clipmole.config import MoLEConfig
from clipmole.models.mole import MoLE
from clipmole.plumbing.environment import environment


def seconds(call: Any) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"width": 768, "images": 8, "tokens": 197, "repeats": 50, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    layer = MoLE(nn.Identity(), args.width, MoLEConfig(router="image")).eval()
    nn.init.normal_(layer.lora_B)
    x = torch.randn(args.images, args.tokens, args.width)
    times: dict[str, list[float]] = {"thin products": [], "folded": []}
    with torch.inference_mode():
        difference = float((layer(x) - layer.folded(x)).abs().max())
        for _ in range(args.repeats):
            times["thin products"].append(seconds(lambda: layer(x)))
            times["folded"].append(seconds(lambda: layer.folded(x)))
    medians = {name: 1000 * statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(f"{name:14} {median:8.2f} ms for {args.images} images of {args.tokens} tokens, one block")
    ratio = medians["folded"] / medians["thin products"]
    print(f"folded takes {ratio:.2f} times as long; the outcomes differ by at most {difference:.1e}")
    print(json.dumps({"milliseconds": medians, "ratio": ratio, "arguments": vars(args), "environment": environment()}))


if __name__ == "__main__":
    main()
