"""Rows -> Parquet files in a scan's folder, each there whole or not at all.

In: rows of a chunk, in their order. Out: `parts/part-0000012-000-end.parquet`: of chunk 12 the first part, which is
its last. The names hold everything that a restart needs. Whatever happens while a part is written, the others stay
valid.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clipmole.errors import DataError
from clipmole.plumbing.files import remove_scratch, whole_file
from clipmole.plumbing.locks import locked_by
from clipmole.scan.listing import GO_ON, PARTS, part_cure, reading_parquet
from clipmole.scan.rows import Row, from_table, to_table

if TYPE_CHECKING:
    import pyarrow as pa

PART = re.compile(r"part-(\d+)-(\d+)(-end)?\.parquet")


@dataclass(frozen=True)
class ChunkProgress:
    """The progress of a chunk: its parts, their rows, and whether that is all."""

    parts: int = 0
    rows: int = 0
    ended: bool = False


class Parts:
    """The parts in a scan's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts_folder = folder / PARTS

    def paths(self) -> list[Path]:
        """All parts, in the order of their chunks and numbers."""
        named = ((path, PART.fullmatch(path.name)) for path in self.parts_folder.glob("part-*.parquet"))
        return [path for *_, path in sorted((int(match[1]), int(match[2]), path) for path, match in named if match)]

    def done(self) -> dict[int, ChunkProgress]:
        """Chunk -> its progress, for chunks with a part. Raises `DataError` if a part is missing before another one."""
        from pyarrow import parquet

        found: dict[int, ChunkProgress] = {}
        for path in self.paths():
            match = PART.fullmatch(path.name)
            assert match
            chunk, ended = int(match[1]), match[3] is not None
            before = found.get(chunk, ChunkProgress())
            if int(match[2]) != before.parts:
                raise DataError(f"{path}: the part before it is missing; {part_cure(path)}")
            with reading_parquet(path, part_cure(path)):
                rows = before.rows + parquet.read_metadata(path).num_rows
            found[chunk] = ChunkProgress(before.parts + 1, rows, before.ended or ended)
        return found

    def rows(self) -> Iterator[list[Row]]:
        """Rows of each part."""
        from pyarrow import parquet

        for path in self.paths():
            with reading_parquet(path, part_cure(path)):
                rows = from_table(parquet.read_table(path))
            yield rows

    def write(self, chunk: int, part: int, rows: list[Row], ended: bool) -> None:
        """Write a part, unless it is there. Raises `DataError` if it cannot be written."""
        name = f"part-{chunk:07d}-{part:03d}{'-end' if ended else ''}.parquet"
        write_parquet(to_table(rows), self.parts_folder / name)


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a whole file or none; it is on the disk when this returns. Raises `DataError` if it cannot be written."""
    from pyarrow import BufferOutputStream, parquet

    memory = BufferOutputStream()
    parquet.write_table(table, memory, compression="zstd")
    with writing(path.parent), whole_file(path) as file:
        file.write(memory.getvalue())


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a full disk into one clear line."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written: {error.strerror or error}; what is there is complete: free space and {GO_ON}"
        ) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a scan's folder against a second scan, until the process ends; remove the leftovers of a kill."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked_by(folder / ".lock", wait=False))
        except TimeoutError as error:
            raise DataError(f"{folder}: another scan is writing here; wait for it, or name another --out") from error
        remove_scratch(folder / PARTS)
        yield
