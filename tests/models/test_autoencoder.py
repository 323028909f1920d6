"""Autoencoders: shapes, and that each way of enlarging leaves a trace of its own."""

from __future__ import annotations

import pytest
import torch

from clipmole.models.autoencoder import UPSAMPLERS, Autoencoder, Upsampler, upsampler


@pytest.mark.parametrize("kind", UPSAMPLERS)
def test_an_image_keeps_its_shape_and_its_map_is_a_quarter_of_a_side(kind: Upsampler) -> None:
    network = Autoencoder(kind, width=8, latent=5)
    assert network.encoder(torch.zeros(2, 3, 24, 32)).shape == (2, 5, 6, 8)
    assert network(torch.zeros(2, 3, 24, 32)).shape == (2, 3, 24, 32)


def test_what_a_single_value_becomes_says_how_it_was_enlarged() -> None:
    point = torch.zeros(1, 1, 5, 5)
    point[0, 0, 2, 2] = 1
    reach = {}
    for kind in UPSAMPLERS:
        torch.manual_seed(0)
        layer = upsampler(kind, 1, 1)
        changed = (layer(point) - layer(torch.zeros_like(point)))[0, 0].abs() > 1e-7
        assert changed.shape == (10, 10)
        reach[kind] = tuple(int(changed.any(dim=axis).sum()) for axis in (0, 1))
    # nearest: 2 pixels and a 3 x 3 convolution; bilinear: 4 and the same; the others: what their kernels reach
    assert reach == {"nearest": (4, 4), "bilinear": (6, 6), "transposed": (4, 4), "pixel-shuffle": (6, 6)}
