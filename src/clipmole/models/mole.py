"""The method: a mixture of low-rank experts (MoLE) around the frozen MLP of a block.

In: tokens after the block's second LayerNorm (B, T, d). Out: the same shape, for the residual stream.
It knows nothing of towers, heads or files beyond `add_mole`, which puts it into a tower's blocks.

Source: Liu, Wang, Kang, Wang, "Mixture of Low-rank Experts for Transferable AI-Generated Image Detection",
arXiv 2404.04883. What the paper leaves open (ranks, scale, top-k, balance loss) is this project's choice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from clipmole.config import MoLEConfig
from clipmole.models.vit import ViT


class TokenRouter(nn.Module):
    """g = softmax(W x), per token, in float32; with `top_k` all but the k largest are 0 and the rest sums to 1.

    Args:
        width: channels of a token, d.
        experts: number of experts, E.
        top_k: experts kept per token; None keeps all.
    """

    def __init__(self, width: int, experts: int, top_k: int | None = None) -> None:
        super().__init__()
        self.top_k = top_k
        self.weight = nn.Parameter(torch.empty(experts, width))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (..., d) -> gates (..., E), in float32 (float64 for float64 tokens), each row summing to 1."""
        logits = x @ self.weight.T
        gates = torch.softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        if self.top_k is not None and self.top_k < gates.shape[-1]:
            values, indices = gates.topk(self.top_k, dim=-1)
            values = values / values.sum(dim=-1, keepdim=True)
            gates = torch.zeros_like(gates).scatter(-1, indices, values)
        return gates


class MoLE(nn.Module):
    """y = MLP(x) + shared(x) + sum_i g_i(x) expert_i(x), with shared and expert_i LoRAs: x -> s B A x.

    All LoRAs are stacked: `lora_A` (R, d) and `lora_B` (d, R) with R the sum of the ranks, the shared LoRA's
    rows first. Then h = x A^T, each column times its gate (1 for shared), y = MLP(x) + h B^T: two matrix
    products, no loop over experts and no data-dependent shape. `lora_B` starts at 0, so at the start
    y = MLP(x) bit for bit.

    Args:
        mlp: the MLP of the block, left as it is.
        width: channels of a token, d.
        config: ranks, alpha and top_k; at least one LoRA.

    Attributes:
        keep_gates: set it to have each forward pass leave its gates (..., E), attached to the graph, in `gates`.
    """

    column_gate: Tensor
    column_scale: Tensor

    def __init__(self, mlp: nn.Module, width: int, config: MoLEConfig) -> None:
        super().__init__()
        ranks = [config.shared_rank] * (config.shared_rank > 0) + list(config.expert_ranks)
        experts = len(config.expert_ranks)
        self.mlp = mlp
        self.lora_A = nn.Parameter(torch.empty(sum(ranks), width))
        self.lora_B = nn.Parameter(torch.zeros(width, sum(ranks)))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.router = TokenRouter(width, experts, config.top_k) if experts else None

        # Column r of h belongs to gate column_gate[r]; gate 0 is the shared LoRA's constant 1.
        first = 0 if config.shared_rank else 1
        owner = [first + i for i, rank in enumerate(ranks) for _ in range(rank)]
        scale = [(config.alpha or rank) / rank for rank in ranks for _ in range(rank)]
        self.register_buffer("column_gate", torch.tensor(owner, device="cpu"), persistent=False)
        self.register_buffer("column_scale", torch.tensor(scale, device="cpu"), persistent=False)
        self.keep_gates = False
        self.gates: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):  # once, not in each of the products below
            x = x.to(torch.get_autocast_dtype(x.device.type))
        h = x @ self.lora_A.T  # (..., R)
        weight = self.column_scale
        if self.router is not None:
            gates = self.router(x)  # (..., E)
            if self.keep_gates:
                self.gates = gates
            one = torch.ones_like(gates[..., :1])
            weight = torch.cat([one, gates], dim=-1)[..., self.column_gate] * weight  # (..., R)
        return self.mlp(x) + (h * weight.to(h.dtype)) @ self.lora_B.T  # type: ignore[no-any-return]


def add_mole(tower: ViT, config: MoLEConfig) -> tuple[MoLE, ...]:
    """Wrap the MLPs of the chosen blocks of `tower`, in place; returns the new layers, first block first.

    Raises `ConfigError` if the configuration names blocks that the tower does not have.
    """
    layers = []
    for index in config.block_indices(tower.config.depth):
        block = tower.blocks[index]
        block.mlp = MoLE(block.mlp, tower.config.width, config)  # type: ignore[arg-type]
        layers.append(block.mlp)
    return tuple(layers)


def balance_loss(gates: Tensor) -> Tensor:
    """E sum_i m_i^2 with m_i the mean gate of expert i: 1 if all are used alike, E if one takes everything.

    Args:
        gates: (..., E), rows summing to 1.
    """
    mean = gates.flatten(0, -2).mean(dim=0)
    return gates.shape[-1] * mean.square().sum()
