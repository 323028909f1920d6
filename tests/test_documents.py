"""README, configurations, examples and benchmarks: what is written there is so."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

import clipmole
from clipmole.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMAND = re.compile(r"(?:^|/|\| )clipmole ([a-z-]+)([^#\n>]*(?:\\\n[^#\n>]*)*)", re.MULTILINE)


def commands_of(text: str) -> list[tuple[str, str]]:
    """(command, the rest of its line) of every clipmole command in the bash blocks of a document."""
    return COMMAND.findall("\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)))


def test_documents_quote_the_committed_results() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "insert_results.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_python_example_runs() -> None:
    result = subprocess.run(
        [sys.executable, "examples/five_lines.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert re.match(r"(real|uncertain|ai_generated) 0\.\d+\n\[", result.stdout)


def test_the_transcript_is_what_the_command_prints() -> None:
    lines = (ROOT / "benchmarks" / "results" / "transcript.txt").read_text().splitlines()
    assert lines[0] == "$ clipmole detect examples/astronaut.png examples/rocket.jpg"
    command = [sys.executable, "-m", "clipmole.cli", *lines[0].split()[2:]]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    printed = result.stdout.splitlines() + result.stderr.splitlines()
    assert printed == lines[1:]


def test_the_readme_shows_every_command() -> None:
    named = {"detect", "train", "compare", "push", "import-univfd", "evaluate", "calibrate"}
    assert {name for name, _ in commands_of(README)} == named


@pytest.mark.parametrize("document", ["README.md", "docs/train.md", "benchmarks/README.md"])
def test_every_command_of_a_document_exists_with_its_options(document: str) -> None:
    commands = commands_of((ROOT / document).read_text(encoding="utf-8"))
    assert commands
    for name, rest in commands:
        shown = CliRunner().invoke(app, [name, "--help"]).stdout
        for option in re.findall(r"--[a-z-]+", rest):
            assert option in shown, f"clipmole {name} has no {option}"


def test_every_local_link_leads_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("recipes/*/*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_version_is_said_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == clipmole.__version__
    assert f"version: {clipmole.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_no_document_names_a_machine() -> None:
    for path in [*ROOT.rglob("*.md"), *ROOT.rglob("*.toml"), *ROOT.rglob("*.py")]:
        if not {".venv", "runs"} & set(path.relative_to(ROOT).parts):
            assert not re.search(r"/(?:home|root|work|Users)/\w", path.read_text(encoding="utf-8")), path
