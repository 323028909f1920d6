"""The 30 linear filters of the spatial rich model (SRM): what remains of an image after its content is predicted.

In: crops. Out: residuals, or the kernels. It knows nothing of networks.

Source: Fridrich and Kodovsky 2012, "Rich models for steganalysis of digital images", section II: residuals of first,
second and third order along lines, and of edge and square kernels of 3x3 and 5x5. By these kinds the filters form five
groups of 8, 4, 8, 5 and 5.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GROUPS = (8, 4, 8, 5, 5)  # first, second, third order; 3x3 and 5x5 edges with their square
DIRECTIONS = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))
EDGE_3 = ((-1, 2, -1), (2, -4, 2), (0, 0, 0))
SQUARE_3 = ((-1, 2, -1), (2, -4, 2), (-1, 2, -1))
EDGE_5 = ((-1, 2, -2, 2, -1), (2, -6, 8, -6, 2), (-2, 8, -12, 8, -2), (0, 0, 0, 0, 0), (0, 0, 0, 0, 0))
SQUARE_5 = ((-1, 2, -2, 2, -1), (2, -6, 8, -6, 2), (-2, 8, -12, 8, -2), (2, -6, 8, -6, 2), (-1, 2, -2, 2, -1))


def srm_kernels() -> Tensor:
    """The filters (30, 5, 5), float32, group by group. Each sums to 0 and has a central weight of 1 or -1."""
    found = []
    for count, line in ((8, {0: -1, 1: 1}), (4, {-1: 1, 0: -2, 1: 1}), (8, {-1: 1, 0: -3, 1: 3, 2: -1})):
        for dy, dx in DIRECTIONS[:count]:
            kernel = torch.zeros(5, 5)
            for step, weight in line.items():
                kernel[2 + step * dy, 2 + step * dx] = weight
            found.append(kernel)
    for edge, square in ((EDGE_3, SQUARE_3), (EDGE_5, SQUARE_5)):
        border = (5 - len(edge)) // 2
        for rows, turns in ((edge, 4), (square, 1)):
            kernel = F.pad(torch.tensor(rows, dtype=torch.float32), (border,) * 4)
            found += [kernel.rot90(turn) for turn in range(turns)]
    kernels = torch.stack(found)
    return kernels / kernels[:, 2:3, 2:3].abs()


def srm_residuals(crops: Tensor, group: int, truncation: float) -> Tensor:
    """The mean absolute residual of one group of filters on each colour channel, as an image.

    Args:
        crops: (B, 3, H, W), uint8 0..255 or float 0..1; mirrored at the borders.
        group: index in `GROUPS`.
        truncation: where residuals are cut off, in levels of 0..255; this value becomes 1.

    Returns:
        (B, 3, H, W) float32, 0..1.
    """
    levels = crops.float() if crops.dtype == torch.uint8 else crops.float() * 255
    first = sum(GROUPS[:group])
    kernels = srm_kernels()[first : first + GROUPS[group]].to(levels.device)
    padded = F.pad(levels.flatten(0, 1)[:, None], (2,) * 4, mode="reflect")  # (B 3, 1, H + 4, W + 4)
    residuals = F.conv2d(padded, kernels[:, None]).abs().mean(dim=1)
    return (residuals / truncation).clamp(max=1).view_as(levels)
