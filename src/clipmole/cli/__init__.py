"""The command line: parse, call, render.

In: arguments. Out: data on stdout, progress and remarks on stderr. It contains no algorithm: every command calls the
library. A command's function has a parameter for each option, because typer builds the command line from its signature.

Exit codes: 0 success; 1 some inputs failed, the others are done; 2 wrong usage, or nothing could start.
torch and everything that needs it is imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

import clipmole
from clipmole.cli.options import app, remark
from clipmole.errors import ClipmoleError, ConfigError
from clipmole.plumbing.telemetry import switch_off
from clipmole.plumbing.text import escaped

# Each registers its commands; --help lists them in this order.
# isort: off
from clipmole.cli import detect as _detect  # noqa: F401
from clipmole.cli import watch as _watch  # noqa: F401
from clipmole.cli import train as _train  # noqa: F401
from clipmole.cli import evaluate as _evaluate  # noqa: F401
from clipmole.cli import separability as _separability  # noqa: F401
from clipmole.cli import reproduce as _reproduce  # noqa: F401
from clipmole.cli import report_miss as _report_miss  # noqa: F401
from clipmole.cli import data as _data  # noqa: F401
from clipmole.cli import hub as _hub  # noqa: F401
from clipmole.cli import export as _export  # noqa: F401
from clipmole.cli import benchmark as _benchmark  # noqa: F401
from clipmole.cli import serve as _serve  # noqa: F401
from clipmole.cli import scan as _scan  # noqa: F401
from clipmole.cli import provenance as _provenance  # noqa: F401
# isort: on


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"clipmole {clipmole.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


class _Output(io.TextIOWrapper):
    """stdout whose errors name it. Characters that its encoding lacks are written as escapes."""

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            error.filename = "standard output"
            raise


def main() -> None:
    """Run the command line. An error of clipmole or of the system becomes one line on stderr and exit code 2."""
    # Pillow warns of odd but readable files; what matters is an ImageError.
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
    switch_off()
    _set_up_streams()
    try:
        try:
            _refuse_empty(sys.argv)
            app()
        finally:
            sys.stdout.flush()  # here an error can be reported in one line; at the end of the process it cannot
            gc.freeze()  # else the end of the process looks through all objects of PyTorch for cycles
    except ClipmoleError as error:
        remark(f"clipmole: {error}")
        sys.exit(2)
    except BrokenPipeError:  # the reader of stdout has seen enough
        _drop_output()
        sys.exit(1)
    except OSError as error:
        _drop_output()
        name = escaped(os.fsdecode(error.filename)) if error.filename else "the system"
        remark(f"clipmole: {name}: {error.strerror or error}")
        sys.exit(2)


def _refuse_empty(argv: Sequence[str]) -> None:
    """Raise `ConfigError` if an argument is empty: as a path it would mean the current folder."""
    for before, argument in itertools.pairwise(argv):
        name = before if not argument else argument[:-1] if re.fullmatch("--[a-z-]+=", argument) else ""
        if name:
            raise ConfigError(f"the argument after {escaped(name)} is empty; is a variable of the shell unset?")


def _set_up_streams() -> None:
    """Give the process a stdout and a stderr that can write any text; if one is closed, its text is discarded."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="backslashreplace")
    old = sys.stdout
    if isinstance(old, io.TextIOWrapper):
        encoding, errors, terminal = old.encoding, old.errors, old.isatty()
        sys.stdout = _Output(old.detach(), encoding, errors, line_buffering=terminal)


def _drop_output() -> None:
    """Discard what still waits to be written to stdout, so that the end of the process does not fail on it."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
