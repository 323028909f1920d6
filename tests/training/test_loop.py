"""One step, however it is divided: over parts, over processes, from kept tokens."""

from __future__ import annotations

import json
from pathlib import Path

import processes
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import PREPROCESS, tiny_backbone, write_corpus

from clipmole.config import AugmentConfig, MoLEConfig, TrainConfig
from clipmole.errors import TrainingDiverged
from clipmole.models.vit import attend
from clipmole.training.loop import duration
from clipmole.training.train import run_folder, train

CONFIG = TrainConfig(
    backbone="given",
    preprocess=PREPROCESS,
    augment=AugmentConfig(equalise_quality=(90, 95)),
    epochs=2,
    batch_size=12,
    learning_rate=1e-3,
    precision="float32",
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """47 training images: no number of parts divides the last batch."""
    path = write_corpus(tmp_path_factory.mktemp("corpus"), {"train": 24, "val": 5})
    lines = path.read_text().splitlines()
    lines.remove(next(line for line in lines if ",train" in line))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def alone(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process trains, in whole batches."""
    out = tmp_path_factory.mktemp("alone") / "adapter"
    train(CONFIG, out, data=manifest, backbone=tiny_backbone())
    return out


def compare(first: Path, second: Path, tolerance: float, balance: bool = True) -> None:
    """Weights and curves are the same to `tolerance`, and not the start's; so is the balance loss if `balance`."""
    one, other = (load_file(path / "adapter.safetensors") for path in (first, second))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    assert max(float(t.abs().max()) for n, t in one.items() if "lora_B" in n) > 100 * tolerance
    curves = [json.loads((path / "train.json").read_text())["curve"] for path in (first, second)]
    for a, b in zip(*curves, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=tolerance)
        assert not balance or a["balance_loss"] == pytest.approx(b["balance_loss"], abs=tolerance)
        assert a["gates"] == [pytest.approx(row, abs=tolerance) for row in b["gates"]]
        assert a["val_ap"] == pytest.approx(b["val_ap"], abs=1e-6)


def test_two_processes_train_what_one_does_with_the_same_global_batch(
    manifest: Path, alone: Path, tmp_path: Path
) -> None:
    processes.together(CONFIG, tmp_path / "two", manifest)
    compare(alone, tmp_path / "two", 1e-5)
    record = json.loads((tmp_path / "two" / "train.json").read_text())
    assert record["environment"]["processes"] == 2


def test_two_processes_share_the_cache_and_the_parts(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPMOLE_CACHE", str(tmp_path / "cache"))
    config = CONFIG.model_copy(update={"cached_views": 2, "accumulation": 3, "mole": MoLEConfig(balance_weight=0)})
    processes.together(config, tmp_path / "two", manifest)
    monkeypatch.setenv("CLIPMOLE_CACHE", str(tmp_path / "other"))
    whole = config.model_copy(update={"accumulation": 1})
    train(whole, tmp_path / "one", data=manifest, backbone=tiny_backbone())
    compare(tmp_path / "one", tmp_path / "two", 2e-5, balance=False)  # which is of each part's images
    cached = [sorted(path.read_bytes() for path in (tmp_path / n / "prefix").iterdir()) for n in ("cache", "other")]
    assert len(cached[0]) == len(cached[1]) == 2


def test_accumulated_parts_are_one_batch(manifest: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"mole": MoLEConfig(balance_weight=0), "epochs": 1})
    for parts in (1, 4):
        out = tmp_path / str(parts)
        train(config.model_copy(update={"accumulation": parts}), out, data=manifest, backbone=tiny_backbone())
    compare(tmp_path / "1", tmp_path / "4", 1e-5, balance=False)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_on_the_cache_is_training_on_those_views_to_bfloat16_rounding(
    manifest: Path, tmp_path: Path, precision: str
) -> None:
    """Two epochs on two kept views against two epochs that draw the same two views."""
    config = CONFIG.model_copy(update={"precision": precision})
    train(config, tmp_path / "drawn", data=manifest, backbone=tiny_backbone())
    train(
        config.model_copy(update={"cached_views": 2}),
        tmp_path / "kept",
        data=manifest,
        backbone=tiny_backbone(),
        cache_dir=tmp_path / "cache",
    )
    curves = [json.loads((tmp_path / n / "train.json").read_text())["curve"] for n in ("drawn", "kept")]
    for drawn, kept in zip(*curves, strict=True):
        assert kept["loss"] == pytest.approx(drawn["loss"], rel=4e-3)
        assert kept["loss"] != drawn["loss"]
        assert kept["gates"] == [pytest.approx(row, abs=1e-3) for row in drawn["gates"]]
    one, other = (load_file(tmp_path / n / "adapter.safetensors") for n in ("drawn", "kept"))
    torch.testing.assert_close(one["head.weight"], other["head.weight"], atol=2e-3, rtol=0)


def test_tensorboard_gets_every_scalar(alone: Path) -> None:
    (folder,) = (run_folder(alone) / "tensorboard").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    gates = {f"gates/block_{block}/expert_{expert}" for block in (6, 7) for expert in range(3)}
    epochs = {"loss/epoch", "loss/balance", "val/ap", "val/mean_generator_ap"} | gates
    assert set(events.Tags()["scalars"]) == {"loss/step", "learning_rate"} | epochs
    curve = json.loads((alone / "train.json").read_text())["curve"]
    assert [e.step for e in events.Scalars("loss/step")] == list(range(8))  # 47 images in batches of 12, twice
    for name, key in (("loss/epoch", "loss"), ("val/ap", "val_ap")):
        assert [e.value for e in events.Scalars(name)] == pytest.approx([e[key] for e in curve])
    assert sum(events.Scalars(name)[0].value for name in sorted(gates)[:3]) == pytest.approx(1)


def test_a_loss_that_is_not_finite_ends_the_run(manifest: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"learning_rate": 1e30, "clip_norm": 1e30})
    with pytest.raises(TrainingDiverged, match=r"the training loss is not finite; lower learning_rate \(1e\+30\)"):
        train(config, tmp_path / "run", data=manifest, backbone=tiny_backbone())
    assert not (tmp_path / "run").exists()


def test_attention_with_a_gradient_is_the_same_in_bfloat16_but_for_rounding() -> None:
    q, k, v = torch.randn(3, 2, 3, 17, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = torch.softmax(q.double() @ k.double().transpose(-1, -2) / 8**0.5, -1) @ v.double()
    for grad in (False, True):
        mixed = attend(q.clone().requires_grad_(grad), k, v)
        assert mixed.dtype == torch.bfloat16
        assert (mixed.double() - expected).abs().max() < 0.02
    exact = [t.double().requires_grad_() for t in (q, k, v)]
    (torch.softmax(exact[0] @ exact[1].transpose(-1, -2) / 8**0.5, -1) @ exact[2]).square().sum().backward()
    rounded = [t.clone().requires_grad_() for t in (q, k, v)]
    attend(*rounded).float().square().sum().backward()
    for ours, true in zip(rounded, exact, strict=True):
        assert float((ours.grad.double() - true.grad).norm() / true.grad.norm()) < 0.02


def test_a_length_of_time_is_said_as_a_person_says_it() -> None:
    assert [duration(s) for s in (0.2, 89, 90, 720, 5399, 9000)] == [
        "0 s",
        "89 s",
        "2 min",
        "12 min",
        "90 min",
        "2.5 h",
    ]
