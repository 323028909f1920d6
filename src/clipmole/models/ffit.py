"""FFiT: a transformer on the magnitude of a crop's Fourier transform, and a gate between it and the tower.

In: the tower's feature and crops. Out: one vector, made of both, for the head. It is a `Companion`, whose own loss
is that of a masked autoencoder on the magnitude.

Source: Dong, Bhagavatula, Zhou, Kumar 2024, "Towards More Accurate Fake Detection on Images Generated from Advanced
Generative and Neural Rendering Models", arXiv 2411.08642. From it are the masked autoencoder on the magnitude, a loss
that respects its symmetry, a masking ratio that changes, and the gated multimodal unit. No code is public; all sizes,
the frequencies, how masks are drawn, and training the masked autoencoder together with the detector are this project's
choices.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipmole.config import TowerConfig
from clipmole.models.companion import Companion, in_float32
from clipmole.models.vit import Block, ViT

FREQUENCIES = 224  # along an axis, from -1/2 to 1/2 cycles per pixel
ENCODER = TowerConfig(image_size=FREQUENCIES, patch_size=16, width=192, depth=6, heads=3, mlp_width=768)
DECODER_BLOCKS = 2
MASK_RATIO = (0.5, 0.9)  # smallest and largest share of the patches that is hidden
LOG_MEAN, LOG_STD = 7.0, 1.4  # mean and standard deviation of `log_magnitude` in photographs, approximately


def log_magnitude(crops: Tensor, frequencies: int = FREQUENCIES) -> Tensor:
    """log(1 + |F|) of each colour channel, in levels of 0..255 minus their mean, at frequencies shifted by half a step.

    F(u, v) = K / S sum_xy (level - mean)_xy exp(-2 pi i (u x + v y)) at u, v = (k + 1/2) / K cycles per pixel,
    k = -K/2 ... K/2 - 1. So the symmetry |F(u, v)| = |F(-u, -v)| is a rotation of the whole array by 180 degrees, which
    maps patches onto patches. The usual frequencies k / K lack +1/2, and then the mirror image of a patch's first row
    and column would lie in a neighbouring patch. F is computed by matrix products, because graphs of OpenVINO and ONNX
    have no complex numbers.

    Args:
        crops: (B, 3, S, S) of 0..1.
        frequencies: K, even.

    Returns:
        (B, 3, K, K) float32, lowest frequencies in the middle.
    """
    size = crops.shape[-1]
    with in_float32(crops):
        levels = 255 * crops.float()
        levels = (levels - levels.mean((-2, -1), keepdim=True)) * (frequencies / size)
        steps = (torch.arange(frequencies, dtype=torch.float64, device="cpu") - (frequencies - 1) / 2) / frequencies
        angles = 2 * math.pi * steps[:, None] * torch.arange(size, dtype=torch.float64, device="cpu")
        cos, sin = angles.cos().to(levels), angles.sin().to(levels)  # (K, S)
        half = frequencies // 2
        a, b = cos[half:] @ levels, sin[half:] @ levels  # (B, 3, K / 2, S)
        real, imaginary = a @ cos.T - b @ sin.T, a @ sin.T + b @ cos.T
        rows = torch.log1p((real.square() + imaginary.square() + 1e-12).sqrt())  # of u > 0; with a gradient at 0
        return torch.cat([rows.flip(-2, -1), rows], dim=-2)


def draw_masks(count: int, grid: int, ratio: float) -> Tensor:
    """Random masks (count, grid^2) of patches, row by row; True: hidden.

    Patch i and its mirror image, patch grid^2 - 1 - i, are always hidden together.

    Args:
        count: number of masks.
        grid: patches along an axis, even, so that no patch is its own mirror image.
        ratio: share of the pairs that is hidden; at least one pair is, and at least one is not.
    """
    pairs = grid**2 // 2
    hidden = min(max(round(ratio * pairs), 1), pairs - 1)
    half = torch.rand(count, pairs, device="cpu").argsort(dim=1) < hidden
    return torch.cat([half.flip(1), half], dim=1)


class GatedMultimodalUnit(nn.Module):
    """h = z f + (1 - z) s with f = tanh(W_f x_f), s = tanh(W_s x_s), z = sigmoid(W_z [x_f; x_s]).

    Arevalo et al. 2017, "Gated Multimodal Units for Information Fusion", arXiv 1702.01992.

    Args:
        first, second: channels of x_f and x_s.
        width: channels of h.
    """

    def __init__(self, first: int, second: int, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(first, width, bias=False)
        self.second = nn.Linear(second, width, bias=False)
        self.gate = nn.Linear(first + second, width, bias=False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """(B, first) and (B, second) -> (B, width)."""
        z = torch.sigmoid(self.gate(torch.cat([first, second], dim=-1)))
        return z * torch.tanh(self.first(first)) + (1 - z) * torch.tanh(self.second(second))


class FFiT(Companion):
    """h = GMU(mean of the encoder's tokens, the tower's feature); the encoder is a ViT on patches of `log_magnitude`.

    Of two patches that mirror each other the encoder reads only one, since the other holds the same values. In training
    each pass draws a share between the two in `MASK_RATIO` and hides so many of the patches, always with their mirror
    images. A decoder predicts them from the rest, and the mean squared error, each pair counted once, is the
    companion's own loss.

    Args:
        features: channels of the tower's feature.
    """

    width = ENCODER.width

    def __init__(self, features: int) -> None:
        super().__init__()
        self.encoder = ViT(ENCODER)
        self.mask_token = nn.Parameter(torch.zeros(ENCODER.width))
        self.decoder = nn.Sequential(*(Block(ENCODER) for _ in range(DECODER_BLOCKS)), nn.LayerNorm(ENCODER.width))
        self.predict = nn.Linear(ENCODER.width, 3 * ENCODER.patch_size**2)
        self.fuse = GatedMultimodalUnit(ENCODER.width, features, self.width)
        for parameter in (self.encoder.class_token, self.encoder.position_embedding, self.mask_token):
            nn.init.normal_(parameter, std=0.02)

    def forward(self, feature: Tensor, crops: Tensor) -> Tensor:
        spectrum = (log_magnitude(crops) - LOG_MEAN) / LOG_STD
        tokens = self.tokens(spectrum)
        if self.training and self.mask_token.requires_grad:
            self.loss = self.reconstruction_loss(spectrum, tokens)
        return self.fuse(self.encode(tokens).mean(dim=1), feature)  # type: ignore[no-any-return]

    def tokens(self, spectrum: Tensor) -> Tensor:
        """Spectrum (B, 3, K, K) -> class token and patches of its lower half, one of each pair: (B, 1 + N, d)."""
        embedded = self.encoder.embed(spectrum)
        return torch.cat([embedded[:, :1], embedded[:, 1 + ENCODER.grid**2 // 2 :]], dim=1)

    def encode(self, tokens: Tensor) -> Tensor:
        """Embedded tokens (B, 1 + n, d) of any n patches -> the encoded patches (B, n, d)."""
        return self.encoder.post_norm(self.encoder.run_blocks(tokens))[:, 1:]  # type: ignore[no-any-return]

    def reconstruction_loss(self, spectrum: Tensor, tokens: Tensor) -> Tensor:
        """Mean squared error on hidden patches of the lower half, drawn anew, (B,).

        Args:
            spectrum: (B, 3, K, K).
            tokens: its tokens, (B, 1 + N, d).
        """
        low, high = MASK_RATIO
        half = ENCODER.grid**2 // 2
        hidden = draw_masks(len(tokens), ENCODER.grid, low + (high - low) * float(torch.rand(())))[:, half:]
        hidden = hidden.to(tokens.device)  # (B, N)
        predicted = self.reconstruct(tokens, hidden)
        target = F.pixel_unshuffle(spectrum, ENCODER.patch_size).flatten(2).transpose(1, 2)[:, half:]  # (B, N, 3 P^2)
        errors = (predicted.float() - target).square().mean(dim=-1)
        return (errors * hidden).sum(dim=1) / hidden.sum(dim=1)

    def reconstruct(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """The patches of the lower half (B, N, 3 P^2), predicted from those that are not `hidden` (B, N).

        Each row of the batch must have the same number of hidden patches.
        """
        batch, count, width = len(tokens), *self.decoder_positions.shape
        seen = (~hidden).nonzero()[:, 1].view(batch, -1, 1).expand(-1, -1, width)  # (B, n, d) positions
        encoded = self.encode(torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, seen)], dim=1))
        filled = self.mask_token.expand(batch, count, width).scatter(1, seen, encoded.to(self.mask_token.dtype))
        return self.predict(self.decoder(filled + self.decoder_positions))  # type: ignore[no-any-return]

    @property
    def decoder_positions(self) -> Tensor:
        """The encoder's positions of the lower half, (N, d)."""
        return self.encoder.position_embedding[1 + ENCODER.grid**2 // 2 :]
