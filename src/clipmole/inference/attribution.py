"""Which patches of a crop the logit comes from, and which expert has the largest gate at each patch.

In: a detector network and crops (n, 3, S, S), values 0..255. Out: attributions (n, rows, columns) in logit units,
positive towards AI-generated, and the router's gates. It knows nothing of files, tiles or calibrations, and leaves
the network as it was; but while it runs, no other thread may use the network.

The method was chosen by measurements on validation images: `METHODS` begins with the one that is used, and
benchmarks/evidence_map.py compares it with the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipmole.models.network import MoLENetwork

BLUR_SIGMA = 8.0  # pixels: this removes the traces that cameras and generators leave at the scale of a pixel
STEPS = 4  # points between the blurred crop and the crop


def blurred(crops: Tensor, sigma: float = BLUR_SIGMA) -> Tensor:
    """Crops (n, 3, H, W) -> float32, blurred with a Gaussian of `sigma` pixels, mirrored at the borders."""
    reach = min(round(3 * sigma), crops.shape[-1] - 1, crops.shape[-2] - 1)
    offsets = torch.arange(-reach, reach + 1, device=crops.device)
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).repeat(crops.shape[1], 1)  # (3, K)
    padded = F.pad(crops.float(), (reach,) * 4, mode="reflect")
    rows = F.conv2d(padded, kernel[:, None, None, :], groups=crops.shape[1])
    return F.conv2d(rows, kernel[:, None, :, None], groups=crops.shape[1])


def attributed_block(network: MoLENetwork) -> int:
    """The block whose input tokens are attributed: the first adapted one; the last one if none is adapted."""
    depth: int = network.tower.config.depth
    return min(network.config.block_indices(depth), default=depth - 1)


def grid_of(network: MoLENetwork, crops: Tensor) -> tuple[int, int]:
    """(rows, columns) of whole patches in crops (n, 3, H, W)."""
    size = network.tower.config.patch_size
    return crops.shape[-2] // size, crops.shape[-1] // size


def gradient_times_input(network: MoLENetwork, crops: Tensor) -> Tensor:
    """sum_d x_d dlogit/dx_d of each patch's token x before `attributed_block`."""
    start = attributed_block(network)
    with torch.no_grad():
        tokens = network.before(crops.float() / 255, start)
    with torch.enable_grad():
        tokens = tokens.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(network.logits(tokens, start).sum(), tokens)
    rows, columns = grid_of(network, crops)
    shares = (gradient * tokens.detach()).sum(-1)[:, 1 : 1 + rows * columns]  # without the class tokens
    return shares.view(len(crops), rows, columns)


def integrated_gradients(network: MoLENetwork, crops: Tensor) -> Tensor:
    """Integrated gradients (arXiv 1703.01365) of the pixels, from the blurred crop to the crop, summed by patch.

    Up to the error of `STEPS` midpoints they sum to logit(crop) - logit(blurred crop).
    """
    size, (rows, columns) = network.tower.config.patch_size, grid_of(network, crops)
    crops = crops.float()
    base = blurred(crops)
    total = torch.zeros_like(crops)
    for step in range(STEPS):
        with torch.enable_grad():
            point = torch.lerp(base, crops, (step + 0.5) / STEPS).requires_grad_(True)
            (gradient,) = torch.autograd.grad(network.suffix(network.prefix(point / 255)).sum(), point)
        total += gradient / STEPS
    shares = (total * (crops - base)).sum(1)[:, : rows * size, : columns * size]
    return shares.view(-1, rows, size, columns, size).sum((2, 4))


def last_attention(network: MoLENetwork, crops: Tensor) -> Tensor:
    """The contribution of each patch to the class token in the last block's attention, along the gradient of the logit.

    The attention's output is a sum over tokens of weight times value, so this splits it exactly. It ignores what the
    head reads of earlier blocks.
    """
    tower, depth = network.tower, network.tower.config.depth
    block: Any = tower.blocks[-1]
    with torch.no_grad():
        tokens, read = network.parted(network.before(crops.float() / 255, depth - 1), depth - 1)
        batch, count, width = tokens.shape
        heads = tower.config.heads
        qkv = block.attention.qkv(block.norm1(tokens)).view(batch, count, 3, heads, width // heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).float()  # each (B, heads, T, d_head)
        weights = (q[:, :, :1] @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)  # (B, heads, 1, T)
        handed = (weights.transpose(-2, -1) * v).transpose(1, 2).reshape(batch, count, width)
        handed = block.scale1(handed @ block.attention.out.weight.T.float())  # (B, T, d), without the bias
        mixed = block.mix(tokens, network.last_outputs)
    with torch.enable_grad():
        mixed = mixed.detach().requires_grad_(True)
        logits = network.read(block.transform(mixed), read)
        (gradient,) = torch.autograd.grad(logits.sum(), mixed)
    shares: Tensor = (handed * gradient[:, :1]).sum(-1)[:, 1:]
    return shares.view(batch, *grid_of(network, crops))


METHODS: dict[str, Callable[[MoLENetwork, Tensor], Tensor]] = {
    "integrated gradients": integrated_gradients,
    "gradient times input": gradient_times_input,
    "last attention": last_attention,
}
DEFAULT_METHOD = next(iter(METHODS))


def attribute(network: MoLENetwork, crops: Tensor, method: str = DEFAULT_METHOD) -> Tensor:
    """Attributions (n, rows, columns) in logit units by one of `METHODS`, in the network's arithmetic."""
    return METHODS[method](network, crops)


@torch.no_grad()
def gates_of(network: MoLENetwork, crops: Tensor) -> dict[int, Tensor]:
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
