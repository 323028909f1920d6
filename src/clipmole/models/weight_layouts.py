"""How other projects name the parameters and the settings of a tower.

In: the names and shapes of the tensors in a weight file, and the JSON beside it. Out: a `TowerConfig`, and for each
parameter of the tower the tensors that it is made of. It reads no file and holds no tensor.

It knows Hugging Face's CLIP, ViT and DINOv2 as transformers 4 and 5 name them, OpenAI's and OpenCLIP's CLIP, and timm's
ViT, the form in which SynCLR (arXiv 2312.17742) and StableRep (arXiv 2306.00984) are stored.
Sources: configuration_clip.py, configuration_vit.py and configuration_dinov2.py of transformers (names,
defaults); model.py of openai/CLIP and of open_clip; vision_transformer.py of timm (names, epsilon, heads of 64).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from clipmole.config import CLIP_MEAN, CLIP_STD, TowerConfig
from clipmole.errors import ConfigError, WeightsMismatch

Json = dict[str, Any]
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class Layout:
    """How one kind of file names the parameters.

    Attributes:
        names: our module or parameter -> theirs. {n} is the index of the block, {kind} is weight or bias. Several
            names, such as those of query, key and value, are concatenated. Empty: the names are ours.
        ignored: an expression for the full names of tensors that belong to other parts, such as the text tower.
        transposed: our parameters that the file holds transposed.
    """

    names: Mapping[str, Sequence[str]]
    ignored: str = ""
    transposed: tuple[str, ...] = ()

    def sources(self, parameter: str) -> tuple[str, ...]:
        """Names in the file of one of our parameters, such as "blocks.3.mlp.fc1.weight"."""
        if not self.names:
            return (parameter,)
        block = re.match(r"blocks\.(\d+)\.", parameter)
        n = block[1] if block else ""
        module, _, kind = parameter.replace(f"blocks.{n}.", "blocks.{n}.").rpartition(".")
        return tuple(name.format(n=n, kind=kind) for name in self.names.get(module or kind, (parameter,)))


@dataclass(frozen=True)
class ParameterSource:
    """What one parameter of the tower is made of.

    Attributes:
        sources: names of tensors in a file, which are concatenated along their first dimension.
        shape: of the parameter.
        transposed: whether the file holds the tensors transposed.
    """

    sources: tuple[str, ...]
    shape: Shape
    transposed: bool


def hf_clip(prefix: str) -> Layout:
    """transformers' CLIP. `prefix` is "vision_model.", or "" for files of the image tower alone in transformers 5."""
    block = prefix + "encoder.layers.{n}."
    return Layout(
        {
            "class_token": [prefix + "embeddings.class_embedding"],
            "position_embedding": [prefix + "embeddings.position_embedding.weight"],
            "patch_embedding": [prefix + "embeddings.patch_embedding.{kind}"],
            "pre_norm": [prefix + "pre_layrnorm.{kind}"],  # sic
            "post_norm": [prefix + "post_layernorm.{kind}"],
            "projection": ["visual_projection.{kind}"],
            "blocks.{n}.norm1": [block + "layer_norm1.{kind}"],
            "blocks.{n}.norm2": [block + "layer_norm2.{kind}"],
            "blocks.{n}.attention.qkv": [block + f"self_attn.{x}_proj.{{kind}}" for x in "qkv"],
            "blocks.{n}.attention.out": [block + "self_attn.out_proj.{kind}"],
            "blocks.{n}.mlp.fc1": [block + "mlp.fc1.{kind}"],
            "blocks.{n}.mlp.fc2": [block + "mlp.fc2.{kind}"],
        },
        ignored=r"text_model\..*|text_projection\.weight|logit_scale|(.*\.)?position_ids",
    )


def hf_vit(prefix: str, blocks: str, new_attention: bool, new_mlp: bool, dinov2: bool) -> Layout:
    """transformers' ViT and DINOv2. The list of blocks, attention and MLP were renamed from version 4 to 5.

    Args:
        prefix: of the model, which files of the base model lack.
        blocks: name of a block in the list, with {n} for its index.
        new_attention, new_mlp: whether these have the names of version 5.
        dinov2: DINOv2 instead of ViT.
    """
    block = prefix + blocks
    qkv = ("q_proj", "k_proj", "v_proj") if new_attention else ("attention.query", "attention.key", "attention.value")
    out = "o_proj" if new_attention else "output.dense"
    fc1, fc2 = ("mlp.fc1", "mlp.fc2") if new_mlp else ("intermediate.dense", "output.dense")
    norm1, norm2 = ("norm1", "norm2") if dinov2 else ("layernorm_before", "layernorm_after")
    return Layout(
        {
            "class_token": [prefix + "embeddings.cls_token"],
            "position_embedding": [prefix + "embeddings.position_embeddings"],
            "patch_embedding": [prefix + "embeddings.patch_embeddings.projection.{kind}"],
            "post_norm": [prefix + "layernorm.{kind}"],
            "blocks.{n}.norm1": [block + norm1 + ".{kind}"],
            "blocks.{n}.norm2": [block + norm2 + ".{kind}"],
            "blocks.{n}.attention.qkv": [f"{block}attention.{x}.{{kind}}" for x in qkv],
            "blocks.{n}.attention.out": [f"{block}attention.{out}.{{kind}}"],
            "blocks.{n}.mlp.fc1": [block + fc1 + ".{kind}"],
            "blocks.{n}.mlp.fc2": [block + fc2 + ".{kind}"],
            "blocks.{n}.scale1": [block + "layer_scale1.lambda1"],
            "blocks.{n}.scale2": [block + "layer_scale2.lambda1"],
        },
        ignored=rf"classifier\..*|{re.escape(prefix)}(pooler\.dense\..*|embeddings\.mask_token)",
    )


def openai_clip(prefix: str) -> Layout:
    """OpenAI's and OpenCLIP's CLIP. `prefix` is "visual.", or "" for files of the image tower alone."""
    block = prefix + "transformer.resblocks.{n}."
    facts = "input_resolution|context_length|vocab_size"  # entries of OpenAI's archives
    text = (
        r"|transformer\..*|text\..*|token_embedding\.weight|positional_embedding|ln_final\..*|text_projection"
        r"|attn_mask|logit_scale"
    )
    return Layout(
        {
            "class_token": [prefix + "class_embedding"],
            "position_embedding": [prefix + "positional_embedding"],
            "patch_embedding": [prefix + "conv1.{kind}"],
            "pre_norm": [prefix + "ln_pre.{kind}"],
            "post_norm": [prefix + "ln_post.{kind}"],
            "projection": [prefix + "proj"],
            "blocks.{n}.norm1": [block + "ln_1.{kind}"],
            "blocks.{n}.norm2": [block + "ln_2.{kind}"],
            "blocks.{n}.attention.qkv": [block + "attn.in_proj_{kind}"],
            "blocks.{n}.attention.out": [block + "attn.out_proj.{kind}"],
            "blocks.{n}.mlp.fc1": [block + "mlp.c_fc.{kind}"],
            "blocks.{n}.mlp.fc2": [block + "mlp.c_proj.{kind}"],
        },
        ignored=facts + (text if prefix else ""),
        transposed=("projection.weight",),
    )


def timm_vit(prefix: str) -> Layout:
    """timm's ViT, and so SynCLR and StableRep. `prefix` is "visual." if a checkpoint holds other parts, else ""."""
    block = prefix + "blocks.{n}."
    return Layout(
        {
            "class_token": [prefix + "cls_token"],
            "position_embedding": [prefix + "pos_embed"],
            "patch_embedding": [prefix + "patch_embed.proj.{kind}"],
            "post_norm": [prefix + "norm.{kind}"],
            "blocks.{n}.norm1": [block + "norm1.{kind}"],
            "blocks.{n}.norm2": [block + "norm2.{kind}"],
            "blocks.{n}.attention.qkv": [block + "attn.qkv.{kind}"],
            "blocks.{n}.attention.out": [block + "attn.proj.{kind}"],
            "blocks.{n}.mlp.fc1": [block + "mlp.fc1.{kind}"],
            "blocks.{n}.mlp.fc2": [block + "mlp.fc2.{kind}"],
            "blocks.{n}.scale1": [block + "ls1.gamma"],
            "blocks.{n}.scale2": [block + "ls2.gamma"],
        },
        ignored=rf"{re.escape(prefix)}(head\..*|mask_token)" + (r"|(?!visual\.).*" if prefix else ""),
    )


def hf_vits(prefix: str, dinov2: bool) -> list[Layout]:
    """The layouts of `hf_vit` with every mixture of old and new names, the oldest first."""
    new_mlp = (True,) if dinov2 else (False, True)
    spellings = product((prefix, ""), ("encoder.layer.{n}.", "layers.{n}."), (False, True), new_mlp)
    return [hf_vit(*spelling, dinov2) for spelling in spellings]


LAYOUTS = {
    "clip": [hf_clip("vision_model."), hf_clip("")],
    "openai": [openai_clip("visual."), openai_clip("")],
    "vit": hf_vits("vit.", dinov2=False),
    "dinov2": hf_vits("dinov2.", dinov2=True),
    "timm": [timm_vit("visual."), timm_vit("")],
    "clipmole-vit": [Layout({})],
}

# Defaults that transformers leaves out of a config.json.
COMMON = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224}
DEFAULTS: dict[str, Json] = {
    "clip": {**COMMON, "patch_size": 32, "intermediate_size": 3072, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "vit": {**COMMON, "patch_size": 16, "intermediate_size": 3072, "hidden_act": "gelu", "layer_norm_eps": 1e-12},
    "dinov2": {**COMMON, "patch_size": 14, "mlp_ratio": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-6},
}
# Settings that change the computation, some without changing a tensor's name or shape -> the values that are supported.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("quick_gelu", "gelu"),
    "num_channels": (3,),
    "qkv_bias": (True,),
    "use_swiglu_ffn": (False,),
}
# The settings that are supported in vision_cfg of open_clip_config.json; any other one is refused.
OPEN_CLIP = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "patch_dropout"}
# Properties of an architecture that config.json does not state.
IMAGENET: Json = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLIP_FIELDS: Json = {"patch_bias": False, "pre_norm": True, "mean": CLIP_MEAN, "std": CLIP_STD}
DINOV2_FIELDS: Json = {"layer_scale": True, **IMAGENET}


def tower_and_layouts(
    shapes: Shapes, source: str, config: Json | None, open_clip: Json | None, preprocessor: Json | None
) -> tuple[TowerConfig, list[Layout]]:
    """The tower that a weight file belongs to, and the layouts that the file may have.

    A config.json of transformers decides. Without one, a file whose tensors are named as OpenAI's or timm's is
    described by their shapes; see `openai_settings` and `timm_settings` for what shapes do not say.

    Args:
        shapes: names and shapes of the file's tensors.
        source: how messages name the file.
        config, open_clip, preprocessor: contents of config.json, open_clip_config.json and
            preprocessor_config.json; None if there is no such file.

    Raises:
        WeightsMismatch: the kind of tower is not known, or the tower cannot have a setting.
    """
    openai = next((prefix for prefix in ("visual.", "") if prefix + "conv1.weight" in shapes), None)
    timm = next((prefix for prefix in ("visual.", "") if prefix + "patch_embed.proj.weight" in shapes), None)
    kind = None if config is None else config.get("model_type")
    try:
        if config is not None and kind == "clipmole-vit":
            version = config.get("format_version")
            if type(version) is not int or version != 1:  # true == 1 too
                raise WeightsMismatch(f"{source}: format_version {version!r} of config.json is not 1; update clipmole")
            return TowerConfig.parse(config.get("tower", {}), f"{source}: config.json"), LAYOUTS["clipmole-vit"]
        if timm is not None and kind is None:
            settings, architecture = timm_settings(shapes, timm, config, preprocessor, source), "timm"
        elif config is not None and (kind is not None or openai is None):
            settings, architecture = hugging_face_settings(config, shapes, openai, source)
        elif openai is not None:
            settings, architecture = openai_settings(shapes, openai, open_clip, source), "openai"
        else:
            raise WeightsMismatch(f"{source}: needs the config.json that belongs to it in the same directory")
        if preprocessor is not None and {"image_mean", "image_std"} <= preprocessor.keys():
            settings |= {"mean": preprocessor["image_mean"], "std": preprocessor["image_std"]}
        elif open_clip is not None and {"mean", "std"} <= open_clip.get("preprocess_cfg", {}).keys():
            settings |= {name: open_clip["preprocess_cfg"][name] for name in ("mean", "std")}
        return TowerConfig.parse(settings, source), LAYOUTS[architecture]
    except ConfigError as error:
        raise WeightsMismatch(str(error)) from error
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise WeightsMismatch(f"{source}: the JSON beside it does not describe a tower: {error}") from error


def hugging_face_settings(config: Json, shapes: Shapes, openai: str | None, source: str) -> tuple[Json, str]:
    """Fields of `TowerConfig`, and a key of `LAYOUTS`, from a config.json of transformers.

    Args:
        config: its content.
        shapes: names and shapes of the file's tensors.
        openai: prefix of the names, if the tensors are named as OpenAI's are; else None.
        source: how messages name the file.
    """
    kind = config.get("model_type")
    architecture = {"clip": "clip", "clip_vision_model": "clip", "vit": "vit", "dinov2": "dinov2"}.get(str(kind))
    if architecture is None:
        known = "clip, clip_vision_model, vit, dinov2 and clipmole-vit"
        raise WeightsMismatch(f"{source}: model_type {kind!r} of config.json is not supported, only {known}")
    own = config
    if kind == "clip":  # early files have the settings twice, and their reader used vision_config_dict
        own = (config.get("vision_config") or {}) | (config.get("vision_config_dict") or {})
    given = DEFAULTS[architecture] | own
    for key, allowed in SUPPORTED.items():
        if given.get(key, allowed[0]) not in allowed:
            options = " or ".join(map(repr, allowed))
            raise WeightsMismatch(f"{source}: {key}={given[key]!r} of config.json is not supported, only {options}")
    settings = {
        "image_size": given["image_size"],
        "patch_size": given["patch_size"],
        "width": given["hidden_size"],
        "depth": given["num_hidden_layers"],
        "heads": given["num_attention_heads"],
        "mlp_width": given.get("intermediate_size"),
        "activation": given["hidden_act"],
        "layer_norm_eps": given["layer_norm_eps"],
    }
    if architecture == "vit":
        return settings, architecture
    if architecture == "dinov2":
        width = int(given["hidden_size"] * float(given["mlp_ratio"]))
        return settings | DINOV2_FIELDS | {"mlp_width": width}, architecture
    projection = "visual_projection.weight" if openai is None else openai + "proj"
    named = "CLIPVisionModelWithProjection" in (config.get("architectures") or ())
    if kind == "clip" or named or projection in shapes:
        settings["projection_dim"] = (config if kind == "clip" else given).get("projection_dim", 512)
    return settings | CLIP_FIELDS, "clip" if openai is None else "openai"


def openai_settings(shapes: Shapes, prefix: str, open_clip: Json | None, source: str) -> Json:
    """Fields of `TowerConfig` from the shapes of a file whose tensors are named as OpenAI's are.

    Shapes do not show the activation and the number of heads. An open_clip_config.json does: `quick_gelu` (false if it
    is missing) and `vision_cfg.head_width` (64 if it is missing), as in open_clip. Without one the file must be
    OpenAI's own, which has an entry "input_resolution": QuickGELU, and heads of 64 channels. Anything else is refused,
    because with the wrong activation the features would be wrong without any error.

    Args:
        shapes: names and shapes of the file's tensors.
        prefix: of the names.
        open_clip: content of open_clip_config.json; None if there is no such file.
        source: how messages name the file.
    """
    names = {name: prefix + name for name in ("conv1.weight", "positional_embedding")}
    names["mlp"] = prefix + "transformer.resblocks.0.mlp.c_fc.weight"
    missing = [name for name in names.values() if name not in shapes]
    if missing:
        raise WeightsMismatch(f"{source}: is not a ViT of CLIP: no tensor {', '.join(missing)}")
    if open_clip is None and "input_resolution" not in shapes:
        raise WeightsMismatch(
            f"{source}: does not say if its activation is QuickGELU; put a file open_clip_config.json beside it with "
            '{"model_cfg": {"quick_gelu": true}} for OpenAI\'s weights, or the one that OpenCLIP gives with its own'
        )
    model = {} if open_clip is None else open_clip.get("model_cfg", {})
    vision = model.get("vision_cfg", {})
    unknown = sorted(vision.keys() - OPEN_CLIP)
    if unknown:
        raise WeightsMismatch(f"{source}: {unknown[0]} in vision_cfg of open_clip_config.json is not supported")
    width, patch = shapes[names["conv1.weight"]][0], shapes[names["conv1.weight"]][-1]
    head_width = vision.get("head_width", 64)
    if width % head_width:
        raise WeightsMismatch(f"{source}: its width {width} is not a multiple of {head_width}, the width of a head")
    blocks = re.compile(re.escape(prefix) + r"transformer\.resblocks\.(\d+)\.")
    return CLIP_FIELDS | {
        "image_size": patch * round((shapes[names["positional_embedding"]][0] - 1) ** 0.5),
        "patch_size": patch,
        "width": width,
        "depth": 1 + max(int(found[1]) for found in map(blocks.match, shapes) if found),
        "heads": width // head_width,
        "mlp_width": shapes[names["mlp"]][0],
        "activation": "quick_gelu" if open_clip is None or model.get("quick_gelu", False) else "gelu",
        "projection_dim": shapes[prefix + "proj"][-1] if prefix + "proj" in shapes else None,
    }


def timm_settings(shapes: Shapes, prefix: str, config: Json | None, preprocessor: Json | None, source: str) -> Json:
    """Fields of `TowerConfig` from the shapes of a file whose tensors are named as timm's ViTs are.

    Shapes show neither the number of heads nor how pixels are normalised. Heads have 64 channels in timm's tiny to
    large ViTs. Normalisation is stated by a preprocessor_config.json or by timm's own config.json (`pretrained_cfg`); a
    checkpoint whose tower is called "visual" is SynCLR's or StableRep's, which use ImageNet's mean and standard
    deviation. Anything else is refused.

    Args:
        shapes: names and shapes of the file's tensors.
        prefix: of the names.
        config, preprocessor: contents of config.json and preprocessor_config.json; None if there is no such file.
        source: how messages name the file.
    """
    width = shapes[prefix + "patch_embed.proj.weight"][0]
    names = ("cls_token", "pos_embed", "norm.weight", "blocks.0.attn.qkv.bias", "blocks.0.mlp.fc1.weight")
    if missing := [prefix + name for name in names if prefix + name not in shapes]:
        raise WeightsMismatch(f"{source}: is not a ViT of timm with a class token: no tensor {', '.join(missing)}")
    if width % 64 or width > 1024:
        raise WeightsMismatch(f"{source}: width {width}: only timm's tiny to large ViTs are known, with heads of 64")
    known = (config or {}).get("pretrained_cfg") or {}
    if {"mean", "std"} <= known.keys():
        pixels = {name: known[name] for name in ("mean", "std")}
    elif prefix or {"image_mean", "image_std"} <= (preprocessor or {}).keys():
        pixels = IMAGENET  # a preprocessor_config.json overrides it
    else:
        raise WeightsMismatch(
            f"{source}: does not say how its pixels are normalised; put a file preprocessor_config.json beside it with "
            '{"image_mean": [...], "image_std": [...]}, or the config.json that timm gives with its weights'
        )
    patch = shapes[prefix + "patch_embed.proj.weight"][-1]
    blocks = re.compile(re.escape(prefix) + r"blocks\.(\d+)\.")
    return pixels | {
        "image_size": patch * round((shapes[prefix + "pos_embed"][-2] - 1) ** 0.5),
        "patch_size": patch,
        "width": width,
        "depth": 1 + max(int(found[1]) for found in map(blocks.match, shapes) if found),
        "heads": width // 64,
        "mlp_width": shapes[prefix + "blocks.0.mlp.fc1.weight"][0],
        "layer_norm_eps": 1e-6,
        "layer_scale": prefix + "blocks.0.ls1.gamma" in shapes,
    }


def match(parameters: Shapes, layouts: Sequence[Layout], shapes: Shapes, source: str) -> dict[str, ParameterSource]:
    """What each parameter of the tower is made of, by the layout for which the fewest tensors are missing.

    Args:
        parameters: names and shapes of the tower's parameters.
        layouts: those that the file may have.
        shapes: names and shapes of the file's tensors.
        source: how messages name the file.

    Raises:
        WeightsMismatch: tensors are missing, unknown or misshapen; it counts them and names the first ones.
    """

    def missing_from(layout: Layout) -> list[str]:
        return [name for ours in parameters for name in layout.sources(ours) if name not in shapes]

    layout = min(layouts, key=lambda layout: len(missing_from(layout)))
    missing = missing_from(layout)
    used = {name for ours in parameters for name in layout.sources(ours)}
    unknown = sorted(name for name in shapes if name not in used and not re.fullmatch(layout.ignored, name))
    parts, misshapen = {}, []
    for ours, shape in parameters.items():
        part = ParameterSource(layout.sources(ours), shape, ours in layout.transposed)
        parts[ours] = part
        needed = (shape[0] // len(part.sources), *shape[1:])
        needed = needed[::-1] if part.transposed else needed
        for name in part.sources:
            given = shapes.get(name, needed)
            spare = len(given) - len(needed)  # class token and positions may come as (1, 1, d) and (1, tokens, d)
            if given != (1,) * spare + needed:
                misshapen.append(f"{name} is {given} and not {needed}")
    problems = {"missing": missing, "unknown": unknown, "misshapen": misshapen}
    if any(problems.values()):
        said = ", ".join(f"{len(names)} {what} ({listed(names)})" for what, names in problems.items() if names)
        raise WeightsMismatch(f"{source}: its tensors do not fit the tower: {said}; check that it is the right file")
    return parts


def listed(names: Sequence[str]) -> str:
    """The first three names, in words."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
