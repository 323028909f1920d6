"""The rows of a scan, one for each image, and their columns in Parquet.

It knows nothing of how rows are made.
"""

from __future__ import annotations

import builtins
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from clipmole.errors import ImageError, MissingDependency
from clipmole.records import Detection

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Row:
    """One image.

    Attributes:
        source: its path or address; for an image in a shard or a table, the container's, with its name or row below it.
            No two rows of a scan have the same.
        container: the shard, table or data set that it lies in; None: it is a file of its own.
        member: its name or row number there.
        sha256: of its bytes, hexadecimal; None if they could not be read.
        logit, probability, verdict, tiles, width, height: as in `Detection`; None where there is an error.
        bytes: of the file.
        format: "JPEG", "PNG", ...; None if it is none that can be read.
        error_code, error: a stable code and why it could not be scored; None if it was.
        detector: name and digest.
        time: when it was scored, UTC.
        duplicate_of: source of the row with the same bytes that was scored for both; None: this one was.
        phash, thumbnail: perceptual hash, 16 hexadecimal digits, and 16 x 16 grey pixels; None unless asked for.
        coverage, reason: as in `Detection`.
    """

    source: str
    container: str | None
    member: str | None
    sha256: str | None
    logit: float | None
    probability: float | None
    verdict: str | None
    tiles: int | None
    width: int | None
    height: int | None
    bytes: int | None
    format: str | None
    error_code: str | None
    error: str | None
    detector: str
    time: datetime
    duplicate_of: str | None = None
    phash: str | None = None
    thumbnail: builtins.bytes | None = None
    coverage: float | None = None
    reason: str | None = None


RESULT = (
    "logit", "probability", "verdict", "tiles", "width", "height", "format", "error_code", "error",
    "phash", "thumbnail", "coverage", "reason",
)  # fmt: skip
"""The fields that copies of an image share."""


def scored(row: Row, result: Detection | ImageError) -> Row:
    """The row with the detector's result."""
    now = datetime.now(UTC).replace(microsecond=0)
    if isinstance(result, ImageError):
        return replace(row, error_code=result.code, error=in_utf8(result.reason), time=now)
    return replace(
        row,
        logit=result.logit,
        probability=result.probability,
        verdict=None if result.verdict is None else result.verdict.value,
        tiles=result.tiles,
        width=result.width,
        height=result.height,
        coverage=result.coverage,
        reason=result.reason,
        time=now,
    )


def in_utf8(text: str) -> str:
    """`text` with bytes of a file's name that are not UTF-8 written out, as \\udcff."""
    return text.encode("utf-8", "backslashreplace").decode()


def out_of_utf8(text: str) -> str:
    """What `in_utf8` was given. A name that spells such an escape itself is taken for one with that byte."""
    return re.sub(r"\\udc([89a-f][0-9a-f])", lambda match: chr(0xDC00 + int(match[1], 16)), text)


def schema() -> pa.Schema:
    """Columns of the data set. Raises `MissingDependency` without pyarrow."""
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingDependency("pyarrow", "scan") from error
    text, whole, real = pa.string(), pa.int32(), pa.float64()
    kinds = {
        "source": text, "container": text, "member": text, "sha256": text, "logit": real, "probability": real,
        "verdict": text, "tiles": whole, "width": whole, "height": whole, "bytes": pa.int64(), "format": text,
        "error_code": text, "error": text, "detector": text, "time": pa.timestamp("ms", "UTC"), "duplicate_of": text,
        "phash": text, "thumbnail": pa.binary(), "coverage": real, "reason": text,
    }  # fmt: skip
    return pa.schema(
        [pa.field(name, kind, nullable=name not in ("source", "detector", "time")) for name, kind in kinds.items()]
    )


def to_table(rows: list[Row]) -> pa.Table:
    """A table of rows."""
    import pyarrow as pa

    columns = schema()
    return pa.table({name: [getattr(row, name) for row in rows] for name in columns.names}, columns)


def from_table(table: pa.Table) -> list[Row]:
    """The rows of a table."""
    values: list[dict[str, Any]] = table.to_pylist()
    return [Row(**value) for value in values]
