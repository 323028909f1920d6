"""The tower against its formulas, written out in float64; `test_backbone` compares it with transformers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipmole.config import TowerConfig
from clipmole.models.vit import MLP, Attention, Block, LayerScale, Linear, QuickGELU, ViT

TINY = TowerConfig(image_size=32, patch_size=8, width=24, depth=3, heads=3, mlp_width=40)
CLIP = TINY.model_copy(update={"activation": "quick_gelu", "pre_norm": True, "patch_bias": False, "projection_dim": 10})
DINOV2 = TINY.model_copy(update={"layer_scale": True})


def random_tower(config: TowerConfig) -> ViT:
    """A float64 tower in which every parameter matters."""
    torch.manual_seed(0)
    tower = ViT(config).double()
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return tower.requires_grad_(False)


def normalised(x: Tensor, norm: torch.nn.Module, eps: float) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
    return (x - mean) / (variance + eps).sqrt() * norm.weight + norm.bias


def test_activations() -> None:
    x = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    quick = [v / (1 + math.exp(-1.702 * v)) for v in x.tolist()]
    gelu = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x.tolist()]
    assert QuickGELU()(x).tolist() == pytest.approx(quick, abs=1e-6)
    assert MLP(1, 1, "gelu").activation(x).tolist() == pytest.approx(gelu, abs=1e-6)
    assert isinstance(MLP(1, 1, "quick_gelu").activation, QuickGELU)


def test_attention_is_softmax_of_scaled_products_head_by_head() -> None:
    torch.manual_seed(0)
    attention = Attention(12, 3).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    q, k, v = (x @ w.T + b for w, b in zip(attention.qkv.weight.split(12), attention.qkv.bias.split(12), strict=True))
    heads = []
    for head in range(3):
        own = slice(4 * head, 4 * head + 4)
        scores = q[..., own] @ k[..., own].transpose(1, 2) / math.sqrt(4)
        heads.append(scores.softmax(-1) @ v[..., own])
    expected = torch.cat(heads, -1) @ attention.out.weight.T + attention.out.bias
    assert (attention(x) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("config", [TINY, CLIP, DINOV2], ids=["vit", "clip", "dinov2"])
def test_a_block_is_two_residual_branches_on_normalised_tokens(config: TowerConfig) -> None:
    block = random_tower(config).blocks[1]
    assert isinstance(block, Block)
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    gamma1, gamma2 = (
        scale.gamma if isinstance(scale, LayerScale) else torch.ones(()) for scale in (block.scale1, block.scale2)
    )
    middle = x + gamma1 * block.attention(normalised(x, block.norm1, config.layer_norm_eps))
    expected = middle + gamma2 * block.mlp(normalised(middle, block.norm2, config.layer_norm_eps))
    assert (block(x) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("config", [TINY, CLIP], ids=["vit", "clip"])
def test_embeds_each_patch_by_its_pixels_and_its_place(config: TowerConfig) -> None:
    tower = random_tower(config)
    pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    tokens = [tower.class_token.expand(2, -1)]
    for row in range(4):
        for column in range(4):
            patch = pixels[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].flatten(1)
            token = patch @ tower.patch_embedding.weight.flatten(1).T
            tokens.append(token if tower.patch_embedding.bias is None else token + tower.patch_embedding.bias)
    expected = torch.stack(tokens, 1) + tower.position_embedding
    if config.pre_norm:
        expected = normalised(expected, tower.pre_norm, config.layer_norm_eps)
    assert (tower.embed(pixels) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("config", [TINY, CLIP, DINOV2], ids=["vit", "clip", "dinov2"])
def test_feature_is_the_class_token_normalised_and_projected(config: TowerConfig) -> None:
    tower = random_tower(config)
    tokens = torch.randn(2, 5, 24, dtype=torch.float64)
    expected = normalised(tokens[:, 0], tower.post_norm, config.layer_norm_eps)
    if config.projection_dim:
        expected = expected @ tower.projection.weight.T
    assert (tower.feature(tokens) - expected).abs().max() < 1e-12
    assert tower.feature(tokens).shape == (2, config.feature_dim)


def test_stages_compose_and_may_be_cut_anywhere() -> None:
    tower = random_tower(CLIP)
    pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    whole = tower(pixels)
    for cut in range(4):
        tokens = tower.run_blocks(tower.embed(pixels), stop=cut)
        assert torch.equal(tower.feature(tower.run_blocks(tokens, start=cut)), whole)


def test_positions_at_the_own_size_are_the_learnt_ones() -> None:
    tower = random_tower(TINY)
    assert tower.positions(4, 4) is tower.position_embedding


def keys_weights(old: int, new: int) -> Tensor:
    """(new, old) weights of bicubic resizing: Keys' kernel with a = -0.75, half-pixel centres, border repeated."""
    a = -0.75
    weights = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        for tap in range(math.floor(centre) - 1, math.floor(centre) + 3):
            x = abs(centre - tap)
            near = (a + 2) * x**3 - (a + 3) * x**2 + 1
            far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
            weights[i, min(max(tap, 0), old - 1)] += near if x <= 1 else far
    return weights


@pytest.mark.parametrize("size", [(8, 8), (3, 3), (4, 7), (2, 8)])
def test_other_sizes_interpolate_the_patches_positions_bicubically(size: tuple[int, int]) -> None:
    tower = random_tower(TINY)
    own = tower.position_embedding[1:].reshape(4, 4, 24)
    expected = torch.einsum("yr,xc,rcd->yxd", keys_weights(4, size[0]), keys_weights(4, size[1]), own).flatten(0, 1)
    resized = tower.positions(*size)
    assert torch.equal(resized[0], tower.position_embedding[0])
    assert (resized[1:] - expected).abs().max() < 1e-6  # interpolated in float32


def test_any_size_goes_through_and_the_rest_beyond_whole_patches_is_not_seen() -> None:
    tower = random_tower(DINOV2)
    pixels = torch.randn(1, 3, 45, 71, dtype=torch.float64)
    assert tower.embed(pixels).shape == (1, 1 + 5 * 8, 24)
    assert torch.equal(tower(pixels), tower(pixels[:, :, :40, :64]))


def test_images_of_a_batch_do_not_touch_each_other() -> None:
    tower = random_tower(CLIP)
    pixels = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    apart = torch.cat([tower(image[None]) for image in pixels])
    assert (tower(pixels) - apart).abs().max() < 1e-12


def test_a_stem_is_convolutions_of_stride_2_before_a_smaller_patch() -> None:
    torch.manual_seed(0)
    config = TowerConfig(image_size=32, patch_size=8, width=16, depth=1, heads=2, mlp_width=32, stem=(4, 6))
    tower = ViT(config).eval()
    pixels = torch.randn(2, 3, 32, 32)
    first, _, second, _, last = tower.patch_embedding
    x = F.gelu(F.conv2d(pixels, first.weight, first.bias, stride=2, padding=1))
    x = F.gelu(F.conv2d(x, second.weight, second.bias, stride=2, padding=1))
    patches = F.conv2d(x, last.weight, last.bias, stride=2)
    assert last.weight.shape == (16, 6, 2, 2)
    with torch.no_grad():
        tokens = tower.embed(pixels)
        assert tokens.shape == (2, 1 + 16, 16)
        expected = patches.flatten(2).transpose(1, 2) + tower.position_embedding[1:]
        assert torch.allclose(tokens[:, 1:], expected, atol=1e-6)


@pytest.mark.parametrize("stem", [(4, 4, 4, 4), (0,)])
def test_a_stem_that_does_not_divide_the_patch_is_refused(stem: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="stem"):
        TowerConfig(image_size=32, patch_size=8, width=16, depth=1, heads=2, mlp_width=32, stem=stem)


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_block_asked_for_the_first_tokens_gives_what_it_gives_for_all(outputs: int) -> None:
    block = random_tower(DINOV2).blocks[0]
    tokens = torch.randn(2, 5, 24, dtype=torch.float64)
    first = block(tokens, outputs)
    assert first.shape == (2, outputs, 24)
    assert (first - block(tokens)[:, :outputs]).abs().max() < 1e-12


def test_a_frozen_layer_is_cast_once_and_gives_what_autocast_gives_bit_for_bit() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(24, 48)
    layer = Linear(24, 48).requires_grad_(False)
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(7, 24)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), plain(x))
        kept = layer.cast_copy
        assert torch.equal(layer(x), plain(x))
        assert layer.cast_copy is kept
    assert torch.equal(layer(x), plain(x))  # without autocast the weights are as they were
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):  # a cast that was made for inference serves training as well
        layer(x).sum().backward()
        assert layer.cast_copy is kept
    assert torch.equal(x.grad, plain.weight.bfloat16().sum(0).expand(7, 24).float())
    with torch.no_grad():
        layer.weight.mul_(2)
        plain.weight.mul_(2)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(layer(x), plain(x))


def test_a_layer_in_training_is_not_kept() -> None:
    layer = Linear(24, 48)
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(7, 24))
    assert layer.cast_copy is None
