"""The command line: parse, call, render. Data go to stdout, progress and remarks to stderr.

Exit codes: 0 fine, 1 some inputs failed (the others are done), 2 wrong usage or nothing could start.
torch and everything that needs it is imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated

import typer

import clipmole
from clipmole.cli.options import app, remark
from clipmole.errors import ClipmoleError

# Each registers its commands; --help lists them in this order.
# isort: off
from clipmole.cli import detect as _detect  # noqa: F401
from clipmole.cli import train as _train  # noqa: F401
from clipmole.cli import evaluate as _evaluate  # noqa: F401
from clipmole.cli import data as _data  # noqa: F401
from clipmole.cli import hub as _hub  # noqa: F401
from clipmole.cli import export as _export  # noqa: F401
from clipmole.cli import benchmark as _benchmark  # noqa: F401
from clipmole.cli import serve as _serve  # noqa: F401
from clipmole.cli import scan as _scan  # noqa: F401
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


def main() -> None:
    """Run the command line; an error of clipmole's is one line on stderr and exit code 2."""
    # Pillow remarks on odd but readable files; what matters is an ImageError.
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
    try:
        app()
    except ClipmoleError as error:
        remark(f"clipmole: {error}")
        sys.exit(2)
    except BrokenPipeError:  # the reader of stdout has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
