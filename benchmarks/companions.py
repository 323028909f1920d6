"""What a companion costs beside a tower: trained parameters, and processor time of a crop, forward and in training.

Random weights and random crops, bfloat16 by autocast, one thread; each row is a fresh network with a linear head, with
AIDE or with FFiT, on the embedded detector's ViT-Ti/16 shape and on CLIP ViT-B/16. "cached" starts from the tokens that
the prefix cache keeps. Time is that of the processor, which other work on the machine hardly changes. Medians; the last
line is JSON.

    python benchmarks/companions.py [--shapes embedded vit-b-16] [--images 4] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from clipmole.config import MoLEConfig
from clipmole.models.network import MoLENetwork
from clipmole.models.vit import ViT
from clipmole.plumbing.environment import environment
from clipmole.speed.paths import tower_of

METHODS = {"linear probe": None, "aide": "aide", "ffit": "ffit"}


def cost(call: Callable[[], object], images: int, repeats: int) -> float:
    """Milliseconds of an image in `call`, which takes `images` of them; the median, after a first call for nothing."""
    call()
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        call()
        seconds.append(time.process_time() - began)
    return 1000 * statistics.median(seconds) / images


def step(network: MoLENetwork, forward: Callable[[Tensor], Tensor], inputs: Tensor) -> None:
    """Forward and backward of a batch, with the companion's own loss."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = forward(inputs)
    loss = logits.float().square().mean()
    own = network.companion.loss if network.companion is not None else None
    (loss if own is None else loss + own.mean()).backward()


def measured(shape: str, companion: str | None, images: int, repeats: int) -> dict[str, float]:
    """Parameters and costs of one network."""
    torch.manual_seed(0)
    mole = MoLEConfig.parse({"shared_rank": 0, "expert_ranks": (), "companion": companion}, "companions.py")
    network = MoLENetwork(ViT(tower_of(shape)), mole).eval()
    size = tower_of(shape).image_size
    crops = torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        forward = cost(lambda: network(crops), images, repeats)
        tokens = network.prefix(crops).clone()
    network.train()
    tokens = tokens.float().clone()
    return {
        "parameters": sum(p.numel() for p in network.trained_parameters().values()),
        "detected": forward,
        "trained": cost(lambda: step(network, network, crops), images, repeats),
        "cached": cost(lambda: step(network, network.suffix, tokens), images, repeats),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["embedded", "vit-b-16"])
    for name, default in {"images": 4, "repeats": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("milliseconds a crop: forward; forward and backward; the same from kept tokens")
    found: dict[str, dict[str, dict[str, float]]] = {}
    for shape in args.shapes:
        for name, kind in METHODS.items():
            row = measured(shape, kind, args.images, args.repeats)
            found.setdefault(shape, {})[name] = row
            costs = "  ".join(f"{row[key]:7.1f}" for key in ("detected", "trained", "cached"))
            print(f"{shape:10} {name:12} {row['parameters']:>10,} parameters  {costs}", flush=True)
    print(json.dumps({"found": found, "arguments": vars(args), "environment": environment()}))


if __name__ == "__main__":
    main()
