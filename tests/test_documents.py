"""README, configurations, examples and benchmarks: what is written there is so."""

from __future__ import annotations

import re
import shutil
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
DOCUMENTS = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(
    r"(?:^|/|\| )clipmole (data (?:check|pair)|benchmark speed|scan (?:report|groups)|[a-z-]+)"
    r"([^#\n>]*(?:\\\n[^#\n>]*)*)",
    re.MULTILINE,
)


def commands_of(document: str) -> list[tuple[str, str]]:
    """(command, the rest of its line) of every clipmole command in a document: in bash blocks, or as code in a line."""
    blocks = re.findall(r"```bash\n(.*?)```", document, re.DOTALL)
    return COMMAND.findall("\n".join([*blocks, *re.findall(r"`(clipmole [a-z][^`]*)`", document)]))


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
    command = [sys.executable, "-P", "-m", "clipmole.cli", *lines[0].split()[2:]]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    said = [line for line in result.stderr.splitlines() if not line.startswith("scoring: ")]  # on a busy machine
    printed = result.stdout.splitlines() + said
    assert printed == lines[1:]


def test_the_readme_shows_these_commands() -> None:
    assert {name for name, _ in commands_of(README)} == {"detect", "serve", "scan", "data check"}


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_no_benchmark_takes_help_for_something_to_do() -> None:
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert "parse_args(" in text or "command_line(__doc__" in text, path


@pytest.mark.parametrize("script", ["docs/figures/method.py", "docs/figures/methods.py", "benchmarks/readme_tables.py"])
def test_what_a_script_draws_is_what_is_committed(script: str, tmp_path: Path) -> None:
    """Each is run on a copy, and must write the committed files and no others."""
    for name in ("docs/figures", "benchmarks/results", "benchmarks/readme_tables.py"):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(ROOT / name, target) if (ROOT / name).is_dir() else shutil.copy(ROOT / name, target)

    def drawn() -> list[Path]:
        return [*tmp_path.glob("docs/figures/*.svg"), *tmp_path.glob("benchmarks/results/readme/*.md")]

    before = {path: path.read_bytes() for path in drawn()}
    subprocess.run([sys.executable, script], cwd=tmp_path, check=True)
    assert {path: path.read_bytes() for path in drawn()} == before
    assert len(before) > 10


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_of_a_document_exists_with_its_options(path: Path) -> None:
    for name, rest in commands_of(path.read_text(encoding="utf-8")):
        shown = CliRunner().invoke(app, [*name.split(), "--help"]).stdout
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


def test_every_extra_that_an_error_names_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    named = set(re.findall(r'MissingDependency\([^,]+, "([^"]+)"\)', sources))
    assert {"train", "transformers"} <= named <= set(extras)
