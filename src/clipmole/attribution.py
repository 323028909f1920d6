"""Which patches of a crop the logit comes from, and which expert took which patch.

In: a detector network and crops (n, 3, S, S). Out: attributions (n, rows, columns) in logit units, positive towards
AI-generated, and the router's gates. It knows nothing of files, tiles or calibrations, and leaves the network as it
was; but while it runs, no other thread may use the network.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipmole.models.detector import MoLEDetector


def attributed_block(network: MoLEDetector) -> int:
    """The block at whose input the logit is attributed: the first adapted one, the last one if none is adapted."""
    depth: int = network.tower.config.depth
    return min(network.config.block_indices(depth), default=depth - 1)


def pixels_of(network: MoLEDetector, crops: Tensor) -> Tensor:
    """Crops (n, 3, S, S) uint8 -> what the tower takes."""
    return (crops.to(network.mean.dtype) / 255 - network.mean) / network.std


def grid_of(network: MoLEDetector, crops: Tensor) -> tuple[int, int]:
    """(rows, columns) of whole patches in crops (n, 3, H, W)."""
    size = network.tower.config.patch_size
    return crops.shape[-2] // size, crops.shape[-1] // size


def gradient_times_input(network: MoLEDetector, crops: Tensor) -> Tensor:
    """sum_d dlogit/dx * x of each patch's token x before `attributed_block`: (n, rows, columns)."""
    start = attributed_block(network)
    with torch.no_grad():
        tokens = network.tower.run_blocks(network.tower.embed(pixels_of(network, crops)), 0, start)
    with torch.enable_grad():
        tokens = tokens.detach().requires_grad_(True)
        logits = network.head(network.tower.feature(network.tower.run_blocks(tokens, start))).sum()
        (gradient,) = torch.autograd.grad(logits, tokens)
    shares = (gradient * tokens.detach()).sum(-1)[:, 1:]  # without the class token
    return shares.view(len(crops), *grid_of(network, crops))


@torch.no_grad()
def gates_of(network: MoLEDetector, crops: Tensor) -> dict[int, Tensor]:
    """Gates (n, rows, columns, E) of each adapted block, by its index; {} if nothing is routed."""
    blocks = network.config.block_indices(network.tower.config.depth)
    network.keep_gates(True)
    try:
        network(crops)
        found = {block: layer.gates for block, layer in zip(blocks, network.mole_layers, strict=True)}
    finally:
        network.keep_gates(False)
    shape = (len(crops), *grid_of(network, crops))
    return {b: gates[:, 1:].reshape(*shape, gates.shape[-1]) for b, gates in found.items() if gates is not None}
