"""Settings: an unknown key, a value out of range and a contradiction are one line that names file, key and value."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from clipmole.config import (
    CLIP_TOWERS,
    AugmentConfig,
    Config,
    MoLEConfig,
    PreprocessConfig,
    TowerConfig,
    TrainConfig,
)
from clipmole.errors import ConfigError

TOWER: dict[str, Any] = {"patch_size": 16, "width": 24, "depth": 8, "heads": 2, "mlp_width": 48}


def refusal(cls: type[Config], values: dict[str, Any]) -> str:
    """The message with which `cls` refuses `values`, without the name of the file."""
    with pytest.raises(ConfigError) as error:
        cls.parse(values, "some.toml")
    message = str(error.value)
    assert message.startswith("some.toml: ")
    assert "\n" not in message
    return message.removeprefix("some.toml: ")


def test_a_toml_file_becomes_settings(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        """
        backbone = "vit-b-32"
        epochs = 3
        learning_rate = 1e-4
        [mole]
        blocks = 2
        expert_ranks = [1, 2]
        [preprocess]
        mode = "center_crop"
        [augment]
        jpeg_quality = [50, 60]
        """,
        encoding="utf-8",
    )
    assert TrainConfig.from_toml(path) == TrainConfig(
        backbone="vit-b-32",
        epochs=3,
        learning_rate=1e-4,
        mole=MoLEConfig(blocks=2, expert_ranks=(1, 2)),
        preprocess=PreprocessConfig(mode="center_crop"),
        augment=AugmentConfig(jpeg_quality=(50, 60)),
    )


def test_a_byte_order_mark_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('backbone = "vit-b-32"\n', encoding="utf-8-sig")
    assert TrainConfig.from_toml(path).backbone == "vit-b-32"


def test_settings_survive_json() -> None:
    config = TrainConfig(backbone="vit-l-14", mole=MoLEConfig(blocks=(3, 5), alpha=0.1), learning_rate=0.1 + 0.2)
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config
    assert TrainConfig.parse(config.model_dump(mode="json"), "train.json") == config


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"epochs = ", "is not a TOML file"),
        (b'backbone = "a"\nbackbone = "b"', "is not a TOML file"),
        (b"backbone = '\xff'", "is not a TOML file"),
        (b"", "backbone: is missing"),
        (b'backbone = "a"\n[mole]\nrank = 4', "mole.rank: unknown key (given: 4)"),
        (b'backbone = "a"\n[mole]\nshared_rnak = 4', "mole.shared_rnak: unknown key (given: 4); is shared_rank meant?"),
        (b'backbone = "a"\nepochs = 0', "epochs: Input should be greater than 0 (given: 0)"),
    ],
)
def test_an_error_of_a_toml_file_names_it(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        TrainConfig.from_toml(path)
    assert str(error.value).startswith(f"{path}: {reason}")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match=r"cannot be read|is a directory") as error:
            TrainConfig.from_toml(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (TowerConfig, TOWER | {"dropout": 0.1}),
        (MoLEConfig, {"dropout": 0.1}),
        (PreprocessConfig, {"dropout": 0.1}),
        (AugmentConfig, {"dropout": 0.1}),
        (TrainConfig, {"backbone": "a", "dropout": 0.1}),
    ],
)
def test_an_unknown_key_is_refused(cls: type[Config], values: dict[str, Any]) -> None:
    assert refusal(cls, values) == "dropout: unknown key (given: 0.1)"
    with pytest.raises(ValidationError, match="dropout"):
        cls(**values)


@pytest.mark.parametrize(
    ("cls", "key", "value"),
    [
        (TowerConfig, "width", 0),
        (TowerConfig, "image_size", -1),
        (TowerConfig, "layer_norm_eps", 0.0),
        (TowerConfig, "activation", "relu"),
        (TowerConfig, "projection_dim", 0),
        (MoLEConfig, "shared_rank", -1),
        (MoLEConfig, "alpha", 0.0),
        (MoLEConfig, "top_k", 0),
        (MoLEConfig, "balance_weight", -0.01),
        (PreprocessConfig, "mode", "resize"),
        (PreprocessConfig, "crop_size", 0),
        (PreprocessConfig, "max_tiles", 0),
        (AugmentConfig, "blur_probability", 1.1),
        (AugmentConfig, "flip_probability", -0.1),
        (TrainConfig, "epochs", 2.5),
        (TrainConfig, "batch_size", 0),
        (TrainConfig, "batch_size", 10**12),
        (TrainConfig, "epochs", 10**12),
        (TrainConfig, "cached_views", 10**12),
        (TrainConfig, "learning_rate", math.nan),
        (TrainConfig, "learning_rate", math.inf),
        (TrainConfig, "warmup_fraction", 1.0),
        (TrainConfig, "patience", 0),
        (TrainConfig, "seed", -1),
        (TrainConfig, "precision", "float16"),
    ],
)
def test_a_value_out_of_range_is_refused(cls: type[Config], key: str, value: object) -> None:
    required = {TowerConfig: TOWER, TrainConfig: {"backbone": "a"}}.get(cls, {})
    message = refusal(cls, required | {key: value})
    assert message.startswith(f"{key}: ")
    assert message.endswith(f"(given: {value!r})")


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (TowerConfig, TOWER | {"heads": 5}, "heads=5 does not divide width=24"),
        (TowerConfig, TOWER | {"image_size": 50}, "patch_size=16 does not divide image_size=50"),
        (TowerConfig, TOWER | {"std": [0.5, 0, 0.5]}, "std=(0.5, 0.0, 0.5): standard deviations are positive"),
        (MoLEConfig, {"expert_ranks": [2, 0]}, "expert_ranks=(2, 0): every rank is at least 1"),
        (MoLEConfig, {"top_k": 4}, "top_k=4 is more than the 3 experts"),
        (MoLEConfig, {"expert_ranks": [], "top_k": 1}, "top_k=1 is more than the 0 experts"),
        (MoLEConfig, {"extension_ranks": [0]}, "extension_ranks=(0,): every rank is at least 1"),
        (MoLEConfig, {"expert_groups": [2, 2]}, "expert_groups=(2, 2): must divide the 3 experts"),
        (MoLEConfig, {"expert_groups": [1, 2], "top_k": 2}, "top_k=2 is more than the 1 experts"),
        (MoLEConfig, {"renormalize": False}, "renormalize=False: without top_k nothing is left out; set top_k"),
        (MoLEConfig, {"router": "local-global", "router_noise": 1}, "router='local-global' has no softmax, to which"),
        (AugmentConfig, {"blur_sigma": [3, 1]}, "blur_sigma=(3.0, 1.0): not an ascending range"),
        (AugmentConfig, {"noise_sigma": [-1, 1]}, "noise_sigma=(-1.0, 1.0): not an ascending range"),
        (AugmentConfig, {"resize_scale": [0, 1]}, "resize_scale=(0.0, 1.0): scales are positive"),
        (AugmentConfig, {"jpeg_quality": [0, 90]}, "jpeg_quality=(0, 90): JPEG qualities run from 1 to 100"),
        (AugmentConfig, {"equalise_quality": [65, 101]}, "equalise_quality=(65, 101): JPEG qualities run"),
        (TrainConfig, {"backbone": "a", "full_finetune": True}, "full_finetune trains the tower itself"),
        (TrainConfig, {"backbone": "a", "mole": {"top_k": 9}}, "mole: top_k=9 is more than the 3 experts"),
    ],
)
def test_a_contradiction_is_refused(cls: type[Config], values: dict[str, Any], message: str) -> None:
    assert refusal(cls, values).startswith(message)


def test_a_missing_key_is_named() -> None:
    assert refusal(TowerConfig, {k: v for k, v in TOWER.items() if k != "depth"}) == "depth: is missing"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        MoLEConfig().shared_rank = 8  # type: ignore[misc]


# -- the adapted blocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "depth", "blocks"),
    [
        (MoLEConfig(), 12, (9, 10, 11)),  # the paper's figure: 9 frozen blocks, 3 adapted ones
        (MoLEConfig(), 24, (18, 19, 20, 21, 22, 23)),
        (MoLEConfig(), 2, (1,)),
        (MoLEConfig(blocks=2), 8, (6, 7)),
        (MoLEConfig(blocks=8), 8, tuple(range(8))),
        (MoLEConfig(blocks=(5, 0)), 8, (0, 5)),
        (MoLEConfig(expert_ranks=()), 8, (6, 7)),  # plain LoRA
        (MoLEConfig(shared_rank=0), 8, (6, 7)),
        (MoLEConfig(shared_rank=0, expert_ranks=()), 8, ()),  # linear probe
    ],
)
def test_adapted_blocks(config: MoLEConfig, depth: int, blocks: tuple[int, ...]) -> None:
    assert config.block_indices(depth) == blocks
    assert config.adapts == bool(blocks)


@pytest.mark.parametrize("blocks", [0, 9, -1, (8,), (-1, 2), (1, 1), ()])
def test_blocks_that_a_tower_does_not_have_are_refused(blocks: int | tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"mole\.blocks"):
        MoLEConfig(blocks=blocks).block_indices(8)


def test_the_default_adapter_of_vit_l_14_has_the_papers_share_of_parameters() -> None:
    tower, mole = CLIP_TOWERS["vit-l-14"], MoLEConfig()
    ranks = mole.shared_rank + sum(mole.expert_ranks)
    a_block = ranks * 2 * tower.width + len(mole.expert_ranks) * tower.width
    trained = len(mole.block_indices(tower.depth)) * a_block + tower.feature_dim + 1
    assert trained == 240_385
    assert trained / 304e6 == pytest.approx(0.0008, abs=0.00002)  # 0.08 %


@pytest.mark.parametrize(
    ("name", "grid", "feature_dim"), [("vit-b-32", 7, 512), ("vit-b-16", 14, 512), ("vit-l-14", 16, 768)]
)
def test_clips_towers_have_clips_geometry(name: str, grid: int, feature_dim: int) -> None:
    tower = CLIP_TOWERS[name]
    assert (tower.grid, tower.feature_dim) == (grid, feature_dim)
    assert tower.width // tower.heads == 64
    assert tower.mlp_width == 4 * tower.width
    assert (tower.activation, tower.pre_norm, tower.patch_bias) == ("quick_gelu", True, False)


def test_a_tower_without_projection_gives_its_width() -> None:
    assert TowerConfig(**TOWER).feature_dim == 24
