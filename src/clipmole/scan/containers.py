"""A unit of a listing (a file, a shard, a table, rows of a data set) -> its images.

In: a `Unit`. Out: `Entry`s in an order that is always the same. Shards are read once from begin to end, compressed or
not, near or far; of tables a few rows are held at a time. A container that is damaged ends in one entry that says so.
It knows nothing of detectors.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode

from clipmole.data.containers.filesystems import open_place, reading, too_large
from clipmole.data.containers.tar import TAR, tar_members
from clipmole.data.huggingface import PREFIX, image_column, load_splits, read_query
from clipmole.errors import (
    ClipmoleError,
    DataError,
    ImageError,
    ImageNotFound,
    ImageNotRead,
    ImageUnreadable,
    MissingDependency,
)
from clipmole.images.formats import has_image_extension
from clipmole.images.loading import DEFAULT_LIMITS
from clipmole.plumbing.progress import silent
from clipmole.plumbing.text import first_line
from clipmole.scan.settings import ScanSettings

TABLE = re.compile(r"\.parquet$", re.IGNORECASE)
IMAGE_COLUMNS = ("image", "bytes", "img", "jpg", "png")
PATH_COLUMNS = ("path", "file", "filename", "url")
HELD_ROWS = 16  # of a table at a time


@dataclass(frozen=True)
class Unit:
    """Something that holds one image or many.

    Attributes:
        kind: "file" is an image; "tar"; "table": a Parquet file with images in it; "rows": of a Hugging Face data set.
        place: path, address, or hf:name?split=...
        size: bytes, if it is known.
        only: names or row numbers to take, in the container's order; None: all.
        first, last: number of the first row to take and of the one after the last, of "rows"; None: from the
            beginning, to the end.
        take: how many images to take; None: all.
    """

    kind: Literal["file", "tar", "table", "rows"]
    place: str
    size: int | None = None
    only: tuple[str, ...] | None = None
    first: int | None = None
    last: int | None = None
    take: int | None = None

    @classmethod
    def of_container(cls, place: str, only: tuple[str, ...]) -> Unit:
        """Images of a container by their names or row numbers."""
        if place.startswith(PREFIX):
            return cls("rows", place, only=only)
        return cls("tar" if TAR.search(place) else "table", place, only=only)


@dataclass(slots=True)
class Entry:
    """One image to be: its bytes if they are there already, or what went wrong; None: they are in the file `source`."""

    source: str
    container: str | None = None
    member: str | None = None
    size: int | None = None
    data: bytes | ImageError | None = None


def entries(unit: Unit, settings: ScanSettings) -> Iterator[Entry]:
    """The images of a unit that the settings draw, in its order, at most `unit.take`; no two of one source."""
    if unit.kind == "file":
        return iter([Entry(unit.place, size=unit.size)])  # it was drawn when it was listed
    found = {"tar": _tar, "table": _table, "rows": _rows}[unit.kind](unit, settings)
    return islice(_to_its_end(unit, found, settings), unit.take)


def _to_its_end(unit: Unit, found: Iterator[Entry], settings: ScanSettings) -> Iterator[Entry]:
    """The entries; where the container breaks off, or named members are not in it any more, also what says so."""
    left = dict.fromkeys(unit.only or ())
    error: ImageError = ImageNotFound(unit.place, "is not in it any more")
    try:
        for entry in found:
            left.pop(entry.member or "", None)
            yield entry
    except ImageError as problem:
        error = problem
        if unit.only is None:
            yield Entry(unit.place, unit.place, None, unit.size, error)
    for member in left:
        source = _source(unit, member)
        if settings.draws(source):
            yield Entry(source, unit.place, member, None, type(error)(source, error.reason))


def _source(unit: Unit, member: str | int) -> str:
    """What an image in a container is called: by its name, or the number of its row."""
    return f"{unit.place}/{member}" if unit.kind == "tar" else f"{unit.place}/row {member}"


def _tar(unit: Unit, settings: ScanSettings) -> Iterator[Entry]:
    """The images of a tar. A name that comes again is `name#2`, `name#3`: no image ends so otherwise."""
    wanted = None if unit.only is None else set(unit.only)
    times: Counter[str] = Counter()
    for member, read in tar_members(unit.place):
        if not has_image_extension(member.name):
            continue
        times[member.name] += 1
        name = member.name if times[member.name] == 1 else f"{member.name}#{times[member.name]}"
        source = _source(unit, name)
        if (wanted and name not in wanted) or not settings.draws(source):
            continue
        large = member.size > DEFAULT_LIMITS.max_bytes
        yield Entry(source, unit.place, name, member.size, too_large(source, member.size) if large else read())


def count_members(path: str) -> int | None:
    """Images in a local tar that is not compressed, by its headers alone; None: not known, for it is damaged."""
    if path.lower().endswith(".tar"):
        with contextlib.suppress(ImageError):
            return sum(has_image_extension(member.name) for member, _ in tar_members(path))
    return None


def table_columns(place: str) -> tuple[str | None, str | None, int]:
    """Columns of a Parquet file that hold images and their paths, None where there is none; and its rows.

    Raises `DataError` if it is no Parquet file or has neither.
    """
    import pyarrow as pa

    with _parquet(place) as table:
        fields = table.schema_arrow
        held = [
            f.name for f in fields if _holds_bytes(f.type) and (f.name in IMAGE_COLUMNS or pa.types.is_struct(f.type))
        ]
        paths = [name for name in PATH_COLUMNS if name in fields.names and pa.types.is_string(fields.field(name).type)]
        if not held and not paths:
            raise DataError(
                f"{place}: no column of images ({', '.join(IMAGE_COLUMNS)}: bytes, or a struct with bytes) or of paths "
                f"({', '.join(PATH_COLUMNS)}) among {', '.join(fields.names)}"
            )
        return (held[0] if held else None), (paths[0] if paths else None), table.metadata.num_rows


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        return "bytes" in names and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _parquet(place: str) -> Any:
    """An open Parquet file that closes what it reads from."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependency("pyarrow", "scan") from error
    try:
        return parquet.ParquetFile(open_place(place))
    except ClipmoleError:
        raise
    except Exception as error:  # of disks, networks and damaged files
        raise DataError(f"{place}: cannot be read as a Parquet file: {first_line(error)}") from error


def table_paths(place: str, column: str) -> Iterator[str]:
    """The paths that a table lists; relative ones are taken from its folder."""
    folder = place.rpartition("/")[0]
    with _parquet(place) as table:
        for batch in table.iter_batches(batch_size=1000, columns=[column]):
            for path in batch.column(0).to_pylist():
                if path:
                    yield path if "://" in path or os.path.isabs(path) or not folder else f"{folder}/{path}"


def _table(unit: Unit, settings: ScanSettings) -> Iterator[Entry]:
    wanted = None if unit.only is None else set(unit.only)
    with reading(unit.place):
        try:
            column, _, _ = table_columns(unit.place)
        except DataError as error:
            raise ImageUnreadable(unit.place, str(error).removeprefix(f"{unit.place}: ")) from error
        with _parquet(unit.place) as table:
            number = -1
            for batch in table.iter_batches(batch_size=HELD_ROWS, columns=[column]):
                for value in batch.column(0):
                    number += 1
                    if wanted and str(number) not in wanted:
                        continue
                    source = _source(unit, number)
                    if settings.draws(source):
                        yield _held(source, unit.place, number, value.as_py())


def _held(source: str, container: str, number: int, value: Any) -> Entry:
    """The entry of a value that is bytes, or a struct of bytes and path as Hugging Face writes it."""
    path = None
    if isinstance(value, dict):
        value, path = value.get("bytes"), value.get("path")
    entry = Entry(source, container, str(number))
    if isinstance(value, bytes):
        entry.data, entry.size = value, len(value)
    elif path:
        entry.data = _at(path, source)
    else:
        entry.data = ImageUnreadable(source, "holds no bytes of an image file")
    return entry


def _at(path: str, source: str) -> bytes | ImageError:
    try:
        with open_place(path) as file:
            return file.read()
    except Exception as error:  # of networks, archives and file systems
        return ImageNotRead(source, f"{path} cannot be read: {first_line(error)}")


def data_set_units(spec: str, rows: int) -> Iterator[Unit]:
    """Units of at most `rows` rows of `hf:name?split=...`; a streamed data set is one unit a split.

    Raises as `load_splits` and `image_column` do.
    """
    name, query = read_query(spec.removeprefix(PREFIX))
    given = dict(parse_qsl(spec.partition("?")[2]))
    for split in load_splits(name, query, silent):
        place = f"{PREFIX}{name}?{urlencode(given | {'split': split})}"
        part, _ = _data_set(place)
        if query.streaming:
            yield Unit("rows", place, first=0, last=query.take)
            continue
        count = len(part) if query.take is None else min(len(part), query.take)
        for first in range(0, count, rows):
            yield Unit("rows", place, first=first, last=min(first + rows, count))


@lru_cache(maxsize=4)
def _data_set(place: str) -> tuple[Any, str]:
    """One split of a data set with its images undecoded, and their column."""
    import datasets

    name, query = read_query(place.removeprefix(PREFIX))
    (part,) = load_splits(name, query, silent).values()
    column = image_column(name, part, query)
    return part.cast_column(column, datasets.Image(decode=False)).select_columns([column]), column


def _rows(unit: Unit, settings: ScanSettings) -> Iterator[Entry]:
    part, column = _data_set(unit.place)
    streamed = not hasattr(part, "__len__")
    if unit.only is not None:
        numbers = [int(number) for number in unit.only]
        rows = ((number, part[number]) for number in numbers) if not streamed else _picked(part, set(numbers))
    elif streamed:
        rows = islice(enumerate(part), unit.first or 0, unit.last)
    else:
        rows = ((number, part[number]) for number in range(unit.first or 0, unit.last or len(part)))
    for number, row in rows:
        source = _source(unit, number)
        if settings.draws(source):
            yield _held(source, unit.place, number, row[column])


def _picked(part: Any, numbers: set[int]) -> Iterator[tuple[int, Any]]:
    return ((number, row) for number, row in enumerate(part) if number in numbers)


def entries_of(
    chunk: int, units: Iterable[Unit], settings: ScanSettings, skip: int = 0
) -> Iterator[tuple[int, Entry | None]]:
    """The entries of a chunk from the one after `skip` on, and its end."""
    for entry in islice((entry for unit in units for entry in entries(unit, settings)), skip, None):
        yield chunk, entry
    yield chunk, None
