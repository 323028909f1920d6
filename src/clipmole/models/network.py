"""Tower, adapter and head as one network: RGB crops in, logits out.

In: crops (B, 3, H, W), uint8 0..255 or float 0..1. Out: logits (B,), positive for AI-generated. A network with further
outputs gives (B, n): the logit; then, if there is such an output, a number that is above 0 for images that are drawn,
painted or rendered; then, if it knows families of generators, one logit for each of the k families. It knows nothing
of files or verdicts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipmole.config import Families, MoLEConfig
from clipmole.errors import ConfigError
from clipmole.models.aide import AIDE
from clipmole.models.companion import Companion, from_rows, rows_of_patch, to_rows
from clipmole.models.ffit import FFiT
from clipmole.models.mole import MoLE, add_mole, balance_loss
from clipmole.models.vit import ViT

COMPANIONS: dict[str, Callable[[int], Companion]] = {"aide": AIDE, "ffit": FFiT}


class MoLENetwork(nn.Module):
    """logit = w . feature(tower(normalise(crop))) + b; label 1 is AI-generated.

    With no experts and no shared LoRA it is UnivFD's linear probe (arXiv 2302.10174); with the shared LoRA
    only, plain LoRA; with both, MoLE (arXiv 2404.04883). The tower is frozen, unless `full_finetune`. Extensions are
    separate LoRAs that were added later, for new generators.

    If there are head blocks, the head also reads the class tokens after these blocks, each normalised to mean 0 and
    variance 1 over its channels: the features of earlier blocks help most with generators that were not in training
    (RINE, Koutlis and Papadopoulos 2024, arXiv 2402.19091). If there is a companion, a second network reads the crop
    itself, and the head reads what the companion computes from the crop and the feature.

    Tokens therefore carry along what the head will read: "(B, T + k, d)" means T tokens, then the crop in rows
    (`companion.to_rows`) if there is a companion, then the class tokens of the head blocks that were already passed.

    Args:
        tower: a ViT; its MLPs are wrapped in place.
        config: which blocks, ranks, router.
        full_finetune: leave the tower trainable.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, tower: ViT, config: MoLEConfig, full_finetune: bool = False) -> None:
        super().__init__()
        self.full_finetune = full_finetune
        self.tower = tower.requires_grad_(full_finetune)
        self.mole_layers = add_mole(tower, config)
        self.head_blocks = config.read_blocks(tower.config.depth)
        self.config = config.model_copy(update={"head_blocks": self.head_blocks})
        features = tower.config.feature_dim + len(self.head_blocks) * tower.config.width
        self.companion: Companion | None = None
        if config.companion is not None:
            if tower.config.depth == 0:
                raise ConfigError(f"mole.companion={config.companion!r}: needs a single backbone, not several")
            self.companion = COMPANIONS[config.companion](features)
        self.head = nn.Linear(self.companion.width if self.companion else features, 1)
        nn.init.zeros_(self.head.bias)
        self.drawn = nn.Linear(self.head.in_features, 1).requires_grad_(False) if config.drawn else None
        self.families: nn.Linear | None = None
        if config.families:
            self.families = nn.Linear(self.head.in_features, len(config.families.names)).requires_grad_(False)
        self.register_buffer("mean", torch.tensor(tower.config.mean, device="cpu").view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(tower.config.std, device="cpu").view(3, 1, 1), persistent=False)

    @classmethod
    def with_weights(
        cls,
        tower: ViT,
        config: MoLEConfig,
        read: Callable[[dict[str, nn.Parameter]], dict[str, Tensor]],
        **options: bool,
    ) -> MoLENetwork:
        """A network in eval mode with given weights.

        No weight is first drawn at random: a library does not change the random state of the program that uses it.

        Args:
            tower, config: as of the class.
            read: `adapter_parameters` -> their weights, by the same names.
            options: further arguments of the class.
        """
        with torch.device("meta"):
            network = cls(tower, config, **options)
        network.load_state_dict(read(network.adapter_parameters()), strict=False, assign=True)
        return network.eval()

    @property
    def first_adapted_block(self) -> int:
        """Index of the first adapted block; the blocks before it never change. `depth` if no block is adapted."""
        if self.full_finetune:
            return 0
        return min(self.config.block_indices(self.tower.config.depth), default=self.tower.config.depth)

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """What an adapter file holds: LoRAs, routers, companion, heads, and a tower that is trained as a whole."""
        layers = tuple(f"tower.blocks.{block}.mlp." for block in self.config.block_indices(self.tower.config.depth))

        def ours(name: str) -> bool:
            return name.startswith(("head.", "drawn.", "families.", "companion.")) or (
                name.startswith(layers) and ".mlp.mlp." not in name
            )

        return {name: p for name, p in self.named_parameters() if self.full_finetune or ours(name)}

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes: those of `adapter_parameters` that are not frozen."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def set_families(self, families: Families | None, layer: nn.Linear | None) -> None:
        """Set the families of generators, and the layer from F channels to their k logits; None and None: no families.

        Args:
            families: their names, and how often the detector named the right one.
            layer: F is the number of channels that the head reads.
        """
        self.families = layer
        self.config = self.config.model_copy(update={"families": families})

    def train_last_extension_alone(self) -> None:
        """Freeze everything but the extension that was added last to each adapted block."""
        self.requires_grad_(False)
        for layer in self.mole_layers:
            layer.extensions[-1].requires_grad_(True)

    @property
    def last_outputs(self) -> int | None:
        """How many tokens the last block must compute: 1, the class token; None, all, if its MoLE needs all of them."""
        layer: Any = self.tower.blocks[-1].mlp
        return None if isinstance(layer, MoLE) and layer.needs_all_tokens else 1

    def embed(self, crops: Tensor) -> Tensor:
        """Crops (B, 3, H, W) -> tokens (B, T, d) before the first block."""
        pixels = crops.to(self.mean.dtype) / 255 if crops.dtype == torch.uint8 else crops
        return self.tower.embed((pixels - self.mean) / self.std)

    def prefix(self, crops: Tensor) -> Tensor:
        """Crops (B, 3, H, W) -> tokens (B, T + k, d) before the first adapted block."""
        return self.before(crops, self.first_adapted_block)

    def suffix(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T + k, d) before the first adapted block -> logits (B,)."""
        return self.logits(tokens, self.first_adapted_block)

    def before(self, crops: Tensor, stop: int, carried: Sequence[int] | None = None) -> Tensor:
        """Crops (B, 3, H, W) -> tokens (B, T + k, d) before block `stop`.

        Args:
            carried: the blocks before `stop` whose class tokens come along; None: the head blocks.
        """
        tower = self.tower.config
        crop = [to_rows(crops, tower.patch_size, tower.width)] if self.companion else []
        tokens, read = self._run(self.embed(crops), 0, stop, carried)
        return torch.cat([tokens, *crop, *read], dim=1) if crop or read else tokens

    def carried(self, start: int) -> int:
        """How many class tokens the tokens before block `start` carry."""
        return sum(block < start for block in self.head_blocks)

    @property
    def crop_rows(self) -> int:
        """How many rows tokens carry for each patch of the crop, q; 0 without a companion."""
        return rows_of_patch(self.tower.config.patch_size, self.tower.config.width) if self.companion else 0

    def forward(self, crops: Tensor) -> Tensor:
        """Crops (B, 3, H, W) -> logits (B,), or (B, n) with further outputs, as this module's docstring says."""
        features = self.features(self.before(crops, 0), 0)
        further = [layer(features) for layer in (self.drawn, self.families) if layer is not None]
        if not further:
            return self.head(features).squeeze(-1)  # type: ignore[no-any-return]
        return torch.cat([self.head(features), *further], dim=-1)

    def parted(self, tokens: Tensor, start: int) -> tuple[Tensor, list[Tensor]]:
        """Tokens (B, T + k, d) before block `start` -> the T tokens, and the rows that they carry for `read`."""
        stop = tokens.shape[1] - self.carried(start)
        own = 1 + (stop - 1) // (1 + self.crop_rows)
        crop = [tokens[:, own:stop]] if self.companion else []
        return tokens[:, :own], [*crop, *(tokens[:, i : i + 1] for i in range(stop, tokens.shape[1]))]

    def logits(self, tokens: Tensor, start: int, kept: Sequence[int] | None = None) -> Tensor:
        """Tokens (B, T + k, d) before block `start` -> logits (B,).

        Args:
            kept: indices of the T tokens that are used, the class token first; None: all.
        """
        return self.head(self.features(tokens, start, kept)).squeeze(-1)  # type: ignore[no-any-return]

    def features(self, tokens: Tensor, start: int, kept: Sequence[int] | None = None) -> Tensor:
        """Tokens (B, T + k, d) before block `start` -> what the head reads (B, F).

        In the last block only the class token is computed, because the head reads no other. Arguments as in `logits`.
        """
        last = self.tower.config.depth - 1
        tokens, read = self.parted(tokens, start)
        tokens = tokens if kept is None else tokens[:, kept]
        if start <= last:
            tokens, more = self._run(tokens, start, last)
            tokens, read = self._last_block(tokens), read + more
        return self._side_by_side(tokens, read)

    def read(self, tokens: Tensor, read: Sequence[Tensor]) -> Tensor:
        """Tokens (B, T, d) after the last block, and what was carried -> logits (B,).

        Args:
            read: the rows of the crop (B, n q, d), if there is a companion; then the class token (B, 1, d) of each head
                block.
        """
        return self.head(self._side_by_side(tokens, read)).squeeze(-1)  # type: ignore[no-any-return]

    def _side_by_side(self, tokens: Tensor, read: Sequence[Tensor]) -> Tensor:
        """What the head reads, (B, F): the tower's feature and the class tokens, or what the companion makes of them.

        Arguments as in `read`.
        """
        classes = read[1:] if self.companion else read
        parts = [self.tower.feature(tokens), *(F.layer_norm(each[:, 0], each.shape[-1:]) for each in classes)]
        feature = torch.cat(parts, dim=-1)
        if self.companion is None:
            return feature
        return self.companion(feature, from_rows(read[0], self.tower.config.patch_size))  # type: ignore[no-any-return]

    def _run(
        self, tokens: Tensor, start: int, stop: int, read_blocks: Sequence[int] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Tokens (B, T, d) through `blocks[start:stop]`, and the class token (B, 1, d) of each head block among them.

        Args:
            read_blocks: instead of the head blocks.
        """
        read = []
        wanted = self.head_blocks if read_blocks is None else read_blocks
        for index in range(start, stop):
            tokens = self.tower.run_blocks(tokens, index, index + 1)
            if index in wanted:
                read.append(tokens[:, :1])
        return tokens, read

    def _last_block(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T, d) -> the class token after the last block (B, 1, d).

        If gates are kept, they are those of all tokens all the same.
        """
        block: Any = self.tower.blocks[-1]
        layer, outputs = block.mlp, self.last_outputs
        kept = isinstance(layer, MoLE) and layer.keep_gates and bool(self.config.gated_ranks)
        if not kept or outputs is None:
            return block(tokens, outputs)[:, :1]  # type: ignore[no-any-return]
        tokens = block.mix(tokens)
        class_token = block.transform(tokens[:, :1])
        layer.gates = layer.route(block.norm2(tokens))
        return class_token  # type: ignore[no-any-return]

    def keep_gates(self, keep: bool) -> None:
        """Let every forward pass keep its gates for `gates` and `balance_loss`, or let it keep none."""
        for layer in self.mole_layers:
            layer.keep_gates, layer.gates = keep, None

    def gates(self) -> list[Tensor]:
        """Gates (B, T, E) of the last forward pass, one tensor per adapted block; needs `keep_gates(True)`.

        The gates of the router come first, then those of the extensions.
        """
        return [layer.gates for layer in self.mole_layers if layer.gates is not None]

    def balance_loss(self) -> Tensor:
        """The mean of `balance_loss` over the adapted blocks in the last forward pass; 0 without a router."""
        experts = len(self.config.expert_ranks)
        losses = [balance_loss(gates[..., :experts]) for gates in self.gates() if experts]
        return torch.stack(losses).mean() if losses else self.head.weight.new_zeros(())
