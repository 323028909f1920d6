"""Scalars of a training run for TensorBoard.

In: numbers by name, and the step they belong to. Out: event files in a folder. A disk that is full ends the log, not
the run. It knows nothing of networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from clipmole.errors import MissingDependency


class ScalarLog:
    """Writes scalars into `folder`, None: nowhere.

    Args:
        step: values that an earlier, killed run wrote from this step on are left out of the curves.
        say: gets one line if the log cannot be written.

    Raises `MissingDependency` without tensorboard.
    """

    def __init__(self, folder: Path | None, step: int, say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependency("tensorboard", "train") from error
        try:
            self._writer = SummaryWriter(str(folder), purge_step=step, flush_secs=30)
        except (OSError, UnicodeError) as error:
            self._end(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            try:
                self._writer.close()
            except (OSError, RuntimeError) as failure:
                self._end(failure)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add values by their names, such as "loss/train"."""
        if self._folder is None:
            return
        try:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        except (OSError, RuntimeError) as error:
            self._end(error)

    def _end(self, error: Exception) -> None:
        self._say(f"{self._folder}: TensorBoard's log cannot be written and ends here: {error}")
        self._folder = None
