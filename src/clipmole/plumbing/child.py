"""Python processes that the package starts for itself.

In: a module of the package. Out: the command that runs it, and the last line of a process that failed. It knows
nothing of what the module does.
"""

from __future__ import annotations

import sys


def module_command(module: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs a module of the package in another process.

    `-P` keeps the current folder off `sys.path`: `python -m` would put it first, and a file such as `numpy.py` in
    somebody's download folder would be executed.

    Args:
        module: its dotted name.
        arguments: of the module, as `sys.argv[1:]`.
    """
    return (sys.executable, "-P", "-m", module, *arguments)


def last_line(text: str, otherwise: str) -> str:
    """The last line that is not blank of what a process wrote to stderr; in a traceback, it is the error itself."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else otherwise
