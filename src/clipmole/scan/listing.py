"""The sources of a scan -> a list of work items on the disk, in chunks, on which everything else depends.

In: `ScanSettings`. Out: Parquet files `listing-0000.parquet`, ... whose row groups are chunks: some files, or one
shard, table or run of rows. A chunk is the unit of work of an engine, and its rows are written as parts with its
number. A listing appears when it is complete; a later one holds the items that the earlier ones lack. Memory does not
grow with the number of images, except for the names of one folder. It opens no image.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any, cast

from clipmole.data import braces
from clipmole.data.containers.filesystems import File, file_at, files_below, is_address, local_file
from clipmole.data.containers.huggingface import PREFIX, is_saved
from clipmole.data.containers.tables import TABLE, table_columns
from clipmole.data.containers.tar import TAR
from clipmole.errors import ConfigError, DataError, ImageError, ImageNotFound, ImageNotRead, Stopped
from clipmole.images.discovery import (
    NAME_IT,
    find_images,
    leftover_in,
    matches_of,
    say_passed_over,
    walk_images,
)
from clipmole.images.formats import has_image_extension
from clipmole.plumbing.files import is_odd_file, replacing_files
from clipmole.plumbing.path_lists import listed_paths
from clipmole.plumbing.progress import SILENT, ProgressReporter, Say
from clipmole.plumbing.text import first_line, unescaped
from clipmole.scan.containers import WorkItem, count_members, data_set_items, entries, table_paths
from clipmole.scan.rows import out_of_utf8, schema
from clipmole.scan.settings import ScanSettings, row_filter

NAME = "listing-{:04d}.parquet"
SCAN = "scan.json"  # in the folder of a scan
GO_ON = "give the same command again to go on"
ANEW = "name another --out, or delete that folder"
PARTS = "parts"
OWN = re.compile(r"(listing|part|groups)[-\d]*(-end)?\.parquet")  # tables that a scan writes


@contextlib.contextmanager
def reading_parquet(path: Path, cure: str) -> Iterator[None]:
    """Turn the errors of a damaged Parquet file of a scan into a `DataError` that ends with the cure."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read, or is damaged: {first_line(error)}; {cure}") from error


class Listings:
    """The listings in a scan's folder.

    Attributes:
        chunks: how many there are.
        images: how many images they hold; None: not known, for a shard or a data set does not say.
    """

    def __init__(self, folder: Path) -> None:
        from pyarrow import parquet

        self.files: list[tuple[Path, Any]] = []
        known = []
        for path in sorted(folder.glob("listing-*.parquet")):
            with reading_parquet(path, ANEW):
                file = parquet.ParquetFile(path)
                known.append(int((file.metadata.metadata or {})[b"images"] or -1))
                self.files.append((path, file))
        self.chunks = sum(file.num_row_groups for _, file in self.files)
        self.images = sum(known) if min(known, default=0) >= 0 else None

    def items(self, chunk: int) -> list[WorkItem]:
        """The items of a chunk."""
        for path, file in self.files:
            if chunk < file.num_row_groups:
                with reading_parquet(path, ANEW):
                    rows = file.read_row_group(chunk).to_pylist()
                    for row in rows:
                        row["location"] = os.fsdecode(row.pop("place"))
                        row["only"] = None if row["only"] is None else tuple(row["only"])
                    return [WorkItem(**row) for row in rows]
            chunk -= file.num_row_groups
        raise IndexError(chunk)

    def all_items(self) -> Iterator[WorkItem]:
        for chunk in range(self.chunks):
            yield from self.items(chunk)


class _Seen:
    """Names that came before, on the disk: 16 bytes each in a temporary database."""

    def __init__(self) -> None:
        self.base = sqlite3.connect("", isolation_level=None)
        self.base.execute("PRAGMA journal_mode = OFF")
        self.base.execute("PRAGMA synchronous = OFF")
        self.base.execute("CREATE TABLE seen (name BLOB PRIMARY KEY) WITHOUT ROWID")

    def new(self, items: Iterable[WorkItem]) -> Iterator[WorkItem]:
        """The items that did not come before; they are then recorded.

        Raises `ConfigError` for a container if some of its images came before, because it would give them again.
        """
        for item in items:
            whole, some = (f"{item.location}\0{word}" for word in ("whole", "some"))
            if item.only is not None:
                members = () if self._has(whole) else tuple(m for m in item.only if self._add(f"{some}\0{m}"))
                if members:
                    self._add(some)
                    yield replace(item, only=members)
                continue
            if item.kind != "file":
                if self._has(some):
                    raise ConfigError(
                        f"{item.location}: is given whole, and images of it by an earlier scan; give "
                        "only one of the two"
                    )
                self._add(whole)
            if self._add(f"{item.location}\0{item.first}"):
                yield item

    def _add(self, key: str) -> bool:
        """Whether a name did not come before."""
        return self.base.execute("INSERT OR IGNORE INTO seen VALUES (?)", (_digest(key),)).rowcount == 1

    def _has(self, key: str) -> bool:
        return self.base.execute("SELECT 1 FROM seen WHERE name = ?", (_digest(key),)).fetchone() is not None


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=16).digest()


def write_listing(folder: Path, settings: ScanSettings, progress: ProgressReporter = SILENT) -> int:
    """List the items of the sources that earlier listings in `folder` lack; returns how many were added.

    Raises `DataError` and `ConfigError` naming the source that is wrong, `Stopped` once `progress` asks to stop,
    `OSError` if it cannot be written. Nothing is left of a listing that was not finished.
    """
    import pyarrow as pa
    from pyarrow import parquet

    text = pa.string()
    kinds = {
        "kind": text,
        "place": pa.binary(),  # the location; names of files need not be UTF-8
        "size": pa.int64(),
        "only": pa.list_(text),
        "first": pa.int64(),
        "last": pa.int64(),
    }
    columns = pa.schema({**kinds, "take": pa.int64()})
    names = [field.name for field in fields(WorkItem)]
    assert [name.replace("location", "place") for name in names] == columns.names
    seen, before = _Seen(), Listings(folder)
    for _ in seen.new(before.all_items()):
        pass
    added, images = 0, cast("int | None", 0)
    with replacing_files(folder) as scratch:
        path = scratch / NAME.format(len(before.files))
        with path.open("wb") as file, parquet.ParquetWriter(file, columns) as writer:
            for chunk in _chunks(_limited(_new(settings, seen, progress.say), settings), settings.part_rows):
                if progress.stopping():
                    raise Stopped(f"stopped while the images were listed; {GO_ON}")
                items = {name: [getattr(item, name) for item, _ in chunk] for name in names}
                items["place"] = list(map(os.fsencode, items.pop("location")))
                writer.write_table(pa.table(items, columns))
                added += len(chunk)
                for _, count in chunk:
                    images = None if images is None or count is None else images + count
            writer.add_key_value_metadata({"images": "" if images is None else str(images)})
        if before.files and not added:
            path.unlink()
    return added


def _new(settings: ScanSettings, seen: _Seen, say: Say) -> Iterator[WorkItem]:
    for source in settings.sources:
        yield from seen.new(_sampled(_of_source(source, settings, say), settings))
    if settings.list_file is not None:
        listed = (item for line in listed_paths(settings.list_file) for item in _of_listed(line, settings, say))
        yield from seen.new(_sampled(listed, settings))


def _sampled(items: Iterable[WorkItem], settings: ScanSettings) -> Iterator[WorkItem]:
    return (item for item in items if item.kind != "file" or settings.draws(item.location))


def _limited(items: Iterable[WorkItem], settings: ScanSettings) -> Iterator[tuple[WorkItem, int | None]]:
    """Items with the number of images they hold, None where that is not known; no more images than the limit."""
    left = settings.limit
    for item in items:
        count = _count(item, settings)
        if left is None:
            yield item, count
            continue
        if count is None:
            count = sum(1 for _ in islice(entries(item, settings), left))
        count = min(count, left)
        yield replace(item, take=count) if item.kind != "file" else item, count
        left -= count
        if left == 0:
            return


def _count(item: WorkItem, settings: ScanSettings) -> int | None:
    if item.kind == "file":
        return 1
    if settings.sample is not None:
        return None
    if item.only is not None:
        return len(item.only)
    if item.kind == "rows":
        return None if item.last is None else item.last - (item.first or 0)
    return count_members(item)


def _chunks(items: Iterable[tuple[WorkItem, int | None]], rows: int) -> Iterator[list[tuple[WorkItem, int | None]]]:
    """Chunks of as many files as make a part; an item with many images is a chunk by itself."""
    files: list[tuple[WorkItem, int | None]] = []
    for item, count in items:
        if item.kind != "file":
            yield [(item, count)]
            continue
        files.append((item, count))
        if len(files) == rows:
            yield files
            files = []
    if files:
        yield files


def _of_source(source: str, settings: ScanSettings, say: Say) -> Iterator[WorkItem]:
    """Items of one source. Raises `DataError` if there is nothing."""
    if settings.where and not (Path(source) / SCAN).is_file():
        raise ConfigError(f"{source}: is not a scan; --where takes rows of an earlier scan, so give its folder")
    if source.startswith(PREFIX) or (not is_address(source) and is_saved(Path(source))):
        if settings.since is not None:
            raise ConfigError(f"{source}: a data set does not say when an image was changed; leave --since out")
        yield from data_set_items(source if source.startswith(PREFIX) else PREFIX + source, settings.part_rows)
    elif is_address(source):
        for each in braces(source):
            yield from _recent(_gathered(each, files_below(each), not glob.has_magic(each), say), settings)
    elif (Path(source) / SCAN).is_file():
        yield from _scanned(Path(source), settings)
    else:
        for each in [source] if os.path.lexists(source) else braces(source):
            yield from _recent(_gathered(each, _local(each, say), os.path.isdir(each), say), settings)


def absolute(source: str) -> str:
    """A local path or pattern made absolute; an address or a data set unchanged."""
    return source if is_address(source) or source.startswith(PREFIX) else os.path.abspath(source)


def _of_listed(line: str, settings: ScanSettings, say: Say) -> Iterator[WorkItem]:
    """Items of a line of a list: a single file, which need not be there; else as for any source."""
    line = absolute(line)
    if not _is_single(line):
        yield from _of_source(line, settings, say)
    elif settings.since is None:
        yield WorkItem("file", line)
    else:
        file = file_at(line)
        yield from _recent([(WorkItem("file", line, file.size), file)], settings)


def _is_single(line: str) -> bool:
    """Whether a line of a list is the name of an image; a local one may have any, if no pattern finds others."""
    image = has_image_extension(line)
    many = is_address(line) or line.startswith(PREFIX) or TAR.search(line) or TABLE.search(line)
    if not glob.has_magic(line):
        return image or not (many or os.path.isdir(line))
    return not many and not os.path.isdir(line) and (os.path.isfile(line) or not matches_of(line))


def _local(source: str, say: Say) -> Iterator[File]:
    """Files of a local file, folder or pattern; in a folder without images its shards and tables.

    Of a folder below that may not be searched, the folder itself: its row says so. Raises `DataError` if one is gone.
    """
    only_unsearched = True
    for found in find_images([source], say):
        if isinstance(found, ImageError):
            folder = unescaped(found.source)
            if isinstance(found, ImageNotFound) and os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):
                yield File(folder, None, None, there=False)
                continue
            if isinstance(found, ImageNotRead) or not os.path.isdir(folder):
                raise DataError(f"{found}; nothing was scanned")
            shards = list(_containers(folder))
            if not shards:
                raise DataError(f"{found.source}: holds no images, shards (.tar) or tables (.parquet)")
            yield from map(local_file, shards)
        elif _is_container(found) and is_odd_file(Path(found)):
            raise DataError(f"{found}: is a pipe or a device; save its content to a file first")
        elif os.path.lexists(found):
            yield local_file(found)
        else:
            raise DataError(f"{found}: there is no such file or folder; check the path")
        only_unsearched = False
    if only_unsearched and os.path.isdir(source):
        yield from map(local_file, _containers(source))


def _containers(folder: str) -> Iterator[str]:
    """Shards and tables in a folder that is not hidden, except for the tables of scans that were written there."""
    for path in walk_images(folder, Counter(), lambda _error: None, wanted=_is_container):
        above, name = os.path.split(path)
        of_scan = OWN.fullmatch(name) and any(os.path.isfile(os.path.join(above, up, SCAN)) for up in (".", ".."))
        if not of_scan and f"{os.sep}." not in path[len(folder) :]:
            yield path


def _is_container(name: str) -> bool:
    return bool(TAR.search(name) or TABLE.search(name))


def _gathered(source: str, files: Iterable[File], folder: bool, say: Say) -> Iterator[tuple[WorkItem, File]]:
    """Items of files; of a folder, its images, and its shards and tables only if it holds no images.

    A table beside a shard of its name is passed over: img2dataset writes one for each shard, with the addresses of its
    images.
    """
    aside: list[File] = []
    passed_over: Counter[str] = Counter()
    found = given = False
    for file in files:
        if kind := leftover_in(file.location, source):
            passed_over[kind] += 1
        elif _is_container(file.location):
            aside.append(file)
        elif not folder or not file.there or has_image_extension(file.location):
            found, given = found or file.there, True
            yield WorkItem("file", file.location, file.size), file
    say_passed_over(passed_over, say, NAME_IT)
    if folder and found:
        return
    shards = {TAR.sub("", file.location) for file in aside if TAR.search(file.location)}
    beside = sum(TABLE.sub("", file.location) in shards for file in aside)
    if beside:
        say(f"passed over, since they describe the shards of their names: {beside:,} tables{NAME_IT}")
    for file in aside:
        if TABLE.sub("", file.location) not in shards:
            yield from _of_container(file)
    if not given and not aside:
        raise DataError(f"{source}: holds no images, shards (.tar) or tables (.parquet)")


def _of_container(file: File) -> Iterator[tuple[WorkItem, File]]:
    """Items of a shard or a table; a damaged table, like a damaged shard, is one: its rows say so."""
    if TAR.search(file.location):
        yield WorkItem("tar", file.location, file.size), file
        return
    try:
        held, paths, _ = table_columns(file.location)
        if held is None and paths is not None:
            for path in table_paths(file.location, paths):
                yield WorkItem("file", path), local_file(path) if not is_address(path) else file
            return
    except ImageError:
        pass
    yield WorkItem("table", file.location, file.size), file


def _recent(items: Iterable[tuple[WorkItem, File]], settings: ScanSettings) -> Iterator[WorkItem]:
    """The items whose files are as new as asked for, or not there: then their rows say so."""
    for item, file in items:
        if settings.since is not None and file.there:
            if file.modified is None:
                raise ConfigError(f"{file.location}: it is not known when it was changed; leave --since out")
            if file.modified < settings.since:
                continue
        yield item


def _scanned(folder: Path, settings: ScanSettings) -> Iterator[WorkItem]:
    """The images of an earlier scan's rows."""
    if settings.since is not None:
        raise ConfigError(f"{folder}: --since does not go with an earlier scan; give --where time>=...")
    chosen = row_filter(settings.where)
    for container, rows in groupby(
        read_rows(folder, chosen, ["source", "container", "member", "bytes"]), lambda row: row["container"]
    ):
        if container is None:
            for row in rows:
                yield WorkItem("file", out_of_utf8(row["source"]), row["bytes"])
            continue
        while members := tuple(row["member"] for row in islice(rows, settings.part_rows) if row["member"] is not None):
            yield WorkItem.of_container(out_of_utf8(container), members)


def read_rows(folder: Path, chosen: Any = None, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of a scan, part after part, those that a filter of pyarrow's chooses."""
    from pyarrow import dataset, parquet

    columns_of_rows = schema()
    paths = sorted((folder / PARTS).glob("part-*.parquet"))
    for path in paths:
        with reading_parquet(path, part_cure(path)):
            there = parquet.read_schema(path).names
            if missing := [field.name for field in columns_of_rows if not field.nullable and field.name not in there]:
                raise ValueError(f"it has no column {missing[0]}")
            batches = dataset.dataset(path, schema=columns_of_rows, format="parquet").to_batches(
                filter=chosen, columns=columns, batch_size=1000, fragment_readahead=1, batch_readahead=1
            )
            for batch in batches:
                yield from batch.to_pylist()


def part_cure(path: Path) -> str:
    """What helps against a damaged part: the parts of its chunk build on each other."""
    return f"delete all {path.name[:12]}-*.parquet beside it and run the command of the scan again, which rewrites them"
