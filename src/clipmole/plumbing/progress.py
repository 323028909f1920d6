"""How long-running work reports to the user, and learns that it should stop: progress, remarks, a request to stop.

In: items that pass through, lines of text. Out: the same items. One object carries all three through the calls. It
knows nothing of terminals; the command line passes an object that draws a bar or prints lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Track = Callable[[Iterable[Any], str, int | None], Iterable[Any]]
"""(items, description, how many there are or None if unknown) -> the same items."""

Say = Callable[[str], None]
"""Shows a line to the user."""


def untracked(items: Iterable[Any], _description: str, _total: int | None) -> Iterable[Any]:
    """No progress bar."""
    return items


def silent(_line: str) -> None:
    """No remarks."""


def never() -> bool:
    """Nobody asks to stop."""
    return False


@dataclass(frozen=True)
class ProgressReporter:
    """Takes the reports of long-running work; the default is silent and never asks to stop.

    Attributes:
        track: passes items on and shows how many have passed, such as a progress bar: see `Track`. Once somebody has
            asked to stop, it may raise `Stopped` instead of giving a further item.
        say: shows a line of text to the user.
        stopping: whether somebody has asked to stop. Work that can be continued asks this between two steps, saves
            what it has done, and raises `Stopped`.
    """

    track: Track = untracked
    say: Say = silent
    stopping: Callable[[], bool] = never


SILENT = ProgressReporter()


def duration(seconds: float) -> str:
    """A length of time for people: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
