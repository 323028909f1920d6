"""The documentation as a site, and the notebooks: both are built by their own tools, without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)[^>]*\ssrc=["']?https?:|<link[^>]*rel=["']?(?:stylesheet|preconnect|icon)"""
    r"""["']?[^>]*href=["']?https?:|url\(["']?https?:|@import\s+["']https?:"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. A warning, such as a link that leads nowhere, is an error."""
    for library in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(library, reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
def test_the_site_is_built_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert {"index.html", "quickstart.html", "api.html", "command-line.html"} <= {page.name for page in pages}
    for page in pages:
        if "benchmarks" not in page.relative_to(site).parts:  # reports of clipmole, which have a test of their own
            assert not LOADED.search(page.read_text(encoding="utf-8")), page


@pytest.mark.slow
def test_the_reference_has_every_name_and_every_command(site: Path) -> None:
    import clipmole
    from clipmole.cli import app

    api = (site / "api.html").read_text(encoding="utf-8")
    for name in clipmole.__all__:
        if name != "__version__":
            assert f'id="clipmole.{name}"' in api, name
    commands = (site / "command-line.html").read_text(encoding="utf-8")
    for command in app.registered_commands:
        assert command.callback is not None
        name = (command.name or command.callback.__name__).replace("_", "-")
        assert f'id="clipmole-{name}"' in commands, name


@pytest.mark.slow
def test_a_result_is_one_row_with_its_type(site: Path) -> None:
    returned = re.findall(r"Returns:</span>.*?</table>", (site / "api.html").read_text(encoding="utf-8"), re.DOTALL)
    assert len(returned) > 10
    for table in returned:
        assert re.findall(r"<tr class=.*?>\s*<td>\s*(<code>)?", table) == ["<code>"], table


@pytest.mark.slow
def test_the_page_for_what_is_missing_can_be_opened_as_a_file(site: Path) -> None:
    assert not re.findall(r"""(?:href|src)=["']/""", (site / "404.html").read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs the extra test")
    nbclient = pytest.importorskip("nbclient", reason="needs the extra test")
    pytest.importorskip("ipykernel", reason="needs the extra test")
    monkeypatch.setenv("CLIPMOLE_CACHE", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), f"{path.name}: clear its outputs"
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert shown
    assert not [output for output in shown if output["output_type"] == "error"]


def test_there_are_three_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["one-image", "the-method", "your-own-detector"]
