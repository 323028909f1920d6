"""Companions: a second network beside the tower, which reads the crop itself and computes the input of the head.

In: the feature that the head would otherwise read, and the crop. Out: what the head reads instead. `aide` and `ffit`
are companions. This module has what they share: the base class, and how tokens carry a crop in additional rows. It
knows nothing of towers or heads.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Companion(nn.Module):
    """The base of all companions: `forward(feature, crops)` maps (B, f) and (B, 3, S, S) of 0..1 to (B, width).

    Attributes:
        width: channels of its output.
        loss: in training, what the last forward pass adds to the loss of each image, (B,); None if it adds nothing.
    """

    width: int

    def __init__(self) -> None:
        super().__init__()
        self.loss: Tensor | None = None

    def train(self, mode: bool = True) -> Self:
        """Set the mode, and forget the loss of the last pass."""
        self.loss = None
        return super().train(mode)


def rows_of_patch(patch_size: int, width: int) -> int:
    """Rows of `width` channels that it takes to hold the 3 `patch_size`^2 levels of a patch."""
    return -(-3 * patch_size**2 // width)


def to_rows(crops: Tensor, patch_size: int, width: int) -> Tensor:
    """Crops (B, 3, S, S), uint8 0..255 or float 0..1 -> their levels 0..255 in rows (B, n q, width).

    n is the number of patches and q = `rows_of_patch`. Levels are integers, which bfloat16 holds exactly. Pixels beyond
    the last whole patch are left out, as in the tower. Raises `ValueError` for crops that are not square.
    """
    if crops.shape[-1] != crops.shape[-2]:
        raise ValueError(f"crops of {crops.shape[-1]} x {crops.shape[-2]} pixels: a companion needs square ones")
    levels = crops.float() if crops.dtype == torch.uint8 else crops * 255
    side = crops.shape[-1] // patch_size * patch_size
    patches = F.pixel_unshuffle(levels[..., :side, :side], patch_size).flatten(2).transpose(1, 2)  # (B, n, 3 P^2)
    rows = rows_of_patch(patch_size, width)
    return F.pad(patches, (0, rows * width - patches.shape[-1])).reshape(crops.shape[0], -1, width)


def from_rows(rows: Tensor, patch_size: int) -> Tensor:
    """Rows (B, n q, width), as `to_rows` makes them -> crops (B, 3, S, S) of 0..1."""
    batch, _, width = rows.shape
    patches = rows.reshape(batch, -1, rows_of_patch(patch_size, width) * width)[..., : 3 * patch_size**2]
    side = math.isqrt(patches.shape[1])
    return F.pixel_shuffle(patches.transpose(1, 2).reshape(batch, -1, side, side), patch_size) / 255


def in_float32(tensor: Tensor) -> AbstractContextManager[object]:
    """Switch off autocast on the tensor's device: the small results of filters would be lost in bfloat16's rounding."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
