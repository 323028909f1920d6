"""What only some systems have stands behind a guard: the package runs where those modules and signals are absent."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import encoded, picture, write_adapter

import clipmole

PACKAGE = Path(clipmole.__file__).parent
UNIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
EVERYWHERE = {"SIGINT", "SIGTERM", "SIGABRT", "SIGFPE", "SIGILL", "SIGSEGV", "SIG_DFL", "SIG_IGN"}
UNIX_FUNCTIONS = {
    "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "chown", "fork", "geteuid", "getgid", "getloadavg", "getpgid", "getuid",
    "killpg", "mkfifo", "nice", "posix_fadvise", "posix_fallocate", "pread", "preadv", "pwrite", "sched_getaffinity",
    "setsid", "statvfs", "sysconf", "uname", "wait4",
}  # fmt: skip
NEEDED_BY_LIBRARIES = {"O_NOFOLLOW", "O_NONBLOCK", "fork", "geteuid", "getuid", "statvfs", "sysconf", "uname"}
# Run before anything else: what Windows lacks is not there for the package, though libraries may use it.
WINDOWS = f"""
import builtins, os, signal, sys
whole = builtins.__import__
def without(name, globals=None, locals=None, fromlist=(), level=0):
    if name in {UNIX_MODULES!r} and str((globals or {{}}).get("__name__", "")).split(".")[0] == "clipmole":
        raise ImportError(f"No module named {{name!r}}")
    return whole(name, globals, locals, fromlist, level)
builtins.__import__ = without
for name in dir(signal):
    if name.startswith("SIG") and name.isupper() and name not in {EVERYWHERE!r} and not name.startswith("SIG_"):
        delattr(signal, name)
for name in {sorted(UNIX_FUNCTIONS - NEEDED_BY_LIBRARIES)!r}:
    if hasattr(os, name):
        delattr(os, name)
"""
MODULES = sorted(PACKAGE.rglob("*.py"))


def guarded(tree: ast.AST, found: ast.AST) -> bool:
    """Whether an import stands in a `try` that catches ImportError."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Try) and any(found is each for body in node.body for each in ast.walk(body)):
            caught = " ".join(ast.unparse(handler.type) for handler in node.handlers if handler.type)
            if "ImportError" in caught:
                return True
    return False


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_what_only_some_systems_have_is_guarded(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not set(names) & UNIX_MODULES or guarded(tree, node), f"line {node.lineno}"  # type: ignore[attr-defined]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner, name = node.value.id, node.attr
            absent = owner == "os" and name in UNIX_FUNCTIONS
            absent |= owner == "signal" and name.startswith("SIG") and name not in EVERYWHERE
            assert not absent or f'hasattr({owner}, "{name}")' in text, f"line {node.lineno}: {owner}.{name}"


def without_unix(code: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", f"{WINDOWS}\n{code}", *arguments]
    return subprocess.run(command, capture_output=True, check=False, **options)  # type: ignore[call-overload, no-any-return]


def test_every_module_can_be_imported_without_what_windows_lacks() -> None:
    names = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in MODULES]
    wanted = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
    result = without_unix(f"import importlib\nfor name in {wanted!r}: importlib.import_module(name)")
    assert result.returncode == 0, result.stderr.decode()


def test_detect_and_scan_run_without_what_windows_lacks(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    adapter, backbone = write_adapter(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(encoded(picture(0)))
    names = ["--detector", str(adapter), "--backbone", str(backbone)]
    main = "import clipmole.cli\nclipmole.cli.main()"
    detected = without_unix(main, "detect", "photos", "--json", *names, cwd=tmp_path)
    assert json.loads(detected.stdout)["source"] == os.path.join("photos", "a.png"), detected.stderr
    scanned = without_unix(main, "scan", "photos", "--out", "out", *names, cwd=tmp_path)
    assert scanned.returncode == 0, scanned.stderr
    assert scanned.stdout.decode().strip() == "out"


def test_the_server_decodes_without_what_windows_lacks() -> None:
    """Its decoding process has no limits of the system there, and answers."""
    code = (
        "from clipmole.serve.decode_worker import allow_time, confine\nconfine(1)\nallow_time(1)\n"
        "from clipmole.serve.server import bind\nbind('127.0.0.1', 0).close()\nprint('fine')"
    )
    assert without_unix(code).stdout == b"fine\n"
