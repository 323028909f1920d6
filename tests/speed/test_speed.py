"""The speed benchmark: it runs on a tiny tower, its figures agree with each other, and JSON comes last."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from clipmole.cli import app
from clipmole.config import MoLEConfig, TowerConfig
from clipmole.errors import ConfigError
from clipmole.speed import SpeedReport, measure_speed, speed_table, with_peak
from clipmole.speed.flops import flops
from clipmole.speed.paths import BASELINE, PATHS, available, parse_path
from clipmole.speed.worker import timed

TOWER = "image_size = 32\npatch_size = 16\nwidth = 24\ndepth = 4\nheads = 2\nmlp_width = 48\n"


@pytest.mark.slow
def test_the_command_prints_a_table_and_json_as_the_last_line(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TOWER)
    shape = str(tmp_path / "tiny.toml")
    options = ["--batches", "2", "--paths", "torch-float32", "--seconds", "0.05", "--repeats", "2", "--threads", "1"]
    result = CliRunner().invoke(app, ["benchmark", "speed", "--shapes", shape, *options, "--bare"])
    assert result.exit_code == 0, result.output
    report = SpeedReport.model_validate_json(result.stdout.splitlines()[-1])
    assert [(row.path, row.adapter) for row in report.rows] == [("torch-float32", True), ("torch-float32", False)]
    config = TowerConfig.from_toml(shape)
    for row in report.rows:
        each = flops(config, MoLEConfig() if row.adapter else None, class_token_only=True)
        assert row.gflops == pytest.approx(each * row.images_per_second / 1e9)
        assert row.share_of_peak == pytest.approx(row.gflops / report.peaks["float32"])
        assert row.images_per_second == pytest.approx(2 / row.p50, rel=0.9)
        assert row.p50 <= row.p95
        assert row.forwards >= 2
        assert row.peak_memory > 50 * 2**20  # PyTorch alone
        assert row.over_baseline is None  # which was not asked for
    assert report.environment["threads"] == 1
    assert result.stdout.startswith("| shape | batch | path |")
    assert len(speed_table(report)) == 4
    json.loads(result.stdout.splitlines()[-1])


def test_a_share_of_the_peak_is_of_the_same_precision() -> None:
    row = SpeedReport.model_validate(
        {
            "rows": [
                {
                    "shape": "a",
                    "batch": 1,
                    "path": "openvino-int8",
                    "adapter": True,
                    "images_per_second": 1.0,
                    "p50": 1.0,
                    "p95": 1.0,
                    "forwards": 1,
                    "peak_memory": 1,
                    "gflops": 50.0,
                    "share_of_peak": None,
                    "over_baseline": None,
                }
            ],
            "peaks": {},
            "operations_per_image": {},
            "left_out": {},
            "settings": {},
            "environment": {},
        }
    ).rows[0]
    assert with_peak(row, {"int8": 200.0, "float32": 50.0}).share_of_peak == 0.25
    assert with_peak(row, {"float32": 50.0}).share_of_peak is None


def test_a_path_whose_library_is_absent_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipmole.speed.paths.find_spec", lambda name: None if name == "nncf" else object())
    chosen, missing = available([parse_path("openvino-int8"), parse_path("torch-float32"), parse_path(BASELINE)])
    assert [path.name for path in chosen] == ["torch-float32", BASELINE]
    said = "nncf is not installed; in clipmole's folder, run: pip install -e '.[openvino]'"
    assert missing == {"openvino-int8": said}


def test_a_gpu_runs_the_paths_of_pytorch_only() -> None:
    chosen, missing = available([parse_path(name) for name in PATHS], "cuda")
    assert [path.name for path in chosen] == [name for name in PATHS if name.startswith(("transformers", "torch"))]
    assert missing["openvino-bfloat16"] == "openvino computes on the cpu"


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="device=quantum: cannot be used"):
        measure_speed(["vit-b-32"], [1], ["torch-float32"], device="quantum")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_measures_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TOWER)
    paths = ["torch-float32", "torch-bfloat16"]
    report = measure_speed([str(tmp_path / "tiny.toml")], [4], paths, seconds=0.1, repeats=1, device="cuda")
    assert [row.path for row in report.rows] == paths
    assert all(0 < row.share_of_peak < 1 for row in report.rows if row.share_of_peak is not None)
    assert set(report.peaks) == {"float32", "bfloat16"}


@pytest.mark.parametrize("options", [["--paths", "tensorflow"], ["--shapes", "vit-z"], ["--batches", "0,8"]])
def test_wrong_names_are_refused(options: list[str]) -> None:
    result = CliRunner().invoke(app, ["benchmark", "speed", *options])
    assert isinstance(result.exception, ConfigError | SystemExit)
    assert result.exit_code != 0


def test_at_least_one_call_is_timed() -> None:
    calls: list[int] = []
    assert len(timed(lambda: calls.append(1), 0.0)) == len(calls) == 1
