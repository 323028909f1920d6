"""A table (a Parquet file), local or remote -> its columns and rows, a few rows at a time.

Bytes and text are given as such however Arrow lays them out: large, as views, of fixed size, as dictionaries.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from clipmole.data.containers.filesystems import open_location, read_location, reading
from clipmole.errors import DataError, ImageError, ImageNotRead, ImageUnreadable, MissingDependency
from clipmole.plumbing.text import first_line

TABLE = re.compile(r"\.parquet$", re.IGNORECASE)
IMAGE_COLUMNS = ("image", "bytes", "img", "jpg", "png")
PATH_COLUMNS = ("path", "file", "filename", "url")
HELD_ROWS = 16  # of images at a time


@contextmanager
def open_table(location: str) -> Iterator[Any]:
    """An open `pyarrow.parquet.ParquetFile`.

    Raises `ImageUnreadable` where it is damaged or no Parquet file, now or while it is read, and else as
    `reading` does; `MissingDependency` without pyarrow.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingDependency("pyarrow", "data") from error
    with reading(location, "Parquet file", (ArrowException, EOFError)), open_location(location) as file:
        yield parquet.ParquetFile(file, page_checksum_verification=True)


def table_columns(location: str) -> tuple[str | None, str | None, int]:
    """Columns of a table that hold images and their paths, None where there is none; and its rows.

    Raises as `open_table` does, and `DataError` if there is neither.
    """
    import pyarrow as pa

    with open_table(location) as table:
        fields = table.schema_arrow
        held = [
            f.name for f in fields if _holds_bytes(f.type) and (f.name in IMAGE_COLUMNS or pa.types.is_struct(f.type))
        ]
        paths = [name for name in PATH_COLUMNS if name in fields.names and _is_text(fields.field(name).type)]
        if not held and not paths:
            raise DataError(
                f"{location}: no column of images ({', '.join(IMAGE_COLUMNS)}: bytes, or a struct with bytes) or of "
                f"paths ({', '.join(PATH_COLUMNS)}) among {', '.join(fields.names)}"
            )
        return (held[0] if held else None), (paths[0] if paths else None), table.metadata.num_rows


def _is_text(kind: Any) -> bool:
    import pyarrow.types as of

    kind = kind.value_type if of.is_dictionary(kind) else kind
    return bool(of.is_string(kind) or of.is_large_string(kind) or of.is_string_view(kind))


def _holds_bytes(kind: Any) -> bool:
    import pyarrow.types as of

    if of.is_struct(kind):
        return "bytes" in [field.name for field in kind] and _holds_bytes(kind.field("bytes").type)
    kind = kind.value_type if of.is_dictionary(kind) else kind
    return any(
        is_kind(kind) for is_kind in (of.is_binary, of.is_large_binary, of.is_binary_view, of.is_fixed_size_binary)
    )


def table_rows(location: str, columns: Sequence[str], held: int = HELD_ROWS) -> Iterator[dict[str, Any]]:
    """The rows of a table with those of `columns` that it has, in their order.

    Args:
        held: rows in memory at a time.

    Raises as `open_table` does, after the last whole run of `held` rows.
    """
    with open_table(location) as table:
        there = [column for column in columns if column in table.schema_arrow.names]
        count = 0
        for batch in table.iter_batches(batch_size=held, columns=there):
            count += len(batch)
            yield from batch.to_pylist()
        if count < table.metadata.num_rows:
            raise EOFError(f"it ends after {count:,} of {table.metadata.num_rows:,} rows")


def image_bytes(value: Any, source: str) -> bytes:
    """Bytes of an image in a row: given as such, or in a struct of bytes and path as Hugging Face writes it.

    Raises `ImageUnreadable` if there are none, `ImageNotRead` if they cannot be read from the path; both of `source`.
    """
    path = None
    if isinstance(value, dict):
        value, path = value.get("bytes"), value.get("path")
    if isinstance(value, bytes):
        return value
    if not path:
        raise ImageUnreadable(source, "holds no bytes of an image file")
    try:
        return read_location(str(path))
    except ImageError as error:
        raise ImageNotRead(source, f"{path} cannot be read: {error.reason}") from error
    except Exception as error:  # a protocol that is not known
        raise ImageNotRead(source, f"{path} cannot be read: {first_line(error)}") from error
