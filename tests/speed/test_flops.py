"""Operation counts, against PyTorch's own counter of what a network does."""

from __future__ import annotations

import pytest
import torch
from tiny import TINY, tiny_backbone
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clipmole.config import CLIP_TOWERS, MoLEConfig, TowerConfig
from clipmole.models.network import MoLENetwork
from clipmole.speed.flops import activation_bytes, flops, products, weight_bytes


def counted(network: MoLENetwork, images: int) -> int:
    """Operations that PyTorch counts in a forward pass."""
    size = network.tower.config.image_size
    # Written out: the counter does not know the CPU's fused attention.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        network(torch.zeros(images, 3, size, size))
    return int(counter.get_total_flops())


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("changes", [{}, {"projection_dim": 16, "pre_norm": True}, {"stem": (6, 8)}])
@pytest.mark.parametrize(
    "mole",
    [
        MoLEConfig(),
        MoLEConfig(expert_ranks=()),
        MoLEConfig(shared_rank=0, expert_ranks=()),
        MoLEConfig(router="image"),
        MoLEConfig(extension_ranks=(3, 1)),
    ],
)
def test_operations_are_those_that_pytorch_counts(mole: MoLEConfig, changes: dict[str, object], images: int) -> None:
    tower = tiny_backbone(**changes).tower
    expected = flops(tower.config, mole, class_token_only=True) * images
    assert counted(MoLENetwork(tower, mole).eval(), images) == expected


def test_a_whole_last_block_is_counted_as_well() -> None:
    tower = tiny_backbone().tower
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        tower(torch.zeros(2, 3, 32, 32))
    head = 2 * tower.config.feature_dim
    assert counter.get_total_flops() == 2 * (flops(tower.config) - head)


def test_published_sizes_cost_what_is_published() -> None:
    # CLIP's image towers: 4.4, 17.6 and 81 billion multiply-additions an image.
    billions = {shape: flops(CLIP_TOWERS[shape]) / 2e9 for shape in CLIP_TOWERS}
    assert billions == pytest.approx({"vit-b-32": 4.4, "vit-b-16": 17.6, "vit-l-14": 81.0}, rel=0.01)


def test_the_class_token_alone_saves_nearly_a_blocks_mlp() -> None:
    saved = flops(TINY) - flops(TINY, class_token_only=True)
    d, hidden, others = TINY.width, TINY.mlp_width, TINY.grid**2
    attention = 2 * 2 * others * d * (others + 1)
    assert saved == 2 * others * d * (2 * hidden + d) + attention


def test_bytes_follow_precision_and_weights_are_the_parameters_of_products() -> None:
    tower = TowerConfig(image_size=32, patch_size=16, width=24, depth=2, heads=2, mlp_width=48)
    block = 24 * 24 * 4 + 2 * 24 * 48
    assert weight_bytes(tower) == 4 * (3 * 16 * 16 * 24 + 2 * block + 24)
    assert weight_bytes(tower, precision="int8") * 4 == weight_bytes(tower)
    assert activation_bytes(tower, precision="bfloat16") * 2 == activation_bytes(tower)
    assert {product.name for product in products(tower)} >= {"attention", "MLP", "head"}
