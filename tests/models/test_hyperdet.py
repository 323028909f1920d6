"""HyperDet against its formulas: the filters, the LoRAs that are written, and their exact mean."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import PREPROCESS, TINY, tiny_backbone, write_corpus

from clipmole.config import AugmentConfig, MoLEConfig, TrainConfig
from clipmole.models.adapter import load_adapter
from clipmole.models.backbone import save_tower
from clipmole.models.hyperdet import HyperDetNetwork, HyperNetwork
from clipmole.models.network import MoLENetwork
from clipmole.models.srm import GROUPS, srm_kernels, srm_residuals
from clipmole.models.vit import ViT
from clipmole.training.train import train

CONFIG = MoLEConfig(shared_rank=10, expert_ranks=())


def network() -> HyperDetNetwork:
    """With LoRAs that are not zero, as after training."""
    torch.manual_seed(0)
    made = HyperDetNetwork(tiny_backbone().tower, CONFIG)
    torch.nn.init.normal_(made.hypernetwork.out_B.weight)
    return made.eval()


def test_thirty_filters_in_groups_of_8_4_8_5_5_that_each_sum_to_zero() -> None:
    kernels = srm_kernels()
    assert (kernels.shape, GROUPS) == ((30, 5, 5), (8, 4, 8, 5, 5))
    assert kernels.sum((1, 2)).abs().max() < 1e-6
    assert torch.equal(kernels[:, 2, 2].abs(), torch.ones(30))
    assert len({tuple(kernel.flatten().tolist()) for kernel in kernels}) == 30
    assert kernels[0].flatten().tolist() == [0.0] * 12 + [-1, 1] + [0.0] * 11  # the pixel to the right, less this one
    assert torch.allclose(kernels[29] * 12, kernels[29].rot90() * 12)  # the square
    assert kernels[29][0].tolist() == pytest.approx([-1 / 12, 2 / 12, -2 / 12, 2 / 12, -1 / 12])


def test_residuals_are_the_mean_of_a_groups_filters_in_a_plain_loop() -> None:
    crops = torch.randint(0, 256, (2, 3, 9, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    padded = np.pad(crops.numpy().astype(float), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    kernels = srm_kernels().numpy()
    for group, first in enumerate((0, 8, 12, 20, 25)):
        found = srm_residuals(crops, group, truncation=100.0)
        y, x = 3, 5
        window = padded[1, 2, y : y + 5, x : x + 5]
        own = [abs((window * kernel).sum()) for kernel in kernels[first : first + GROUPS[group]]]
        assert float(found[1, 2, y, x]) == pytest.approx(min(1.0, np.mean(own) / 100), abs=1e-5)
        assert torch.allclose(found, srm_residuals(crops / 255, group, 100.0), atol=1e-5)
    assert srm_residuals(torch.full((1, 3, 8, 8), 0.3), 0, 8.0).abs().max() < 1e-5


def test_the_hypernetwork_writes_another_lora_for_every_group_and_block_and_begins_at_zero() -> None:
    torch.manual_seed(0)
    hyper = HyperNetwork(blocks=2, width=24, rank=4)
    (a, b), (again, _), (other, _), (elsewhere, _) = hyper(0, 0), hyper(0, 0), hyper(1, 0), hyper(0, 1)
    assert (a.shape, b.shape) == ((4, 24), (24, 4))
    assert torch.equal(b, torch.zeros(24, 4))
    assert torch.equal(a, again)
    assert not torch.equal(a, other)
    assert not torch.equal(a, elsewhere)
    count = 5 * 64 + 2 * 32 + 2 * 8 + 104 * 128 + 128 + 2 * (128 * 96 + 96)
    assert sum(p.numel() for p in hyper.parameters()) == count


def test_at_the_start_it_is_the_frozen_tower_bit_for_bit() -> None:
    torch.manual_seed(0)
    tower = ViT(TINY)
    plain = MoLENetwork(copy.deepcopy(tower), MoLEConfig(shared_rank=0, expert_ranks=())).eval()
    hyper = HyperDetNetwork(tower, CONFIG).eval()
    hyper.head.load_state_dict(plain.head.state_dict())
    crops = torch.rand(3, 3, 32, 32)
    assert torch.equal(hyper(crops), plain(crops))


def test_merged_the_update_is_the_mean_of_the_five() -> None:
    made = network().double().eval()
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    for block, layer in enumerate(made.mole_layers):
        five = [made.hypernetwork(group, block) for group in range(5)]
        expected = sum(x @ a.T @ b.T for a, b in five) / 5
        assert expected.abs().max() > 0.1
        assert (layer(x) - layer.mlp(x) - expected).abs().max() < 1e-10


def test_a_group_alone_is_an_ordinary_network_with_its_lora() -> None:
    made = network()
    crops = torch.rand(3, 3, 32, 32)
    plain = MoLENetwork(tiny_backbone().tower, MoLEConfig(shared_rank=2, expert_ranks=())).eval()
    plain.head.load_state_dict(made.head.state_dict())
    for group in range(5):
        for block, layer in enumerate(plain.mole_layers):
            for parameter, matrix in zip((layer.lora_A, layer.lora_B), made.hypernetwork(group, block), strict=True):
                parameter.data.copy_(matrix)
        assert (made.with_lora(crops, group) - plain(crops)).abs().max() < 1e-4


def test_training_reaches_the_hypernetwork_and_the_head_and_nothing_else() -> None:
    made = network().train()
    torch.manual_seed(3)
    made(torch.rand(4, 3, 32, 32)).square().sum().backward()
    reached = {name for name, p in made.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == {"head.weight", "head.bias"} | {
        f"hypernetwork.{n}" for n, _ in made.hypernetwork.named_parameters()
    }
    drawn = made.hypernetwork.groups.grad.abs().sum(1) > 0
    assert int(drawn.sum()) == 1  # of one group alone


def test_what_comes_out_of_training_is_an_ordinary_adapter(tmp_path: Path) -> None:
    data = write_corpus(tmp_path / "corpus", {"train": 16, "val": 6})
    config = TrainConfig(
        backbone="given",
        mole=CONFIG,
        hypernetwork=True,
        preprocess=PREPROCESS,
        augment=AugmentConfig(blur_probability=0, jpeg_probability=0),
        epochs=2,
        batch_size=8,
        precision="float32",
    )
    detector = train(config, tmp_path / "out", data=data, backbone=tiny_backbone())
    save_tower(tiny_backbone().tower, tmp_path / "tiny", torch.float32)
    loaded = load_adapter(tmp_path / "out", tmp_path / "tiny").network
    assert type(loaded) is MoLENetwork
    assert loaded.config == CONFIG
    crops = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(crops), detector.network(crops))
    assert all(layer.lora_B.abs().max() > 0 for layer in loaded.mole_layers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mole": MoLEConfig()}, "hypernetwork: set mole.shared_rank to a multiple of 5"),
        ({"mole": MoLEConfig(shared_rank=4, expert_ranks=())}, "hypernetwork: set mole.shared_rank to a multiple of 5"),
        ({"mole": CONFIG, "cached_views": 2}, "leave out cached_views, kept_tokens and patch_dropout"),
        ({"mole": CONFIG, "patch_dropout": 0.5}, "leave out cached_views, kept_tokens and patch_dropout"),
    ],
)
def test_settings_that_it_cannot_have_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(backbone="given", hypernetwork=True, **changes)  # type: ignore[arg-type]
