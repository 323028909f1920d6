"""One step, however it is divided: over parts, over processes, from kept tokens."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import PREPROCESS, tiny_backbone, tiny_network, write_corpus

from clipmole.config import AugmentConfig, MoLEConfig, TrainConfig
from clipmole.data import read_manifest, take_split
from clipmole.errors import ConfigError, TrainingDiverged
from clipmole.models.network import MoLENetwork
from clipmole.models.vit import attend
from clipmole.plumbing.progress import ProgressReporter
from clipmole.training.distributed import Distributed
from clipmole.training.head_start import start_head
from clipmole.training.loop import Trainee, duration
from clipmole.training.prefix_cache import PrefixCache
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
    assert len(cached[0]) == len(cached[1]) == 3  # two views, and validation


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


# ---------------------------------------------------------------- what a step does beside


def test_the_head_starts_as_the_regression_on_the_kept_class_tokens(manifest: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(
        update={"cached_views": 2, "head_start": 0.3, "sampling": "classes", "mole": MoLEConfig(head_blocks=(1, 4, 6))}
    )
    samples = take_split(read_manifest(manifest), "train")
    network = MoLENetwork(tiny_backbone().tower, config.mole)
    with ThreadPoolExecutor(2) as pool:
        cache = PrefixCache(network, samples, config, tmp_path, "0" * 64, distributed=Distributed(), pool=pool,
                            progress=ProgressReporter())  # fmt: skip
        tokens = [torch.cat(list(cache.read([[(i, view) for i in range(len(samples))]]))) for view in (0, 1)]
    start_head(network, cache, samples, config, print)
    kept = torch.cat(tokens)[:, 5:].float()  # 1 class token and 4 patches come before; blocks 1 and 4 are kept
    features = (kept - kept.mean(-1, keepdim=True)) / (kept.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    labels = np.tile([sample.label for sample in samples], 2)
    balance = len(labels) / 2 / np.bincount(labels)[labels]
    expected = LogisticRegression(C=0.3, max_iter=300).fit(features.flatten(1).numpy(), labels, balance)
    head = network.head.weight[0].detach()
    torch.testing.assert_close(head[24 : 24 + 48], torch.from_numpy(expected.coef_[0]).float(), atol=0.02, rtol=0)
    assert not head[:24].any()
    assert not head[24 + 48 :].any()  # block 6 is adapted
    assert float(network.head.bias.detach()) == pytest.approx(expected.intercept_[0], abs=0.02)
    assert float(head.abs().max()) > 0.5


def test_a_start_needs_head_blocks_that_are_kept(manifest: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(
        update={"cached_views": 1, "head_start": 1.0, "mole": MoLEConfig(head_blocks=(6,), blocks=(6, 7))}
    )
    with pytest.raises(ConfigError, match=r"none of mole.head_blocks=\(6,\) lies before block 6"):
        train(config, tmp_path / "run", data=manifest, backbone=tiny_backbone(), cache_dir=tmp_path)


def test_a_step_sees_the_share_of_patches_that_is_not_dropped() -> None:
    network = MoLENetwork(tiny_backbone().tower, MoLEConfig(head_blocks=(2, 5))).eval()
    torch.nn.init.normal_(network.head.weight, generator=torch.Generator().manual_seed(1))
    tokens = torch.randn(3, 5 + 2, 24, generator=torch.Generator().manual_seed(0))
    trainee = Trainee(network, 6, dropout=0.5)
    kept = np.sort(np.random.default_rng(3).permutation(4)[:2]).tolist()
    expected = network.suffix(tokens[:, [0, *(1 + i for i in kept), 5, 6]])
    torch.testing.assert_close(trainee(tokens, np.random.default_rng(3)), expected)
    torch.testing.assert_close(trainee(tokens), network.suffix(tokens))
    crops = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    before = network.prefix(crops)
    uncached = Trainee(network, None, dropout=0.5)(crops, np.random.default_rng(3))
    torch.testing.assert_close(uncached, network.suffix(before[:, [0, *(1 + i for i in kept), 5, 6]]))


def test_smoothed_labels_leave_their_entropy_in_the_loss(manifest: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"label_smoothing": 0.4, "learning_rate": 1e-2, "epochs": 3})
    train(config, tmp_path / "run", data=manifest, backbone=tiny_backbone())
    losses = [epoch["loss"] for epoch in json.loads((tmp_path / "run" / "train.json").read_text())["curve"]]
    assert min(losses) > -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))


def test_the_balance_loss_evens_out_the_gates(manifest: Path, tmp_path: Path) -> None:
    excess = []
    for weight in (0.0, 30.0):
        mole = MoLEConfig(balance_weight=weight)
        config = CONFIG.model_copy(
            update={"mole": mole, "learning_rate": 1e-2, "head_learning_rate": 1e-3, "epochs": 4}
        )
        train(config, tmp_path / str(weight), data=manifest, backbone=tiny_backbone())
        curve = json.loads((tmp_path / str(weight) / "train.json").read_text())["curve"]
        excess.append(curve[-1]["balance_loss"] - 1)
    assert 0 <= excess[1] < 0.5 * excess[0]


def test_the_head_learns_at_a_rate_of_its_own(manifest: Path, tmp_path: Path) -> None:
    for name, rate in (("alike", None), ("still", 1e-12)):
        config = CONFIG.model_copy(update={"head_learning_rate": rate, "epochs": 1})
        train(config, tmp_path / name, data=manifest, backbone=tiny_backbone())
    alike, still = (load_file(tmp_path / name / "adapter.safetensors") for name in ("alike", "still"))
    assert float(alike["head.bias"].abs()) > 1e-5
    assert float(still["head.bias"].abs()) < 1e-9
    assert max(float(t.abs().max()) for name, t in still.items() if "lora_B" in name) > 1e-5


def test_a_step_trains_by_the_logit_alone_where_the_head_has_a_second_output() -> None:
    network = tiny_network(config=MoLEConfig(drawn=True)).train()
    crops = torch.rand(3, 3, 32, 32)
    assert network(crops).shape == (3, 2)
    assert torch.equal(Trainee(network, None, dropout=0)(crops), network(crops)[:, 0])
