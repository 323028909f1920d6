"""How long work reports its progress: a function that it passes its items through, and one that gets its remarks.

It knows nothing of terminals; the command line gives one that draws a bar.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Track = Callable[[Iterable[Any], str, int | None], Iterable[Any]]
"""(items, description, how many there are, None: not known) -> the same items."""

Say = Callable[[str], None]
"""Gets a line for a person."""


def untracked(items: Iterable[Any], _description: str, _total: int | None) -> Iterable[Any]:
    """No progress bar."""
    return items


def silent(_line: str) -> None:
    """No remarks."""
