"""Every logit of an evaluation: a table in memory, and a file that survives a kill.

In: logits as they are made. Out: a `ScoreTable`. It knows nothing of detectors, figures or reports.

The file holds one JSON object a line: first what was evaluated (detectors, conditions, seed), then one image a
line with its logits, or the reason why it could not be read. A line is whole or it does not count, so a run
that was killed goes on after its last whole line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from clipmole.errors import DataError
from clipmole.records import Sample

Key = tuple[str, str]  # name of the set, path of the image


@dataclass(frozen=True)
class ScoreTable:
    """Every logit of an evaluation.

    Attributes:
        samples: the n images that could be read.
        sets: (n,) name of the set each belongs to.
        detectors, conditions: names, in the order of the axes.
        logits: (detectors, conditions, n) float64, positive towards AI-generated.
    """

    samples: tuple[Sample, ...]
    sets: NDArray[np.str_]
    detectors: tuple[str, ...]
    conditions: tuple[str, ...]
    logits: NDArray[np.float64]


class ScoreFile:
    """The scores of one evaluation in a file, appended to and read again.

    Args:
        path: of the file; it is made if it is not there.
        what: what was evaluated, as JSON: a file that was begun for something else is refused.

    Attributes:
        done: (set, path) -> logits (detectors x conditions), or the reason why there are none.
    """

    def __init__(self, path: Path, what: Mapping[str, Any]) -> None:
        self.path = path
        self.done: dict[Key, list[list[float]] | str] = {}
        head = json.dumps(what, sort_keys=True)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = self._read(head) if path.exists() else 0
            self._file = path.open("ab")
            self._file.truncate(whole)
            if not whole:
                self._append([head])
        except OSError as error:
            raise DataError(f"{path}: cannot be written: {error.strerror}; name another place or free space") from error

    def _read(self, head: str) -> int:
        """Take in the whole lines; returns how many bytes they are."""
        whole = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    break  # cut off by a kill or a full disk
                try:
                    row = json.loads(line)
                    if number == 0 and json.dumps(row, sort_keys=True) != head:
                        raise DataError(
                            f"{self.path}: holds the scores of another evaluation (other detectors, conditions, seed "
                            "or data); name another --out, or delete it"
                        )
                    if number:
                        self.done[row["set"], row["path"]] = row["error"] if "error" in row else row["logits"]
                except (ValueError, KeyError, TypeError) as error:
                    raise DataError(
                        f"{self.path}, line {number + 1}: is damaged; delete the file to begin anew"
                    ) from error
                whole += len(line)
        return whole

    def append(self, rows: Iterable[tuple[Key, list[list[float]] | str]]) -> None:
        """Write rows, and have them on the disk before it returns."""
        lines = []
        for (name, path), result in rows:
            self.done[name, path] = result
            value = {"error": result} if isinstance(result, str) else {"logits": result}
            lines.append(json.dumps({"set": name, "path": path} | value))
        try:
            self._append(lines)
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be written: {error.strerror}; what is written stays: free space and run it again"
            ) from error

    def _append(self, lines: Sequence[str]) -> None:
        self._file.write("".join(line + "\n" for line in lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def table(
        self, sets: Mapping[str, Sequence[Sample]], detectors: Sequence[str], conditions: Sequence[str]
    ) -> tuple[ScoreTable, dict[str, str]]:
        """The scores of `sets` in their order, and path -> reason for the images that could not be read."""
        samples: list[Sample] = []
        names: list[str] = []
        logits: list[list[list[float]]] = []
        failed: dict[str, str] = {}
        for name, members in sets.items():
            for sample in members:
                result = self.done[name, str(sample.path)]
                if isinstance(result, str):
                    failed[str(sample.path)] = result
                    continue
                samples.append(sample)
                names.append(name)
                logits.append(result)
        values = np.array(logits, dtype=np.float64).reshape(len(samples), len(detectors), len(conditions))
        table = ScoreTable(
            tuple(samples),
            np.array(names, dtype=np.str_),
            tuple(detectors),
            tuple(conditions),
            values.transpose(1, 2, 0),
        )
        return table, failed
