"""HyperDet: a hypernetwork that generates a LoRA for each of five kinds of noise in an image, merged exactly into one.

In: crops, as for every network. Out: logits. In evaluation the network is an ordinary `MoLENetwork` with a shared LoRA,
and an adapter directory holds nothing else. The hypernetwork exists only in training.

Source: Cao et al. 2024, "HyperDet: Generalizable Detection of Synthesized Images by Generating and Merging A Mixture of
Hyper LoRAs", arXiv 2410.06044. From it are SRM's filters in five groups, the hypernetwork that generates a LoRA from
the embedding of each group, the merging, and the loss that balances the image against its noise. No code is public; all
sizes, the positions of the LoRAs, the noise image and its balance are this project's choices.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from clipmole.config import MoLEConfig
from clipmole.models.mole import MoLE
from clipmole.models.network import MoLENetwork
from clipmole.models.srm import GROUPS, srm_residuals
from clipmole.models.vit import ViT

GROUP_CHANNELS, BLOCK_CHANNELS, MATRIX_CHANNELS, HIDDEN = 64, 32, 8, 128  # of the embeddings and the hidden layer
TRUNCATION = 8.0  # where residuals are cut off, in levels of 0..255
IMAGE_SHARE = 0.5  # probability that training shows an image as it is; otherwise it shows its noise


class HyperNetwork(nn.Module):
    """The LoRA (A_k, B_k) of group k in block b: M = out_M(GELU(hidden([e_k; l_b; m_M]))) for M = A_k and M = B_k.

    e_k, l_b and m_M are trained embeddings of the group, the block and the matrix. `out_B` starts at 0, and so does
    every LoRA.

    Args:
        blocks: number of adapted blocks.
        width: channels of a token, d.
        rank: of each LoRA, r.
    """

    def __init__(self, blocks: int, width: int, rank: int) -> None:
        super().__init__()
        self.rank, self.width = rank, width
        self.groups = nn.Parameter(torch.randn(len(GROUPS), GROUP_CHANNELS))
        self.blocks = nn.Parameter(torch.randn(blocks, BLOCK_CHANNELS))
        self.matrices = nn.Parameter(torch.randn(2, MATRIX_CHANNELS))
        self.hidden = nn.Linear(GROUP_CHANNELS + BLOCK_CHANNELS + MATRIX_CHANNELS, HIDDEN)
        self.out_A = nn.Linear(HIDDEN, rank * width)
        self.out_B = nn.Linear(HIDDEN, rank * width)
        nn.init.zeros_(self.out_B.weight)
        nn.init.zeros_(self.out_B.bias)

    def forward(self, group: int, block: int) -> tuple[Tensor, Tensor]:
        """A_k (r, d) and B_k (d, r) for the indices of a group and of an adapted block."""
        own = torch.cat([self.groups[group], self.blocks[block]])
        a, b = (nn.functional.gelu(self.hidden(torch.cat([own, matrix]))) for matrix in self.matrices)
        return self.out_A(a).view(self.rank, self.width), self.out_B(b).view(self.width, self.rank)


class _Plain(nn.Module):
    """A network that always computes as in evaluation, as a module that `functional_call` can be given."""

    def __init__(self, network: MoLENetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, crops: Tensor) -> Tensor:
        return MoLENetwork.forward(self.network, crops)


class HyperDetNetwork(MoLENetwork):
    """A `MoLENetwork` with a shared LoRA of rank 5 r, which a hypernetwork generates as five LoRAs of rank r.

    In evaluation the update of a block is the mean of the five, 1/5 sum_k B_k A_k, exactly, because they are stacked:
    A = [A_1; ...; A_5] and B = [B_1, ..., B_5] / 5. In training each pass draws one group k and uses only its LoRA. It
    shows each image as it is with probability `IMAGE_SHARE`, else as the group's noise (`srm_residuals`), so the
    expected loss is the weighted sum of the loss on the image and the loss on its noise.

    Args:
        tower: a ViT; its MLPs are wrapped in place.
        config: `shared_rank` a multiple of 5, no experts, alpha None or equal to it.
    """

    def __init__(self, tower: ViT, config: MoLEConfig) -> None:
        super().__init__(tower, config)
        self.rank = config.shared_rank // len(GROUPS)
        for layer in self.mole_layers:
            layer.requires_grad_(False)
        self.hypernetwork = HyperNetwork(len(self.mole_layers), tower.config.width, self.rank)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; on leaving training mode, `merge`."""
        super().train(mode)
        if not mode and hasattr(self, "hypernetwork"):
            self.merge()
        return self

    @torch.no_grad()
    def merge(self) -> None:
        """Write the five LoRAs of each block, stacked so that they give their mean, into its layer."""
        for block, layer in enumerate(self.mole_layers):
            pairs = [self.hypernetwork(group, block) for group in range(len(GROUPS))]
            layer.lora_A.copy_(torch.cat([a for a, _ in pairs]))
            layer.lora_B.copy_(torch.cat([b for _, b in pairs], dim=1) / len(GROUPS))

    def forward(self, crops: Tensor) -> Tensor:
        if not self.training:
            return super().forward(crops)
        group = int(torch.randint(len(GROUPS), ()))
        image = (torch.rand(len(crops), 1, 1, 1) < IMAGE_SHARE).to(crops.device)
        pixels = crops.float() / 255 if crops.dtype == torch.uint8 else crops
        return self.with_lora(torch.where(image, pixels, srm_residuals(crops, group, TRUNCATION)), group)

    def with_lora(self, pixels: Tensor, group: int) -> Tensor:
        """Crops (B, 3, H, W) of 0..1 -> logits (B,), with the LoRA of one group alone."""
        own = slice(group * self.rank, (group + 1) * self.rank)
        matrices: dict[str, Tensor] = {}
        names = {id(layer): name for name, layer in self.named_modules() if isinstance(layer, MoLE)}
        for block, layer in enumerate(self.mole_layers):
            a, b = self.hypernetwork(group, block)
            lora_A, lora_B = torch.zeros_like(layer.lora_A), torch.zeros_like(layer.lora_B)
            lora_A[own], lora_B[:, own] = a, b
            prefix = f"network.{names[id(layer)]}."
            matrices |= {prefix + "lora_A": lora_A, prefix + "lora_B": lora_B}
        return torch.func.functional_call(_Plain(self), matrices, (pixels,))  # type: ignore[no-any-return]
