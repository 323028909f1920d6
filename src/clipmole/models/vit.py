"""The Vision Transformer tower; its configuration makes it CLIP's image tower, a plain ViT or DINOv2.

In: normalised pixels (B, 3, H, W). Out: the feature of the class token (B, feature_dim).
`embed`, `blocks` and `feature` are separate because the method works between them: only the MLPs of the last
blocks are adapted, so everything before them can be computed once and kept. It does not know where weights
come from (`backbone`), nor that it may be adapted (`mole`).

Sources: ViT, arXiv 2010.11929; CLIP, arXiv 2103.00020; DINOv2, arXiv 2304.07193.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipmole.config import TowerConfig


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x): the activation CLIP's published weights were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Linear(nn.Linear):
    """nn.Linear that casts frozen weights for autocast once instead of at every call.

    autocast itself keeps only the casts of weights that are trained. The result is the same, bit for bit; the cast copy
    takes half as much memory again as the weights.

    Attributes:
        cast_copy: a key (dtype, and device, address and version of each weight), the cast weight and the cast bias;
            None if nothing has been cast yet.
    """

    cast_copy: tuple[tuple[object, ...], Tensor, Tensor | None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        if self.weight.requires_grad or torch.compiler.is_compiling() or not torch.is_autocast_enabled(kind):
            return super().forward(x)
        dtype = torch.get_autocast_dtype(kind)
        parts = [self.weight] if self.bias is None else [self.weight, self.bias]
        now = (dtype, *((part.device, part.data_ptr(), part._version) for part in parts))
        if self.cast_copy is None or self.cast_copy[0] != now:
            with torch.inference_mode(False), torch.no_grad():  # the copy may be used later where gradients pass
                weight, *bias = [part.to(dtype) for part in parts]
            self.cast_copy = (now, weight, bias[0] if bias else None)
        return F.linear(x.to(dtype), *self.cast_copy[1:])


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d_head)) v over all tokens, with heads side by side."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, outputs: int | None = None) -> Tensor:
        """Tokens (B, T, d) -> the first `outputs` of them (all by default), each attending to all: (B, outputs, d)."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, d_head)
        mixed = attend(q[:, :, :outputs], k, v)
        return self.out(mixed.transpose(1, 2).reshape(batch, -1, width))  # type: ignore[no-any-return]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d_head)) v; k and v (B, heads, T, d_head), q and the result (B, heads, outputs, d_head).

    If a gradient will pass on a CPU in bfloat16, it is written out as matrix products: the backward pass of
    `scaled_dot_product_attention` is 2.5 to 4 times slower there for 50 to 257 tokens.
    """
    if q.requires_grad and q.device.type == "cpu" and q.dtype == torch.bfloat16:
        with torch.autocast("cpu", enabled=False):
            scores = (q * q.shape[-1] ** -0.5).contiguous() @ k.contiguous().transpose(-2, -1)
            return scores.softmax(-1) @ v.contiguous()  # type: ignore[no-any-return]
    return F.scaled_dot_product_attention(q, k, v)


class MLP(nn.Module):
    """fc2(act(fc1(x))), on each token alone: (..., d) -> (..., d)."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.activation = QuickGELU() if activation == "quick_gelu" else nn.GELU()
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))  # type: ignore[no-any-return]


class LayerScale(nn.Module):
    """x * gamma, a learnt factor per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)); `mlp` is what MoLE wraps."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.attention = Attention(config.width, config.heads)
        self.scale1: nn.Module = LayerScale(config.width) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.mlp: nn.Module = MLP(config.width, config.mlp_width, config.activation)
        self.scale2: nn.Module = LayerScale(config.width) if config.layer_scale else nn.Identity()

    def forward(self, x: Tensor, outputs: int | None = None) -> Tensor:
        """Tokens (B, T, d) -> the first `outputs` of them (all by default), each attending to all: (B, outputs, d)."""
        return self.transform(self.mix(x, outputs))

    def mix(self, x: Tensor, outputs: int | None = None) -> Tensor:
        """The first half: x + attention(norm1(x)), of the first `outputs` tokens."""
        return x[:, :outputs] + self.scale1(self.attention(self.norm1(x), outputs))  # type: ignore[no-any-return]

    def transform(self, x: Tensor) -> Tensor:
        """The second half: x + mlp(norm2(x)), on each token alone."""
        return x + self.scale2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


def patch_embedding(config: TowerConfig) -> nn.Module:
    """Pixels (B, 3, h P, w P) -> patches (B, d, h, w): one convolution of a patch's size and stride.

    With `config.stem`, 3x3 convolutions of stride 2, each followed by the GELU, come first, and the last
    convolution covers what remains of a patch ("Early convolutions help transformers see better",
    arXiv 2106.14881; its batch normalisation is folded into the stored weights).
    """
    layers: list[nn.Module] = []
    channels = 3
    for wider in config.stem:
        layers += [nn.Conv2d(channels, wider, 3, stride=2, padding=1), nn.GELU()]
        channels = wider
    size = config.patch_size // 2 ** len(config.stem)
    last = nn.Conv2d(channels, config.width, size, stride=size, bias=config.patch_bias)
    return nn.Sequential(*layers, last) if layers else last


class ViT(nn.Module):
    """The tower: `feature(run_blocks(embed(pixels)))`.

    Args:
        config: geometry; `config.image_size` is the resolution to which the position embeddings belong.
    """

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch_embedding = patch_embedding(config)
        self.class_token = nn.Parameter(torch.zeros(width))
        self.position_embedding = nn.Parameter(torch.zeros(1 + config.grid**2, width))
        self.pre_norm: nn.Module = nn.LayerNorm(width, eps=config.layer_norm_eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.post_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.projection: nn.Module = (
            nn.Linear(width, config.projection_dim, bias=False) if config.projection_dim else nn.Identity()
        )

    def embed(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, H, W) -> tokens (B, 1 + h w, d), class token first.

        H and W may differ from `config.image_size`: the position embeddings are then interpolated. Pixels beyond the
        last whole patch are left out.
        """
        size = self.config.patch_size
        h, w = pixels.shape[-2] // size, pixels.shape[-1] // size
        patches = self.patch_embedding(pixels[..., : h * size, : w * size])  # (B, d, h, w)
        patches = patches.flatten(2).transpose(1, 2)
        class_token = self.class_token.expand(patches.shape[0], 1, -1)
        tokens = torch.cat([class_token, patches], dim=1) + self.positions(h, w)
        return self.pre_norm(tokens)  # type: ignore[no-any-return]

    def positions(self, h: int, w: int) -> Tensor:
        """Position embeddings (1 + h w, d) for h x w patches, interpolated bicubically unless h = w = `config.grid`."""
        grid = self.config.grid
        if (h, w) == (grid, grid):
            return self.position_embedding
        own = self.position_embedding[1:].T.reshape(1, -1, grid, grid)
        resized = F.interpolate(own.float(), size=(h, w), mode="bicubic", align_corners=False)
        resized = resized.to(own.dtype).flatten(2)[0].T
        return torch.cat([self.position_embedding[:1], resized])

    def run_blocks(self, tokens: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Tokens (B, T, d) through `blocks[start:stop]`."""
        for block in self.blocks[start:stop]:
            tokens = block(tokens)
        return tokens

    def feature(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T, d) after the last block -> the class token's feature (B, feature_dim)."""
        return self.projection(self.post_norm(tokens[:, 0]))  # type: ignore[no-any-return]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.feature(self.run_blocks(self.embed(pixels)))


class Concatenated(ViT):
    """Several towers with their features side by side, for a head alone: there is no block to adapt.

    "Detect Fake with Fake" (arXiv 2409.08884) concatenates frozen features in this way. To all other modules it is a
    tower of depth 0, whose `embed` gives one "token": the features of all towers. Each tower normalises the pixels with
    its own mean and standard deviation.

    Args:
        towers: two or more, of any sizes.
    """

    def __init__(self, towers: Sequence[ViT]) -> None:
        nn.Module.__init__(self)
        width = sum(tower.config.feature_dim for tower in towers)
        own: dict[str, object] = {"width": width, "depth": 0, "projection_dim": None}
        own |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # `embed` takes pixels that are not normalised
        self.config = towers[0].config.model_copy(update=own)
        self.towers = nn.ModuleList(towers)
        self.blocks = nn.ModuleList()
        for i, tower in enumerate(towers):
            for name in ("mean", "std"):
                values = torch.tensor(getattr(tower.config, name), device="cpu").view(3, 1, 1)
                self.register_buffer(f"{name}_{i}", values, persistent=False)

    def embed(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) of 0..1 -> the features of all towers as one token (B, 1, d)."""
        features = [
            tower((pixels - getattr(self, f"mean_{i}")) / getattr(self, f"std_{i}"))
            for i, tower in enumerate(self.towers)
        ]
        return torch.cat(features, dim=-1)[:, None]

    def feature(self, tokens: Tensor) -> Tensor:
        """The token that `embed` gives, (B, 1, d) -> (B, d)."""
        return tokens[:, 0]
