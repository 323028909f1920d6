"""The settings of a scan that select images, and that must not change between its runs.

In: keyword arguments of the command. Out: a frozen model, and filters of rows. It opens nothing.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from clipmole.config import Config
from clipmole.errors import ConfigError
from clipmole.scan.rows import schema

if TYPE_CHECKING:
    import pyarrow.compute as pc

WHERE = re.compile(r"(\w+)\s*(!=|<=|>=|=|<|>)\s*(.*)", re.DOTALL)


class ScanSettings(Config):
    """Which images to scan, in parts of which size. A scan can be continued only with the same settings.

    Attributes:
        sources: files, folders, patterns, shards, tables, addresses, `hf:` data sets, folders of earlier scans.
        list_file: a file with one such source per line; None: none. Here its content is what counts: `list_sha256`.
        where: of an earlier scan, only the rows that meet all of these, such as "verdict=uncertain,ai_generated" or
            "probability>0.9".
        since: only files that were changed then or later, UTC; for shards and tables, the time of those files counts.
        limit: only the first `limit` images; None: all.
        sample: share of the images, drawn by their source and `seed`; None: all.
        part_rows: rows in a part, at most; a kill costs no more than these.
        look_alikes: keep a perceptual hash and a thumbnail, for `clipmole scan groups`.
    """

    sources: tuple[str, ...] = ()
    list_file: str | None = None
    list_sha256: str | None = None
    where: tuple[str, ...] = ()
    since: datetime | None = None
    limit: int | None = Field(None, gt=0)
    sample: float | None = Field(None, gt=0, lt=1)
    seed: int = Field(0, ge=0)
    part_rows: int = Field(1000, gt=0)
    look_alikes: bool = False

    @field_validator("since")
    @classmethod
    def _in_utc(cls, value: datetime | None) -> datetime | None:
        """A time without a zone is the local one."""
        return None if value is None else value.astimezone(UTC)

    def draws(self, source: str) -> bool:
        """Whether an image is in the sample; it depends on its source and the seed alone."""
        if self.sample is None:
            return True
        digest = hashlib.sha256(f"{self.seed}\0{source}".encode(errors="surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") < self.sample * 2**64


def row_filter(conditions: tuple[str, ...]) -> pc.Expression | None:
    """Conditions on rows, all of which must hold, as pyarrow takes them; None: there are none.

    `=` and `!=` take several values separated by commas, and nothing for a column without a value.

    Raises `ConfigError` naming a condition, a column or a value that is wrong.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = schema()
    whole: pc.Expression | None = None
    for condition in conditions:
        match = WHERE.fullmatch(condition.strip())
        if not match or match[1] not in columns.names:
            raise ConfigError(
                f"--where {condition}: give COLUMN=VALUE, !=, <, <=, > or >=, with one of the columns "
                f"{', '.join(columns.names)}"
            )
        name, sign, text = match.groups()
        column, kind = pc.field(name), columns.field(name).type
        given = text.split(",") if sign in ("=", "!=") else [text]
        try:
            values = [pa.scalar(each.strip()).cast(kind) for each in given if each.strip()]
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ConfigError(f"--where {condition}: {text!r} is no value of {name}, which is {kind}") from error
        expression = _compared(column, sign, values)
        whole = expression if whole is None else whole & expression
    return whole


def _compared(column: Any, sign: str, values: list[Any]) -> Any:
    if sign in ("=", "!="):
        import pyarrow as pa

        same = column.is_null() if not values else column.isin(pa.array([v.as_py() for v in values], values[0].type))
        return ~same if sign == "!=" else same
    if not values:
        raise ConfigError(f"--where: {sign} needs a value")
    return {"<": column < values[0], "<=": column <= values[0], ">": column > values[0], ">=": column >= values[0]}[
        sign
    ]
