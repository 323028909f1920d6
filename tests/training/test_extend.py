"""A detector that is extended: what it held stays bit for bit, what is new is small, and its directory says so."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import CALIBRATION, PREPROCESS, tiny_backbone, tiny_network, write_adapter, write_corpus
from typer.testing import CliRunner

from clipmole.cli import app
from clipmole.config import AugmentConfig, MoLEConfig, TrainConfig
from clipmole.errors import CheckpointError, ConfigError
from clipmole.evaluation.scorers import trained_on
from clipmole.models.adapter import load_adapter, read_kept_tokens, save_adapter
from clipmole.models.network import MoLENetwork
from clipmole.plumbing.progress import ProgressReporter
from clipmole.training.extend import Base, Replay, bernoulli_kl, thresholds_changed
from clipmole.training.train import train

CONFIG = TrainConfig(
    backbone="given",
    augment=AugmentConfig(blur_probability=0, jpeg_probability=0, equalise_quality=(90, 95)),
    epochs=4,
    batch_size=8,
    learning_rate=3e-2,
    precision="float32",
    cached_views=2,
)
NEW = 2 * (4 * 2 * 24 + 24 + 1)  # two blocks of width 24


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter directory, not trained, with its backbone `tiny` beside it."""
    return write_adapter(tmp_path_factory.mktemp("old"))[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), {"train": 24, "val": 12, "calibration": 24})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def grown(old: Path, data: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The detector extended on the corpus, with a few tokens kept, and what was said meanwhile."""
    out, lines = tmp_path_factory.mktemp("grown") / "adapter", list[str]()
    config = CONFIG.model_copy(update={"kept_tokens": 6})
    progress = ProgressReporter(say=lines.append)
    train(config, out, extend=old, data=data, backbone=tiny_backbone(), cache_dir=cache, progress=progress)
    return out, lines


def crops() -> torch.Tensor:
    return torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_all_that_was_there_stays_as_it_was_and_the_new_expert_is_small(
    old: Path, grown: tuple[Path, list[str]]
) -> None:
    before, after = (load_file(folder / "adapter.safetensors") for folder in (old, grown[0]))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    added = {name: tensor for name, tensor in after.items() if name not in before}
    assert {name.split(".extensions.0.")[0] for name in added} == {"tower.blocks.6.mlp", "tower.blocks.7.mlp"}
    assert sum(tensor.numel() for tensor in added.values()) == NEW
    assert all(tensor.abs().max() > 0 for name, tensor in added.items() if name.endswith("lora_B"))  # it was trained
    record = json.loads((grown[0] / "train.json").read_text())
    assert record["trained_parameters"] == NEW
    assert record["curve"][-1]["loss"] < record["curve"][0]["loss"]
    assert [len(row) for row in record["curve"][0]["gates"]] == [4, 4]
    assert 0 < record["curve"][0]["gates"][0][3] < 0.1  # from sigmoid(-4) = 0.018 on


def test_with_the_new_gates_closed_logits_are_the_old_ones_bit_for_bit(
    old: Path, grown: tuple[Path, list[str]]
) -> None:
    before = load_adapter(old, old.parent / "tiny").network
    after = load_adapter(grown[0], old.parent / "tiny").network
    with torch.no_grad():
        assert not torch.equal(after(crops()), before(crops()))
        for layer in after.mole_layers:
            layer.extensions[0].gate_bias.fill_(-1e4)
        assert torch.equal(after(crops()), before(crops()))


def test_the_directory_tells_its_history_and_what_became_of_the_thresholds(
    old: Path, grown: tuple[Path, list[str]]
) -> None:
    out, lines = grown
    record, card = json.loads((out / "train.json").read_text()), (out / "README.md").read_text()
    (step,) = record["history"]
    assert (step["name"], step["data"]) == ("adapter", {})
    assert step["digest"] == load_adapter(old, old.parent / "tiny").digest
    assert (
        f"## History\n- `adapter` (digest `{step['digest'][:12]}...`): its images are not recorded.\n- This step added"
        in card
    )
    assert "one separate LoRA of rank 4 with a gate of its own to each of the blocks 6, 7." in card
    changed = next(
        line for line in lines if line.startswith("The thresholds were set anew on the 24 photographs and 24")
    )
    assert f"(before: {(math.log(0.7 / 0.3) - 0.1) / 2:.2f}), photograph below" in changed  # CALIBRATION's
    assert changed in card
    assert "adapter is extended, and has no tokens of older images to replay" in lines
    assert "They need not sum to 100: an expert that was added later" in (out / "train.html").read_text()
    assert trained_on(str(out)) is None  # of the first step nothing is known


def test_thresholds_that_no_longer_hold_are_said() -> None:
    assert thresholds_changed(None, CALIBRATION) == []
    assert "it has none until clipmole calibrate sets them" in thresholds_changed(CALIBRATION, None)[0]


def test_a_second_extension_leaves_the_first_and_replays_what_was_kept(
    old: Path, data: Path, cache: Path, grown: tuple[Path, list[str]], tmp_path: Path
) -> None:
    first, lines = grown[0], list[str]()
    kept = read_kept_tokens(first)
    assert (kept.shape, kept.dtype) == ((6, 5, 24), torch.bfloat16)
    config = CONFIG.model_copy(update={"epochs": 1, "extension_rank": 2, "seed": 0})
    train(
        config,
        tmp_path / "second",
        extend=first,
        data=data,
        backbone=str(old.parent / "tiny"),
        cache_dir=cache,
        progress=ProgressReporter(say=lines.append),
        with_report=False,  # which keeps the tokens too
    )
    before, after = (load_file(folder / "adapter.safetensors") for folder in (first, tmp_path / "second"))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert sum(tensor.numel() for name, tensor in after.items() if name not in before) == 2 * (2 * 2 * 24 + 24 + 1)
    assert "adapter is extended, and has 6 images to replay" in lines
    assert any("is there and is used" in line for line in lines)  # the first step's prefix cache
    assert torch.equal(read_kept_tokens(tmp_path / "second"), kept)
    record = json.loads((tmp_path / "second" / "train.json").read_text())
    assert [step["data"].get("train") for step in record["history"]] == [None, 48]


def test_replay_holds_the_logits_of_older_images(old: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    backbone = tiny_backbone()
    network = tiny_network(backbone)
    images = [Image.open(path).crop((16, 16, 48, 48)) for path in sorted(data.parent.glob("train-*.png"))]
    with torch.no_grad():
        tokens = network.prefix(torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2))).bfloat16()
    save_adapter(folder, network, tiny_backbone(), PREPROCESS, tokens=tokens)

    def change(weight: float) -> float:
        out = tmp_path / f"weight {weight}"
        config = CONFIG.model_copy(update={"replay_weight": weight})
        train(config, out, extend=folder, data=data, backbone=tiny_backbone(), cache_dir=tmp_path)
        networks = [load_adapter(each, old.parent / "tiny").network for each in (folder, out)]
        with torch.no_grad():
            before, after = (network.suffix(tokens.float()) for network in networks)
        return float(bernoulli_kl(before, after).mean())

    assert change(10.0) < 0.5 * change(0.0)


def test_the_replay_loss_is_the_divergence_of_the_two_answers() -> None:
    p, q = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0.3, 0.5, 0.4])
    expected = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert bernoulli_kl(torch.logit(p), torch.logit(q)).tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    network = tiny_network(config=MoLEConfig(extension_ranks=(4,)))
    replay = Replay(network, torch.randn(70, 5, 24).bfloat16())
    assert float(replay.loss(network, 16, np.random.default_rng(0)).detach()) == pytest.approx(0, abs=1e-6)


def test_with_rank_0_nothing_is_added_and_everything_is_trained_further(
    old: Path, data: Path, cache: Path, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"epochs": 1, "extension_rank": 0})
    train(config, tmp_path / "on", extend=old, data=data, backbone=tiny_backbone(), cache_dir=cache)
    before, after = (load_file(folder / "adapter.safetensors") for folder in (old, tmp_path / "on"))
    assert before.keys() == after.keys()
    assert not any(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all((after[name] - tensor).abs().max() < 1 for name, tensor in before.items())  # begun where it was
    assert "trained all of it further" in (tmp_path / "on" / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mole": MoLEConfig(shared_rank=2)}, "mole: an extension keeps what adapter has"),
        ({"preprocess": PREPROCESS.model_copy(update={"crop_size": 48})}, "preprocess: an extension keeps"),
        (
            {"mole": MoLEConfig(shared_rank=0, expert_ranks=()), "full_finetune": True, "cached_views": None},
            "full_finetune: an extension freezes everything else",
        ),
    ],
)
def test_settings_of_another_adapter_are_refused(
    old: Path, data: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(CONFIG.model_copy(update=changes), tmp_path / "out", extend=old, data=data, backbone=tiny_backbone())
    assert not (tmp_path / "out").exists()


def test_a_detector_is_not_extended_onto_itself_or_onto_another_backbone(old: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is the detector itself, which stays as it is"):
        train(CONFIG, old, extend=old, data=data, backbone=tiny_backbone())
    with pytest.raises(CheckpointError, match=r"adapter: was made for backbone tiny .* give the right backbone"):
        train(CONFIG, tmp_path / "out", extend=old, data=data, backbone=tiny_backbone(seed=5))


def test_a_fully_finetuned_detector_has_no_adapter_to_extend(data: Path, tmp_path: Path) -> None:
    backbone = tiny_backbone()
    network = MoLENetwork(backbone.tower, MoLEConfig(shared_rank=0, expert_ranks=()), full_finetune=True).eval()
    save_adapter(tmp_path / "full", network, backbone, PREPROCESS)
    with pytest.raises(CheckpointError, match="its whole tower was trained, so it has no adapter to extend"):
        train(CONFIG, tmp_path / "out", extend=tmp_path / "full", data=data, backbone=tiny_backbone())


@pytest.mark.slow
def test_the_command_extends_a_detector(old: Path, data: Path, cache: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text('extends = "own-images"\nepochs = 1\nmin_steps_per_epoch = 1\nprecision = "float32"\n')
    command = ["train", "--extend", str(old), "--data", str(data), "--out", str(tmp_path / "out")]
    options = ["--backbone", str(old.parent / "tiny"), "--config", str(settings), "--cache-dir", str(cache)]
    result = CliRunner().invoke(app, [*command, *options, "--set", "extension_rank=1"])
    assert result.exit_code == 0, result.output
    loaded = load_adapter(tmp_path / "out", old.parent / "tiny")
    assert loaded.config.mole == MoLEConfig(extension_ranks=(1,))
    assert loaded.config.backbone.id == "tiny"


@pytest.mark.parametrize(
    "record",
    [{"history": 5}, {"history": ["a"]}, {"history": [{}]}, {"environment": "x"}, {"data": {"generators": [5]}}],
)
def test_a_damaged_record_is_noticed_before_training(old: Path, tmp_path: Path, record: dict[str, object]) -> None:
    shutil.copytree(old, tmp_path / "old")
    (tmp_path / "old" / "train.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="is damaged; delete it, and the training data count as unknown"):
        Base.open(tmp_path / "old")


def test_a_history_that_is_no_list_leaves_nothing_known(old: Path, tmp_path: Path) -> None:
    shutil.copytree(old, tmp_path / "old")
    (tmp_path / "old" / "train.json").write_text('{"history": 5}')
    with pytest.raises(CheckpointError, match="history: is no list; delete it"):
        trained_on(str(tmp_path / "old"))
    (tmp_path / "old" / "train.json").write_text('{"history": null}')
    assert trained_on(str(tmp_path / "old")) is None
