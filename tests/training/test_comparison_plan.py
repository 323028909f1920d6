"""Plans of comparisons: what a file says becomes methods, rates and pairs, and a contradiction is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipmole.config import MoLEConfig
from clipmole.errors import ConfigError
from clipmole.training.comparison_plan import Plan, differing, load_plan, plan_of, rate_of, wider, with_rate
from clipmole.training.presets import load_train_config

PLANS = sorted(
    path
    for path in (Path(__file__).resolve().parents[2] / "benchmarks" / "compare").glob("*.toml")
    if "[[methods]]" in path.read_text(encoding="utf-8")
)
TEXT = """
title = "Ranks"
rates = [3e-3, 1e-3]
reference = "four"
splits = ["test", "test_unseen"]
[config]
extends = "lora"
epochs = 2
cached_views = 2
learning_rate = 3e-3
mole = { expert_ranks = [2, 4, 8] }
[[methods]]
name = "four"
[[methods]]
name = "nine"
rates = [1e-4]
config = { mole = { shared_rank = 9 } }
[[methods]]
name = "full"
against = "nine"
config = { without = ["cached_views"], full_finetune = true, mole = { shared_rank = 0, expert_ranks = [] } }
"""


def written(folder: Path, text: str = TEXT) -> Path:
    path = folder / "ranks.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_becomes_methods_that_share_what_they_do_not_set(tmp_path: Path) -> None:
    plan = load_plan(written(tmp_path))
    four, nine, full = plan.methods
    assert (plan.name, plan.seeds, plan.splits) == ("ranks", (0, 1, 2), ("test", "test_unseen"))
    own = {"epochs": 2, "cached_views": 2, "learning_rate": 3e-3, "mole": MoLEConfig(shared_rank=20)}
    assert four.config == load_train_config("lora").model_copy(update=own)
    assert nine.config.mole == MoLEConfig(shared_rank=9)
    assert nine.config.model_copy(update={"mole": four.config.mole}) == four.config
    assert full.config.cached_views is None
    assert plan.rates_of(four) == (1e-3, 3e-3)
    assert plan.rates_of(nine) == (1e-4,)
    assert plan.pairs() == [("four", "nine"), ("nine", "full")]


def test_without_rates_each_method_has_its_own(tmp_path: Path) -> None:
    plan = load_plan(written(tmp_path, TEXT.replace("rates = [3e-3, 1e-3]\n", "")))
    assert plan.rates_of(plan.methods[0]) == (3e-3,)
    assert plan.rates_of(plan.methods[2]) == (1e-4,)  # of the tower
    assert rate_of(with_rate(plan.methods[2].config, 5e-5)) == 5e-5
    assert with_rate(plan.methods[2].config, 5e-5).learning_rate == 3e-3  # the head's stays


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'reference = "four"',
            'reference = "five"',
            r"ranks\.toml: reference 'five': is none of the methods four, nine",
        ),
        ('against = "nine"', 'against = "five"', r"ranks\.toml: against 'five': is none of the methods"),
        ('name = "nine"', 'name = "four"', r"ranks\.toml: methods: four, four, full: each may occur once"),
        ('["test", "test_unseen"]', '["val"]', r"ranks\.toml: splits: 'val' is used to train or to choose"),
        ('splits = ["test", "test_unseen"]', "seeds = [1, 1]", r"ranks\.toml: seeds: 1, 1: each may occur once"),
        ("shared_rank = 9", "rank = 9", r"ranks\.toml: methods\.1\.config\.mole\.rank: unknown key"),
        ("rates = [1e-4]", "rates = [0.0]", r"ranks\.toml: methods\.1\.rates\.0: .* greater than 0"),
        ("rates = [1e-4]", "rate = 1e-4", r"ranks\.toml: methods\.1\.rate: unknown key .*; is rates meant\?"),
        ("shared_rank = 9", "shared_rnak = 9", r"methods\.1\.config\.mole\.shared_rnak: .*; is shared_rank meant\?"),
        ('splits = ["test", "test_unseen"]', 'name = "a/b"', r"ranks\.toml: name 'a/b': files are named so"),
        ("[config]\n", "[[config]]\n", r"ranks\.toml: config must be a table"),
        ('extends = "lora"', 'extends = "none"', r"ranks\.toml: 'none' is neither a TOML file nor one of"),
    ],
)
def test_a_contradiction_is_one_line_that_names_file_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(ConfigError, match=message) as error:
        load_plan(written(tmp_path, TEXT.replace(old, new, 1)))
    assert "\n" not in str(error.value)


def test_one_method_is_no_comparison() -> None:
    with pytest.raises(ConfigError, match=r"options: methods: .*at least 2"):
        plan_of({"lora": "lora"})


def test_a_plan_of_presets(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('extends = "lora"\nepochs = 2\n', encoding="utf-8")
    plan = plan_of({"lora": "lora", "mine": str(own)}, seeds=(4,), splits=("test_unseen",))
    assert (plan.title, plan.seeds, plan.splits) == ("lora against mine", (4,), ("test_unseen",))
    assert plan.pairs() == [("lora", "mine")]
    assert differing({m.name: m.config for m in plan.methods}) == {"epochs": {"lora": 5, "mine": 2}}


def test_only_settings_that_differ_are_named_and_no_places_or_rates() -> None:
    lora = load_train_config("lora")
    other = lora.model_copy(update={"learning_rate": 1.0, "manifest": "x.csv", "mole": MoLEConfig(top_k=2)})
    assert differing({"a": lora, "b": other}) == {
        "mole.shared_rank": {"a": 20, "b": 4},
        "mole.expert_ranks": {"a": [], "b": [2, 4, 8]},
        "mole.top_k": {"a": None, "b": 2},
    }


@pytest.mark.parametrize(
    ("rates", "best", "further"),
    [
        ([1e-3, 3e-3, 1e-2], 3e-3, None),
        ([1e-3, 3e-3, 1e-2], 1e-2, 3e-2),
        ([1e-3, 3e-3, 1e-2], 1e-3, 3e-4),
        ([1e-3, 3e-3, 1e-2, 3e-2], 3e-2, 1e-1),
        ([2e-3, 5e-4], 2e-3, 1e-2),
        ([1e-3], 1e-3, None),
    ],
)
def test_a_grid_goes_on_by_half_decades_where_its_best_is_on_the_edge(
    rates: list[float], best: float, further: float | None
) -> None:
    assert wider(rates, best) == further


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_every_committed_plan_loads(path: Path) -> None:
    plan = load_plan(path)
    assert path.read_text(encoding="utf-8").startswith("# ")
    assert plan.seeds == (0, 1, 2)
    on_modern_images = {
        "few-samples-vit-b-16": ("test",),
        "methods-vit-b-16": ("test", "seen"),
        "heads-vit-b-16": ("test",),
        "systems-vit-tiny": ("test", "seen"),
        "systems-more-vit-tiny": ("test", "seen"),
    }
    assert plan.splits == on_modern_images.get(path.stem, ("test", "test_unseen"))
    assert len(plan.pairs()) >= len(plan.methods) - 1
    assert isinstance(plan, Plan)


def test_the_plans_that_readers_of_the_paper_want_are_there() -> None:
    plans = {path.stem: load_plan(path) for path in PLANS}
    depths = [len(m.config.mole.block_indices(12)) for m in plans["ablate-blocks"].methods]
    assert depths == [1, 3, 6]
    parts = {m.name: m.config.mole for m in plans["ablate-parts"].methods}
    assert parts["separate only"].shared_rank == 0
    assert parts["top-1 in place of dense"].top_k == 1
    assert parts["no balance loss"].balance_weight == 0
    assert parts["MoLE"] == MoLEConfig()
    few = {m.name: m.config for m in plans["few-samples"].methods}
    assert [config.per_class for config in few.values()] == [100, 200, 400, None, 100, None]
    for config in few.values():  # 743 training images; as many steps, and each view in three epochs
        steps = -(-(config.per_class or 743) // config.batch_size) * config.epochs
        assert 216 <= steps <= 221
        assert -(-config.epochs // (config.cached_views or 1)) <= 4
    for name in ("compare-vit-tiny", "compare-embedded"):
        methods = {m.name: m.config for m in plans[name].methods}
        assert set(methods) == {"linear probe", "LoRA", "MoLE", "full fine-tuning"}
        assert methods["full fine-tuning"].full_finetune
        assert not methods["linear probe"].mole.adapts


def test_the_plan_of_the_documentation_loads(tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "train.md").read_text(encoding="utf-8")
    plan = load_plan(written(tmp_path, text.split("<!-- plan -->\n```toml\n")[1].split("```")[0]))
    assert [m.config.mole.shared_rank for m in plan.methods] == [20, 4, 0]
    assert plan.rates_of(plan.methods[2]) == (1e-3, 3e-3, 1e-2)
    assert plan.pairs() == [("rank 20", "rank 4"), ("rank 4", "no LoRA")]
