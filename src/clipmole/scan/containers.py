"""A work item of a listing (a file, a shard, a table, rows of a data set) -> its images.

In: a `WorkItem`. Out: `Entry`s in an order that is always the same. Shards are read once from beginning to end,
compressed or not, local or remote; of tables a few rows are held at a time. A damaged container ends in
one entry that says so. It knows nothing of detectors.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode

from clipmole.data.containers.filesystems import reading, too_large
from clipmole.data.containers.huggingface import PREFIX, image_column, load_splits, read_query, undecoded
from clipmole.data.containers.tables import image_bytes, table_columns, table_rows
from clipmole.data.containers.tar import TAR, is_in_place, tar_members
from clipmole.errors import DataError, ImageError, ImageNotFound, ImageUnreadable
from clipmole.images.discovery import leftover_in
from clipmole.images.formats import has_image_extension
from clipmole.images.loading import DEFAULT_LIMITS
from clipmole.plumbing.progress import silent
from clipmole.scan.rows import in_utf8
from clipmole.scan.settings import ScanSettings


@dataclass(frozen=True)
class WorkItem:
    """Something that holds one image or many.

    Attributes:
        kind: "file" is an image; "tar"; "table": a Parquet file with images in it; "rows": of a Hugging Face data set.
        location: path, address, or hf:name?split=...
        size: bytes, if known.
        only: names (as `in_utf8` gives them) or row numbers to take, in the container's order; None: all.
        first, last: number of the first row to take and of the one after the last, of "rows"; None: from the
            beginning, to the end.
        take: how many images to take; None: all.
    """

    kind: Literal["file", "tar", "table", "rows"]
    location: str
    size: int | None = None
    only: tuple[str, ...] | None = None
    first: int | None = None
    last: int | None = None
    take: int | None = None

    @classmethod
    def of_container(cls, location: str, only: tuple[str, ...]) -> WorkItem:
        """Images of a container by their names or row numbers."""
        if location.startswith(PREFIX):
            return cls("rows", location, only=only)
        return cls("tar" if TAR.search(location) else "table", location, only=only)


Read = Callable[[], bytes]
"""Gives the bytes of an image in a container. Raises an `ImageError` of the image's source or of the container's."""


@dataclass(slots=True)
class Entry:
    """One image to score: its bytes if they have been read, or an error; None: they are in the file `source`."""

    source: str
    container: str | None = None
    member: str | None = None
    size: int | None = None
    data: bytes | ImageError | None = None


def entries(item: WorkItem, settings: ScanSettings, passed_over: Counter[str] | None = None) -> Iterator[Entry]:
    """The images of an item that the settings draw, in its order, at most `item.take`; no two of one source.

    Args:
        passed_over: counts the leftovers of programs in a tar, by kind.
    """
    if item.kind == "file":
        return iter([Entry(item.location, size=item.size)])  # it was selected when it was listed
    return islice(_inside(item, settings, Counter() if passed_over is None else passed_over), item.take)


def _inside(item: WorkItem, settings: ScanSettings, passed_over: Counter[str]) -> Iterator[Entry]:
    """The images of a container; if it breaks off, or lacks named images, also an entry that says so."""
    left = dict.fromkeys(item.only or ())
    error: ImageError = ImageNotFound(item.location, "is no longer in it")
    try:
        for member, size, read in _tar_images(item, passed_over) if item.kind == "tar" else _READERS[item.kind](item):
            source, name = _source(item, member), in_utf8(member)
            if (item.only is None or name in left) and settings.draws(source):
                yield _entry(Entry(source, item.location, member, size), read)
            left.pop(name, None)
    except ImageError as problem:
        error = problem
        if item.only is None:
            yield Entry(item.location, item.location, None, item.size, error)
    for member in left:
        source = _source(item, member)
        if settings.draws(source):
            yield Entry(source, item.location, member, None, type(error)(source, error.reason))


def _entry(entry: Entry, read: Read) -> Entry:
    """The entry with its bytes or its error. Raises the `ImageError` of the container."""
    try:
        if entry.size is not None and entry.size > DEFAULT_LIMITS.max_bytes:
            raise too_large(entry.source, entry.size)
        entry.data = read()
        entry.size = len(entry.data)
    except ImageError as error:
        if error.source != entry.source:
            raise
        entry.data = error
    return entry


def _source(item: WorkItem, member: str) -> str:
    """The source of an image in a container: with its name, or the number of its row."""
    return f"{item.location}/{member}" if item.kind == "tar" else f"{item.location}/row {member}"


def _tar_images(item: WorkItem, passed_over: Counter[str]) -> Iterator[tuple[str, int, Read]]:
    """The images of a tar. A repeated name becomes `name#2`, `name#3`, which no image's own name ends with."""
    times: Counter[str] = Counter()
    for member, read in tar_members(item.location):
        if not has_image_extension(member.name):
            continue
        if kind := _leftover(item, member.name):
            passed_over[kind] += 1
        else:
            times[member.name] += 1
            again = "" if times[member.name] == 1 else f"#{times[member.name]}"
            yield member.name + again, member.size, read


def _leftover(item: WorkItem, member: str) -> str | None:
    """The kind of leftover that a member of a tar is; one that was asked for by its name is none."""
    return None if item.only is not None and in_utf8(member) in item.only else leftover_in(member)


def count_members(item: WorkItem) -> int | None:
    """Number of images in a table, or in a local uncompressed tar, from the headers; None: not known."""
    with contextlib.suppress(ImageError):
        if item.kind == "table":
            return table_columns(item.location)[2]
        if is_in_place(item.location):
            names = (member.name for member, _ in tar_members(item.location))
            return sum(has_image_extension(name) and not _leftover(item, name) for name in names)
    return None


def table_paths(location: str, column: str) -> Iterator[str]:
    """The paths that a table lists; relative ones are taken from its folder. Raises as `table_rows` does."""
    folder = location.rpartition("/")[0]
    for row in table_rows(location, [column], held=1000):
        if path := row[column]:
            yield path if "://" in path or os.path.isabs(path) or not folder else f"{folder}/{path}"


def _table_images(item: WorkItem) -> Iterator[tuple[str, None, Read]]:
    try:
        column, paths, _ = table_columns(item.location)
    except DataError as error:  # it had such columns when it was listed
        raise ImageUnreadable(item.location, str(error).removeprefix(f"{item.location}: ")) from error
    if column is None:  # it was damaged when it was listed, and the files before the damage are items of their own
        for _ in table_rows(item.location, [paths or ""]):
            pass
        raise ImageUnreadable(item.location, "has changed since its files were listed; scan it again")
    for number, row in enumerate(table_rows(item.location, [column])):
        yield str(number), None, partial(image_bytes, row[column], _source(item, str(number)))


def data_set_items(spec: str, rows: int) -> Iterator[WorkItem]:
    """Items of at most `rows` rows of `hf:name?split=...`; a streamed data set is one item per split.

    Raises as `load_splits` and `image_column` do.
    """
    name, query = read_query(spec.removeprefix(PREFIX))
    given = dict(parse_qsl(spec.partition("?")[2]))
    for split in load_splits(name, query, silent):
        location = f"{PREFIX}{name}?{urlencode(given | {'split': split})}"
        part, _ = _data_set(location)
        if query.streaming:
            yield WorkItem("rows", location, first=0, last=query.take)
            continue
        count = len(part) if query.take is None else min(len(part), query.take)
        for first in range(0, count, rows):
            yield WorkItem("rows", location, first=first, last=min(first + rows, count))


@lru_cache(maxsize=4)
def _data_set(location: str) -> tuple[Any, str]:
    """One split of a data set with its images undecoded, and their column."""
    name, query = read_query(location.removeprefix(PREFIX))
    (part,) = load_splits(name, query, silent).values()
    column = image_column(name, part, query)
    return undecoded(part, column).select_columns([column]), column


def _data_set_images(item: WorkItem) -> Iterator[tuple[str, None, Read]]:
    part, column = _data_set(item.location)
    rows: Iterable[tuple[int, Any]]
    if hasattr(part, "__len__"):
        numbers = map(int, item.only) if item.only else range(item.first or 0, item.last or len(part))
        rows = ((number, part[number]) for number in numbers)
    else:
        rows = islice(enumerate(part), item.first or 0, item.last)
    with reading(item.location):
        for number, row in rows:
            yield str(number), None, partial(image_bytes, row[column], _source(item, str(number)))


_READERS = {"table": _table_images, "rows": _data_set_images}


def entries_of(
    chunk: int, items: Iterable[WorkItem], settings: ScanSettings, passed_over: Counter[str], skip: int = 0
) -> Iterator[tuple[int, Entry | None]]:
    """The entries of a chunk from the one after `skip` on, and its end; `passed_over` as `entries` has it."""
    for entry in islice((entry for item in items for entry in entries(item, settings, passed_over)), skip, None):
        yield chunk, entry
    yield chunk, None
