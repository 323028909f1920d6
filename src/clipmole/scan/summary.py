"""Rows of a scan -> counts for `scan.json`.

It reads a few columns of the parts, one batch at a time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipmole.records import Verdict
from clipmole.scan.listing import read_rows


@dataclass
class Counts:
    """Rows, and among them: verdicts, errors by their code, copies of others, bytes of all files."""

    rows: int = 0
    duplicates: int = 0
    bytes: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    def facts(self) -> dict[str, Any]:
        """As `scan.json` has them; rates are shares of the images that could be scored."""
        scored = self.rows - self.failed
        verdicts = {verdict.value: self.verdicts[verdict.value] for verdict in Verdict}
        return {
            "counts": {
                "rows": self.rows,
                "scored": scored,
                "duplicates": self.duplicates,
                "bytes": self.bytes,
                "verdicts": verdicts,
                "errors": dict(sorted(self.errors.items())),
            },
            "rates": {
                **{name: round(count / scored, 6) if scored else None for name, count in verdicts.items()},
                "errors": round(self.failed / self.rows, 6) if self.rows else None,
                "duplicates": round(self.duplicates / self.rows, 6) if self.rows else None,
            },
        }


def count_rows(folder: Path) -> Counts:
    """The counts of the parts in a scan's folder."""
    counts = Counts()
    for row in read_rows(folder, columns=["verdict", "error_code", "duplicate_of", "bytes"]):
        counts.rows += 1
        counts.bytes += row["bytes"] or 0
        counts.duplicates += row["duplicate_of"] is not None
        if row["error_code"] is not None:
            counts.errors[row["error_code"]] += 1
        elif row["verdict"] is not None:
            counts.verdicts[row["verdict"]] += 1
    return counts
