"""Where a logit comes from: each method against its own definition, computed another way."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from tiny import CALIBRATION, PREPROCESS, encoded, picture, tiny_backbone, tiny_network

from clipmole import Detector
from clipmole.config import MoLEConfig, PreprocessConfig
from clipmole.errors import ConfigError, ImageUnreadable
from clipmole.images.crops import cut_crops
from clipmole.inference import attribution
from clipmole.inference.attribution import (
    METHODS,
    attribute,
    blurred,
    gates_of,
    gradient_times_input,
    integrated_gradients,
    last_attention,
)
from clipmole.inference.explain import Evidence, explain
from clipmole.inference.pytorch import TorchRuntime
from clipmole.models import vit
from clipmole.models.network import MoLENetwork

PLAIN = MoLEConfig(shared_rank=0, expert_ranks=())
LORA = MoLEConfig(expert_ranks=())


def crops_of(size: int = 32, count: int = 2) -> torch.Tensor:
    """Crops (n, 3, size, size) uint8 with detail at a pixel's scale."""
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (count, 3, size, size), dtype=np.uint8))


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(tiny_network(), PREPROCESS, CALIBRATION, "tiny@0")


def test_tiles_are_the_detectors_own(detector: Detector) -> None:
    image = picture(1, 100, 70)
    detection, evidence = detector.detect(image, tiles=True), explain(detector, image)
    assert tuple(tile.logit for tile in evidence.tiles) == detection.tile_logits
    assert tuple(tile.box for tile in evidence.tiles) == detection.tile_boxes
    assert (evidence.logit, evidence.width, evidence.height) == (detection.logit, 100, 70)
    assert all(tile.attribution is None and tile.routing == () for tile in evidence.tiles)
    assert evidence.method is None


def test_the_record_turns_into_json_and_back_and_says_what_it_does_not_prove(detector: Detector) -> None:
    evidence = explain(detector, encoded(picture(1, 100, 70)), tokens=True)
    assert Evidence.model_validate_json(evidence.model_dump_json()) == evidence
    assert evidence.source == "<bytes>"
    assert evidence.method
    assert "do not quote it as proof" in evidence.caution


def test_a_grid_lies_where_its_patches_are(detector: Detector) -> None:
    evidence = explain(detector, picture(1, 100, 70), tokens=True)
    assert evidence.patch_size == 16
    for tile in evidence.tiles:
        assert tile.grid_box == tile.box  # 32 = 2 x 16
        assert np.shape(tile.attribution) == (2, 2)
    small = explain(detector, picture(1, 20, 9), tokens=True).tiles[0]
    assert small.box == (0, 0, 20, 9)
    assert small.grid_box == (-6, -11, 26, 21)


def test_attributions_are_those_of_the_crop(detector: Detector) -> None:
    image = picture(1, 100, 70)
    expected = attribute(detector.network, torch.from_numpy(cut_crops(image, PREPROCESS).pixels))
    found = [tile.attribution for tile in explain(detector, image, tokens=True).tiles]
    assert np.array(found) == pytest.approx(expected.numpy(), abs=1e-5)


def test_the_router_map_is_what_the_routers_say_of_every_patch(detector: Detector) -> None:
    network = detector.network
    image = picture(2)
    crops = torch.from_numpy(cut_crops(image, PREPROCESS).pixels)
    said: list[torch.Tensor] = []
    hooks = [layer.router.register_forward_hook(lambda _m, _i, out: said.append(out)) for layer in network.mole_layers]
    with torch.no_grad():  # the whole tower, all tokens of the last block too
        network.tower.run_blocks(network.embed(crops))
    for hook in hooks:
        hook.remove()
    routing = explain(detector, image, tokens=True).tiles[0].routing
    assert [r.block for r in routing] == list(network.config.block_indices(8)) == [6, 7]
    for block, gates in zip(routing, said, strict=True):
        assert block.experts == tuple(tuple(row) for row in gates[0, 1:].argmax(-1).view(2, 2).tolist())
        assert block.mean_gates == pytest.approx(gates[0, 1:].mean(0).tolist(), abs=1e-6)
        assert sum(block.mean_gates) == pytest.approx(1, abs=1e-5)


def test_the_network_is_left_as_it_was() -> None:
    detector = Detector(tiny_network(), PREPROCESS)
    before = detector.score([picture(0)])
    explain(detector, picture(0), tokens=True)
    assert all(not layer.keep_gates and layer.gates is None for layer in detector.network.mole_layers)
    assert all(p.grad is None for p in detector.network.parameters())
    assert detector.score([picture(0)]) == before


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["mole", "lora", "probe", "full"])
def test_every_kind_of_detector_can_be_explained_uncalibrated(method: str, kind: str) -> None:
    config = {"mole": MoLEConfig(), "lora": LORA}.get(kind, PLAIN)
    network = MoLENetwork(tiny_backbone().tower, config, full_finetune=kind == "full").eval()
    torch.nn.init.normal_(network.head.weight, generator=torch.Generator().manual_seed(0))
    found = attribute(network, crops_of(), method)
    assert found.shape == (2, 2, 2)
    assert found.abs().max() > 1e-6
    assert not found.requires_grad
    evidence = explain(Detector(network, PREPROCESS), picture(0), tokens=True)
    assert len(evidence.tiles[0].routing) == (2 if kind == "mole" else 0)
    assert evidence.expert_ranks == ((2, 4, 8) if kind == "mole" else ())


@pytest.mark.parametrize("config", [MoLEConfig(), PLAIN])
def test_gradient_times_input_is_the_slope_of_scaling_a_token(config: MoLEConfig) -> None:
    network = tiny_network(config=config).double()
    crops = crops_of(count=1)
    found = gradient_times_input(network, crops.double())[0].flatten()
    start = 6 if config.adapts else 7
    with torch.no_grad():
        tokens = network.tower.run_blocks(network.embed(crops.double() / 255), 0, start)
        for patch in range(4):
            logits = []
            for scale in (1 - 1e-5, 1 + 1e-5):
                scaled = tokens.clone()
                scaled[:, 1 + patch] *= scale
                logits.append(network.head(network.tower.feature(network.tower.run_blocks(scaled, start))).item())
            assert found[patch].item() == pytest.approx((logits[1] - logits[0]) / 2e-5, rel=1e-4, abs=1e-7)


def test_integrated_gradients_sum_to_the_difference_from_the_blurred_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attribution, "STEPS", 60)
    network, crops = tiny_network(), crops_of()
    with torch.no_grad():
        expected = network(crops.float() / 255) - network(blurred(crops) / 255)
    assert expected.abs().max() > 0.05
    assert integrated_gradients(network, crops).sum((1, 2)).tolist() == pytest.approx(expected.tolist(), abs=0.02)


@pytest.mark.parametrize("config", [MoLEConfig(), PLAIN])
def test_last_attention_is_the_slope_of_scaling_what_a_patch_hands_over(
    config: MoLEConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, crops = tiny_network(config=config), crops_of(count=1)
    found = last_attention(network, crops)[0].flatten()
    own = vit.attend
    for patch in range(4):
        logits = []
        for scale in (0.9, 1.1):
            calls = itertools.count(1)

            def scaled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, calls=calls, scale=scale, patch=patch):  # type: ignore[no-untyped-def]
                v = v.clone()
                if next(calls) == 8:  # the last block's
                    v[:, :, 1 + patch] *= scale
                return own(q, k, v)

            monkeypatch.setattr(vit, "attend", scaled)
            with torch.no_grad():
                logits.append(network(crops).item())
        monkeypatch.setattr(vit, "attend", own)
        assert found[patch].item() == pytest.approx((logits[1] - logits[0]) / 0.2, rel=0.05, abs=2e-3)


def test_the_blur_is_pillows() -> None:
    image = picture(3, 96, 96)
    ours = blurred(torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())[None])[0].numpy()
    theirs = np.asarray(image.filter(ImageFilter.GaussianBlur(8))).transpose(2, 0, 1)
    assert np.abs(ours - theirs)[:, 32:-32, 32:-32].mean() < 1.5


def test_gates_of_top_k_routers_have_zeros() -> None:
    network = tiny_network(config=MoLEConfig(top_k=1))
    for gates in gates_of(network, crops_of()).values():
        assert gates.shape == (2, 2, 2, 3)
        assert ((gates == 0).sum(-1) == 2).all()


def test_maps_show_an_extension_as_the_last_expert() -> None:
    network = tiny_network(config=MoLEConfig(extension_ranks=(5,)))
    for layer in network.mole_layers:
        torch.nn.init.constant_(layer.extensions[0].gate_bias, 9.0)  # a gate of 0.9999, above all of a softmax
    evidence = explain(Detector(network, PREPROCESS), picture(0), tokens=True)
    assert evidence.expert_ranks == (2, 4, 8, 5)
    for block in evidence.tiles[0].routing:
        assert sum(block.mean_gates[:3]) == pytest.approx(1, abs=1e-5)
        assert block.mean_gates[3] == pytest.approx(1 / (1 + math.exp(-9)), abs=1e-6)
        assert block.experts == ((3, 3), (3, 3))


def test_without_gradients_tokens_are_refused_and_tiles_are_not() -> None:
    network = tiny_network()
    detector = Detector(None, PREPROCESS, name="graph", runtime=TorchRuntime(network, "cpu", "float32"))
    evidence = explain(detector, picture(0))
    assert evidence.tiles == explain(Detector(network, PREPROCESS), picture(0)).tiles
    assert (evidence.patch_size, evidence.expert_ranks) == (None, ())
    with pytest.raises(ConfigError, match=r"graph: .*runtime='torch'"):
        explain(detector, picture(0), tokens=True)


def test_an_image_that_cannot_be_read_is_an_image_error(detector: Detector) -> None:
    with pytest.raises(ImageUnreadable):
        explain(detector, b"not an image", tokens=True)


def test_arithmetic_is_float32_whatever_the_precision() -> None:
    network, image = tiny_network(), picture(0)
    exact = explain(Detector(network, PREPROCESS), image, tokens=True).tiles[0].attribution
    fast = explain(Detector(network, PREPROCESS, precision="bfloat16"), image, tokens=True).tiles[0].attribution
    assert exact == fast


def test_a_turned_photograph_is_explained_upright() -> None:
    detector = Detector(tiny_network(), PreprocessConfig(crop_size=32, max_tiles=4))
    turned = Image.Exif()
    turned[0x0112] = 6
    buffer = io.BytesIO()
    picture(0, 64, 40).save(buffer, "JPEG", exif=turned)
    evidence = explain(detector, buffer.getvalue(), tokens=True)
    assert (evidence.width, evidence.height) == (40, 64)
    assert evidence.logit == detector.detect(buffer.getvalue()).logit
