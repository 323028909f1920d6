"""The package as it is declared: every library that the code imports stands in pyproject.toml, where it is needed."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTIONS = {
    "PIL": "pillow", "axe_playwright_python": "axe-playwright-python", "c2pa": "c2pa-python",
    "cv2": "opencv-python-headless", "huggingface_hub": "huggingface-hub",
    "pillow_heif": "pillow-heif", "prometheus_client": "prometheus-client", "python_multipart": "python-multipart",
    "sklearn": "scikit-learn",
}  # fmt: skip


def names(requirements: list[str]) -> set[str]:
    """Distributions that requirements name, an extra of clipmole's own replaced by what stands in it."""
    found = set()
    for requirement in requirements:
        name = re.split(r"[\[<>=!~; ]", requirement)[0].lower()
        if name == "clipmole":
            for extra in re.findall(r"\[(.*)\]", requirement)[0].split(","):
                found |= names(PROJECT["optional-dependencies"][extra])
        else:
            found.add(name)
    return found


def imported(path: Path) -> set[str]:
    """Distributions that a file imports anywhere, without the standard library and clipmole itself."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return {DISTRIBUTIONS.get(name, name) for name in found - set(sys.stdlib_module_names) - {"clipmole"}}


def test_every_import_is_declared() -> None:
    declared = names(PROJECT["dependencies"]) | names(["clipmole[all]"])
    for path in (ROOT / "src").rglob("*.py"):
        assert imported(path) <= declared, path


def test_every_import_of_the_tests_is_declared() -> None:
    declared = names(PROJECT["dependencies"]) | names(["clipmole[test,heif]"])
    own = {path.stem for path in (ROOT / "tests").glob("*.py")} | {"tests", "docs"}
    for path in (ROOT / "tests").rglob("*.py"):
        assert imported(path) - own <= declared, path


def test_what_the_server_imports_stands_in_its_extra() -> None:
    declared = names(PROJECT["dependencies"]) | names(["clipmole[serve]"])
    for path in (ROOT / "src" / "clipmole" / "serve").rglob("*.py"):
        assert imported(path) <= declared, path


def test_what_the_command_line_imports_is_always_there() -> None:
    used = set()
    for path in (ROOT / "src" / "clipmole" / "cli").rglob("*.py"):
        used |= imported(path)
    assert {"typer", "rich"} <= used
    assert used - {"fastapi", "prometheus-client", "python-multipart", "uvicorn", "pyarrow"} <= names(
        PROJECT["dependencies"]
    )
