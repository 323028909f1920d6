"""Merged adapters against their parts: layer by layer where it is exact, against plain formulas where it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import CALIBRATION, PREPROCESS, tiny_backbone
from torch import Tensor
from typer.testing import CliRunner

from clipmole.cli import app
from clipmole.config import MoLEConfig
from clipmole.errors import CheckpointError, ClipmoleError, ConfigError
from clipmole.models.adapter import load_adapter, save_adapter
from clipmole.models.backbone import save_tower
from clipmole.models.network import MoLENetwork
from clipmole.training.merge import low_rank, merge, ties, weighted_sum

LORA, LOCAL = MoLEConfig(expert_ranks=()), MoLEConfig(router="local-global", expert_ranks=(2, 3))


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone") / "tiny"
    save_tower(tiny_backbone().tower, folder, torch.float32)
    return folder


def written(folder: Path, config: MoLEConfig, seed: int, backbone_seed: int = 0) -> MoLENetwork:
    """A network of random weights, as it stands in the adapter directory `folder`."""
    backbone = tiny_backbone(backbone_seed)
    torch.manual_seed(seed)
    network = MoLENetwork(backbone.tower, config).eval()
    for parameter in network.adapter_parameters().values():
        torch.nn.init.normal_(parameter, std=0.3)
    save_adapter(folder, network, backbone, PREPROCESS, CALIBRATION)
    return network


def updates(network: MoLENetwork, x: Tensor) -> list[Tensor]:
    """What the adapter of each block adds to what its MLP gives for tokens x."""
    with torch.no_grad():
        return [layer.double()(x) - layer.mlp(x) for layer in network.mole_layers]


@pytest.mark.parametrize(
    ("one", "two", "weights"),
    [
        (MoLEConfig(), MoLEConfig(shared_rank=2, expert_ranks=(3, 1), alpha=8.0), ()),
        (MoLEConfig(top_k=1), MoLEConfig(top_k=1, expert_ranks=(3, 1)), (1.0, 1.0)),
        (MoLEConfig(router="image"), LORA, (0.25, 2.0)),
        (LORA, MoLEConfig(shared_rank=0), ()),
        (LOCAL, LOCAL.model_copy(update={"alpha": 4.0, "shared_rank": 0}), (0.3, 0.7)),
        (MoLEConfig(extension_ranks=(2,), alpha=6.0), MoLEConfig(extension_ranks=(3, 1)), ()),
        (
            MoLEConfig(shared_rank=0, expert_ranks=(), extension_ranks=(2,)),
            MoLEConfig(shared_rank=0, expert_ranks=(), extension_ranks=(1,)),
            (),
        ),
    ],
    ids=["two routers", "top-1", "image and lora", "lora and experts", "local-global", "extensions", "only extensions"],
)
def test_a_stack_adds_exactly_the_weighted_sum_of_its_parts_updates(
    one: MoLEConfig, two: MoLEConfig, weights: tuple[float, ...], tower: Path, tmp_path: Path
) -> None:
    parts = [written(tmp_path / "one", one, 1), written(tmp_path / "two", two, 2)]
    found = merge([tmp_path / "one", tmp_path / "two"], tmp_path / "out", weights=weights, backbone=tower)
    merged = load_adapter(tmp_path / "out", tower).network
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    shares = weights or (0.5, 0.5)
    for got, first, second in zip(updates(merged, x), *(updates(part, x) for part in parts), strict=True):
        expected = shares[0] * first + shares[1] * second
        assert expected.abs().max() > 0.1
        assert (got - expected).abs().max() < 1e-5
    heads = [part.head.weight for part in parts]
    mean = (shares[0] * heads[0] + shares[1] * heads[1]) / sum(shares)
    assert torch.allclose(merged.head.weight, mean, atol=1e-6)
    assert found.lost == 0
    assert "adds exactly the weighted sum" in found.summary


@pytest.mark.parametrize("method", ["stack", "average", "ties"])
@pytest.mark.parametrize(
    "config",
    [
        MoLEConfig(alpha=8.0),
        LOCAL.model_copy(update={"alpha": 8.0}),
        LORA,
        MoLEConfig(expert_ranks=(2, 3, 2), expert_groups=(1, 2)),
    ],
    ids=["alpha", "local-global", "lora", "merged before"],
)
def test_a_detector_merged_with_itself_is_itself(method: str, config: MoLEConfig, tower: Path, tmp_path: Path) -> None:
    network = written(tmp_path / "one", config, 1)
    written(tmp_path / "two", config, 1)
    found = merge([tmp_path / "one", tmp_path / "two"], tmp_path / "out", method, density=1.0, backbone=tower)
    crops = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        expected, got = network(crops), load_adapter(tmp_path / "out", tower).network(crops)
    assert got.tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-4)
    assert found.lost < 1e-5
    if method != "stack":
        merged = load_adapter(tmp_path / "out", tower).config.mole
        assert (merged.shared_rank, merged.expert_ranks) == (config.shared_rank, config.expert_ranks)


@pytest.mark.parametrize("method", ["stack", "average"])
def test_the_size_of_the_weights_leaves_the_gates_as_they_are(method: str, tower: Path, tmp_path: Path) -> None:
    """With weights 1 and 1 of the same detector twice, its update counts double, with the gates that it had."""
    network = written(tmp_path / "one", LOCAL, 1)
    written(tmp_path / "two", LOCAL, 1)
    merge([tmp_path / "one", tmp_path / "two"], tmp_path / "out", method, weights=(1, 1), backbone=tower)
    merged = load_adapter(tmp_path / "out", tower).network
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    for got, own in zip(updates(merged, x), updates(network, x), strict=True):
        assert torch.allclose(got, 2 * own, rtol=1e-4, atol=1e-4)


def test_an_average_is_the_nearest_of_its_rank_and_says_what_it_lost(tower: Path, tmp_path: Path) -> None:
    parts = [written(tmp_path / name, LORA, seed) for seed, name in enumerate(("one", "two"))]
    found = merge([tmp_path / "one", tmp_path / "two"], tmp_path / "out", "average", backbone=tower)
    merged = load_adapter(tmp_path / "out", tower).network
    lost = whole = 0.0
    for got, *own in zip(merged.mole_layers, *(part.mole_layers for part in parts), strict=True):
        mean = sum(layer.lora_B @ layer.lora_A for layer in own).detach() / 2
        values = torch.linalg.svdvals(mean)
        assert got.lora_A.shape == (4, 24)
        error = float((mean - got.lora_B @ got.lora_A).detach().norm())
        assert error == pytest.approx(float(values[4:].norm()), rel=1e-4)  # Eckart and Young
        lost, whole = lost + error**2, whole + float(mean.norm()) ** 2
    assert found.lost == pytest.approx((lost / whole) ** 0.5, rel=1e-4)
    assert 0.1 < found.lost < 1


def test_ties_against_a_plain_loop() -> None:
    torch.manual_seed(0)
    given, weights = [torch.randn(4, 5) for _ in range(3)], (0.5, 0.3, 0.2)
    expected = torch.zeros(4, 5)
    kept = [t * (t.abs() >= t.abs().flatten().sort().values[-8]) for t in given]  # 40 % of 20 entries
    for i in range(4):
        for j in range(5):
            votes = [float(t[i, j]) for t in kept]
            total = sum(w * v for w, v in zip(weights, votes, strict=True))
            own = [(w, v) for w, v in zip(weights, votes, strict=True) if v * total > 0]
            if own:
                expected[i, j] = sum(w * v for w, v in own) / sum(w for w, _ in own)
    assert torch.allclose(ties(given, weights, 0.4), expected, atol=1e-6)
    positive = [t.abs() for t in given]
    assert torch.allclose(ties(positive, weights, 1.0), weighted_sum(positive, weights), atol=1e-6)


def test_low_rank_gives_back_a_matrix_of_that_rank() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(24, 3) @ torch.randn(3, 24)
    a, b = low_rank(matrix, 3)
    assert (a.shape, b.shape) == ((3, 24), (24, 3))
    assert torch.allclose(b @ a, matrix, atol=1e-4)


def test_the_directory_says_what_it_was_made_of_and_gives_no_verdicts(tower: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        written(tmp_path / name, MoLEConfig(), seed)
    command = ["merge", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*command, "--backbone", str(tower), "--weight", "1", "--weight", "3"])
    assert result.exit_code == 0, result.output
    assert "stack of 1 x one, 3 x two: each block adds exactly the weighted sum" in result.output
    adapter = load_adapter(tmp_path / "out", tower)
    assert adapter.calibration is None
    assert (adapter.config.mole.shared_rank, adapter.config.mole.expert_ranks) == (8, (2, 4, 8, 2, 4, 8))
    assert adapter.config.mole.expert_groups == (3, 3)
    record = json.loads((tmp_path / "out" / "train.json").read_text())
    assert [step["name"] for step in record["history"]] == ["one", "two"]
    assert record["merge"]["weights"] == [1, 3]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "It gives no verdicts until it is calibrated." in card
    assert "- `two` (digest `" in card


@pytest.mark.parametrize(
    ("two", "options", "kind", "message"),
    [
        (MoLEConfig(drawn=True), {}, ConfigError, r"one and two: one has a second output \(mole.drawn\)"),
        (MoLEConfig(blocks=1), {}, ConfigError, r"one and two: adapt or read other blocks \(\(6, 7\), \(7,\)\)"),
        (MoLEConfig(router="image"), {}, ConfigError, "one and two: their routers differ"),
        (MoLEConfig(expert_ranks=(2, 4)), {"method": "average"}, ConfigError, "have 3 and 2 experts.*--method stack"),
        (
            MoLEConfig(expert_groups=(1, 2)),
            {"method": "average"},
            ConfigError,
            r"have 3 and 1\+2 experts.*--method stack",
        ),
        (MoLEConfig(), {"weights": (1.0,)}, ConfigError, "give two or more, a positive weight each or none"),
        (MoLEConfig(), {"weights": (1.0, -1.0)}, ConfigError, "a positive weight each"),
        (MoLEConfig(), {"weights": (1.0, 1e39)}, ConfigError, "no weight above 1000"),
        (MoLEConfig(), {"density": 0.0}, ConfigError, "density=0.0"),
        (None, {}, CheckpointError, "one and two: were made for other backbones"),
    ],
)
def test_what_cannot_be_merged_is_refused_in_one_line(
    two: MoLEConfig | None,
    options: dict[str, object],
    kind: type[ClipmoleError],
    message: str,
    tower: Path,
    tmp_path: Path,
) -> None:
    written(tmp_path / "one", MoLEConfig(), 1)
    written(tmp_path / "two", two or MoLEConfig(), 2, backbone_seed=0 if two else 5)
    with pytest.raises(kind, match=message):
        merge([tmp_path / "one", tmp_path / "two"], tmp_path / "out", backbone=tower, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
