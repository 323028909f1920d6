"""AIDE: experts for an image's smoothest and busiest patches, beside a tower that sees the image's content.

In: the tower's feature and crops. Out: one vector, made of both, for the head. It is a `Companion`.

Source: Yan et al. 2025, "A Sanity Check for AI-generated Image Detection", arXiv 2406.19435, and its public code. From
it are the score of a patch, the choice of the two lowest and two highest, SRM's filters, an expert for each of the two
kinds, the mean of the four vectors, the projection of the tower's feature, and the two layers at the end. In the paper
the experts are two ResNet-50 on patches enlarged to 256 pixels, the tower is a ConvNeXt-XXL, and its projection is left
out of training by mistake. Smaller experts on patches that are not resized, SRM without borders, the asinh after it,
and training everything are this project's choices.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipmole.images.dct import dct_matrix
from clipmole.models.companion import Companion, in_float32
from clipmole.models.srm import srm_kernels

WINDOW, STRIDE = 32, 16  # side of a patch and distance between patches, pixels
BANDS = 6  # bands of frequency, which divide the diagonals i + j = 0 ... 2 WINDOW
EXPERT_CHANNELS = (32, 64, 128)


def band_weights(size: int = WINDOW, bands: int = BANDS) -> Tensor:
    """The weight of each DCT coefficient (i, j) in a patch's score, (size, size): sum_n 2^n mask_n / |mask_n|.

    The sum is over the bands n = 0 ... bands - 1; mask_n is 1 where 2 size n / bands <= i + j <= 2 size (n + 1) /
    bands, else 0. Both borders belong to a band, as in the published code.
    """
    i = torch.arange(size)
    diagonal = (i + i[:, None]) * bands  # bands of 2 size each, in integers
    weights = torch.zeros(size, size)
    for n in range(bands):
        mask = ((2 * size * n <= diagonal) & (diagonal <= 2 * size * (n + 1))).float()
        weights += 2**n * mask / mask.sum()
    return weights


def patch_expert() -> nn.Sequential:
    """A network from residuals of a patch (B, 30, H, W) to (B, 128).

    It is 3x3 convolutions of stride 2, a GELU after each, and the mean over the positions.
    """
    layers: list[nn.Module] = []
    channels = 30
    for wider in EXPERT_CHANNELS:
        layers += [nn.Conv2d(channels, wider, 3, stride=2, padding=1), nn.GELU()]
        channels = wider
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class AIDE(Companion):
    """h = GELU(W [x_1; P x_0]) with x_0 the tower's feature and x_1 the mean over four patches of expert(r(patch)).

    The patches are windows of 32x32 pixels, 16 apart: the two with the lowest scores and the two with the highest. The
    score of a window x is the sum over channels c and coefficients (u, v) of `band_weights`_uv ln(1 + |DCT(x)_cuv|).
    One expert looks at the low ones, another at the high ones. r is asinh of the 30 SRM residuals of the sum of the
    colour channels, in levels of 0..255: about linear below one level, logarithmic above.

    Args:
        features: channels of the tower's feature.
    """

    kernels: Tensor
    dct: Tensor
    weights: Tensor
    width = EXPERT_CHANNELS[-1]

    def __init__(self, features: int) -> None:
        super().__init__()
        self.low, self.high = patch_expert(), patch_expert()
        self.projection = nn.Linear(features, self.width)
        self.fuse = nn.Linear(2 * self.width, self.width)
        with torch.device("cpu"):
            dct = torch.from_numpy(dct_matrix(WINDOW)).float()
            constants = {"kernels": srm_kernels()[:, None], "dct": dct, "weights": band_weights()}
            for name, values in constants.items():
                self.register_buffer(name, values, persistent=False)

    def forward(self, feature: Tensor, crops: Tensor) -> Tensor:
        with in_float32(crops):
            residuals = self.residuals(self.extremes(crops.float()))  # (B, 4, 30, 28, 28)
        low = self.low(residuals[:, :2].flatten(0, 1)).view(-1, 2, self.width)  # (B, 2, width)
        high = self.high(residuals[:, 2:].flatten(0, 1)).view(-1, 2, self.width)
        experts = torch.cat([low, high], dim=1).mean(dim=1)
        return F.gelu(self.fuse(torch.cat([experts, self.projection(feature)], dim=-1)))

    def scores(self, windows: Tensor) -> Tensor:
        """Windows (..., 3, 32, 32) of 0..1 -> scores (...)."""
        spectrum = self.dct @ windows @ self.dct.T
        return (torch.log1p(spectrum.abs()) * self.weights).sum((-3, -2, -1))

    def extremes(self, crops: Tensor) -> Tensor:
        """Crops (B, 3, S, S) of 0..1 -> windows (B, 4, 3, 32, 32): lowest, second lowest, second highest, highest."""
        flat = F.unfold(crops, WINDOW, stride=STRIDE).transpose(1, 2)  # (B, L, 3 * 32 * 32)
        with torch.no_grad():
            order = self.scores(flat.reshape(*flat.shape[:2], 3, WINDOW, WINDOW)).argsort(dim=1)
        last = flat.shape[1] - 1
        chosen = order[:, [0, min(1, last), max(last - 1, 0), last]]  # (B, 4)
        found = flat.gather(1, chosen[..., None].expand(-1, -1, flat.shape[-1]))
        return found.view(-1, 4, 3, WINDOW, WINDOW)

    def residuals(self, windows: Tensor) -> Tensor:
        """Windows (B, 4, 3, H, W) of 0..1 -> asinh of their residuals (B, 4, 30, H - 4, W - 4)."""
        found = F.conv2d(255 * windows.flatten(0, 1).sum(dim=1, keepdim=True), self.kernels)
        return torch.asinh(found).view(-1, windows.shape[1], *found.shape[1:])
