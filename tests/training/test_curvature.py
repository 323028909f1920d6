"""Curvature-aware merging against its formula written out densely, and what it learns on made images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import PREPROCESS, tiny_backbone, write_corpus
from torch import Tensor
from typer.testing import CliRunner

from clipmole.cli import app
from clipmole.config import MoLEConfig
from clipmole.data import read_data
from clipmole.errors import ConfigError, DataError
from clipmole.models.adapter import load_adapter, save_adapter
from clipmole.models.backbone import save_tower
from clipmole.models.network import MoLENetwork
from clipmole.training.curvature import Curvature, Merging, agreeing, kronecker, near_square
from clipmole.training.merge import merge


def drawn_curvature(width: int = 24) -> Curvature:
    """Factors that are no identities."""
    torch.manual_seed(0)
    curvature = Curvature(width)
    for factor in curvature.parameters():
        torch.nn.init.normal_(factor)
    return curvature


def test_the_low_rank_form_is_the_dense_formula() -> None:
    curvature, d = drawn_curvature(), 24
    a, b = torch.randn(5, d), torch.randn(d, 5)
    p, q = near_square(d)
    assert (p, q) == (4, 6)
    tau = (b @ a).view(p, q, p, q)  # (o1, o2, i1, i2), as the authors' code has it
    factors = (curvature.out_one, curvature.out_two, curvature.in_one, curvature.in_two)
    expected = torch.einsum("ij,kl,mn,op,jlnp->ikmo", *factors, tau).reshape(d, d)
    new_a, new_b = curvature(a, b)
    assert (new_a.shape, new_b.shape) == ((5, d), (d, 5))
    assert expected.abs().max() > 1
    assert torch.allclose(new_b @ new_a, expected, rtol=1e-4, atol=1e-4)
    assert torch.allclose(curvature.dense(b @ a), expected, rtol=1e-4, atol=1e-4)
    assert torch.allclose(kronecker(*factors[:2], b), torch.kron(*factors[:2]) @ b, rtol=1e-4, atol=1e-4)


def test_terms_of_a_sum_that_start_as_identities_stay_equal() -> None:
    """Why M is one term and not the mean of several: here the mean of three of the authors' terms learns."""
    torch.manual_seed(4)
    tau, target = torch.randn(4, 6, 4, 6), torch.randn(4, 6, 4, 6)
    terms = [torch.eye(size).repeat(3, 1, 1).requires_grad_(True) for size in (4, 6, 4, 6)]
    optimizer = torch.optim.Adam(terms, lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        made = torch.einsum("cij,ckl,cmn,cop,jlnp->ikmo", *terms, tau) / 3
        (made - target).square().sum().backward()
        optimizer.step()
    for each in terms:
        assert torch.allclose(each, each[:1].expand_as(each), atol=1e-5)
        assert (each - torch.eye(each.shape[-1])).abs().max() > 0.01


def test_the_factors_are_counted_as_the_formula_says() -> None:
    assert sum(p.numel() for p in Curvature(768).parameters()) == 2 * (24**2 + 32**2)
    assert near_square(768) == (24, 32)
    assert near_square(7) == (1, 7)


def test_identities_without_a_mask_give_the_weighted_mean() -> None:
    torch.manual_seed(1)
    updates, weights = [torch.randn(24, 24) for _ in range(3)], (2.0, 1.0, 1.0)
    own = Merging.of(updates, weights)
    unmasked = Merging(own.base, tuple(each - updates[0] for each in updates[1:]), own.weights)
    expected = sum(weight / 4 * each for weight, each in zip(weights, updates, strict=True))
    assert torch.allclose(unmasked.merged([Curvature(24), Curvature(24)]), expected, atol=1e-6)
    two = Merging.of(updates[:2], (1.0, 3.0))  # of one difference the mask leaves everything
    assert torch.allclose(two.merged([Curvature(24)]), 0.25 * updates[0] + 0.75 * updates[1], atol=1e-6)


def test_one_expert_alone_and_experts_that_are_equal() -> None:
    torch.manual_seed(2)
    base, other = torch.randn(24, 24), torch.randn(24, 24)
    alone = Merging(base, (other - base,), (1.0,))
    assert torch.allclose(alone.merged([Curvature(24)]), other, atol=1e-6)
    equal = [
        Merging.of([base, base, base], weights).merged([drawn_curvature()] * 2) for weights in [(1, 1, 1), (1, 8, 2)]
    ]
    assert torch.equal(equal[0], base)
    assert torch.equal(equal[1], base)


def test_the_mask_keeps_the_signs_that_outweigh() -> None:
    torch.manual_seed(3)
    given = [torch.randn(6, 6) for _ in range(4)]
    total = sum(given)
    assert isinstance(total, Tensor)
    for each, got in zip(given, agreeing(given), strict=True):
        expected = [
            [float(x) if x * t > 0 else 0.0 for x, t in zip(*rows, strict=True)]
            for rows in zip(each, total, strict=True)
        ]
        assert torch.equal(got, torch.tensor(expected))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path, Path]:
    """Two adapters of random weights, their backbone, and labelled images."""
    folder = tmp_path_factory.mktemp("parts")
    save_tower(tiny_backbone().tower, folder / "tiny", torch.float32)
    for seed, name in enumerate(("one", "two")):
        backbone = tiny_backbone()
        torch.manual_seed(seed)
        config = MoLEConfig(shared_rank=2, expert_ranks=(1, 2), extension_ranks=(1,))
        network = MoLENetwork(backbone.tower, config).eval()
        for parameter in network.adapter_parameters().values():
            torch.nn.init.normal_(parameter, std=0.3)
        save_adapter(folder / name, network, backbone, PREPROCESS)
    manifest = write_corpus(folder / "corpus", {"calibration": 10, "train": 2})
    return [folder / "one", folder / "two"], folder / "tiny", manifest


def test_it_learns_on_labelled_images_and_leaves_an_ordinary_adapter(
    parts: tuple[list[Path], Path, Path], tmp_path: Path
) -> None:
    names, tower, manifest = parts
    command = ["merge", *map(str, names), "--out", str(tmp_path / "out"), "--backbone", str(tower)]
    result = CliRunner().invoke(app, [*command, "--method", "camex", "--data", str(manifest)])
    assert result.exit_code == 0, result.output
    assert "camex of 0.5 x one, 0.5 x two" in result.output
    merged = load_adapter(tmp_path / "out", tower)
    assert (merged.config.mole.shared_rank, merged.config.mole.expert_ranks) == (2, (1, 2))
    again = merge(names, tmp_path / "again", "camex", samples=read_data(manifest, "calibration"), backbone=tower)
    assert again.losses is not None
    assert again.losses[1] < again.losses[0]
    assert 0 < again.lost < 1
    other = load_adapter(tmp_path / "again", tower).network.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in merged.network.state_dict().items())


def test_the_start_is_the_average(
    parts: tuple[list[Path], Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, tower, manifest = parts
    monkeypatch.setattr("clipmole.training.curvature.EPOCHS", 0)
    samples = read_data(manifest, "calibration")
    found = merge(names, tmp_path / "out", "camex", weights=(2, 2), samples=samples, backbone=tower)
    average = merge(names, tmp_path / "average", "average", backbone=tower)
    assert found.losses is not None
    assert found.losses[0] == found.losses[1]
    assert found.lost == pytest.approx(average.lost, rel=1e-4)
    crops = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        got, expected = (load_adapter(tmp_path / name, tower).network(crops) for name in ("out", "average"))
    assert got.tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-4)


def test_images_go_with_camex_alone_and_must_be_of_both_classes(
    parts: tuple[list[Path], Path, Path], tmp_path: Path
) -> None:
    names, tower, manifest = parts
    samples = read_data(manifest, "calibration")
    for method, given in (("camex", []), ("ties", samples)):
        with pytest.raises(ConfigError, match="are for the method camex, which needs them"):
            merge(names, tmp_path / "out", method, samples=given, backbone=tower)
    with pytest.raises(DataError, match="10 photographs and 0 generated images"):
        merge(names, tmp_path / "out", "camex", samples=[s for s in samples if not s.label], backbone=tower)
    result = CliRunner().invoke(app, ["merge", *map(str, names), "--out", str(tmp_path / "out"), "--method", "camex"])
    assert result.exit_code == 2
    assert "which needs --data" in result.output
    assert not (tmp_path / "out").exists()
