"""A comparison on a tiny tower: its numbers, and that nothing is trained or scored twice, or once too seldom."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from tiny import PREPROCESS, tiny_backbone, write_corpus

import clipmole.cli
import clipmole.training.trained_runs
from clipmole.config import AugmentConfig, MoLEConfig, TrainConfig
from clipmole.data import labels_of, read_manifest, take_split, windows
from clipmole.data.sample import Sample
from clipmole.errors import DataError, Stopped, TrainingDiverged
from clipmole.evaluation.records import Comparison
from clipmole.inference.detector import Detector
from clipmole.models.backbone import save_tower
from clipmole.plumbing.json_toml import checksum
from clipmole.plumbing.progress import SILENT, ProgressReporter
from clipmole.report.comparison import comparison_page
from clipmole.training.compare import choose_rate, compare, known_and_new
from clipmole.training.comparison_plan import Method, Plan
from clipmole.training.presets import preset_names, preset_text
from clipmole.training.train import train
from clipmole.training.trained_runs import TrainedRun, TrainedRuns, is_whole, trained_run_digest

PROBE = TrainConfig(
    backbone="tiny",
    mole=MoLEConfig(shared_rank=0, expert_ranks=()),
    preprocess=PREPROCESS,
    augment=AugmentConfig(blur_probability=0, jpeg_probability=0, equalise_quality=(90, 95)),
    epochs=1,
    batch_size=8,
    learning_rate=1e-2,
    precision="float32",
)
MOLE = PROBE.model_copy(update={"mole": MoLEConfig(blocks=2)})
METHODS = (Method(name="linear probe", config=PROBE), Method(name="MoLE", config=MOLE))
PLAN = Plan(name="tiny", title="Tiny", methods=METHODS, seeds=(0, 1), reference="MoLE")
KEYS = ["test, as stored", "test, equalised"]


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tower") / "tiny"
    save_tower(tiny_backbone().tower, folder, torch.float32)
    return str(folder)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), {"train": 8, "val": 6, "test": 9})


@pytest.fixture(scope="module")
def done(tower: str, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    out = tmp_path_factory.mktemp("out")
    return compare(PLAN, manifest, out, backbone=tower, resamples=200, command="clipmole compare ..."), out


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the folders that `train` is called for."""
    calls: list[str] = []

    def counted(config: TrainConfig, out: Path, **given: Any) -> Detector:
        calls.append(out.name)
        return train(config, out, **given)

    monkeypatch.setattr(clipmole.training.trained_runs, "train", counted)
    return calls


def rescored(done: tuple[Comparison, Path], tower: str, manifest: Path, name: str, key: str) -> np.ndarray:
    """Logits (n, seeds) of a method, scored anew from the adapter directories."""
    comparison, out = done
    samples = take_split(read_manifest(manifest), "test")
    runs = next(method.runs for method in comparison.methods if method.name == name)
    columns = []
    for run in runs:
        detector = Detector.from_pretrained(out / "runs" / run, backbone=tower)
        columns.append(detector.score(windows(samples, key.split(", ")[1])))  # type: ignore[arg-type]
    return np.stack(columns, axis=1).astype(np.float64)


def test_kept_views_are_scored_as_the_centre_crop(
    tower: str, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPMOLE_CACHE", str(tmp_path / "cache"))
    kept = {"cached_views": 1, "cached_blocks": 6}
    methods = (
        *(Method(name=each.name, config=each.config.model_copy(update=kept)) for each in METHODS),
        Method(name="keeps none", config=METHODS[0].config, reported="92 % on other images"),
    )
    options: Any = {"kept_views": True, "variants": ("equalised",), "seeds": (0,)}
    plan = PLAN.model_copy(update={"methods": methods, **options})

    def asked_to_stop(items: Iterable[Any], description: str, _total: int | None) -> Iterable[Any]:
        if description.startswith("view 1 of 1"):
            raise Stopped("stopped on request")
        return items

    with pytest.raises(Stopped):  # while the images are scored, not only while a run is trained
        compare(plan, manifest, tmp_path, backbone=tower, progress=ProgressReporter(track=asked_to_stop))
    assert not list((tmp_path / "runs").glob("*.logits.json"))
    comparison = compare(plan, manifest, tmp_path, backbone=tower, resamples=20)
    assert len(list((tmp_path / "cache" / "prefix").glob("*.npy"))) == 3  # train, val and test, for both methods
    samples = take_split(read_manifest(manifest), "test")
    for method in comparison.methods:
        (run,) = method.runs
        detector = Detector.from_pretrained(tmp_path / "runs" / run, backbone=tower)
        assert detector.calibration is None
        crop = Detector(detector.network, PREPROCESS.model_copy(update={"mode": "center_crop"}))
        expected = average_precision_score(labels_of(samples), crop.score(windows(samples, "equalised")))
        assert list(method.estimates) == ["test, equalised"]
        assert method.estimates["test, equalised"].value == pytest.approx(expected, abs=0.02)
        assert method.crops_per_second is not None
        assert method.crops_per_second > 0
    page = (tmp_path / f"{plan.name}.md").read_text()
    assert "| keeps none | 92 % on other images |" in page


def test_known_and_new_sources_are_paired_with_known_and_new_generators(tmp_path: Path) -> None:
    def sample(label: Literal[0, 1], generator: str, source: str = "") -> Sample:
        return Sample(path=tmp_path, label=label, generator=generator, split="", ignore_bottom_px=0, source=source)

    train = [sample(0, "camera", "a"), sample(1, "sdxl"), sample(1, "midjourney")]
    tested = [sample(0, "camera", "b"), sample(1, "flux"), sample(0, "camera", "a"), sample(1, "sdxl")]
    parts = {name: own.tolist() for name, own in known_and_new(tested, train).items()}
    assert parts == {
        "known sources x known generators": [2, 3],
        "known sources x new generators": [1, 2],
        "new sources x known generators": [0, 3],
        "new sources x new generators": [0, 1],
    }
    assert known_and_new(tested[:2], train) == {}  # a single part, which is the whole
    assert known_and_new([*tested, sample(0, "camera")], train) == {}


@pytest.mark.parametrize("key", KEYS)
def test_figures_are_means_over_the_seeds_of_what_the_saved_detectors_score(
    done: tuple[Comparison, Path], tower: str, manifest: Path, key: str
) -> None:
    labels = labels_of(take_split(read_manifest(manifest), "test"))
    for method in done[0].methods:
        logits = rescored(done, tower, manifest, method.name, key)
        expected = [average_precision_score(labels, column) for column in logits.T]
        assert method.seeds[key] == pytest.approx(expected, abs=1e-9)
        assert method.estimates[key].value == pytest.approx(np.mean(expected), abs=1e-9)
        assert method.estimates[key].low <= method.estimates[key].value <= method.estimates[key].high
    assert len({method.estimates[key].value for method in done[0].methods}) == 2


def test_differences_resample_images_within_each_class_the_same_for_both_and_average_the_seeds(
    done: tuple[Comparison, Path], tower: str, manifest: Path
) -> None:
    key = KEYS[1]
    labels = labels_of(take_split(read_manifest(manifest), "test"))
    ours, theirs = (rescored(done, tower, manifest, name, key) for name in ("MoLE", "linear probe"))
    rng = np.random.default_rng(123)  # another stream than the code's: the intervals agree but for chance
    drawn = []
    for _ in range(300):
        i = np.concatenate([rng.choice(np.flatnonzero(labels == c), 9) for c in (0, 1)])
        aps = [np.mean([average_precision_score(labels[i], s[i]) for s in logits.T]) for logits in (ours, theirs)]
        drawn.append(aps[0] - aps[1])
    (found,) = [d for d in done[0].differences if d.condition == "equalised"]
    assert (found.first, found.second, found.set, found.metric) == ("MoLE", "linear probe", "test", "average_precision")
    means = [np.mean([average_precision_score(labels, s) for s in logits.T]) for logits in (ours, theirs)]
    assert found.estimate.value == pytest.approx(means[0] - means[1], abs=1e-9)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.estimate.low == pytest.approx(low, abs=0.08)
    assert found.estimate.high == pytest.approx(high, abs=0.08)


def test_the_record_says_what_was_compared_and_how(done: tuple[Comparison, Path]) -> None:
    comparison, out = done
    probe, mole = comparison.methods
    assert comparison.images == {"test": (9, 9)}
    assert (probe.trained_parameters, mole.trained_parameters) == (25, 25 + 2 * (18 * 48 + 3 * 24))
    assert probe.settings["mole.expert_ranks"] == []
    assert set(probe.settings) == {"mole.blocks", "mole.shared_rank", "mole.expert_ranks"}
    assert probe.backbone == f"tiny@{tiny_backbone().sha256[:12]}"
    record = json.loads((out / "runs" / mole.runs[1] / "train.json").read_text())
    assert record["config"]["seed"] == 1
    assert mole.val[1] == record["curve"][0]["val_ap"]
    assert comparison.recipe["seeds"] == [0, 1]
    assert comparison.recipe["torch"] == torch.__version__
    assert Comparison.model_validate_json((out / "tiny.json").read_text()) == comparison


def test_the_page_shows_the_numbers_of_the_record(done: tuple[Comparison, Path]) -> None:
    comparison, out = done
    page = (out / "tiny.md").read_text()
    assert page == comparison_page(comparison)
    lines = page.splitlines()
    first, second = (comparison.methods[1].estimates[key] for key in KEYS)
    assert f"| MoLE | {first} | {second} |" in lines
    f, g = (difference.estimate for difference in comparison.differences)
    cells = [f"{x.value:+.3f} [{x.low:+.3f}, {x.high:+.3f}]" for x in (f, g)]
    assert f"| MoLE minus linear probe | {cells[0]} | {cells[1]} |" in lines
    assert "| `mole.expert_ranks` | none | 2, 4, 8 |" in lines
    assert "clipmole compare ..." in lines
    assert "order of the images and their random views" in page
    assert all(line.count("|") == lines[i - 1].count("|") for i, line in enumerate(lines) if line.startswith("|---"))


def test_views_that_differ_are_not_called_the_same(done: tuple[Comparison, Path]) -> None:
    methods = [m.model_copy(update={"settings": {"augment.flip_probability": 0.5}}) for m in done[0].methods]
    page = comparison_page(done[0].model_copy(update={"methods": tuple(methods)}))
    assert "all others are the same:" in page


def test_a_finished_comparison_trains_nothing_and_says_the_same(
    done: tuple[Comparison, Path], tower: str, manifest: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unscored(*_: object) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr(Detector, "score", unscored)
    again = compare(PLAN, manifest, done[1], backbone=tower, resamples=200, command="clipmole compare ...")
    assert trained == []
    timeless = [
        each.model_copy(
            update={"methods": tuple(m.model_copy(update={"crops_per_second": None}) for m in each.methods)}
        )
        for each in (again, done[0])
    ]
    assert timeless[0] == timeless[1]


def test_a_run_is_taken_by_its_digest_whatever_the_method_is_called(
    done: tuple[Comparison, Path], manifest: Path, trained: list[str], tmp_path: Path
) -> None:
    """Another plan, another name, the tower in another place: only the run that is new is trained."""
    other = tmp_path / "elsewhere" / "tiny"
    save_tower(tiny_backbone().tower, other, torch.float32)
    methods = (Method(name="ours", config=MOLE), Method(name="LoRA", config=PROBE.model_copy(update={"mole": LORA})))
    plan = PLAN.model_copy(update={"methods": methods, "reference": None, "seeds": (1,)})
    found = compare(plan, manifest, tmp_path / "out", runs=done[1] / "runs", backbone=str(other), resamples=10)
    assert [name.rsplit("-", 1)[0] for name in trained] == ["lora-0.01-seed1"]
    assert found.methods[0].runs[0] == done[0].methods[1].runs[1]
    assert found.methods[0].seeds[KEYS[0]][0] == done[0].methods[1].seeds[KEYS[0]][1]


LORA = MoLEConfig(blocks=1, shared_rank=2, expert_ranks=())


def test_a_killed_comparison_goes_on_where_it_was(
    tower: str, manifest: Path, trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: Callable[..., Detector] = clipmole.training.trained_runs.train  # type: ignore[attr-defined]

    def killed(config: TrainConfig, out: Path, **given: Any) -> Detector:
        if len(trained) == 2:
            raise KeyboardInterrupt
        return counted(config, out, **given)

    monkeypatch.setattr(clipmole.training.trained_runs, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        compare(PLAN, manifest, tmp_path, backbone=tower, resamples=10)
    assert not (tmp_path / "tiny.json").exists()
    assert len(trained) == 2
    monkeypatch.setattr(clipmole.training.trained_runs, "train", counted)
    compare(PLAN, manifest, tmp_path, backbone=tower, resamples=10)
    assert [name.rsplit("-", 1)[0] for name in trained] == [
        f"{name}-0.01-seed{seed}" for name in ("linear-probe", "mole") for seed in (0, 1)
    ]


def test_other_test_images_are_scored_and_nothing_is_trained(
    done: tuple[Comparison, Path], tower: str, manifest: Path, trained: list[str], tmp_path: Path
) -> None:
    others = write_corpus(tmp_path / "others", {"test": 5, "train": 1})
    found = compare(PLAN, manifest, done[1], test_data=others, backbone=tower, resamples=10)
    assert trained == []
    assert found.images == {"test": (5, 5)}
    compare(PLAN, manifest, done[1], backbone=tower, resamples=200, command="clipmole compare ...")


@pytest.fixture
def copied(done: tuple[Comparison, Path], tmp_path: Path) -> tuple[Path, Path, Path]:
    """A copy of a finished comparison, and of one run in it the record and the scores."""
    shutil.copytree(done[1], tmp_path / "copy")
    folder = min(path for path in (tmp_path / "copy" / "runs").iterdir() if path.is_dir())
    return tmp_path / "copy", folder / "train.json", folder.with_name(folder.name + ".logits.json")


@pytest.mark.parametrize("change", ["[" * 100_000, "[]", "{", {"curve": []}, {"best_epoch": 99}, {"backbone": {}}])
def test_a_damaged_record_of_a_run_is_one_line_with_the_cure(
    copied: tuple[Path, Path, Path], tower: str, manifest: Path, change: str | dict[str, Any]
) -> None:
    out, record, _ = copied
    record.write_text(change if isinstance(change, str) else json.dumps(json.loads(record.read_text()) | change))
    with pytest.raises(DataError, match=r"train\.json: .*; delete .* to train it again"):
        compare(PLAN, manifest, out, backbone=tower, resamples=10)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{", '{"test": 3}', None])
def test_damaged_scores_of_a_run_are_one_line_with_the_cure(
    copied: tuple[Path, Path, Path], tower: str, manifest: Path, text: str | None
) -> None:
    out, _, scores = copied
    kept = json.loads(scores.read_text())
    kept["test"]["equalised"].pop()
    scores.write_text(json.dumps(kept) if text is None else text)
    with pytest.raises(DataError, match=r"logits\.json: .*; delete it, and the images are scored again"):
        compare(PLAN, manifest, out, backbone=tower, resamples=10)


def test_kept_scores_in_which_a_digit_changed_are_not_whole() -> None:
    kept: dict[str, Any] = {"digest": "d", "as stored": [1.25], "equalised": [2.5]}
    kept["crc32"] = checksum(kept)
    assert is_whole(kept, "d", 1)
    assert not is_whole(kept | {"equalised": [2.75]}, "d", 1)


def test_a_run_is_its_settings_its_data_and_its_weights() -> None:
    digest = trained_run_digest(MOLE, "data", "weights")
    placed = MOLE.model_copy(update={"backbone": "elsewhere", "manifest": "x.csv"})
    assert trained_run_digest(placed, "data", "weights") == digest
    changed = [
        trained_run_digest(MOLE.model_copy(update={"seed": 1}), "data", "weights"),
        trained_run_digest(MOLE.model_copy(update={"mole": MoLEConfig(blocks=2, top_k=2)}), "data", "weights"),
        trained_run_digest(MOLE, "other data", "weights"),
        trained_run_digest(MOLE, "data", "other weights"),
    ]
    assert len({digest, *changed}) == 5


def test_the_data_of_a_run_are_the_splits_it_reads(manifest: Path, tmp_path: Path) -> None:
    copied = write_corpus(tmp_path / "copy", {"train": 8, "val": 6, "test": 2})  # the same files but for test
    assert TrainedRuns(tmp_path, copied).digest == TrainedRuns(tmp_path, manifest).digest
    (tmp_path / "copy" / "val-0-0.png").write_bytes((tmp_path / "copy" / "val-0-1.png").read_bytes())
    assert TrainedRuns(tmp_path, copied).digest != TrainedRuns(tmp_path, manifest).digest


class Pretended(TrainedRuns):
    """TrainedRuns whose validation figure is a function of the rate; None diverges."""

    def __init__(self, figure: Callable[[float], float | None]) -> None:
        self.estimate = figure
        self.asked: list[float] = []
        self.progress = SILENT

    def get_or_train(self, name: str, config: TrainConfig) -> TrainedRun:
        self.asked.append(config.learning_rate)
        figure = self.estimate(config.learning_rate)
        if figure is None:
            raise TrainingDiverged(f"{name}: not finite")
        return TrainedRun(Path(), {"curve": [{"val_ap": 0.0}, {"val_ap": figure}], "best_epoch": 1})


GRID = PLAN.model_copy(update={"rates": (1e-3, 3e-3)})


def test_the_rate_is_the_best_on_val_and_the_grid_goes_on_beyond_its_edge() -> None:
    runs = Pretended(lambda rate: 1 - abs(np.log10(rate) + 1.5))  # best at 0.03
    rate, tried = choose_rate(runs, GRID, METHODS[1])
    assert runs.asked == [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
    assert rate == 3e-2
    assert list(tried) == runs.asked
    runs = Pretended(lambda rate: -rate)  # ever better downwards: it stops in the end
    assert choose_rate(runs, GRID, METHODS[1])[0] == 1e-5
    assert runs.asked == [1e-3, 3e-3, 3e-4, 1e-4, 3e-5, 1e-5]


def test_a_rate_that_diverges_is_no_choice() -> None:
    runs = Pretended(lambda rate: None if rate > 5e-3 else rate)
    rate, tried = choose_rate(runs, GRID, METHODS[1])
    assert (rate, tried[1e-2]) == (3e-3, None)
    with pytest.raises(TrainingDiverged, match=r"MoLE: every rate diverged: 0\.001, 0\.003"):
        choose_rate(Pretended(lambda _: None), GRID, METHODS[1])
    with pytest.raises(TrainingDiverged, match="MoLE: not finite"):
        choose_rate(Pretended(lambda _: None), PLAN, METHODS[1])


def test_a_diverged_run_is_remembered(tower: str, manifest: Path, trained: list[str], tmp_path: Path) -> None:
    runs = TrainedRuns(tmp_path, manifest, tower)
    too_high = MOLE.model_copy(update={"learning_rate": 1e30})
    for _ in range(2):
        with pytest.raises(TrainingDiverged, match="the training loss is not finite; lower learning_rate"):
            runs.get_or_train("MoLE", too_high)
    assert len(trained) == 1


def test_splits_that_are_not_there_are_named_before_any_training(
    tower: str, manifest: Path, trained: list[str], tmp_path: Path
) -> None:
    plan = PLAN.model_copy(update={"splits": ("test", "test_unseen")})
    with pytest.raises(DataError, match="split 'test_unseen' holds 0 photographs"):
        compare(plan, manifest, tmp_path, backbone=tower)
    assert trained == []
    assert list(tmp_path.iterdir()) == []


class Kept(io.BytesIO):
    """Bytes that can be read when the streams that the command line sets up over them are gone."""

    def close(self) -> None:
        pass


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process: arguments -> exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipmole", *arguments])
        out, errors = Kept(), Kept()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", io.TextIOWrapper(out, "utf-8"))
            patched.setattr(sys, "stderr", io.TextIOWrapper(errors, "utf-8", write_through=True))
            with pytest.raises(SystemExit) as stopped:
                clipmole.cli.main()
        return int(stopped.value.code or 0), out.getvalue().decode(), errors.getvalue().decode()

    return call


def test_the_command_compares_the_configurations_it_is_given(
    cli: Callable[..., tuple[int, str, str]], tower: str, manifest: Path, tmp_path: Path
) -> None:
    small = 'epochs = 1\npreprocess = { crop_size = 32 }\nwithout = ["patience"]\n'
    for name, preset in (("probe", "univfd"), ("ours", "lora")):
        (tmp_path / f"{name}.toml").write_text(f'extends = "{preset}"\n{small}', encoding="utf-8")
    configs = ["-c", str(tmp_path / "probe.toml"), "-c", f"mine={tmp_path / 'ours.toml'}"]
    rest = ["--backbone", tower, "--seeds", "1", "--resamples", "10", "--out", str(tmp_path / "out")]
    code, printed, remarks = cli("compare", "--data", str(manifest), *configs, *rest)
    assert code == 0, remarks
    page = tmp_path / "out" / "compare.md"
    assert printed.strip() == str(page)
    text = page.read_text()
    assert "# probe against mine" in text
    assert "clipmole compare --data manifest.csv --out out --config probe.toml" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --plan or two or more --config"),
        (["--plan", "x.toml", "-c", "lora"], "give either --plan or two or more --config"),
        (["-c", "lora"], "at least 2"),
        (["-c", "lora", "-c", "lora"], "each needs a name of its own"),
        (["-c", "lora", "-c", "moel"], "neither a TOML file nor one of"),
        (["--plan", "no-such.toml"], "no-such.toml: cannot be read"),
    ],
)
def test_wrong_usage_is_one_line(
    cli: Callable[..., tuple[int, str, str]], arguments: list[str], message: str, tmp_path: Path
) -> None:
    code, _, remarks = cli("compare", "--data", str(tmp_path), "--out", str(tmp_path / "out"), *arguments)
    assert code == 2
    assert message in " ".join(remarks.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_the_presets_are_listed_and_printed(cli: Callable[..., tuple[int, str, str]]) -> None:
    listed = cli("presets")[1].splitlines()
    assert [line.split()[0] for line in listed] == list(preset_names())
    assert any(line.startswith("univfd ") and "linear probe" in line for line in listed)
    assert cli("presets", "lora")[1] == preset_text("lora")
    code, printed, remarks = cli("presets", "moel")
    assert (code, printed, remarks.count("\n")) == (2, "", 1)


def test_data_without_splits_are_refused_before_anything_is_trained(
    tower: str, manifest: Path, trained: list[str], tmp_path: Path
) -> None:
    lines = [line.rsplit(",", 1)[0] for line in manifest.read_text().splitlines()]
    whole = manifest.with_name("whole.csv")
    whole.write_text("\n".join(lines))
    with pytest.raises(DataError, match="split 'train' holds 0 photographs"):
        compare(PLAN, whole, tmp_path / "out", backbone=tower)
    assert trained == []
