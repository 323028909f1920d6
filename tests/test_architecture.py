"""The layout: imports point down one list of modules, and the core does without the doors' libraries."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import clipmole

PACKAGE = Path(clipmole.__file__).parent
# A module may import only what stands before it. Data, measuring and reports stand before training, which uses them.
ORDER = [
    "clipmole",
    "clipmole.errors",
    "clipmole.records",
    "clipmole.files",
    "clipmole.config",
    "clipmole.packaged",
    "clipmole.preset",
    "clipmole.plan",
    "clipmole.pipeline",
    "clipmole.hub",
    "clipmole.jpeg",
    "clipmole.formats",
    "clipmole.images",
    "clipmole.provenance.findings",
    "clipmole.provenance.xmp",
    "clipmole.provenance.metadata",
    "clipmole.provenance.source_type",
    "clipmole.provenance.generators",
    "clipmole.provenance.camera",
    "clipmole.provenance.credentials",
    "clipmole.provenance",
    "clipmole.inputs",
    "clipmole.augment",
    "clipmole.perturb",
    "clipmole.preprocess",
    "clipmole.calibration",
    "clipmole.models",
    "clipmole.models.vit",
    "clipmole.models.keymaps",
    "clipmole.models.backbone",
    "clipmole.models.mole",
    "clipmole.models.detector",
    "clipmole.models.checkpoint",
    "clipmole.runtimes",
    "clipmole.runtimes.pytorch",
    "clipmole.runtimes.graph",
    "clipmole.runtimes.quantise",
    "clipmole.exported",
    "clipmole.detect",
    "clipmole.attribution",
    "clipmole.evidence",
    "clipmole.metrics",
    "clipmole.progress",
    "clipmole.data.samples",
    "clipmole.data.words",
    "clipmole.data.folders",
    "clipmole.data.unpack",
    "clipmole.data.manifest",
    "clipmole.data.shards",
    "clipmole.data.huggingface",
    "clipmole.data",
    "clipmole.data.readable",
    "clipmole.data.draw",
    "clipmole.data.training",
    "clipmole.audit.files",
    "clipmole.audit.duplicates",
    "clipmole.audit.shortcut",
    "clipmole.audit",
    "clipmole.audit.text",
    "clipmole.protocol",
    "clipmole.environment",
    "clipmole.export",
    "clipmole.operations",
    "clipmole.speed.paths",
    "clipmole.speed.worker",
    "clipmole.speed",
    "clipmole.calibrate",
    "clipmole.scores",
    "clipmole.resample",
    "clipmole.figures",
    "clipmole.report.page",
    "clipmole.report.plots",
    "clipmole.report.content",
    "clipmole.report.tables",
    "clipmole.report.curves",
    "clipmole.report.mistakes",
    "clipmole.report.training",
    "clipmole.report.comparison",
    "clipmole.report",
    "clipmole.team",
    "clipmole.sampling",
    "clipmole.views",
    "clipmole.cache",
    "clipmole.resume",
    "clipmole.scalars",
    "clipmole.optimiser",
    "clipmole.loop",
    "clipmole.model_card",
    "clipmole.train",
    "clipmole.scorers",
    "clipmole.evaluate",
    "clipmole.runs",
    "clipmole.compare",
    "clipmole.serve",
    "clipmole.serve.settings",
    "clipmole.serve.problems",
    "clipmole.serve.worker",
    "clipmole.serve.decoding",
    "clipmole.serve.batching",
    "clipmole.serve.upload",
    "clipmole.serve.answers",
    "clipmole.serve.metrics",
    "clipmole.serve.service",
    "clipmole.serve.guard",
    "clipmole.serve.connection",
    "clipmole.serve.app",
    "clipmole.serve.runner",
    "clipmole.scan",
    "clipmole.scan.rows",
    "clipmole.scan.settings",
    "clipmole.scan.places",
    "clipmole.scan.units",
    "clipmole.scan.listing",
    "clipmole.scan.parts",
    "clipmole.scan.firsts",
    "clipmole.scan.scorer",
    "clipmole.scan.local",
    "clipmole.scan.on_ray",
    "clipmole.scan.summary",
    "clipmole.scan.groups",
    "clipmole.scan.page",
    "clipmole.scan.driver",
    "clipmole.cli.options",
    "clipmole.cli.inputs",
    "clipmole.cli.render",
    "clipmole.cli.detect",
    "clipmole.cli.train",
    "clipmole.cli.evaluate",
    "clipmole.cli.data",
    "clipmole.cli.adapters",
    "clipmole.cli.export",
    "clipmole.cli.benchmark",
    "clipmole.cli.serve",
    "clipmole.cli.scan",
    "clipmole.cli",
    "clipmole.cli.__main__",
]
DOORS_ONLY = {"typer", "rich", "fastapi", "ray", "openvino", "nncf", "onnx", "onnxruntime", "transformers", "click"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere, names of clipmole's own modules resolved; type-checking ones too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in MODULES else node.module for a in node.names
            }
    return found


def test_every_module_has_its_place_in_the_order() -> None:
    assert sorted(MODULES) == sorted(ORDER)


@pytest.mark.parametrize("name", [name for name in ORDER if name != "clipmole"])
def test_imports_point_down_the_order(name: str) -> None:
    own = {imported for imported in imports(MODULES[name]) if imported.split(".")[0] == "clipmole"}
    upward = {imported for imported in own if ORDER.index(imported) >= ORDER.index(name)}
    assert not upward, f"{name} imports {sorted(upward)}, which stand after it"


@pytest.mark.parametrize("name", [name for name in ORDER if not name.startswith(("clipmole.cli", "clipmole.serve"))])
def test_the_core_does_not_import_the_doors_libraries(name: str) -> None:
    # Others' classifiers, graphs, and the speed of all of them are doors of their own.
    graphs = {"openvino", "nncf", "onnx", "onnxruntime", "onnxscript"}
    doors = {
        "clipmole.scorers": {"transformers"},
        "clipmole.runtimes.graph": graphs,
        "clipmole.runtimes.quantise": graphs,
        "clipmole.speed.paths": {"transformers"},
        "clipmole.scan.on_ray": {"ray"},
    }
    allowed = doors.get(name, set())
    assert not {imported.split(".")[0] for imported in imports(MODULES[name])} & (DOORS_ONLY - allowed)


@pytest.mark.parametrize("code", ["import clipmole", "import clipmole.cli"])
def test_torch_is_not_imported_before_it_is_needed(code: str) -> None:
    probe = f"{code}\nimport sys\nprint('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_help_imports_nothing_heavy() -> None:
    probe = (
        "import sys\nfrom clipmole.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'numpy', 'PIL', 'pydantic', 'rich') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert "detect" in result.stdout
    assert result.stdout.strip().splitlines()[-1] == "[]"


def test_the_public_names_are_these_and_all_can_be_had() -> None:
    assert clipmole.__all__ == [
        "Calibration",
        "ClipmoleError",
        "Detection",
        "Detector",
        "MoLEConfig",
        "PreprocessConfig",
        "TrainConfig",
        "Verdict",
        "__version__",
    ]
    for name in clipmole.__all__:
        assert getattr(clipmole, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = clipmole.nothing


def test_no_file_names_a_path_of_one_machine_or_deserialises_code() -> None:
    for path in MODULES.values():
        text = path.read_text()
        assert "pickle.load" not in text
        assert "weights_only=False" not in text
        for call in [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]:
            if ast.unparse(call.func) == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords), path
