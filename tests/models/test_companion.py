"""AIDE and FFiT against their formulas, and both in a network that is trained, kept and exported like any other."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import CALIBRATION, PREPROCESS, TINY, picture, tiny_backbone, write_corpus

from clipmole.config import AugmentConfig, MoLEConfig, TrainConfig
from clipmole.errors import ConfigError
from clipmole.inference.detector import Detector
from clipmole.inference.explain import explain
from clipmole.inference.export import export_detector
from clipmole.models.adapter import load_adapter, save_adapter
from clipmole.models.aide import AIDE, BANDS, STRIDE, WINDOW, band_weights
from clipmole.models.backbone import Backbone, save_tower
from clipmole.models.companion import from_rows, rows_of_patch, to_rows
from clipmole.models.ffit import FFiT, GatedMultimodalUnit, draw_masks, log_magnitude
from clipmole.models.network import MoLENetwork
from clipmole.models.srm import srm_kernels
from clipmole.models.vit import Concatenated, ViT
from clipmole.training.merge import merge
from clipmole.training.train import train

KINDS = ("aide", "ffit")
PROBE = {"shared_rank": 0, "expert_ranks": ()}


def network(kind: str, backbone: Backbone | None = None, **mole: object) -> MoLENetwork:
    backbone = backbone or tiny_backbone()
    torch.manual_seed(1)
    made = MoLENetwork(backbone.tower, MoLEConfig(companion=kind, **mole))  # type: ignore[arg-type]
    for layer in made.mole_layers:
        torch.nn.init.normal_(layer.lora_B)
    return made.eval()


def crops(count: int = 3, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


# The crop in rows of tokens.


@pytest.mark.parametrize(("size", "patch", "width", "rows"), [(32, 16, 24, 32), (224, 16, 768, 1), (56, 14, 1024, 1)])
def test_a_crop_comes_back_from_its_rows_even_through_bfloat16(size: int, patch: int, width: int, rows: int) -> None:
    given = crops(2, size)
    packed = to_rows(given, patch, width)
    assert rows_of_patch(patch, width) == rows
    assert packed.shape == (2, (size // patch) ** 2 * rows, width)
    assert torch.equal((from_rows(packed.bfloat16().float(), patch) * 255).round().byte(), given)
    assert torch.allclose(from_rows(to_rows(given / 255, patch, width), patch), given / 255, atol=1e-6)
    first = given[0, :, :patch, :patch].float().flatten()
    assert torch.equal(packed[0, :rows].flatten()[: 3 * patch**2], first)  # channel, row, column


def test_pixels_beyond_the_last_patch_are_left_out_and_crops_are_square() -> None:
    given = crops(1, 40)
    assert torch.equal(from_rows(to_rows(given, 16, 24), 16), given[..., :32, :32] / 255)
    with pytest.raises(ValueError, match="crops of 48 x 32 pixels"):
        to_rows(torch.zeros(1, 3, 32, 48), 16, 24)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mole", [{}, {"head_blocks": (0, 6)}, PROBE], ids=["mole", "head blocks", "probe"])
def test_prefix_and_suffix_are_the_whole_and_tokens_may_be_kept(kind: str, mole: dict[str, object]) -> None:
    made = network(kind, **mole)
    tokens = made.prefix(crops())
    read = len(made.config.head_blocks and [b for b in made.config.head_blocks if b < made.first_adapted_block])
    assert tokens.shape == (3, 5 + 4 * 32 + read, 24)
    with torch.no_grad():
        whole = made(crops())
        assert torch.allclose(made.suffix(tokens), whole, atol=1e-5)
        assert torch.allclose(made(crops() / 255), whole, atol=1e-4)
        assert (made.suffix(tokens.bfloat16().float()) - whole).abs().max() < 0.05
        assert torch.allclose(made.logits(tokens, made.first_adapted_block, range(5)), whole, atol=1e-5)
        other = tokens.clone()
        other[:, 1:5] = other[:, 1:5].flip(1)
        few = made.logits(tokens, made.first_adapted_block, [0, 1, 4])
        assert torch.allclose(made.logits(other, made.first_adapted_block, [0, 4, 1]), few, atol=1e-5)
    assert whole.std() > 1e-3


def test_several_backbones_have_no_companion() -> None:
    towers = Concatenated([ViT(TINY), ViT(TINY)])
    with pytest.raises(ConfigError, match=r"mole\.companion='aide': needs a single backbone"):
        MoLENetwork(towers, MoLEConfig(companion="aide", **PROBE))  # type: ignore[arg-type]


# AIDE.


def naive_score(window: np.ndarray) -> float:
    """The paper's sums, term by term, of a window (3, N, N)."""
    n = window.shape[-1]
    k = np.arange(n)
    basis = np.cos(np.pi * (2 * k[None] + 1) * k[:, None] / (2 * n)) * np.where(k == 0, 1 / n, 2 / n)[:, None] ** 0.5
    score = 0.0
    for band in range(BANDS):
        inside = [(u, v) for u in range(n) for v in range(n) if 2 * n * band <= BANDS * (u + v) <= 2 * n * (band + 1)]
        for channel in window:
            spectrum = basis @ channel @ basis.T
            score += 2**band * sum(math.log1p(abs(spectrum[u, v])) for u, v in inside) / len(inside)
    return score


def test_the_bands_cover_everything_and_share_whole_diagonals_alone() -> None:
    counted = torch.zeros(32, 32)
    for band in range(BANDS):
        for u in range(32):
            for v in range(32):
                counted[u, v] += 64 * band <= 6 * (u + v) <= 64 * (band + 1)
    diagonal = torch.arange(32) + torch.arange(32)[:, None]
    assert torch.equal(counted, 1.0 + (diagonal == 32))  # 64 / 6 n is whole for n = 0, 3 and 6: i + j = 0, 32, 64
    assert float(band_weights().sum()) == pytest.approx(63)  # 1 + 2 + ... + 32
    assert float(band_weights()[31, 31]) == pytest.approx(32 / 45)  # i + j from 54 to 62: 9 + 8 + ... + 1


def test_scores_and_choice_are_those_of_a_plain_loop() -> None:
    made, size = AIDE(24), 80
    given = np.random.default_rng(0).random((2, 3, size, size)) * np.linspace(0, 1, size)  # busier to the right
    image = torch.tensor(given, dtype=torch.float32)
    found = made.extremes(image)
    assert found.shape == (2, 4, 3, 32, 32)
    steps = range(0, size - WINDOW + 1, STRIDE)
    for own, pixels in zip(found, given, strict=True):
        windows = [pixels[:, y : y + WINDOW, x : x + WINDOW] for y in steps for x in steps]
        scores = [naive_score(window) for window in windows]
        order = np.argsort(scores)
        assert float(made.scores(own)[0]) == pytest.approx(min(scores), rel=1e-4)
        for window, place in zip(own, order[[0, 1, -2, -1]], strict=True):
            assert np.allclose(window.numpy(), windows[place], atol=1e-6)
    even = made.scores(torch.full((1, 3, 32, 32), 0.5))
    assert float(even) == pytest.approx(3 * math.log1p(16) * float(band_weights()[0, 0]), rel=1e-4)  # the mean alone


def test_a_crop_of_one_window_is_all_four() -> None:
    given = torch.rand(1, 3, 32, 32)
    assert torch.equal(AIDE(24).extremes(given), given[:, None].expand(1, 4, 3, 32, 32))


def test_residuals_are_asinh_of_srm_on_the_sum_of_the_channels() -> None:
    made, given = AIDE(24), torch.rand(1, 4, 3, 32, 32)
    found = made.residuals(given)
    assert found.shape == (1, 4, 30, 28, 28)
    window = 255 * given[0, 2].sum(0)[3:8, 5:10]
    expected = torch.asinh((srm_kernels() * window).sum((1, 2)))
    assert torch.allclose(found[0, 2, :, 3, 5], expected, atol=1e-4)
    assert made.residuals(torch.full((1, 4, 3, 32, 32), 0.4)).abs().max() < 1e-3  # every filter sums to 0


def test_its_vector_is_the_formula() -> None:
    made, given, feature = AIDE(24), torch.rand(2, 3, 64, 64), torch.randn(2, 24)
    residuals = made.residuals(made.extremes(given))
    experts = [made.low(residuals[:, i]) for i in (0, 1)] + [made.high(residuals[:, i]) for i in (2, 3)]
    both = torch.cat([sum(experts) / 4, feature @ made.projection.weight.T + made.projection.bias], dim=1)
    expected = F.gelu(both @ made.fuse.weight.T + made.fuse.bias)
    assert torch.allclose(made(feature, given), expected, atol=1e-5)
    assert expected.shape == (2, made.width)
    expert = 30 * 32 * 9 + 32 + 32 * 64 * 9 + 64 + 64 * 128 * 9 + 128
    assert sum(p.numel() for p in made.parameters()) == 2 * expert + (24 + 1) * 128 + (256 + 1) * 128


# FFiT.


@pytest.mark.parametrize("size", [32, 24])
def test_the_magnitude_is_that_of_torchs_fft_half_a_step_beside(size: int) -> None:
    given = torch.rand(2, 3, size, size, dtype=torch.float64)
    levels = 32 / size * 255 * (given - given.mean((-2, -1), keepdim=True))
    shift = torch.exp(-1j * math.pi * torch.arange(size) / 32)
    spectrum = torch.fft.fftshift(torch.fft.fft2(levels * shift * shift[:, None], s=(32, 32)), dim=(-2, -1))
    assert torch.allclose(log_magnitude(given, 32).double(), torch.log1p(spectrum.abs()), atol=1e-3)
    assert log_magnitude(given).shape == (2, 3, 224, 224)
    assert log_magnitude(torch.full((1, 3, 32, 32), 0.7)).max() < 1e-2


def test_the_mirror_is_a_turn_by_180_degrees_and_a_turned_image_has_a_turned_magnitude() -> None:
    given = torch.rand(2, 3, 48, 48)
    found = log_magnitude(given)
    assert torch.equal(found, found.flip(-2, -1))
    assert torch.allclose(log_magnitude(given.rot90(dims=(-2, -1))), found.rot90(dims=(-2, -1)), atol=1e-3)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.73, 1.0])
def test_a_patch_and_its_mirror_are_hidden_together(ratio: float) -> None:
    torch.manual_seed(0)
    masks = draw_masks(20, 14, ratio)
    grid = masks.view(20, 14, 14)
    assert torch.equal(grid, grid.flip(1, 2))
    assert masks.sum(1).tolist() == [2 * min(max(round(98 * ratio), 1), 97)] * 20
    assert len({tuple(mask.tolist()) for mask in masks}) > 15


def test_copying_the_mirror_image_tells_nothing_of_what_is_hidden() -> None:
    """Where single patches are hidden, it would give away almost all of them."""
    torch.manual_seed(0)
    spectrum = log_magnitude(torch.rand(1, 3, 48, 48))[0]

    def given_away(patches: torch.Tensor) -> int:
        hidden = patches.view(14, 14).repeat_interleave(16, 0).repeat_interleave(16, 1)
        copied = spectrum.masked_fill(hidden, torch.nan).flip(-2, -1)
        return int((copied == spectrum)[:, hidden].sum())

    assert given_away(draw_masks(1, 14, 0.7)[0]) == 0
    assert given_away(torch.arange(196) < 98) == 3 * 98 * 16**2


def test_what_is_guessed_of_hidden_patches_depends_on_none_of_their_pixels_or_mirrors() -> None:
    torch.manual_seed(0)
    made = FFiT(24).eval()
    spectrum = torch.randn(1, 3, 224, 224).requires_grad_(True)
    masks = draw_masks(1, 14, 0.6)
    hidden = masks[:, 98:]
    guessed = made.reconstruct(made.tokens(spectrum), hidden)
    assert guessed.shape == (1, 98, 768)
    guessed[hidden].square().sum().backward()
    assert spectrum.grad is not None
    reached = F.max_pool2d(spectrum.grad.abs().sum(1, keepdim=True), 16).flatten() > 0
    assert not reached[masks[0]].any()
    assert torch.equal(reached[98:], ~hidden[0])  # all others of the lower half, of each pair one


def test_its_own_loss_is_the_mean_squared_error_of_hidden_pairs_each_once() -> None:
    torch.manual_seed(0)
    made = FFiT(24)
    spectrum = torch.randn(2, 3, 224, 224)
    tokens = made.tokens(spectrum)
    torch.manual_seed(5)
    found = made.reconstruction_loss(spectrum, tokens)
    torch.manual_seed(5)
    hidden = draw_masks(2, 14, 0.5 + 0.4 * float(torch.rand(())))[:, 98:]
    guessed = made.reconstruct(tokens, hidden)
    expected = []
    for image in range(2):
        errors = []
        for place in hidden[image].nonzero()[:, 0].tolist():
            y, x = divmod(98 + place, 14)
            target = spectrum[image, :, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16].flatten()
            errors.append((guessed[image, place] - target).square().mean())
        expected.append(torch.stack(errors).mean())
    assert torch.allclose(found, torch.stack(expected), atol=1e-5)


def test_ffits_parameters_are_those_of_its_parts() -> None:
    d, patch = 192, 3 * 16**2
    block = 2 * 2 * d + (d + 1) * 3 * d + (d + 1) * d + (d + 1) * 4 * d + (4 * d + 1) * d
    encoder = (patch + 1) * d + d + (1 + 14**2) * d + 6 * block + 2 * d
    decoder = d + 2 * block + 2 * d + (d + 1) * patch
    gated = d * d + 512 * d + (d + 512) * d
    assert sum(p.numel() for p in FFiT(512).parameters()) == encoder + decoder + gated
    assert encoder + decoder + gated + d + 1 == 4_164_289  # with the head, as docs/methods.md states it


def test_the_gated_unit_is_its_formula_and_an_open_gate_gives_one_side() -> None:
    torch.manual_seed(0)
    made = GatedMultimodalUnit(5, 7, 4)
    first, second = torch.randn(3, 5), torch.randn(3, 7)
    f, s = torch.tanh(first @ made.first.weight.T), torch.tanh(second @ made.second.weight.T)
    z = 1 / (1 + torch.exp(-(torch.cat([first, second], dim=1) @ made.gate.weight.T)))
    assert torch.allclose(made(first, second), z * f + (1 - z) * s, atol=1e-6)
    ones = torch.ones(3, 5), torch.ones(3, 7)
    for sign, side in ((1e3, "first"), (-1e3, "second")):
        made.gate.weight.data.fill_(sign)
        weight = getattr(made, side).weight
        assert torch.allclose(made(*ones), torch.tanh(weight.sum(1)).expand(3, 4), atol=1e-6)


# Both, as part of a network.


@pytest.mark.parametrize("kind", KINDS)
def test_training_reaches_all_of_it_and_leaves_the_tower_alone(kind: str) -> None:
    made = network(kind, **PROBE).train()
    before = copy.deepcopy(made.tower.state_dict())
    optimizer = torch.optim.SGD(made.trained_parameters().values(), lr=0.1)
    torch.manual_seed(3)
    loss = made(crops()).square().sum()
    assert made.companion is not None
    own = made.companion.loss
    assert (own is None) == (kind == "aide")
    (loss if own is None else loss + own.sum()).backward()
    reached = {name for name, p in made.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == {f"companion.{n}" for n, _ in made.companion.named_parameters()} | {"head.weight", "head.bias"}
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in made.tower.state_dict().items())
    assert made.eval().companion.loss is None


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_trained_from_the_cache_kept_loaded_and_explained_as_any_other(kind: str, tmp_path: Path) -> None:
    data = write_corpus(tmp_path / "corpus", {"train": 4, "val": 2})
    config = TrainConfig(
        backbone="given",
        mole=MoLEConfig(companion=kind, shared_rank=2, expert_ranks=(2,)),  # type: ignore[arg-type]
        preprocess=PREPROCESS,
        augment=AugmentConfig(blur_probability=0, jpeg_probability=0),
        epochs=1,
        batch_size=4,
        cached_views={"aide": 1, "ffit": None}[kind],
        patch_dropout=0.5,
        precision="float32",
    )
    trained = train(config, tmp_path / "out", data=data, backbone=tiny_backbone(), cache_dir=tmp_path / "cache")
    save_tower(tiny_backbone().tower, tmp_path / "tiny", torch.float32)
    loaded = Detector.from_pretrained(tmp_path / "out", backbone=tmp_path / "tiny")
    images = [picture(i, 70, 50) for i in range(4)]
    assert np.array_equal(loaded.score(images), trained.score(images))
    backbone = tiny_backbone()
    torch.manual_seed(config.seed)
    start = MoLENetwork(backbone.tower, config.mole).state_dict()
    moved = {name for name, value in loaded.network.state_dict().items() if not torch.equal(value, start[name])}
    assert moved == loaded.network.adapter_parameters().keys()
    assert f"A second network beside it, `{kind}`" in (tmp_path / "out" / "README.md").read_text()
    tile = explain(loaded, images[0], tokens=True).tiles[0]
    assert tile.attribution is not None
    assert np.abs(tile.attribution).max() > 0

    grown = TrainConfig(backbone="given", epochs=1, batch_size=8, extension_rank=2, precision="float32")
    longer = train(grown, tmp_path / "longer", extend=tmp_path / "out", data=data, backbone=tiny_backbone())
    fixed = {n: p for n, p in longer.network.state_dict().items() if ".extensions." not in n}
    assert all(torch.equal(value, fixed[name]) for name, value in loaded.network.state_dict().items())
    with pytest.raises(ConfigError, match=r"out: mole\.companion='.*': reads the pixels themselves"):
        train(grown.model_copy(update={"kept_tokens": 4}), tmp_path / "no", extend=tmp_path / "out", data=data)
    with pytest.raises(ConfigError, match=r"has a companion .*, which cannot be merged"):
        merge([tmp_path / "out", tmp_path / "longer"], tmp_path / "merged", backbone=tmp_path / "tiny")


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["openvino", "onnx"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_exported(kind: str, runtime: str, tmp_path: Path) -> None:
    for library in {"openvino": ["openvino"], "onnx": ["onnxruntime", "onnxscript", "onnx"]}[runtime]:
        pytest.importorskip(library)
    backbone = tiny_backbone(depth=1)
    save_tower(backbone.tower, tmp_path / "tiny", torch.float32)
    save_adapter(tmp_path / "adapter", network(kind, backbone), tiny_backbone(depth=1), PREPROCESS, CALIBRATION)
    images = [picture(i, 70, 50) for i in range(6)]
    export_detector(
        tmp_path / "adapter",
        tmp_path / "graph",
        runtime,  # type: ignore[arg-type]
        lambda: iter(images),
        backbone=tmp_path / "tiny",
    )
    expected = Detector.from_pretrained(tmp_path / "adapter", backbone=tmp_path / "tiny").score(images)
    assert Detector.from_pretrained(tmp_path / "graph").score(images) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_drawn_where_weights_are_given(kind: str, tmp_path: Path) -> None:
    backbone = tiny_backbone()
    save_tower(backbone.tower, tmp_path / "tiny", torch.float32)
    made = network(kind)
    save_adapter(tmp_path / "adapter", made, tiny_backbone(), PREPROCESS)
    state = torch.get_rng_state()
    loaded = load_adapter(tmp_path / "adapter", tmp_path / "tiny").network
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        assert torch.equal(loaded(crops()), made(crops()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mole": MoLEConfig(companion="aide"), "kept_tokens": 4}, "leave out kept_tokens and hypernetwork"),
        ({"mole": MoLEConfig(companion="ffit"), "hypernetwork": True}, "hypernetwork"),
        (
            {"mole": MoLEConfig(companion="ffit", head_blocks="all"), "head_start": 0.1, "cached_views": 1},
            "with mole.companion='ffit' the head reads no class tokens",
        ),
        (
            {"mole": MoLEConfig(companion="aide"), "preprocess": PREPROCESS.model_copy(update={"crop_size": 16})},
            "crop_size=16: companion = 'aide' needs 32 or more",
        ),
    ],
)
def test_settings_that_it_cannot_have_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(backbone="given", **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="companion_weight=2: only companion = 'ffit' has one"):
        MoLEConfig(companion="aide", companion_weight=2)
