"""Every logit of an evaluation: a table in memory, and a file that survives a kill.

In: logits as they are computed. Out: a `ScoreTable`. It knows nothing of detectors, metrics or reports.

The file holds one JSON object per line: first the settings (conditions, seed), then a line for each image with
its logits by detector, or the reason why it could not be read, a digest of its content, and a checksum. Incomplete
lines do not count, so a run that was killed continues after its last complete line; nor do those of an image whose
content has changed. A detector that is added later gets lines of its own, and an image in several sets is there once.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from clipmole.data.sample import Sample
from clipmole.errors import DataError
from clipmole.plumbing.json_toml import checksum, parse_json

Logits = dict[str, list[float]]  # identity of a detector -> logits, one for each condition


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
    """The scores of one evaluation in a file, which can be continued.

    Args:
        path: of the file; it is created if it is not there.
        what: the settings of the evaluation, as JSON, with the list of `conditions`: a file with other settings
            is refused.
        contents: path of an image -> what tells its content from any other; lines of other contents do not count.

    Attributes:
        changed: paths of images with such lines.
        done: path of an image -> its logits so far, or the reason why there are none.
    """

    def __init__(self, path: Path, what: Mapping[str, Any], contents: Mapping[str, str] | None = None) -> None:
        self.path, self.contents = path, contents or {}
        self.changed: set[str] = set()
        self.done: dict[str, Logits | str] = {}
        self._conditions = len(what["conditions"])
        head = json.dumps(what, sort_keys=True)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file():
                raise DataError(f"{path}: is not a regular file; name another --out")
            whole = self._read(head) if path.exists() else 0
            self._file = path.open("ab")
            self._file.truncate(whole)
            if not whole:
                self._append([head])
        except OSError as error:
            raise DataError(
                f"{path}: cannot be written: {error.strerror}; name another folder or free some space"
            ) from error

    def _read(self, head: str) -> int:
        """Read the complete lines; returns their size in bytes."""
        whole = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    if number == 0 and not head.encode().startswith(line):
                        raise DataError(f"{self.path}: holds something other than scores; name another --out")
                    break  # cut off by a kill or a full disk
                try:
                    row = parse_json(line)
                    if number == 0 and json.dumps(row, sort_keys=True) != head:
                        raise DataError(
                            f"{self.path}: holds the scores of another evaluation (other conditions or seed); name "
                            "another --out, or delete it"
                        )
                    if number:
                        path, result = self._checked(row)
                        if "content" in row and row["content"] != self.contents.get(path, row["content"]):
                            self.changed.add(path)  # older files name no contents
                        else:
                            self._take(path, result)
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                    raise DataError(
                        f"{self.path}, line {number + 1}: is damaged; delete the file to start over"
                    ) from error
                whole += len(line)
        return whole

    def _checked(self, row: Any) -> tuple[str, Logits | str]:
        """Path and result of a row. Raises `ValueError`, `KeyError` or `TypeError` if its form is wrong."""
        if row.get("crc32", checksum(row)) != checksum(row):  # older files have none
            raise ValueError
        path, result = row["path"], row["error"] if "error" in row else row["logits"]
        if isinstance(path, str) and isinstance(result, str):
            return path, result
        logits = {key: [float(value) for value in values] for key, values in result.items()}
        whole = all(isinstance(values, list) and len(values) == self._conditions for values in result.values())
        if not isinstance(path, str) or not whole or not all(map(math.isfinite, chain(*logits.values()))):
            raise ValueError
        return path, logits

    def _take(self, path: str, result: Logits | str) -> None:
        before = self.done.get(path)
        self.done[path] = before | result if isinstance(before, dict) and isinstance(result, dict) else result

    def lacking(self, path: str, detectors: Iterable[str]) -> list[str]:
        """Those of the detectors that have no logits of an image; none of them if it could not be read."""
        found = self.done.get(path, {})
        return [] if isinstance(found, str) else [detector for detector in detectors if detector not in found]

    def append(self, rows: Iterable[tuple[str, Logits | str]]) -> None:
        """Write rows, each an image's path and its result, and return when they are on the disk."""
        lines = []
        for path, result in rows:
            self._take(path, result)
            value = {"error": result} if isinstance(result, str) else {"logits": result}
            row = {"path": path} | ({"content": self.contents[path]} if path in self.contents else {}) | value
            lines.append(json.dumps(row | {"crc32": checksum(row)}))
        try:
            self._append(lines)
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be written: {error.strerror}; the rest is kept: free some space and run it again"
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
        self, sets: Mapping[str, Sequence[Sample]], detectors: Mapping[str, str], conditions: Sequence[str]
    ) -> tuple[ScoreTable, dict[str, str]]:
        """The scores of `sets` in their order, and path -> reason for the images that could not be read.

        Args:
            detectors: name in the table -> identity in the file.
        """
        samples: list[Sample] = []
        names: list[str] = []
        logits: list[list[list[float]]] = []
        failed: dict[str, str] = {}
        for name, members in sets.items():
            for sample in members:
                result = self.done[str(sample.path)]
                if isinstance(result, str):
                    failed[str(sample.path)] = result
                    continue
                samples.append(sample)
                names.append(name)
                logits.append([result[key] for key in detectors.values()])
        values = np.array(logits, dtype=np.float64).reshape(len(samples), len(detectors), len(conditions))
        table = ScoreTable(
            tuple(samples),
            np.array(names, dtype=np.str_),
            tuple(detectors),
            tuple(conditions),
            values.transpose(1, 2, 0),
        )
        return table, failed
