"""A record of a miss: the detector's own numbers, and nothing of the file that was not asked for."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest
import torch
from PIL.PngImagePlugin import PngInfo
from tiny import CALIBRATION, PREPROCESS, encoded, picture, tiny_network, write_adapter
from typer.testing import CliRunner

from clipmole.cli import app
from clipmole.errors import ImageNotFound, ImageUnreadable
from clipmole.evaluation.misses import miss_report
from clipmole.inference.detector import Detector
from clipmole.records import Verdict


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A file whose name and metadata are nobody's business."""
    metadata = PngInfo()
    metadata.add_text("Comment", "a private remark")
    path = tmp_path / "my holiday.png"
    picture(0).save(path, pnginfo=metadata)
    return path


def leaning(bias: float) -> Detector:
    """A detector with a logit near `bias`."""
    network = tiny_network()
    torch.nn.init.zeros_(network.head.weight)
    torch.nn.init.constant_(network.head.bias, bias)
    return Detector(network, PREPROCESS, CALIBRATION)


def test_the_record_holds_the_files_measures_and_the_detectors_numbers(photo: Path) -> None:
    detector = Detector(tiny_network(), PREPROCESS, CALIBRATION)
    record = miss_report(detector, str(photo), "generated", "made with X 1.2")
    data = photo.read_bytes()
    assert (record.sha256, record.bytes, record.format) == (hashlib.sha256(data).hexdigest(), len(data), "PNG")
    assert record.detection == detector.detect(data, tiles=True)
    assert record.detection.tile_logits is not None
    assert record.known_by == "made with X 1.2"
    text = record.model_dump_json()
    assert "holiday" not in text
    assert "private" not in text
    assert record.file is None
    kept = miss_report(detector, str(photo), "generated", with_file=True).file
    assert kept is not None
    assert base64.b64decode(kept) == data


@pytest.mark.parametrize(
    ("bias", "verdict", "generated", "photograph"),
    [
        (3.0, Verdict.AI_GENERATED, False, True),
        (-3.0, Verdict.REAL, True, False),
        (0.0, Verdict.UNCERTAIN, False, False),
    ],
)
def test_a_miss_is_the_other_verdict(
    bias: float, verdict: Verdict, generated: bool, photograph: bool, photo: Path
) -> None:
    detector = leaning(bias)
    assert miss_report(detector, str(photo), "generated").detection.verdict is verdict
    assert miss_report(detector, str(photo), "generated").missed is generated
    assert miss_report(detector, str(photo), "photograph").missed is photograph
    assert miss_report(Detector(tiny_network(), PREPROCESS), str(photo), "photograph").missed is None


def test_a_file_that_cannot_be_scored_is_named(tmp_path: Path) -> None:
    detector = leaning(0.0)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ImageUnreadable, match=r"text\.png: not an image"):
        miss_report(detector, str(tmp_path / "text.png"), "generated")
    with pytest.raises(ImageNotFound, match=r"none\.png: no such file"):
        miss_report(detector, str(tmp_path / "none.png"), "generated")
    (tmp_path / "cut.png").write_bytes(encoded(picture(0))[:-40])
    with pytest.raises(ImageUnreadable, match=r"cut\.png: "):
        miss_report(detector, str(tmp_path / "cut.png"), "generated")


def test_the_command_prints_the_record(photo: Path, tmp_path: Path) -> None:
    adapter, backbone = write_adapter(tmp_path)
    names = ["--detector", str(adapter), "--backbone", str(backbone)]
    result = CliRunner().invoke(app, ["report-miss", str(photo), "--truth", "photograph", *names])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["truth"], record["version"], record["detection"]["source"]) == ("photograph", 1, "<bytes>")
    assert "file" not in record
    assert "It holds no pixels, and neither the file's name nor its metadata." in result.stderr
