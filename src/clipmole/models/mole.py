"""The method: a mixture of low-rank experts (MoLE) around the frozen MLP of a block.

In: tokens after the block's second LayerNorm (B, T, d). Out: the same shape, for the residual stream.
It knows nothing of heads or files; only `add_mole`, which puts it into a tower's blocks, knows of towers.

Source: Liu, Wang, Kang, Wang, "Mixture of Low-rank Experts for Transferable AI-Generated Image Detection",
arXiv 2404.04883. What the paper leaves open (ranks, scale, top-k, balance loss) is this project's choice, and so is
every router but the first one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from clipmole.config import MoLEConfig
from clipmole.models.vit import ViT

EXTENSION_BIAS = -4.0  # an extension's gate starts at sigmoid(-4) = 0.018, this project's choice


class Router(nn.Module):
    """The gates g of the E experts for tokens x, computed in float32. `config.router` chooses how:

    - softmax: g = softmax(W x), for each token (MoLE, arXiv 2404.04883).
    - image: g = softmax(W x_0) with x_0 the class token. So an image has one set of gates, and its experts fold into
      one matrix (`MoLE.folded`). Gates per image come from MLoRE (arXiv 2403.17749), which pools all tokens instead.
    - local-global: g_i = sigmoid(W x)_i sigmoid(w_i . mean over tokens of expert_i(x)) (MoLE for text-to-image,
      arXiv 2410.23332). There is no softmax: closing one expert does not raise the others, and gates need not sum to 1.

    Each of `config.expert_groups` has its own softmax. With `top_k` all but the k largest gates of a group are 0. With
    `renormalize` the rest then sum to 1; otherwise they keep their values, as in MLoRE. In training, Gaussian noise of
    standard deviation `router_noise` is added to W x, drawn by PyTorch's generator on the CPU; not if W is frozen.

    Args:
        width: channels of a token, d.
        config: the router's kind, and the number of experts.
    """

    def __init__(self, width: int, config: MoLEConfig) -> None:
        super().__init__()
        experts = len(config.expert_ranks)
        self.kind, self.top_k, self.renormalize = config.router, config.top_k, config.renormalize
        self.noise, self.groups = config.router_noise, config.expert_groups or (experts,)
        self.weight = nn.Parameter(torch.empty(experts, width))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.global_weight = nn.Parameter(torch.zeros(experts, width)) if self.kind == "local-global" else None

    @property
    def noisy(self) -> bool:
        """Whether noise is added now: in training, unless the router is a frozen one of an extended detector."""
        return self.training and self.noise > 0 and self.weight.requires_grad

    def forward(self, x: Tensor, pooled: Tensor | None = None) -> Tensor:
        """Tokens (..., T, d) -> gates (..., T, E), in float32 (float64 for float64 tokens).

        Args:
            x: the tokens; for `image` the class token comes first.
            pooled: w_i . mean over tokens of expert_i(x), (..., 1, E), for `local-global`; None for the others.
        """
        logits = (x[..., :1, :] if self.kind == "image" else x) @ self.weight.T
        if self.noisy:
            logits = logits + self.noise * torch.randn(logits.shape).to(logits)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        if pooled is not None:
            return torch.sigmoid(logits.to(dtype)) * torch.sigmoid(pooled.to(dtype))
        parts = logits.split(self.groups, dim=-1)  # type: ignore[no-untyped-call]
        gates = [self._kept(torch.softmax(part, dim=-1, dtype=dtype)) for part in parts]
        return torch.cat(gates, dim=-1).expand(*x.shape[:-1], -1)

    def _kept(self, gates: Tensor) -> Tensor:
        """The gates (..., E) of a group after `top_k` and `renormalize`."""
        if self.top_k is None or self.top_k >= gates.shape[-1]:
            return gates
        values, indices = gates.topk(self.top_k, dim=-1)
        if self.renormalize:
            values = values / values.sum(dim=-1, keepdim=True)
        return torch.zeros_like(gates).scatter(-1, indices, values)


class Extension(nn.Module):
    """h(x) s B A x with h = sigmoid(w . x + b) for each token: a separate LoRA that is added to a trained layer.

    B (`lora_B`) starts at 0, and h near 0 for every token. Where h is 0, the result is exactly 0. An extension has
    2 r d + d + 1 parameters. "Low-rank mixture-of-experts for continual medical image segmentation" (arXiv 2406.13583)
    adds experts for new data and freezes the rest in this way. It is this project's choice to give each extension a
    gate of its own, so that the old gates do not change.

    Args:
        width: channels of a token, d.
        rank: of the LoRA, r.
        scaling: s.
    """

    def __init__(self, width: int, rank: int, scaling: float = 1.0) -> None:
        super().__init__()
        self.scaling = scaling
        self.lora_A = nn.Parameter(torch.empty(rank, width))
        self.lora_B = nn.Parameter(torch.zeros(width, rank))
        self.gate_weight = nn.Parameter(torch.zeros(width))
        self.gate_bias = nn.Parameter(torch.full((1,), EXTENSION_BIAS))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def gate(self, x: Tensor) -> Tensor:
        """Tokens (..., d) -> h (..., 1), in float32 (float64 for float64 tokens)."""
        logits = x @ self.gate_weight[:, None] + self.gate_bias
        return torch.sigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """Tokens (..., d) and their gates (..., 1) -> the term that is added to the layer's output, (..., d)."""
        h = x @ self.lora_A.T
        return (h * (self.scaling * gate).to(h.dtype)) @ self.lora_B.T


class MoLE(nn.Module):
    """y = MLP(x) + shared(x) + sum_i g_i(x) expert_i(x) + sum_j h_j(x) extension_j(x), each LoRA x -> s B A x.

    The shared LoRA and the experts are stacked: `lora_A` (R, d) and `lora_B` (d, R) with R the sum of the ranks, the
    shared LoRA first. Then h = x A^T, each column of h is multiplied by its gate (1 for the shared LoRA), and
    y = MLP(x) + h B^T: two matrix products, no loop over experts, and no shape that depends on the data. `lora_B`
    starts at 0, so at the start y = MLP(x) bit for bit. Extensions are added last, so that everything that was trained
    before them is computed as before.

    Args:
        mlp: the MLP of the block, left as it is.
        width: channels of a token, d.
        config: ranks, alpha and router; at least one LoRA.

    Attributes:
        keep_gates: whether each forward pass stores its gates in `gates`.
        gates: (..., E), attached to the autograd graph: those of the router, then those of the extensions; None if no
            pass has stored any.
    """

    column_gate: Tensor
    column_scale: Tensor

    def __init__(self, mlp: nn.Module, width: int, config: MoLEConfig) -> None:
        super().__init__()
        ranks = [config.shared_rank] * (config.shared_rank > 0) + list(config.expert_ranks)
        self.mlp = mlp
        self.lora_A = nn.Parameter(torch.empty(sum(ranks), width))
        self.lora_B = nn.Parameter(torch.zeros(width, sum(ranks)))
        if ranks:
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.router = Router(width, config) if config.expert_ranks else None
        self.extensions = nn.ModuleList(
            Extension(width, rank, (config.alpha or rank) / rank) for rank in config.extension_ranks
        )

        # Column r of h belongs to gate column_gate[r]; gate 0 is the constant 1 of the shared LoRA.
        first = 0 if config.shared_rank else 1
        owner = [first + i for i, rank in enumerate(ranks) for _ in range(rank)]
        scale = [(config.alpha or rank) / rank for rank in ranks for _ in range(rank)]
        self.register_buffer("column_gate", torch.tensor(owner, device="cpu", dtype=torch.long), persistent=False)
        self.register_buffer("column_scale", torch.tensor(scale, device="cpu"), persistent=False)
        self.keep_gates = False
        self.gates: Tensor | None = None

    @property
    def needs_all_tokens(self) -> bool:
        """Whether the output for one token depends on all tokens, or on noise that is drawn for all tokens at once."""
        router = self.router
        return router is not None and (router.kind == "local-global" or router.noisy)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):  # once, not in each of the products below
            x = x.to(torch.get_autocast_dtype(x.device.type))
        y = self.mlp(x)
        gates = []
        if len(self.lora_A):
            h = x @ self.lora_A.T  # (..., R)
            if self.router is not None:
                gates.append(self.router(x, self._pooled(h)))  # (..., E)
            y = y + (h * self._column_weight(*gates).to(h.dtype)) @ self.lora_B.T
        for extension in self.extensions:
            gates.append(extension.gate(x))  # type: ignore[operator]
            y = y + extension(x, gates[-1])
        if self.keep_gates and gates:
            self.gates = torch.cat(gates, dim=-1)
        return y  # type: ignore[no-any-return]

    def route(self, x: Tensor) -> Tensor:
        """Tokens (..., T, d) -> gates (..., T, E), the router's and then the extensions'; the layer must have some."""
        gates = [] if self.router is None else [self.router(x, self._pooled(x @ self.lora_A.T))]
        gates += [extension.gate(x) for extension in self.extensions]  # type: ignore[operator]
        return torch.cat(gates, dim=-1)

    def folded(self, x: Tensor) -> Tensor:
        """The result of `forward` for images' tokens (B, T, d), computed with one matrix M (d, d) per image.

        y = MLP(x) + x M^T with M = B diag(g s) A, as MLoRE folds its paths (arXiv 2403.17749). All tokens of an image
        must share their gates. So the layer needs the router `image`, or no experts; and no extensions, which have a
        gate for each token. Raises `ValueError` otherwise.
        """
        if self.extensions or (self.router is not None and self.router.kind != "image"):
            raise ValueError("folded: gates differ from token to token; it needs router = 'image' and no extensions")
        gates = () if self.router is None else (self.router(x[:, :1]),)
        weight = self._column_weight(*gates).to(self.lora_B.dtype).expand(len(x), 1, -1)
        return self.mlp(x) + x @ ((self.lora_B * weight) @ self.lora_A).mT  # type: ignore[no-any-return]

    def _column_weight(self, gates: Tensor | None = None) -> Tensor:
        """The factor of each column of h, (..., R): its gate (..., E), or 1 for the shared LoRA, times its scaling."""
        if gates is None:
            return self.column_scale
        one = torch.ones_like(gates[..., :1])
        return torch.cat([one, gates], dim=-1)[..., self.column_gate] * self.column_scale

    def _pooled(self, h: Tensor) -> Tensor | None:
        """h (..., T, R) -> w_i . mean over tokens of B_i A_i x, (..., 1, E); None if the router does not need it."""
        if self.router is None or self.router.global_weight is None:
            return None
        experts = torch.arange(1, 1 + len(self.router.weight), device=h.device)
        own = (self.router.global_weight @ self.lora_B) * (self.column_gate == experts[:, None])  # (E, R)
        return h.mean(dim=-2, keepdim=True) @ own.T


def add_mole(tower: ViT, config: MoLEConfig) -> tuple[MoLE, ...]:
    """Wrap the MLPs of the adapted blocks of `tower`, in place; returns the new layers, that of the first block first.

    Raises `ConfigError` if `config` names blocks that the tower does not have.
    """
    layers = []
    for index in config.block_indices(tower.config.depth):
        block = tower.blocks[index]
        block.mlp = MoLE(block.mlp, tower.config.width, config)  # type: ignore[arg-type]
        layers.append(block.mlp)
    return tuple(layers)


def balance_loss(gates: Tensor) -> Tensor:
    """E sum_i m_i^2 / (sum_i m_i)^2 with m_i the mean gate of expert i: 1 if all are used equally, E if only one is.

    It is 1 + CV^2 with the coefficient of variation CV of the mean gates (Shazeer et al., arXiv 1701.06538). So it does
    not depend on the size of gates that do not sum to 1.

    Args:
        gates: (..., E).
    """
    mean = gates.flatten(0, -2).mean(dim=0)
    return gates.shape[-1] * mean.square().sum() / mean.sum().square()
