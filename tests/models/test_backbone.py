"""Weights from every kind of file: the same features as transformers computes, or one line that says why not."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import pickle
import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clipmole.config import CLIP_MEAN, CLIP_STD, CLIP_TOWERS, MoLEConfig, TowerConfig
from clipmole.errors import ClipmoleError, WeightsMismatch, WeightsNotFound
from clipmole.models import backbone as module
from clipmole.models.backbone import PRESETS, Backbone, Preset, load_backbone, save_tower, tower_sha256
from clipmole.models.mole import add_mole
from clipmole.models.vit import ViT

SIZE: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
VISION = SIZE | {"patch_size": 8, "intermediate_size": 160, "projection_dim": 24}
TEXT = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def clip(**changes: Any) -> nn.Module:
    vision = transformers.CLIPVisionConfig(**VISION | changes)
    text = transformers.CLIPTextConfig(**TEXT)
    return transformers.CLIPModel(
        transformers.CLIPConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=24)
    )


def clip_vision(**changes: Any) -> nn.Module:
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION | changes))


def clip_projected(**changes: Any) -> nn.Module:
    return transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**VISION | changes))


VIT = {"patch_size": 8, "intermediate_size": 160}
MODELS: dict[str, Callable[[], Any]] = {
    "clip": clip,
    "clip-gelu": lambda: clip(hidden_act="gelu"),
    "clip-vision": clip_vision,
    "clip-projected": clip_projected,
    "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**SIZE | VIT)),
    "vit-classifier": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**SIZE | VIT)),
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SIZE, patch_size=8, mlp_ratio=2)),
    "dinov2-classifier": lambda: transformers.Dinov2ForImageClassification(
        transformers.Dinov2Config(**SIZE, patch_size=8, mlp_ratio=2)
    ),
}


def random_model(kind: str) -> Any:
    """A model of transformers in which every parameter matters, norms, biases and layer scales included."""
    torch.manual_seed(0)
    model = MODELS[kind]().eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        scales = ("norm" in name and name.endswith("weight")) or name.endswith("lambda1")
        nn.init.normal_(parameter, mean=float(scales), std=0.1)
    return model


def saved(kind: str, directory: Path, **options: Any) -> Any:
    model = random_model(kind)
    model.save_pretrained(directory, **options)
    return model


def feature_of(model: Any, pixels: Tensor) -> Tensor:
    """The class token's feature as transformers computes it."""
    if isinstance(model, transformers.CLIPModel):
        vision = model.vision_model(pixels, interpolate_pos_encoding=True)
        return model.visual_projection(vision.pooler_output)
    if isinstance(model, transformers.CLIPVisionModelWithProjection):
        return model(pixels, interpolate_pos_encoding=True).image_embeds
    if isinstance(model, transformers.CLIPVisionModel):
        return model(pixels, interpolate_pos_encoding=True).pooler_output
    model = getattr(model, model.base_model_prefix, model)
    if isinstance(model, transformers.ViTModel):
        return model(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]
    return model(pixels).last_hidden_state[:, 0]


def difference(tower: ViT, model: Any, *size: int, batch: int = 2) -> float:
    """Largest difference of a feature, relative to the largest feature."""
    pixels = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = feature_of(model, pixels)
        return float((tower(pixels) - expected).abs().max() / expected.abs().max())


def refused(directory: Path, said: str, **options: Any) -> str:
    """Loading must fail in one line that has `said` in it."""
    with pytest.raises(WeightsMismatch) as caught:
        load_backbone(directory, **options)
    assert "\n" not in str(caught.value)
    assert said in str(caught.value)
    return str(caught.value)


def rewrite(directory: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor] | None]) -> None:
    """Change the tensors of a directory's model.safetensors."""
    tensors = load_file(directory / "model.safetensors")
    changed = change(tensors)
    save_file(tensors if changed is None else changed, directory / "model.safetensors")


def reconfigure(directory: Path, **changes: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))


# --- the same numbers as transformers ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_features_are_those_of_transformers_at_any_size(kind: str, tmp_path: Path) -> None:
    model = saved(kind, tmp_path)
    loaded = load_backbone(tmp_path)
    for size in ((32, 32), (48, 48), (16, 72)):
        assert difference(loaded.tower, model, *size) < 2e-6  # float32 rounding
    assert not loaded.tower.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in loaded.tower.parameters())
    assert (loaded.id, loaded.revision, loaded.sha256) == (tmp_path.name, None, tower_sha256(loaded.tower))


@pytest.mark.parametrize("wrong", [{"hidden_act": "gelu"}, {"num_attention_heads": 4}, {"layer_norm_eps": 1e-3}])
def test_the_comparison_would_notice_a_wrong_setting(wrong: dict[str, Any], tmp_path: Path) -> None:
    model = saved("clip-projected", tmp_path)
    reconfigure(tmp_path, **wrong)
    assert difference(load_backbone(tmp_path).tower, model, 32, 32) > 1e-4


def test_full_size_b_32_is_the_preset_s_geometry_and_the_same_numbers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig()).eval()
    model.save_pretrained(tmp_path)
    tower = load_backbone(tmp_path).tower
    assert tower.config == CLIP_TOWERS["vit-b-32"]
    assert difference(tower, model, 224, 224, batch=1) < 2e-6
    assert difference(tower, model, 160, 256, batch=1) < 2e-6


def test_a_real_vit(shared_dir: Path) -> None:
    directory = shared_dir / "backbones" / "vit-tiny-patch16-224"
    model = transformers.ViTModel.from_pretrained(directory, add_pooling_layer=False, dtype=torch.float32).eval()
    loaded = load_backbone(directory)
    assert loaded.tower.config.mean == loaded.tower.config.std == (0.5, 0.5, 0.5)
    assert loaded.sha256 == "5cae222740e9af7c0b49f516b622e90fa8c32d0cfb6377a178bbb48340355a2f"
    for size in ((224, 224), (160, 320)):
        assert difference(loaded.tower, model, *size, batch=1) < 2e-6


# --- the same weights under other names ---------------------------------------------------------------------

OLD_VIT = {  # transformers 4 -> as transformers 5 calls them in memory
    r"attention\.attention\.query": "attention.q_proj",
    r"attention\.attention\.key": "attention.k_proj",
    r"attention\.attention\.value": "attention.v_proj",
    r"attention\.output\.dense": "attention.o_proj",
}
OLD_VIT_BLOCKS = {
    r"encoder\.layer\.": "layers.",
    r"intermediate\.dense": "mlp.fc1",
    r"(?<=\d)\.output\.dense": ".mlp.fc2",
}


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("clip", {}),
        ("clip-vision", {r"^": "vision_model."}),  # transformers 4, vision only
        ("clip-projected", {r"^vision_model\.": ""}),
        ("vit", {**OLD_VIT, **OLD_VIT_BLOCKS}),
        ("vit", {r"^": "vit."}),
        ("dinov2", OLD_VIT),
        ("dinov2", {**OLD_VIT, r"^encoder\.layer\.": "layers."}),
        ("dinov2-classifier", {r"^dinov2\.": ""}),
    ],
)  # fmt: skip
def test_old_and_new_names_give_the_same_tower(kind: str, names: dict[str, str], tmp_path: Path) -> None:
    saved(kind, tmp_path)
    before = load_backbone(tmp_path).sha256

    def rename(name: str) -> str:
        for pattern, replacement in names.items():
            name = re.sub(pattern, replacement, name)
        return name

    rewrite(tmp_path, lambda tensors: {rename(name): tensor for name, tensor in tensors.items()})
    assert load_backbone(tmp_path).sha256 == before


def test_full_clip_as_transformers_4_wrote_it(tmp_path: Path) -> None:
    model = saved("clip", tmp_path)
    before = load_backbone(tmp_path).sha256
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert "vision_model.encoder.layers.1.self_attn.q_proj.weight" in state
    assert "vision_model.pre_layrnorm.weight" in state
    assert "text_model.final_layer_norm.weight" in state
    state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    state["text_model.final_layer_norm.weight"].fill_(torch.nan)  # the text tower is not even read
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    vision = {"hidden_size": 1, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8, "intermediate_size": 160}
    (tmp_path / "config.json").write_text(
        json.dumps(
            {  # defaults left out, and the vision settings said twice, the second ones right
                "model_type": "clip",
                "projection_dim": 24,
                "vision_config": vision,
                "vision_config_dict": {"hidden_size": 128, "num_attention_heads": 2},
            }
        )
    )
    loaded = load_backbone(tmp_path)
    assert loaded.sha256 == before
    assert difference(loaded.tower, model, 32, 32) < 2e-6


def openai_names(model: Any) -> dict[str, Tensor]:
    """The image tower of a full CLIP of transformers, as OpenAI's and OpenCLIP's files hold it."""
    state = model.state_dict()
    parts = {
        "class_embedding": "embeddings.class_embedding",
        "positional_embedding": "embeddings.position_embedding.weight",
        "conv1.weight": "embeddings.patch_embedding.weight",
    }
    for theirs, ours in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
        parts |= {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}
    result = {name: state[f"vision_model.{old}"] for name, old in parts.items()}
    result["proj"] = state["visual_projection.weight"].T
    for n in range(2):
        new, old = f"transformer.resblocks.{n}.", f"vision_model.encoder.layers.{n}."
        for kind in ("weight", "bias"):
            qkv = [state[f"{old}self_attn.{x}_proj.{kind}"] for x in "qkv"]
            result[f"{new}attn.in_proj_{kind}"] = torch.cat(qkv)
            for theirs, ours in {
                "attn.out_proj": "self_attn.out_proj",
                "ln_1": "layer_norm1",
                "ln_2": "layer_norm2",
                "mlp.c_fc": "mlp.fc1",
                "mlp.c_proj": "mlp.fc2",
            }.items():
                result[f"{new}{theirs}.{kind}"] = state[f"{old}{ours}.{kind}"]
    return {name: tensor.clone().contiguous() for name, tensor in result.items()}


def openai_state(model: Any) -> dict[str, Tensor]:
    """A whole state dict of OpenAI's, text tower and facts included."""
    return {f"visual.{name}": tensor for name, tensor in openai_names(model).items()} | {
        "input_resolution": torch.tensor(32),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(50),
        "logit_scale": torch.tensor(4.6),
        "positional_embedding": torch.zeros(77, 16),
        "text_projection": torch.zeros(16, 24),
        "token_embedding.weight": torch.zeros(50, 16),
        "ln_final.weight": torch.zeros(16),
        "transformer.resblocks.0.ln_1.weight": torch.zeros(16),
    }


def test_openai_s_state_dict_needs_no_config(tmp_path: Path) -> None:
    model = random_model("clip")
    torch.save(openai_state(model), tmp_path / "ViT-tiny.pt")
    loaded = load_backbone(tmp_path)
    assert loaded.tower.config == TowerConfig(
        image_size=32, patch_size=8, width=128, depth=2, heads=2, mlp_width=160, activation="quick_gelu",
        patch_bias=False, pre_norm=True, projection_dim=24, mean=CLIP_MEAN, std=CLIP_STD,
    )  # fmt: skip
    assert difference(loaded.tower, model, 32, 32) < 2e-6
    assert difference(loaded.tower, model, 48, 24) < 2e-6


@pytest.mark.parametrize("prefix", ["visual.", ""])
@pytest.mark.parametrize("quick", [True, False, None])
def test_openclip_says_its_activation(prefix: str, quick: bool | None, tmp_path: Path) -> None:
    model = random_model("clip" if quick else "clip-gelu")
    tensors = {prefix + name: tensor for name, tensor in openai_names(model).items()}
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    refused(tmp_path, "does not say if its activation is QuickGELU; put a file open_clip_config.json beside it")
    settings = {"embed_dim": 24, "vision_cfg": {"image_size": 32, "layers": 2, "width": 128, "patch_size": 8}}
    settings |= {} if quick is None else {"quick_gelu": quick}
    mean = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": mean}))
    tower = load_backbone(tmp_path).tower
    assert difference(tower, model, 32, 32) < 2e-6
    assert (tower.config.mean, tower.config.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_openclip_head_width_and_what_it_cannot_be(tmp_path: Path) -> None:
    save_file(openai_names(random_model("clip")), tmp_path / "model.safetensors")
    config = tmp_path / "open_clip_config.json"
    config.write_text(json.dumps({"model_cfg": {"vision_cfg": {"head_width": 32}}}))
    assert load_backbone(tmp_path).tower.config.heads == 4
    config.write_text(json.dumps({"model_cfg": {"vision_cfg": {"pool_type": "avg"}}}))
    refused(tmp_path, "pool_type in vision_cfg of open_clip_config.json is not supported")
    config.write_text(json.dumps({"model_cfg": {"vision_cfg": {"head_width": 80}}}))
    refused(tmp_path, "its width 128 is not a multiple of 80, the width of a head")
    config.write_text(json.dumps({"model_cfg": {"vision_cfg": {"head_width": 0}}}))
    refused(tmp_path, "the JSON beside it does not describe a tower: ")  # and Python's own words


def test_openclip_training_checkpoint_and_a_config_of_transformers(tmp_path: Path) -> None:
    model = saved("clip", tmp_path)
    before = load_backbone(tmp_path).sha256
    (tmp_path / "model.safetensors").unlink()
    state = {f"module.visual.{name}": tensor for name, tensor in openai_names(model).items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": state}, tmp_path / "epoch_3.pt")
    assert load_backbone(tmp_path).sha256 == before


def timm_state(layer_scale: bool = False) -> dict[str, Tensor]:
    """Random weights, named as timm does, of a ViT of width 128, depth 2, two heads and 2 x 2 patches of 16."""
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, 128), "pos_embed": (1, 5, 128), "patch_embed.proj.weight": (128, 3, 16, 16),
        "patch_embed.proj.bias": (128,), "norm.weight": (128,), "norm.bias": (128,),
        "head.weight": (1000, 128), "head.bias": (1000,),
    }  # fmt: skip
    for n in range(2):
        own = {"norm1": (128,), "norm2": (128,), "attn.qkv": (384, 128), "attn.proj": (128, 128), "mlp.fc1": (512, 128)}
        for name, shape in (own | {"mlp.fc2": (128, 512)}).items():
            shapes |= {f"blocks.{n}.{name}.weight": shape, f"blocks.{n}.{name}.bias": shape[:1]}
        shapes |= {f"blocks.{n}.ls{i}.gamma": (128,) for i in (1, 2) if layer_scale}
    return {name: 0.2 * torch.randn(shape) for name, shape in shapes.items()}


def timm_features(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """The class token after timm's `forward_features`, written out: pre-norm blocks, GELU, epsilon 1e-6."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    x = F.conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=16).flatten(2).mT
    x = torch.cat([state["cls_token"].expand(len(x), 1, 128), x], 1) + state["pos_embed"]
    for n in range(2):
        q1, q2, k1, k2, v1, v2 = linear(norm(x, f"blocks.{n}.norm1"), f"blocks.{n}.attn.qkv").split(64, -1)
        heads = [torch.softmax(q @ k.mT / 8, -1) @ v for q, k, v in ((q1, k1, v1), (q2, k2, v2))]
        mixed = linear(torch.cat(heads, -1), f"blocks.{n}.attn.proj")
        x = x + mixed * state.get(f"blocks.{n}.ls1.gamma", torch.ones(128))
        hidden = F.gelu(linear(norm(x, f"blocks.{n}.norm2"), f"blocks.{n}.mlp.fc1"))
        x = x + linear(hidden, f"blocks.{n}.mlp.fc2") * state.get(f"blocks.{n}.ls2.gamma", torch.ones(128))
    return norm(x, "norm")[:, 0]


@pytest.mark.parametrize("layer_scale", [False, True])
@pytest.mark.parametrize("synclr", [False, True])
def test_timm_s_vit_is_read_by_its_names_and_gives_its_features(
    synclr: bool, layer_scale: bool, tmp_path: Path
) -> None:
    state = timm_state(layer_scale=layer_scale)
    if synclr:  # a training checkpoint, with other parts beside the tower
        own = {f"module.visual.{name}": tensor for name, tensor in state.items() if not name.startswith("head.")}
        torch.save({"model": own | {"module.image_mlp.0.weight": torch.ones(2, 2)}}, tmp_path / "synclr_vit_b_16.pth")
    else:
        save_file(state, tmp_path / "model.safetensors")
        settings = {"architecture": "vit", "pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.5, 0.5]}}
        (tmp_path / "config.json").write_text(json.dumps(settings))
    tower = load_backbone(tmp_path).tower
    pixels = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(tower(pixels), timm_features(state, pixels), atol=1e-4)
    assert tower.config.mean == ((0.485, 0.456, 0.406) if synclr else (0.5, 0.4, 0.3))
    assert (tower.config.heads, tower.config.depth, tower.config.grid, tower.config.layer_norm_eps) == (2, 2, 2, 1e-6)


def test_timm_s_vit_without_a_normalisation_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    state = timm_state()
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsMismatch, match="does not say how its pixels are normalised; put a file preprocessor"):
        load_backbone(tmp_path)
    preprocessor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    assert load_backbone(tmp_path).tower.config.mean == (0.1, 0.2, 0.3)
    save_file({name: t for name, t in state.items() if name != "cls_token"}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsMismatch, match="is not a ViT of timm with a class token: no tensor cls_token"):
        load_backbone(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_becomes_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    saved("vit", tmp_path)
    exact = load_backbone(tmp_path).tower
    rewrite(tmp_path, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    tower = load_backbone(tmp_path).tower
    for given, expected in zip(tower.parameters(), exact.parameters(), strict=True):
        assert torch.equal(given, expected.to(dtype).float())


def test_normalisation_is_the_file_s_or_the_family_s(tmp_path: Path) -> None:
    expected = {"clip": (CLIP_MEAN, CLIP_STD), "vit": ((0.5,) * 3, (0.5,) * 3)}
    expected["dinov2"] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for kind, (mean, std) in expected.items():
        saved(kind, tmp_path / kind)
        config = load_backbone(tmp_path / kind).tower.config
        assert (config.mean, config.std) == (mean, std)
        values = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
        (tmp_path / kind / "preprocessor_config.json").write_text(json.dumps(values))
        config = load_backbone(tmp_path / kind).tower.config
        assert (config.mean, config.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


# --- what does not fit is refused by name ---------------------------------------------------------------------


def test_missing_unknown_and_misshapen_tensors_are_named_and_counted(tmp_path: Path) -> None:
    saved("clip", tmp_path)

    def damage(tensors: dict[str, Tensor]) -> None:
        for n in range(2):
            for kind in ("weight", "bias"):
                del tensors[f"vision_model.encoder.layers.{n}.mlp.fc1.{kind}"]
        tensors["vision_model.extra.weight"] = torch.zeros(1)
        tensors["vision_model.encoder.layers.1.self_attn.k_proj.bias"] = torch.zeros(64)

    rewrite(tmp_path, damage)
    said = refused(tmp_path, f"{tmp_path}/model.safetensors: its tensors do not fit the tower: 4 missing (")
    assert (
        "4 missing (vision_model.encoder.layers.0.mlp.fc1.weight, vision_model.encoder.layers.0.mlp.fc1.bias, " in said
    )
    assert "1 unknown (vision_model.extra.weight)" in said
    assert "1 misshapen (vision_model.encoder.layers.1.self_attn.k_proj.bias is (64,) and not (128,))" in said
    assert "layers.1.mlp.fc1.bias" not in said  # only the first three


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("clip", "visual_projection.weight"),
        ("clip-projected", "visual_projection.weight"),
        ("vit", "encoder.layer.1.attention.attention.key.bias"),
        ("dinov2", "encoder.layer.0.layer_scale2.lambda1"),
        ("dinov2", "embeddings.cls_token"),
    ],
)
def test_each_missing_tensor_is_named_as_the_file_would(kind: str, name: str, tmp_path: Path) -> None:
    saved(kind, tmp_path)
    rewrite(tmp_path, lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name})
    refused(tmp_path, f"the tower: 1 missing ({name});")


@pytest.mark.parametrize(
    ("kind", "shape", "position"),
    [("clip", (26, 128), "vision_model.embeddings.position_embedding.weight"),
     ("vit", (1, 26, 128), "embeddings.position_embeddings"),
     ("vit", (2, 17, 128), "embeddings.position_embeddings")],
)  # fmt: skip
def test_positions_of_another_size_are_misshapen(
    kind: str, shape: tuple[int, ...], position: str, tmp_path: Path
) -> None:
    saved(kind, tmp_path)
    rewrite(tmp_path, lambda tensors: tensors | {position: torch.zeros(shape)})
    refused(tmp_path, f"1 misshapen ({position} is {shape} and not (17, 128)")


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("vit", {"model_type": "swin"}, "model_type 'swin' of config.json is not supported"),
        ("dinov2", {"model_type": "dinov2_with_registers"}, "model_type 'dinov2_with_registers'"),
        ("dinov2", {"use_swiglu_ffn": True}, "use_swiglu_ffn=True of config.json is not supported"),
        ("vit", {"hidden_act": "gelu_new"}, "hidden_act='gelu_new' of config.json is not supported, only 'quick_gelu'"),
        ("vit", {"num_channels": 1}, "num_channels=1"),
        ("vit", {"qkv_bias": False}, "qkv_bias=False"),
        ("vit", {"hidden_size": "wide"}, "width"),
        ("vit", {"patch_size": 7}, "patch_size=7"),
        ("dinov2", {"mlp_ratio": "much"}, "does not describe a tower: could not convert string to float: 'much'"),
        ("clip", {"vision_config": [1]}, "does not describe a tower"),
        ("vit", {"num_hidden_layers": 3}, "16 missing (encoder.layer.2.layernorm_before.weight, "),
        ("vit", {"num_hidden_layers": 1}, "16 unknown (encoder.layer.1.attention.attention.key.bias, "),
    ],
)
def test_settings_the_tower_cannot_have(kind: str, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    saved(kind, tmp_path)
    reconfigure(tmp_path, **changes)
    refused(tmp_path, said)


@pytest.mark.parametrize(
    ("value", "said"),
    [(torch.nan, "holds values that are not finite"), (torch.inf, "holds values that are not finite")],
)
def test_values_that_are_not_finite(value: float, said: str, tmp_path: Path) -> None:
    saved("vit", tmp_path)
    rewrite(tmp_path, lambda tensors: tensors["layernorm.weight"].view(-1)[3:4].fill_(value) and None)
    refused(tmp_path, f"layernorm.weight {said}")


def test_integers_are_no_weights(tmp_path: Path) -> None:
    saved("vit", tmp_path)
    rewrite(tmp_path, lambda tensors: tensors | {"layernorm.weight": torch.ones(128, dtype=torch.int32)})
    refused(tmp_path, "layernorm.weight is torch.int32; only dense floating-point weights are read")


def in_int8(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with the matrices of the MLPs and of attention in int8, a scale per output channel."""
    result = dict(tensors)
    for name, tensor in tensors.items():
        if "encoder.layers" in name and tensor.dim() == 2:
            scale = tensor.abs().amax(1) / 127
            result[name] = (tensor / scale[:, None]).round().to(torch.int8)
            result[name + "_scale"] = scale
    return result


def test_int8_matrices_are_read_by_their_scales(tmp_path: Path) -> None:
    saved("clip-projected", tmp_path)
    plain = load_file(tmp_path / "model.safetensors")
    stored = in_int8(plain)
    assert sum(tensor.dtype == torch.int8 for tensor in stored.values()) == 12  # two blocks of q, k, v, out, fc1, fc2
    rewrite(tmp_path, lambda _: stored)
    found = load_backbone(tmp_path).tower
    for name, tensor in stored.items():
        if tensor.dtype == torch.int8:
            plain[name] = tensor.float() * stored[name + "_scale"][:, None]
    rewrite(tmp_path, lambda _: plain)
    expected = load_backbone(tmp_path).tower
    assert tower_sha256(found) == tower_sha256(expected)
    assert found.blocks[0].mlp.fc1.weight.dtype == torch.float32


FC1 = "vision_model.encoder.layers.0.mlp.fc1.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda _scale: None, f"{FC1} is int8, and {FC1}_scale does not hold a float32 scale for each row"),
        (lambda scale: scale[:-1].clone(), "does not hold a float32 scale for each row"),
        (lambda scale: scale.half(), "does not hold a float32 scale for each row"),
        (lambda scale: scale * torch.nan, f"{FC1}: its scales are not all finite and positive"),
        (lambda scale: -scale, f"{FC1}: its scales are not all finite and positive"),
    ],
)
def test_int8_without_fitting_scales_is_refused(
    change: Callable[[Tensor], Tensor | None], said: str, tmp_path: Path
) -> None:
    saved("clip-projected", tmp_path)
    stored = in_int8(load_file(tmp_path / "model.safetensors"))
    scale = change(stored.pop(f"{FC1}_scale"))
    rewrite(tmp_path, lambda _: stored | ({} if scale is None else {f"{FC1}_scale": scale}))
    refused(tmp_path, said)


def test_a_single_int8_number_is_refused(tmp_path: Path) -> None:
    saved("vit", tmp_path)
    rewrite(tmp_path, lambda tensors: tensors | {"step": torch.tensor(1, dtype=torch.int8)})
    refused(tmp_path, "step is int8, and step_scale does not hold a float32 scale for each row")


def test_the_packaged_clip_is_the_pinned_one() -> None:
    preset = PRESETS["clip-vit-b-16-int8"]
    if find_spec("clipmole_clip_vit_b_16") is None:
        pytest.skip("needs the package of weights: pip install -e weights/clip-vit-b-16")
    backbone = load_backbone("clip-vit-b-16-int8")
    assert backbone.sha256 == preset.tower_sha256 == tower_sha256(backbone.tower)
    assert backbone.tower.config == CLIP_TOWERS["vit-b-16"]
    assert "clipmole_clip_vit_b_16" not in sys.modules  # data, found without running anything


def test_absent_packaged_weights_name_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _name: None)
    with pytest.raises(WeightsNotFound, match="install the package clipmole-clip-vit-b-16"):
        load_backbone("clip-vit-b-16-int8")


@pytest.mark.parametrize("config", [None, "{", "[]"])
def test_a_config_that_is_not_there_or_not_json(config: str | None, tmp_path: Path) -> None:
    saved("vit", tmp_path)
    if config is None:
        (tmp_path / "config.json").unlink()
        refused(tmp_path, "needs the config.json that belongs to it")
    else:
        (tmp_path / "config.json").write_text(config)
        refused(tmp_path, "config.json: is not")


def test_a_resnet_of_clip_is_refused(tmp_path: Path) -> None:
    save_file({"visual.conv1.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "model.safetensors")
    refused(tmp_path, "is not a ViT of CLIP: no tensor visual.positional_embedding")


# --- files that may hold more than tensors ---------------------------------------------------------------------


class Bomb:
    """Pickled code: whoever unpickles it makes a directory."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "bare-pickle"])
def test_a_pickle_never_runs(legacy: bool, tmp_path: Path) -> None:
    state: dict[str, Any] = {"layernorm.weight": torch.zeros(1), "bomb": Bomb(tmp_path / "exploded")}
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    if legacy:
        (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(state))
    else:
        torch.save(state, tmp_path / "pytorch_model.bin")
    said = refused(tmp_path, "holds more than plain tensors and is not run; ")
    assert "weights_only" not in said  # torch's own message tells people to run the code
    assert not (tmp_path / "exploded").exists()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_torchscript_archive_is_not_run(tmp_path: Path) -> None:
    class Tower(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    path = tmp_path / "ViT-B-32.pt"
    torch.jit.save(torch.jit.script(Tower()), path)
    refused(tmp_path, "is a TorchScript archive, which holds code, and is not run; if you trust it, save its tensors")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_damaged_files(name: str, damage: str, tmp_path: Path) -> None:
    saved("vit", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    (save_file if name.endswith("safetensors") else torch.save)(tensors, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\n"
    kinds = {"truncated": whole[: len(whole) // 2], "text": pointer, "empty": b""}
    (tmp_path / name).write_bytes(kinds[damage])
    refused(tmp_path, f"{name}: is damaged")


def test_a_pickle_of_something_else(tmp_path: Path) -> None:
    for content in ([torch.zeros(1)], {"epoch": 1}, torch.zeros(3)):
        torch.save(content, tmp_path / "model.pt")
        refused(tmp_path, "is not a state dict of tensors")


def test_old_torch_files_load(tmp_path: Path) -> None:
    saved("vit", tmp_path)
    before = load_backbone(tmp_path).sha256
    tensors = load_file(tmp_path / "model.safetensors")
    torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (tmp_path / "model.safetensors").unlink()
    assert load_backbone(tmp_path).sha256 == before


# --- where weights come from ---------------------------------------------------------------------


def test_presets_are_those_of_the_reference(shared_dir: Path) -> None:
    with (shared_dir / "reference" / "backbones.csv").open() as file:
        for row in csv.DictReader(file):
            pinned = (row["hub_id"], row["revision"], row["weight_file"], row["sha256"] or None)
            preset = PRESETS[row["preset"]]
            assert (preset.hub_id, preset.revision, preset.weight_file, preset.file_sha256) == pinned
            assert CLIP_TOWERS[row["preset"]].feature_dim == int(row["feature_dim"])


def from_hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[tuple[Any, ...]]:
    """Lets the hub give `folder`; returns the list of what it is asked for."""
    asked: list[tuple[Any, ...]] = []

    def hub_files(repo_id: str, filenames: Any, *, optional: Any = (), revision: Any, cache_dir: Any) -> Path:
        asked.append((repo_id, list(filenames), list(optional), revision, cache_dir))
        return folder

    monkeypatch.setattr(module, "hub_files", hub_files)
    return asked


def test_a_preset_is_pinned_and_its_file_s_sha256_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved("clip", tmp_path)
    asked = from_hub(monkeypatch, tmp_path)
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    monkeypatch.setitem(PRESETS, "tiny", Preset("owner/tiny", "c" * 40, "model.safetensors", digest))
    loaded = load_backbone("tiny", cache_dir=Path("cache"))
    assert (loaded.id, loaded.revision) == ("tiny", "c" * 40)
    assert asked == [("owner/tiny", ["model.safetensors", "config.json"], [], "c" * 40, Path("cache"))]
    assert load_backbone("tiny", revision="c" * 40).sha256 == loaded.sha256  # as an adapter asks for it
    with pytest.raises(WeightsNotFound, match="tiny: cannot be had at revision 'main'"):
        load_backbone("tiny", revision="main")
    monkeypatch.setitem(PRESETS, "tiny", Preset("owner/tiny", "c" * 40, "model.safetensors", "0" * 64))
    said = f"tiny/model.safetensors: sha256 is {digest[:12]}..., and not 000000000000... as pinned"
    with pytest.raises(WeightsMismatch, match=re.escape(said)):
        load_backbone("tiny")


def test_a_hub_id_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("d" * 40)
    saved("dinov2", folder)
    asked = from_hub(monkeypatch, folder)
    loaded = load_backbone("owner/name", revision="v1")
    assert (loaded.id, loaded.revision) == ("owner/name", "d" * 40)
    names = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")
    beside = ["config.json", "open_clip_config.json", "preprocessor_config.json"]
    assert asked == [("owner/name", [names], beside, "v1", None)]


def test_safetensors_come_first_and_several_files_are_refused(tmp_path: Path) -> None:
    saved("vit", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not even looked at")
    before = load_backbone(tmp_path).sha256
    (tmp_path / "model.safetensors").rename(tmp_path / "mine.safetensors")
    assert load_backbone(tmp_path).sha256 == before
    (tmp_path / "other.safetensors").write_bytes(b"")
    with pytest.raises(WeightsNotFound, match=r"several weight files \(mine.safetensors, other.safetensors\)"):
        load_backbone(tmp_path)


def test_a_directory_is_known_by_its_name_and_never_by_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved("vit", tmp_path / "tower")
    assert load_backbone(tmp_path / "tower").id == load_backbone(f"{tmp_path}/tower/").id == "tower"
    monkeypatch.chdir(tmp_path / "tower")
    assert load_backbone(".").id == "tower"
    with pytest.raises(WeightsNotFound, match="only a hub id has revisions"):
        load_backbone(".", revision="main")


def test_names_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGED_DETECTORS", tmp_path)
    (tmp_path / "file.bin").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for name, said in {
        "vit-b-23": f"vit-b-23: is not there; a backbone is one of {', '.join(PRESETS)}, a directory",
        tmp_path / "absent": "is not there",
        f"{tmp_path}/a/b": "is not there",
        str(tmp_path / "file.bin"): "is a file; give its directory",
        str(tmp_path / "empty"): "holds no weights",
        "embedded": "embedded: its weights are not installed; install the package clipmole, or",
    }.items():
        with pytest.raises(WeightsNotFound) as caught:
            load_backbone(name)
        assert said in str(caught.value)


def test_not_cached_and_offline_is_one_line_that_names_the_preset_s_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = f"openai/clip-vit-base-patch32@3d74acf9a28c: pytorch_model.bin and config.json not in the cache {tmp_path}, "
    with pytest.raises(WeightsNotFound, match=re.escape(said)):
        load_backbone("vit-b-32", cache_dir=tmp_path)


# --- digest, and our own format ---------------------------------------------------------------------


def test_the_digest_is_of_names_shapes_and_values() -> None:
    torch.manual_seed(0)
    tower = ViT(TowerConfig(image_size=16, patch_size=16, width=4, depth=1, heads=1, mlp_width=4))
    digest = tower_sha256(tower)
    assert re.fullmatch("[0-9a-f]{64}", digest)
    with torch.no_grad():
        tower.post_norm.bias[2] += 1e-7
    assert tower_sha256(tower) != digest
    with torch.no_grad():
        tower.post_norm.bias[2] = 0.0
    assert tower_sha256(tower) == digest
    assert tower_sha256(tower.to(memory_format=torch.channels_last)) == digest
    tower.class_token = nn.Parameter(tower.class_token.view(2, 2))
    assert tower_sha256(tower) != digest


@pytest.mark.parametrize("kind", ["clip", "dinov2"])
def test_a_saved_tower_comes_back(kind: str, tmp_path: Path) -> None:
    saved(kind, tmp_path / "theirs")
    tower = load_backbone(tmp_path / "theirs").tower
    save_tower(tower, tmp_path / "ours", dtype=torch.float32)
    back = load_backbone(tmp_path / "ours")
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == ["config.json", "model.safetensors"]
    assert back.tower.config == tower.config
    assert back.sha256 == tower_sha256(tower)
    save_tower(tower, tmp_path / "ours")  # over the old one, in float16
    half = load_backbone(tmp_path / "ours").tower
    for given, expected in zip(half.parameters(), tower.parameters(), strict=True):
        assert torch.equal(given, expected.half().float())


def test_a_stem_comes_back(tmp_path: Path) -> None:
    config = TowerConfig(image_size=16, patch_size=8, width=8, depth=1, heads=1, mlp_width=8, stem=(4, 6))
    tower = ViT(config).eval()
    save_tower(tower, tmp_path, dtype=torch.float32)
    back = load_backbone(tmp_path).tower
    pixels = torch.randn(2, 3, 16, 24)
    assert torch.equal(back(pixels), tower(pixels))


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    config = TowerConfig(image_size=16, patch_size=8, width=8, depth=4, heads=1, mlp_width=8)
    tower = ViT(config)
    save_tower(tower, tmp_path, dtype=torch.float32)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with torch.no_grad():
        tower.post_norm.weight[0] = 1e5
    with pytest.raises(WeightsMismatch, match=r"post_norm.weight is not finite as torch.float16"):
        save_tower(tower, tmp_path)
    add_mole(tower, MoLEConfig())
    with pytest.raises(WeightsMismatch, match=r"blocks\.3\.mlp\..* belongs to an adapter; save the tower"):
        save_tower(tower, tmp_path, dtype=torch.float32)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(ClipmoleError, match="exists and is not a directory"):
        save_tower(ViT(config), tmp_path / "config.json")
    (tmp_path / "thesis.txt").write_text("of others")
    with pytest.raises(ClipmoleError, match=r"holds thesis\.txt, which does not belong to a backbone directory"):
        save_tower(ViT(config), tmp_path)


def test_our_own_format_says_its_version(tmp_path: Path) -> None:
    save_tower(ViT(TowerConfig(image_size=16, patch_size=8, width=8, depth=1, heads=1, mlp_width=8)), tmp_path)
    reconfigure(tmp_path, format_version=True)
    refused(tmp_path, "format_version True of config.json is not 1; update clipmole")
    reconfigure(tmp_path, format_version=2)
    refused(tmp_path, "format_version 2 of config.json is not 1; update clipmole")
    reconfigure(tmp_path, format_version=1, tower={"width": 8, "colour": "red"})
    refused(tmp_path, "config.json")


def test_a_backbone_is_frozen(tmp_path: Path) -> None:
    saved("vit", tmp_path)
    loaded = load_backbone(tmp_path)
    assert isinstance(loaded, Backbone)
    with pytest.raises(AttributeError):
        loaded.id = "other"  # type: ignore[misc]
