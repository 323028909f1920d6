"""Presets: each loads, says whose choice it is, and trains; a file that extends one says only what differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import tiny_backbone, write_corpus

from clipmole.config import CLIP_TOWERS, PreprocessConfig, TrainConfig
from clipmole.errors import ConfigError
from clipmole.training.presets import built_on, load_train_config, preset_names, preset_text, with_settings
from clipmole.training.sampling import steps_in_epoch
from clipmole.training.train import train

PAPER = ("paper-vit-b-16", "paper-vit-b-32", "paper-vit-l-14")
FEW = tuple(f"{name}-few" for name in PAPER)


def file(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), {"train": 8, "val": 4})


def test_these_presets_come_with_the_package() -> None:
    assert preset_names() == tuple(
        sorted([*PAPER, *FEW, "univfd", "lora", "full", "hyperdet", "aide", "ffit", "embedded", "own-images"])
    )


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.slow
def test_every_preset_trains_two_steps_on_a_tiny_tower(name: str, manifest: Path, tmp_path: Path) -> None:
    config = load_train_config(name)
    small = {"preprocess": PreprocessConfig(crop_size=32), "epochs": 1, "batch_size": 8, "per_class": None}
    small |= {"min_steps_per_epoch": None, "cache_runtime": "torch"}
    train(config.model_copy(update=small), tmp_path / "run", data=manifest, backbone=tiny_backbone())
    record = json.loads((tmp_path / "run" / "train.json").read_text())
    assert len(record["curve"]) == 1
    assert record["data"]["train"] / 8 == 2  # steps
    width, depth, mole = 24, 8, config.mole
    head = width * (1 + len(mole.read_blocks(depth))) + 1
    rows = 2 * (mole.shared_rank + sum(mole.expert_ranks)) + len(mole.expert_ranks)  # of A, of B, of the router
    tower = record["tower_parameters"] if config.full_finetune else 0
    if config.hypernetwork:  # it is trained in place of the LoRAs: embeddings, a hidden layer of 128, A and B of rank 4
        rows, tower = 0, 5 * 64 + 2 * 32 + 2 * 8 + 104 * 128 + 128 + 2 * (128 + 1) * 4 * width
    if mole.companion == "aide":  # two experts, the projection, what joins them
        head, tower = 129, 2 * (8672 + 18496 + 73856) + (width + 1) * 128 + 257 * 128
    if mole.companion == "ffit":  # patches, 1 + 196 positions, 6 blocks and 2 of the decoder, its guess, the gated unit
        d = 192
        tower = 769 * d + (2 + 197) * d + 8 * (12 * d * d + 13 * d) + 4 * d + (d + 1) * 768 + 2 * (d + width) * d
        head = d + 1
    assert record["trained_parameters"] == head + tower + (depth // 4) * rows * width


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_says_in_one_line_what_it_is_and_whose_the_choices_are(name: str) -> None:
    first, *rest = preset_text(name).splitlines()
    assert first.startswith("# ")
    assert len(first) <= 120
    if name not in ("embedded", "own-images"):
        comments = "\n".join(line.partition("#")[2] for line in rest)
        assert "ours" in comments.lower()
        assert "not run here" in comments.lower()


def trained_on(name: str) -> int:
    """Parameters that a preset trains of its CLIP tower, by the formula of its parts (not full fine-tuning)."""
    config = load_train_config(name)
    tower, mole = CLIP_TOWERS[config.backbone], config.mole
    ranks = mole.shared_rank + sum(mole.expert_ranks)
    blocks = len(mole.block_indices(tower.depth))
    return blocks * tower.width * (2 * ranks + len(mole.expert_ranks)) + tower.feature_dim + 1


def test_the_numbers_that_the_presets_state_are_theirs() -> None:
    assert trained_on("paper-vit-l-14") == 240_385
    assert "240,385" in preset_text("paper-vit-l-14")
    assert trained_on("lora") == 246_529
    assert "246,529" in preset_text("lora")
    assert trained_on("univfd") == 769
    assert "769" in preset_text("univfd")
    assert load_train_config("paper-vit-b-32").mole.block_indices(12) == (9, 10, 11)  # the paper's figure


def test_what_is_compared_with_the_papers_method_differs_from_it_in_the_method_alone() -> None:
    paper = load_train_config("paper-vit-l-14").model_dump()
    for name, own in (("lora", {"mole"}), ("full", {"mole", "full_finetune", "tower_learning_rate"})):
        other = load_train_config(name).model_dump()
        assert {key for key in paper if paper[key] != other[key]} == own


@pytest.mark.parametrize("name", PAPER)
def test_few_samples_are_a_hundred_of_each_class(name: str) -> None:
    full, few = load_train_config(name), load_train_config(f"{name}-few")
    assert (full.per_class, few.per_class) == (None, 100)
    assert (few.backbone, few.mole, few.augment) == (full.backbone, full.mole, full.augment)


def test_a_file_extends_a_preset_or_another_file_table_by_table(tmp_path: Path) -> None:
    file(tmp_path, "base.toml", 'extends = "paper-vit-l-14-few"\nepochs = 2\n[mole]\nshared_rank = 8\n')
    top = file(tmp_path, "below/top.toml", 'extends = "../base.toml"\nwithout = ["cached_views"]\n[mole]\ntop_k = 1\n')
    config, few = load_train_config(top), load_train_config("paper-vit-l-14-few")
    assert (config.epochs, config.mole.shared_rank, config.mole.top_k) == (2, 8, 1)
    assert (few.cached_views, config.cached_views) == (6, None)
    same = {"augment", "backbone", "batch_size", "learning_rate"}
    assert config.model_dump(include=same) == few.model_dump(include=same)


def test_a_file_without_extends_is_read_as_it_is(tmp_path: Path) -> None:
    path = file(tmp_path, "own.toml", 'backbone = "somewhere"\nepochs = 3\n')
    assert load_train_config(path) == TrainConfig.from_toml(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extends = "own.toml"', r"own\.toml: extends = 'own\.toml' leads back to itself"),
        (
            'extends = "no-such"',
            r"own\.toml: 'no-such' is neither a TOML file nor one of aide, embedded, ffit, full, hyperdet",
        ),
        ("extends = 3", r"own\.toml: extends: must be the name of a preset or a file \(given: 3\)"),
        ('extends = "lora"\nepoch = 3', r"own\.toml: epoch: unknown key \(given: 3\)"),
        ('extends = "lora"\nwithout = ["seed"]', r"own\.toml: without = \['seed'\]: must be a list of settings of"),
        ('extends = "lora"\nwithout = [{ a = 1 }]', r"own\.toml: without = \[\{'a': 1\}\]: must be a list of settings"),
        ('extends = "lora"\nwithout = "seed"', r"own\.toml: without = 'seed': must be a list"),
        (f'extends = "{"a" * 5000}"', "own\\.toml: 'aaa.* is neither a TOML file nor one of"),
        ('extends = "embedded"\nfull_finetune = true', r"own\.toml: full_finetune trains the tower itself"),
    ],
)
def test_what_cannot_be_extended_is_one_line_that_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load_train_config(file(tmp_path, "own.toml", text))
    assert "\n" not in str(error.value)


def test_an_unknown_preset_names_those_there_are() -> None:
    for call in (load_train_config, preset_text):
        with pytest.raises(ConfigError, match=r"'moel'.*aide, embedded, ffit, full, hyperdet, lora, own-images, paper"):
            call("moel")


def test_building_on_settings_leaves_them_as_they_were() -> None:
    base = {"mole": {"shared_rank": 4, "top_k": 1}, "epochs": 3}
    assert built_on(base, {"mole": {"top_k": 2}}, "x") == {"mole": {"shared_rank": 4, "top_k": 2}, "epochs": 3}
    assert built_on(base, {"without": ["epochs"]}, "x") == {"mole": {"shared_rank": 4, "top_k": 1}}
    assert base == {"mole": {"shared_rank": 4, "top_k": 1}, "epochs": 3}


def test_every_setting_can_be_given_as_text() -> None:
    given = ["learning_rate=1e-3", "mole.expert_ranks=[2, 4]", "patience = none", "backbone=some/dir", "mole.top_k=1"]
    config = with_settings(load_train_config("own-images"), given)
    assert (config.learning_rate, config.patience, config.backbone) == (1e-3, None, "some/dir")
    assert (config.mole.expert_ranks, config.mole.top_k, config.mole.shared_rank) == ((2, 4), 1, 4)
    assert with_settings(config, []) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate", r"^--set learning_rate: give KEY=VALUE, such as learning_rate=1e-3"),
        ("learning rate=3", r"^--set learning rate=3: give KEY=VALUE"),
        ("rate=3", r"^--set: rate: unknown key \(given: 3\)"),
        ("epochs=many", r"^--set: epochs: .*\(given: 'many'\)"),
        ("mole.top_k=9", r"^--set: mole: top_k=9 is more than the 3 experts"),
        ("epochs.x=3", r"^--set: epochs: .*\(given: \{'x': 3\}\)"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_settings(load_train_config("own-images"), [text])


def test_the_preset_for_own_images_encodes_again_and_has_enough_steps() -> None:
    config = load_train_config("own-images")
    assert config.augment.equalise_quality is not None
    assert config.augment.equalise_probability >= 0.8
    assert config.head_start is not None  # so that 60 steps are enough
    for images in (16, 96, 5000):
        assert config.epochs * steps_in_epoch(images, config) >= 60
