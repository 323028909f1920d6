"""The public face: which names there are, that they document themselves, and that their examples run."""

from __future__ import annotations

import doctest
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL.PngImagePlugin import PngInfo
from tiny import picture, tiny_backbone, write_corpus

import clipmole
from clipmole.models import adapter
from clipmole.models.backbone import save_tower

FUNCTIONS = ["calibrate", "compare", "evaluate", "explain", "read_data", "read_provenance", "train"]
CLASSES = [
    "Calibration", "CheckpointError", "ClipmoleError", "Comparison", "ConfigError", "DataError", "Detection",
    "Detector", "EvaluationReport", "Evidence", "Folders", "ImageClassificationPipeline", "ImageError",
    "MissingDependency", "MoLEConfig", "PreprocessConfig", "ProgressReporter", "Provenance", "Recalibration",
    "Sample", "Stopped", "Thresholds", "TrainConfig", "Verdict", "WeightsError",
]  # fmt: skip
METHODS = ["from_pretrained", "score", "detect", "detect_batch", "stream"]


def test_the_public_names_are_these() -> None:
    assert sorted(clipmole.__all__) == sorted([*FUNCTIONS, *CLASSES, "__version__"])
    assert dir(clipmole) == sorted(clipmole.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = clipmole.nothing


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES])
def test_every_name_is_what_it_is_called(name: str) -> None:
    value = getattr(clipmole, name)
    assert value.__name__ == name
    assert inspect.isfunction(value) == (name in FUNCTIONS)
    assert value.__doc__


@pytest.mark.parametrize("name", [*FUNCTIONS, *(f"Detector.{method}" for method in METHODS)])
def test_every_function_says_what_goes_in_and_comes_out(name: str) -> None:
    owner, _, method = name.rpartition(".")
    function = getattr(getattr(clipmole, owner), method) if owner else getattr(clipmole, name)
    text = inspect.getdoc(function) or ""
    for part in ("Args:", "Returns:" if method != "stream" else "Yields:", "Raises:", "Examples:"):
        assert part in text, f"{name}: no {part}"
    described = re.findall(r"^    (\w+(?:, \w+)*):", text.split("Args:")[1].split("\n\n")[0], re.MULTILINE)
    named = {each for line in described for each in line.split(", ")}
    assert named == set(inspect.signature(function).parameters) - {"self"}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the examples name: an image, labelled images, a tiny backbone and settings for it."""
    picture(0, 300, 260).save(tmp_path / "photo.png")
    parameters = PngInfo()
    parameters.add_text("parameters", "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 64x64")
    picture(1).save(tmp_path / "diffusion.png", pnginfo=parameters)
    for folder, count in (("photos", 20), ("generated", 4)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            picture(i, 64, 64).save(tmp_path / folder / f"{i}.png")
    write_corpus(tmp_path / "labelled", {"train": 24, "val": 4, "calibration": 24, "test": 4})
    save_tower(tiny_backbone().tower, tmp_path / "tiny-vit", torch.float32)
    settings = "backbone = 'tiny-vit'\nepochs = 1\nbatch_size = 8\n[preprocess]\ncrop_size = 32\n"
    (tmp_path / "tiny.toml").write_text(settings)
    (tmp_path / "tiny-probe.toml").write_text(f"{settings}[mole]\nexpert_ranks = []\nshared_rank = 0\n")
    monkeypatch.setattr(adapter, "PACKAGED", {"embedded": adapter.PACKAGED["embedded"]})  # the quick one
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", [*FUNCTIONS, "Detector", "ImageClassificationPipeline"])
@pytest.mark.usefixtures("workplace")
@pytest.mark.slow
def test_the_example_runs(name: str) -> None:
    value = getattr(clipmole, name)
    examples = [each for each in doctest.DocTestFinder(recurse=True).find(value, name, globs={}) if each.examples]
    assert examples
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for example in examples:
        output: list[str] = []
        result = runner.run(example, out=output.append)
        assert result.failed == 0, "".join(output)


def test_importing_the_package_is_quick_and_light() -> None:
    probe = (
        "import time\nbegan = time.perf_counter()\nimport clipmole, clipmole.api\nprint(time.perf_counter() - began)\n"
        "import sys\nprint([n for n in ('torch', 'numpy', 'PIL', 'pydantic', 'typer') if n in sys.modules])"
    )
    seconds = []
    for _ in range(5):  # the quickest one: the machine may be busy
        result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
        spent, heavy = result.stdout.splitlines()
        seconds.append(float(spent))
        assert heavy == "[]"
    assert min(seconds) < 0.3


def test_the_package_runs_as_a_module() -> None:
    result = subprocess.run([sys.executable, "-m", "clipmole", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"clipmole {clipmole.__version__}\n"
