"""Processes of the package's own: the current folder is not on their path, and what they said last is known."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

import clipmole
from clipmole.plumbing.child import last_line, module_command

SOURCES = Path(clipmole.__file__).parent


def test_a_module_in_the_current_folder_is_not_executed(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('executed')\n")
    command = module_command("json.tool", "--compact")
    done = subprocess.run(command, input="[1, 2]", cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [1, 2]


def test_no_other_module_starts_python_by_itself() -> None:
    starts = re.compile(r"sys\.executable|multiprocessing|ProcessPoolExecutor")
    found = {str(path.relative_to(SOURCES)) for path in SOURCES.rglob("*.py") if starts.search(path.read_text())}
    assert found == {"plumbing/child.py"}


@pytest.mark.parametrize(
    ("text", "line"), [("Traceback\n  File\nValueError: no\n\n", "ValueError: no"), ("", "none"), (" \n", "none")]
)
def test_the_last_line_is_the_error(text: str, line: str) -> None:
    assert last_line(text, "none") == line
