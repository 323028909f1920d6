"""Exports: what is written runs like the detector, and what does not is not written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CALIBRATION, PREPROCESS, picture, tiny_backbone, tiny_network, write_adapter
from typer.testing import CliRunner

from clipmole import Detector
from clipmole.cli import app
from clipmole.config import Families, MoLEConfig
from clipmole.errors import CheckpointError, ConfigError, DataError
from clipmole.evaluation.scorers import load_scorer
from clipmole.inference import export
from clipmole.inference.export import ExportRefused, check_export_folder, compare_detections, export_detector, failures
from clipmole.inference.export_directory import is_export, read_export
from clipmole.inference.graph import GraphRuntime, convert
from clipmole.inference.pytorch import TorchRuntime
from clipmole.models.adapter import SIBLINGS, read_calibration, save_adapter
from clipmole.models.backbone import save_tower
from clipmole.models.network import MoLENetwork
from clipmole.plumbing.progress import ProgressReporter
from clipmole.records import Detection, Family

LIBRARIES = {"openvino": ["openvino", "nncf"], "onnx": ["onnxruntime", "onnxscript", "onnx"]}
IMAGES = [picture(i, 70, 50) for i in range(8)]
LABELS = [0, 1] * 4


def images() -> Iterator[object]:
    return iter(IMAGES)


def said(logits: list[float], calibrated: bool = True, **given: object) -> list[Detection]:
    """What a detector with `CALIBRATION`, or none, says of images with these logits."""
    return [
        Detection(
            source="<image>",
            logit=logit,
            probability=CALIBRATION.probability(logit) if calibrated else None,
            thresholds=CALIBRATION.thresholds if calibrated else None,
            detector="d",
            width=70,
            height=50,
            tiles=1,
            **({"verdict": CALIBRATION.verdict(logit) if calibrated else None} | given),
        )
        for logit in logits
    ]


def need(runtime: str) -> None:
    for library in LIBRARIES[runtime]:
        pytest.importorskip(library, reason=f"needs {library}: pip install 'clipmole[{runtime}]'")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter directory, its backbone in the folder `tiny` beside it; two blocks, for exports take their time."""
    folder = tmp_path_factory.mktemp("adapter")
    write_adapter(folder, depth=2)
    return folder / "adapter"


@pytest.mark.parametrize(
    ("runtime", "precision"), [("openvino", "float32"), ("openvino", "bfloat16"), ("onnx", "float32")]
)
def test_an_export_scores_like_its_detector_without_adapter_and_backbone(
    adapter: Path, tmp_path: Path, runtime: GraphRuntime, precision: str
) -> None:
    need(runtime)
    record = export_detector(
        adapter, tmp_path / "out", runtime, images, labels=LABELS, precision=precision, backbone=adapter.parent / "tiny"
    )  # type: ignore[arg-type]
    plain = Detector.from_pretrained(adapter, backbone=adapter.parent / "tiny")
    graph = Detector.from_pretrained(tmp_path / "out")
    expected = plain.score(IMAGES)
    tolerance = 1e-4 if precision == "float32" else 0.25 * float(expected.std())
    assert graph.score(IMAGES) == pytest.approx(expected, abs=tolerance)
    assert np.abs(graph.score(IMAGES) - expected).max() == pytest.approx(record.check.max_difference, abs=1e-5)
    assert graph.calibration == plain.calibration
    assert graph.preprocess == plain.preprocess
    assert graph.name == plain.name + ("" if precision == "float32" else f", {runtime} {precision}")
    assert record.detector == plain.name
    assert record == read_export(tmp_path / "out")
    assert record.check.images == record.check.labelled == 8
    assert load_scorer(str(tmp_path / "out")).name == graph.name


def test_an_export_on_another_backbone_gives_no_verdicts(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("onnx")
    monkeypatch.setattr(export, "_make", lambda *_: None)  # the graph does not matter here
    monkeypatch.setattr(export, "open_graph", lambda *_: TorchRuntime(tiny_network(sibling), "cpu", "float32"))
    sibling = tiny_backbone(depth=2)
    with torch.no_grad():
        sibling.tower.position_embedding += 1e-3
    save_tower(sibling.tower, tmp_path / "sibling", torch.float32)
    monkeypatch.setitem(SIBLINGS, "tiny", "sibling")
    export_detector(adapter, tmp_path / "out", "onnx", images, backbone=tmp_path / "sibling")
    assert "(not measured)" in read_export(tmp_path / "out").detector
    assert read_calibration(tmp_path / "out") is None


def write_further(folder: Path) -> MoLENetwork:
    """An adapter that calls everything AI-generated, nothing drawn, and names families; its tower beside it."""
    families = Families(names=("a", "b"), confusion=((7, 1, 0), (2, 9, 0), (0, 0, 0)))
    network = tiny_network(tiny_backbone(depth=2), MoLEConfig(drawn=True, families=families))
    with torch.no_grad():
        network.drawn.bias.fill_(-1e6)  # type: ignore[union-attr]
    certain = CALIBRATION.model_copy(update={"slope": 1e-6, "intercept": 3.0})
    save_adapter(folder / "adapter", network, tiny_backbone(depth=2), PREPROCESS, certain)
    save_tower(tiny_backbone(depth=2).tower, folder / "tiny", torch.float32)
    return network


@pytest.mark.parametrize("runtime", ["openvino", "onnx"])
def test_a_graph_names_the_same_families(tmp_path: Path, runtime: GraphRuntime) -> None:
    need(runtime)
    write_further(tmp_path)
    plain = Detector.from_pretrained(tmp_path / "adapter", backbone=tmp_path / "tiny")
    record = export_detector(tmp_path / "adapter", tmp_path / "out", runtime, images, backbone=tmp_path / "tiny")
    assert record.check.families == (0, 8)
    assert export.summary_lines(record)[-1] == "  families of generators that change: 0 of 8 that were named"
    graph = Detector.from_pretrained(tmp_path / "adapter", backbone=tmp_path / "tiny", runtime=runtime)
    for each in (Detector.from_pretrained(tmp_path / "out"), graph):
        for found, expected in zip(each.detect_batch(IMAGES), plain.detect_batch(IMAGES), strict=True):
            assert found.family is not None
            assert expected.family is not None
            assert found.family.share == pytest.approx(expected.family.share, abs=1e-4)
            assert found.family.name == expected.family.name


@pytest.mark.parametrize("runtime", ["openvino", "onnx"])
def test_int8_says_so(adapter: Path, tmp_path: Path, runtime: GraphRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    need(runtime)
    loose = export.Limits(average_precision=2.0, difference=10.0, changed=None, reversed=8)  # a tiny tower is coarse
    monkeypatch.setitem(export.LIMITS, "int8", loose)
    record = export_detector(
        adapter,
        tmp_path / "out",
        runtime,
        images,
        precision="int8",
        calibrate_on=IMAGES,
        backbone=adapter.parent / "tiny",
    )
    assert record.calibrated_on == (8 if runtime == "openvino" else 0)
    assert record.check.average_precision is None
    assert Detector.from_pretrained(tmp_path / "out").name == f"{record.detector}, {runtime} int8"


def test_int8_that_fails_with_fixed_ranges_takes_them_while_it_runs(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("openvino")
    monkeypatch.setitem(export.LIMITS, "int8", export.Limits(average_precision=2.0, difference=10.0, changed=None))
    failures = export.failures
    outcomes = [["a logit differs"], []]
    monkeypatch.setattr(export, "failures", lambda *given: [*failures(*given), *outcomes.pop(0)])
    said: list[str] = []
    record = export_detector(
        adapter,
        tmp_path / "out",
        "openvino",
        images,
        precision="int8",
        calibrate_on=IMAGES,
        backbone=adapter.parent / "tiny",
        progress=ProgressReporter(say=said.append),
    )
    assert record.calibrated_on == 0
    assert outcomes == []
    assert "with fixed ranges a logit differs; measuring them while it runs instead" in said
    assert export.summary_lines(record)[0].startswith(f"{record.detector} for openvino in int8 (dynamic), checked on 8")


def test_a_broken_graph_is_not_written(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("openvino")

    def broken(_network: object, crop_size: int, runtime: GraphRuntime, folder: Path) -> Path:
        return convert(
            tiny_network(tiny_backbone(depth=2), seed=7), crop_size, runtime, folder
        )  # another adapter than was asked for

    monkeypatch.setattr(export, "convert", broken)
    with pytest.raises(ExportRefused, match="not exported: a logit differs by") as refused:
        export_detector(adapter, tmp_path / "out", "openvino", images, backbone=adapter.parent / "tiny")
    assert refused.value.check.max_difference > 0.1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("output", "reason"),
    [("families", r"\d of 8 families of generators change"), ("drawn", "8 settled verdicts change")],
)
def test_a_graph_with_the_right_logits_and_a_broken_further_output_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, reason: str
) -> None:
    need("openvino")
    broken = write_further(tmp_path)
    with torch.no_grad():
        getattr(broken, output).bias += torch.tensor([1e7, -1e7] if output == "families" else [2e6])
    monkeypatch.setattr(export, "convert", lambda _network, *given: convert(broken, *given))
    with pytest.raises(ExportRefused, match=f"not exported: {reason}"):
        export_detector(tmp_path / "adapter", tmp_path / "out", "openvino", images, backbone=tmp_path / "tiny")
    assert not (tmp_path / "out").exists()


def test_a_graph_that_was_changed_is_not_run(adapter: Path, tmp_path: Path) -> None:
    need("openvino")
    export_detector(adapter, tmp_path / "out", "openvino", images, backbone=adapter.parent / "tiny")
    weights = tmp_path / "out" / "model.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CheckpointError, match="is not the one that was checked"):
        Detector.from_pretrained(tmp_path / "out")


def test_an_export_runs_as_it_was_checked_or_not_at_all(adapter: Path, tmp_path: Path) -> None:
    need("openvino")
    export_detector(adapter, tmp_path / "out", "openvino", images, backbone=adapter.parent / "tiny")
    assert Detector.from_pretrained(tmp_path / "out", runtime="auto").runtime.name == "openvino"
    with pytest.raises(ConfigError, match="exported with runtime openvino, not torch"):
        Detector.from_pretrained(tmp_path / "out", runtime="torch")
    with pytest.raises(ConfigError, match="exported with precision float32, not bfloat16"):
        Detector.from_pretrained(tmp_path / "out", precision="bfloat16")


def test_the_check_counts_what_changes() -> None:
    # p = sigmoid(2 z + 0.1): real below z = -0.474, AI-generated above z = 0.374.
    exact = [-2.0, -0.5, 0.0, 0.5, 2.0, 0.3]
    given = [-2.0, -0.4, 0.0, -0.6, 2.0, 0.4]
    check = compare_detections(said(exact), said(given), [0, 0, 0, 1, 1, 1])
    assert (check.changed, check.reversed, check.settled) == (2, 1, 1)
    assert check.max_difference == pytest.approx(1.1)
    assert check.mean_difference == pytest.approx(1.3 / 6)
    assert check.spread == pytest.approx(np.std(exact))
    assert check.average_precision == pytest.approx((1.0, (1 + 1 + 3 / 5) / 3))
    assert len(failures(check, "bfloat16")) == 4
    assert not failures(compare_detections(said(exact), said(exact), None), "float32")
    assert failures(compare_detections(said(exact), said([*exact[:5], 0.375]), None), "float32")[-1] == (
        "1 uncertain verdicts settle"
    )


def test_the_check_counts_families_of_what_both_call_ai_generated() -> None:
    a, b = (Family(name=name, share=0.9, right=3, answers=4) for name in "ab")
    exact = [*said([2.0, 2.1], family=a), *said([2.2, 2.3, -2.0])]
    given = [*said([2.0], family=b), *said([2.1, 2.2]), *said([2.3], family=b), *said([-2.0])]
    check = compare_detections(exact, given, None, families=True)
    assert check.families == (3, 3)
    assert failures(check, "float32") == ["3 of 3 families of generators change"]
    assert failures(check, "int8") == []
    assert compare_detections(exact, exact, None, families=True).families == (0, 2)
    assert compare_detections(exact, exact, None).families is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_graph_that_gives_no_number_fails(bad: float) -> None:
    check = compare_detections(said([0.0, 1.0, 2.0], False), said([0.0, 1.0, bad], False), None)
    assert failures(check, "int8")
    assert check.changed is None


def test_a_check_needs_images() -> None:
    with pytest.raises(DataError, match="give two or more"):
        compare_detections(said([1.0]), said([1.0]), None)


def test_other_things_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="exists and is not an export"):
        check_export_folder(tmp_path)
    assert not is_export(tmp_path)


def test_the_command_exports_and_detect_runs_it(adapter: Path, tmp_path: Path) -> None:
    need("openvino")
    for name in ("a.png", "b.png"):
        picture(ord(name[0])).save(tmp_path / name)
    names = [str(adapter), "--backbone", str(adapter.parent / "tiny"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["export", *names, "--check-on", str(tmp_path / "*.png")])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "out")
    assert "checked on 2 images (0 labelled)" in result.stderr
    found = CliRunner().invoke(app, ["detect", str(tmp_path / "a.png"), "--json", "--detector", str(tmp_path / "out")])
    assert json.loads(found.stdout)["source"] == str(tmp_path / "a.png")
    neither = CliRunner().invoke(app, ["export", *names])
    assert neither.exit_code == 2
