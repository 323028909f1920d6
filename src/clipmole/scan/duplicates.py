"""Digests that were seen -> the image that is scored for all with the same bytes.

In: digests with the source that asks. Out: whether to score it, and afterwards its result. Kept in a temporary
database on the disk (in the folder that SQLITE_TMPDIR names, else /var/tmp or /tmp), which is gone with the process:
about 200 bytes per distinct image there, and at most 16 MiB in memory. Safe from many threads. It knows nothing of
engines or files.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from clipmole.scan.rows import RESULT, Row

COLUMNS = ", ".join(RESULT)


class Claims(Protocol):
    """Decides which source is scored for given bytes, and keeps the result: `LocalClaims`, here or in another
    process."""

    def claim(self, asked: Sequence[tuple[str, str]]) -> list[str | None]: ...
    def put(self, rows: Sequence[Row]) -> None: ...
    def fill(self, rows: Sequence[Row]) -> list[Row]: ...


class LocalClaims:
    """The first image of each content."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.base = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self.base.execute("PRAGMA journal_mode = OFF")
        self.base.execute("PRAGMA synchronous = OFF")
        self.base.execute("PRAGMA cache_size = -16384")
        self.base.execute(
            f"CREATE TABLE contents (digest BLOB PRIMARY KEY, source TEXT, known INTEGER, {COLUMNS}) WITHOUT ROWID"
        )

    def claim(self, asked: Sequence[tuple[str, str]]) -> list[str | None]:
        """For each (sha256, source): None if it should be scored, else the source that is scored for it.

        If the same source asks again, the result is the same, since a worker that died is replaced by one that asks
        again.
        """
        owners: list[str | None] = []
        with self.lock:
            self.base.execute("BEGIN")  # SQLite counts its changed pages at each end of one
            for sha256, source in asked:
                digest = bytes.fromhex(sha256)
                self.base.execute(
                    "INSERT OR IGNORE INTO contents (digest, source, known) VALUES (?, ?, 0)", (digest, source)
                )
                (owner,) = self.base.execute("SELECT source FROM contents WHERE digest = ?", (digest,)).fetchone()
                owners.append(None if owner == source else owner)
            self.base.execute("COMMIT")
        return owners

    def put(self, rows: Sequence[Row]) -> None:
        """Keep the results of images, or of copies of them."""
        values = [
            (bytes.fromhex(row.sha256), row.duplicate_of or row.source, *(getattr(row, name) for name in RESULT))
            for row in rows
            if row.sha256 is not None
        ]
        marks = ", ".join("?" * len(RESULT))
        with self.lock:
            self.base.execute("BEGIN")
            self.base.executemany(f"INSERT OR REPLACE INTO contents VALUES (?, ?, 1, {marks})", values)
            self.base.execute("COMMIT")

    def fill(self, rows: Sequence[Row]) -> list[Row]:
        """The rows; those of copies with the result of the first, if that is known by now."""
        filled = []
        with self.lock:
            for row in rows:
                found = None
                if row.duplicate_of is not None and not is_filled(row):
                    query = f"SELECT {COLUMNS} FROM contents WHERE digest = ? AND known"
                    found = self.base.execute(query, (bytes.fromhex(row.sha256 or ""),)).fetchone()
                filled.append(replace(row, **dict(zip(RESULT, found, strict=True))) if found else row)
        return filled


def is_filled(row: Row) -> bool:
    """Whether a row has its result."""
    return row.logit is not None or row.error_code is not None
