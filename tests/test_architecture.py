"""The layout: imports point down one list of folders, and the core does without the doors' libraries."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import clipmole

PACKAGE = Path(clipmole.__file__).parent
TESTS = Path(__file__).parent
# The layers. What stands in one imports only from those before it; the loose modules are the words everyone speaks.
LAYERS = [
    "errors",
    "plumbing",
    "records",
    "config",
    "calibration",
    "metrics",
    "images",
    "provenance",
    "models",
    "inference",
    "data",
    "evaluation",
    "report",
    "training",
    "speed",
    "serve",
    "scan",
    "api",
    "reproduction",
    "cli",
]
PUBLIC_ALL_THE_SAME = {"_replace", "_asdict", "_fields", "_exit"}  # of the standard library
DOORS_ONLY = {"typer", "rich", "fastapi", "ray", "openvino", "nncf", "onnx", "onnxruntime", "transformers", "click"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere, names of clipmole's own modules resolved; type-checking ones too."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in MODULES else node.module for a in node.names
            }
    return found


def layer(module: str) -> str:
    """The folder or loose module that a module of the package belongs to; "" is the package's own face."""
    return module.split(".")[1] if "." in module else ""


def own_imports(name: str) -> set[str]:
    return {imported for imported in imports(MODULES[name]) if imported.split(".")[0] == "clipmole"}


def test_every_module_belongs_to_a_layer() -> None:
    assert {layer(name) for name in MODULES} - {"", "__main__"} == set(LAYERS)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_imports_only_from_those_below_it(name: str) -> None:
    upward = {
        f"{module} -> {imported}"
        for module in MODULES
        if layer(module) == name
        for imported in own_imports(module)
        if imported != "clipmole" and LAYERS.index(layer(imported)) > LAYERS.index(name)
    }
    assert not upward


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: own_imports(name) - {"clipmole"} for name in MODULES if name != "clipmole"}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


@pytest.mark.parametrize("name", sorted(name for name in MODULES if layer(name) not in ("cli", "serve")))
def test_the_core_does_not_import_the_doors_libraries(name: str) -> None:
    # Others' classifiers, graphs, and the speed of all of them are doors of their own.
    graphs = {"openvino", "nncf", "onnx", "onnxruntime", "onnxscript"}
    doors = {
        "clipmole.evaluation.scorers": {"transformers"},
        "clipmole.inference.graph": graphs,
        "clipmole.inference.quantize": graphs,
        "clipmole.speed.paths": {"transformers"},
        "clipmole.scan.ray_engine": {"ray"},
    }
    allowed = doors.get(name, set())
    assert not {imported.split(".")[0] for imported in imports(MODULES[name])} & (DOORS_ONLY - allowed)


def functions(tree: ast.AST) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """Functions and what their docstrings say, of a constructor that of its class."""
    for node in ast.walk(tree):
        for inner in ast.iter_child_nodes(node):
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                described = node if isinstance(node, ast.ClassDef) and inner.name == "__init__" else inner
                yield inner, ast.get_docstring(described) or ""


def lines_and_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[int, int]:
    """Lines besides the docstring, and parameters besides `self` and `cls`."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        lines -= (function.body[0].end_lineno or 0) - function.body[0].lineno + 1
    given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return lines, sum(argument.arg not in ("self", "cls") for argument in given)


def test_a_function_with_many_lines_or_parameters_says_why() -> None:
    unexplained = []
    for name, path in MODULES.items():
        for function, said in functions(parsed(path)):
            if any("command" in ast.unparse(decorator) for decorator in function.decorator_list):
                continue  # typer makes the command line of its signature
            lines, parameters = lines_and_parameters(function)
            if lines > 60 and "is long because" not in said:
                unexplained.append(f"{name}.{function.name}: {lines} lines")
            if parameters > 8 and "many parameters because" not in said:
                unexplained.append(f"{name}.{function.name}: {parameters} parameters")
    assert not unexplained


def test_tests_stand_where_their_subject_stands_and_touch_nothing_private() -> None:
    folders = {str(path.parent.relative_to(PACKAGE)) for path in MODULES.values()}
    touched = []
    for path in sorted(TESTS.rglob("test_*.py")):
        assert str(path.parent.relative_to(TESTS)) in folders, path
        for node in ast.walk(ast.parse(path.read_text())):
            own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
            name = node.attr if isinstance(node, ast.Attribute) and not own else ""
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("clipmole"):
                name = next((each.name for each in node.names if each.name.startswith("_")), "")
            if name.startswith("_") and not name.startswith("__") and name not in PUBLIC_ALL_THE_SAME:
                touched.append(f"{path}:{node.lineno}: {name}")
    assert not touched


@pytest.mark.parametrize("code", ["import clipmole", "import clipmole.cli", "import clipmole.scan.ray_engine"])
def test_torch_is_not_imported_before_it_is_needed(code: str) -> None:
    probe = f"{code}\nimport sys\nprint('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-P", "-c", probe], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_help_imports_nothing_heavy() -> None:
    probe = (
        "import sys\nfrom clipmole.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'numpy', 'PIL', 'pydantic', 'rich') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-P", "-c", probe], capture_output=True, text=True, check=True)
    assert "detect" in result.stdout
    assert result.stdout.strip().splitlines()[-1] == "[]"


def test_no_file_names_a_path_of_one_machine_or_deserialises_code() -> None:
    for path in MODULES.values():
        text = path.read_text()
        assert "pickle.load" not in text
        assert "weights_only=False" not in text
        for call in [node for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]:
            if ast.unparse(call.func) == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords), path
