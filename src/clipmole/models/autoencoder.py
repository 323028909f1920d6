"""Small convolutional autoencoders, whose decoders upsample as image generators do.

In: images (B, 3, H, W) in [0, 1], H and W multiples of 4. Out: the same shape. It knows nothing of files or training.

A generator's last step turns a small map into pixels, and the way it upsamples leaves a trace in them (Odena et al.
2016, "Deconvolution and Checkerboard Artifacts"). Zhang et al. 2019 ("AutoGAN", arXiv 1907.06515) trained detectors on
photographs that were reconstructed in this way. The sizes are this project's choice, small enough for a CPU.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

Upsampler = Literal["nearest", "bilinear", "transposed", "pixel-shuffle"]
UPSAMPLERS: tuple[Upsampler, ...] = get_args(Upsampler)
SCALE = 4  # an image's side over its latent map's


def upsampler(kind: Upsampler, given: int, made: int) -> nn.Module:
    """A module (B, given, h, w) -> (B, made, 2 h, 2 w)."""
    match kind:
        case "nearest":
            return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(given, made, 3, padding=1))
        case "bilinear":
            enlarged = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
            return nn.Sequential(enlarged, nn.Conv2d(given, made, 3, padding=1))
        case "transposed":
            return nn.ConvTranspose2d(given, made, 4, stride=2, padding=1)
        case "pixel-shuffle":
            return nn.Sequential(nn.Conv2d(given, 4 * made, 3, padding=1), nn.PixelShuffle(2))


class Residual(nn.Module):
    """x + conv(GELU(conv(x))), (B, c, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.GELU(), nn.Conv2d(channels, channels, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)  # type: ignore[no-any-return]


def _keep_variance(layer: nn.Module) -> None:
    """Draw weights of variance 2 / n, n the inputs of an output (He et al. 2015), so that deep layers learn at once."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        n = layer.in_channels * layer.kernel_size[0] ** 2
        n //= layer.stride[0] ** 2 if isinstance(layer, nn.ConvTranspose2d) else 1
        nn.init.normal_(layer.weight, std=(2 / n) ** 0.5)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


class Autoencoder(nn.Module):
    """decoder(encoder(x)): (B, 3, H, W) -> a map (B, latent, H / 4, W / 4) -> (B, 3, H, W).

    Args:
        kind: how the decoder upsamples; it does so twice.
        width: channels at half an image's size; there are twice as many at a quarter of it, half as many at full size.
        latent: channels of the map; with 8 of them it has a sixth as many values as the image.
    """

    def __init__(self, kind: Upsampler, width: int = 32, latent: int = 8) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.GELU(),
            Residual(2 * width),
            nn.Conv2d(2 * width, latent, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latent, 2 * width, 3, padding=1),
            Residual(2 * width),
            nn.GELU(),
            upsampler(kind, 2 * width, width),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            upsampler(kind, width, width // 2),
            nn.GELU(),
            nn.Conv2d(width // 2, 3, 3, padding=1),
        )
        self.apply(_keep_variance)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x - 0.5)) + 0.5  # type: ignore[no-any-return]
