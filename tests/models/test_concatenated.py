"""Several backbones side by side: one head on all features is the sum of a head on each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import PREPROCESS, picture, tiny_backbone, write_corpus

from clipmole.config import CLIP_TOWERS, AugmentConfig, MoLEConfig, TowerConfig, TrainConfig
from clipmole.errors import CheckpointError, ConfigError, WeightsNotFound
from clipmole.inference.detector import Detector
from clipmole.inference.explain import explain
from clipmole.models.adapter import load_adapter
from clipmole.models.backbone import load_backbone, save_tower, tower_sha256
from clipmole.models.network import MoLENetwork
from clipmole.models.vit import Concatenated, ViT
from clipmole.training.train import train

PROBE = MoLEConfig(shared_rank=0, expert_ranks=())


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two directories with towers that differ in size, projection and normalisation."""
    folder = tmp_path_factory.mktemp("backbones")
    other = {"width": 32, "patch_size": 8, "projection_dim": 12, "mean": (0.1, 0.2, 0.3), "std": (0.3, 0.2, 0.1)}
    save_tower(tiny_backbone().tower, folder / "one", torch.float32)
    save_tower(tiny_backbone(1, **other).tower, folder / "two", torch.float32)
    return folder / "one", folder / "two"


def test_a_head_on_concatenated_features_is_the_sum_of_a_head_on_each(towers: tuple[Path, Path]) -> None:
    loaded = load_backbone(f"{towers[0]}+{towers[1]}")
    torch.manual_seed(0)
    network = MoLENetwork(loaded.tower, PROBE).eval()
    crops = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    parts, start = [], 0
    for folder in towers:
        part = MoLENetwork(load_backbone(folder).tower, PROBE).eval()
        width = part.head.in_features
        part.head.weight.data = network.head.weight.data[:, start : start + width]
        start += width
        parts.append(part(crops))
    assert (start, network.head.in_features) == (36, 36)
    assert (network(crops) - parts[0] - parts[1] - network.head.bias).abs().max() < 1e-5
    assert torch.equal(network.suffix(network.prefix(crops)), network(crops))
    assert sum(p.numel() for p in network.adapter_parameters().values()) == 37


def test_synclr_beside_clip_has_1281_trained_parameters() -> None:
    synclr = TowerConfig(patch_size=16, width=768, depth=12, heads=12, mlp_width=3072)
    with torch.device("meta"):
        network = MoLENetwork(Concatenated([ViT(CLIP_TOWERS["vit-b-16"]), ViT(synclr)]).requires_grad_(False), PROBE)
    assert sum(p.numel() for p in network.trained_parameters().values()) == 768 + 512 + 1


def test_it_is_trained_and_loaded_as_any_other_and_tied_to_both(towers: tuple[Path, Path], tmp_path: Path) -> None:
    config = TrainConfig(
        backbone=list(map(str, towers)),  # type: ignore[arg-type]
        mole=PROBE,
        preprocess=PREPROCESS,
        augment=AugmentConfig(blur_probability=0, jpeg_probability=0),
        epochs=2,
        batch_size=8,
        cached_views=2,
        precision="float32",
    )
    data = write_corpus(tmp_path / "corpus", {"train": 16, "val": 6})
    detector = train(config, tmp_path / "out", data=data, cache_dir=tmp_path / "cache")
    loaded = load_adapter(tmp_path / "out", f"{towers[0]}+{towers[1]}")
    assert loaded.config.backbone.id == "one+two"
    assert loaded.config.backbone.sha256 != tower_sha256(tiny_backbone().tower)
    logits = Detector(loaded.network, PREPROCESS).score([picture(0)])
    assert logits.tolist() == pytest.approx(detector.score([picture(0)]).tolist(), abs=1e-6)
    evidence = explain(Detector(loaded.network, PREPROCESS), picture(0), tokens=True)
    assert evidence.tiles[0].attribution is not None
    with pytest.raises(CheckpointError, match="give the right backbone"):
        load_adapter(tmp_path / "out", f"{towers[1]}+{towers[0]}")


def test_there_is_no_block_to_adapt(towers: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="concatenated backbones have no blocks to adapt: set shared_rank = 0"):
        MoLENetwork(load_backbone(f"{towers[0]}+{towers[1]}").tower, MoLEConfig())


def test_several_backbones_have_no_revision(towers: tuple[Path, Path]) -> None:
    with pytest.raises(WeightsNotFound, match="cannot be had at revision 'v1'"):
        load_backbone(f"{towers[0]}+{towers[1]}", revision="v1")
