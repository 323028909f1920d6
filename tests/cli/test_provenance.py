"""`clipmole provenance FILE`: what the metadata of one file say, and with --all every text and tag of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin
from typer.testing import CliRunner

from clipmole.cli import app
from clipmole.plumbing.text import unescaped

PROMPT = "a heron\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 8x8, Model hash: 0123456789"


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PNG with texts, an EXIF block of texts, numbers and a place, and an ICC profile of 200 bytes."""
    path = tmp_path_factory.mktemp("images") / "described.png"
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", PROMPT)
    texts.add_text("Comment", "\x1b[2J says \u202enothing")
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Make of mine", 6
    exif[0x8769] = {0x829A: 0.004, 0x927C: b"\0\1" * 40}  # exposure time, maker note
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 12.0)}
    Image.new("RGB", (8, 8)).save(path, pnginfo=texts, exif=exif, icc_profile=bytes(200))
    return path


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["provenance", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_findings_alone_say_nothing_of_the_rest(described: Path) -> None:
    lines = run(str(described)).splitlines()
    assert any(line.startswith("metadata: ") and "strong: ai-generated" in line for line in lines)
    assert not any("Make of mine" in line for line in lines if line.startswith("EXIF"))


def test_all_prints_every_text_and_tag_without_loss(described: Path) -> None:
    lines = run(str(described), "--all").splitlines()
    assert f"PNG text parameters: {PROMPT}" in [unescaped(line) for line in lines]
    assert r"PNG text Comment: \u001b[2J says \u202enothing" in lines
    assert {
        "EXIF Make: Make of mine",
        "EXIF Orientation: 6",
        "EXIF ExposureTime: 0.004",
        "EXIF GPSLatitude: 52, 31, 12",
    } <= set(lines)
    assert "EXIF MakerNote: 80 bytes" in lines
    assert any(line.startswith("ICC profile: ") for line in lines)


def test_json_holds_the_same_as_it_stands(described: Path) -> None:
    found = json.loads(run("--json", str(described), "--all"))
    assert {"place": "PNG text", "name": "parameters", "value": PROMPT} in found["metadata"]
    assert found["findings"][0]["points_to"] == "ai-generated"
    assert "metadata" not in json.loads(run(str(described), "--json"))


def test_the_other_commands_keep_their_names(described: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "PNG text" in run("--rules")
    monkeypatch.chdir(described.parent)
    Path("trust-list").write_bytes(described.read_bytes())
    assert "get" in run("trust-list", "--help")
    assert run("./trust-list") == run(str(described))


def test_a_file_or_the_rules() -> None:
    for arguments in ([], ["a.png", "--rules"]):
        result = CliRunner().invoke(app, ["provenance", *arguments])
        assert (result.exit_code, "give a file, or --rules" in result.output) == (2, True)


def test_what_is_no_image_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("nothing")
    result = CliRunner().invoke(app, ["provenance", str(path)])
    assert result.exit_code != 0
    assert isinstance(result.exception, Exception)
    assert str(path) in str(result.exception)
