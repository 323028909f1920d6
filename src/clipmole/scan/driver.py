"""Sources, settings, a detector and an engine -> a scan's folder: listings, parts, `scan.json`.

In: `ScanSettings` and how to load the detector. Out: `parts/`, a Parquet data set of one row per image, and `scan.json`
with counts and configuration. When it is started again, it does the missing work; if nothing is missing, it looks for
new images. A part is there whole or not at all, and its images depend only on the listing: so a kill at any moment
loses no row and makes none twice. It knows nothing of pages or terminals.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

from clipmole.errors import ConfigError, DataError, Stopped
from clipmole.images.discovery import say_passed_over
from clipmole.inference.detector import Detector
from clipmole.plumbing.environment import environment
from clipmole.plumbing.files import foreign_file, is_odd_file, sha256_of, write_texts
from clipmole.plumbing.json_toml import read_json
from clipmole.plumbing.progress import SILENT, ProgressReporter
from clipmole.scan import ray_engine as on_ray
from clipmole.scan.containers import entries_of
from clipmole.scan.duplicates import Claims, LocalClaims, is_filled
from clipmole.scan.listing import ANEW, GO_ON, SCAN, Listings, absolute, write_listing
from clipmole.scan.parts import ChunkProgress, Parts, locked, writing
from clipmole.scan.rows import Row
from clipmole.scan.scorer import ChunkRow, EntryScorer
from clipmole.scan.settings import ScanSettings
from clipmole.scan.summary import Counts, count_rows

FORMAT = 1


def scan(
    settings: ScanSettings,
    out: Path,
    load: Callable[[], Detector],
    *,
    cluster: on_ray.Cluster | None = None,
    progress: ProgressReporter = SILENT,
) -> Counts:
    """Score the images of the settings that the folder does not hold yet.

    Args:
        out: the folder; a scan that is there is continued.
        load: makes the detector; workers of a cluster call it too, so it must be possible to pickle it.
        cluster: None: score in this process.
        progress: follows the images as they are scored.

    Returns the counts of the folder. Raises `ConfigError` if it holds a scan of other images or with another detector,
    `DataError` if a source is wrong or gone, or the folder cannot be written, and `Stopped` once `progress` asks to
    stop; rows scored until then are written, if the folder can be.
    """
    settings = _with_absolute_paths(settings)
    detector = load()
    configuration = _configuration(settings, detector)
    if path := foreign_file(out, {SCAN: _read_scan, ".lock": _read_lock}):
        raise DataError(f"{path}: exists and does not belong to a scan; name another --out")
    with locked(out):
        before = _begun(out, configuration)
        with writing(out):
            _write_scan(out, before | {"format": FORMAT, "finished": False, "configuration": configuration})
        began, clock = datetime.now(UTC).replace(microsecond=0), time.perf_counter()
        try:
            rows = _score_missing(settings, out, load, detector, cluster, progress)
        except sqlite3.Error as error:
            raise DataError(
                f"the index of contents cannot be kept in the temporary folder: {error}; free space there, or name "
                f"another with SQLITE_TMPDIR, and {GO_ON}"
            ) from error
        counts = count_rows(out)
        run = {
            "began": began.isoformat(),
            "engine": "local" if cluster is None else "ray",
            "rows": rows,
            "seconds": round(time.perf_counter() - clock, 3),
        }
        runs = [*before.get("runs", []), *([run] if rows else [])]
        facts = {"format": FORMAT, "finished": True, "configuration": configuration, **counts.facts(), "runs": runs}
        with writing(out):
            _write_scan(out, facts | {"versions": environment()})
    return counts


def _score_missing(
    settings: ScanSettings,
    out: Path,
    load: Callable[[], Detector],
    detector: Detector,
    cluster: on_ray.Cluster | None,
    progress: ProgressReporter,
) -> int:
    """Score the missing images; returns how many rows that were."""
    parts, listings = Parts(out), Listings(out)
    done = parts.done()
    missing = _missing(done, listings)
    there = sum(each.rows for each in done.values())
    if not missing:
        again = bool(listings.files)
        if again and settings.limit is not None:
            return 0  # as many images as the limit allows are there
        with writing(out):
            added = write_listing(out, settings, progress)
        if again:
            progress.say(f"{out}: was complete; {added or 'no'} new sources since")
        listings = Listings(out)
        missing = _missing(done, listings)
    elif there:
        progress.say(f"{out}: {there:,} rows are there; continuing")
    if not missing:
        return 0
    passed_over: Counter[str] = Counter()
    claims: Claims
    if cluster is None:
        claims = LocalClaims()
        steps = score_here(detector, settings, listings, missing, claims, passed_over)
    else:
        on_ray.connect(cluster)
        claims = on_ray.start_coordinator(out)
        steps = on_ray.score_on_ray(load, settings, missing, claims, cluster, passed_over)
    for rows in parts.rows():  # before the first step is asked for
        claims.put(rows)
    begun = {chunk: each.parts for chunk, each in done.items() if not each.ended}
    writer = Writer(parts, claims, settings.part_rows, begun)
    total = None if listings.images is None else max(0, listings.images - there)
    with contextlib.closing(steps):
        try:
            scored = sum(1 for _ in progress.track(writer.written(steps), "scoring", total))
            say_passed_over(passed_over, progress.say)
            return scored
        except Stopped as error:
            writer.keep()
            kept = sum(each.rows for each in parts.done().values())
            raise Stopped(f"stopped; {kept:,} rows are kept in {out}: {GO_ON}") from error
        except DataError:  # of the images; where the folder cannot be written, nothing can be kept
            with contextlib.suppress(DataError):
                writer.keep()
            raise


def _missing(done: Mapping[int, ChunkProgress], listings: Listings) -> dict[int, int]:
    """Chunk -> rows of it that are there, of chunks that are not complete."""
    return {
        chunk: done[chunk].rows if chunk in done else 0
        for chunk in range(listings.chunks)
        if chunk not in done or not done[chunk].ended
    }


class Writer:
    """Rows of chunks -> parts; a part with copies of images waits until the scores of the originals are known."""

    def __init__(self, parts: Parts, claims: Claims, part_rows: int, begun: dict[int, int]) -> None:
        self.parts = parts
        self.claims = claims
        self.part_rows = part_rows
        self.next = begun  # chunk -> number of its next part
        self.rows: dict[int, list[Row]] = {}  # of the part that is being filled
        self.waiting: list[tuple[int, int, list[Row], bool]] = []

    def written(self, steps: Iterable[ChunkRow]) -> Iterator[Row]:
        """Write the rows of `steps` and pass them on. Raises `DataError` if they cannot be written."""
        for chunk, row in steps:
            rows = self.rows.setdefault(chunk, [])
            if row is None or len(rows) == self.part_rows:
                self._part(chunk, ended=row is None)
            if row is not None:
                self.rows[chunk].append(row)
                yield row
        if self.rows or self.waiting:
            raise DataError(f"{self.parts.folder}: some chunks did not end; {GO_ON}")

    def keep(self) -> None:
        """Write all complete rows: in each chunk, those before the first incomplete one."""
        self.claims.put([row for rows in self.rows.values() for row in rows if row.duplicate_of is None])
        at_hand = [*self.waiting, *((chunk, self.next.get(chunk, 0), rows, False) for chunk, rows in self.rows.items())]
        self.waiting, self.rows, held = [], {}, set()
        for chunk, number, rows, ended in at_hand:
            whole = list(takewhile(is_filled, self.claims.fill(rows)))
            if chunk not in held and (whole or (ended and not rows)):
                self.parts.write(chunk, number, whole, ended and len(whole) == len(rows))
            if len(whole) < len(rows):
                held.add(chunk)

    def _part(self, chunk: int, ended: bool) -> None:
        rows = self.rows.pop(chunk)
        number = self.next.get(chunk, 0)
        if ended:
            self.next.pop(chunk, None)
        else:
            self.next[chunk], self.rows[chunk] = number + 1, []
        self.claims.put([row for row in rows if row.duplicate_of is None])
        self.waiting.append((chunk, number, rows, ended))
        self._settle()

    def _settle(self) -> None:
        """Write the complete parts, those of a chunk in their order. Parts that cannot be written keep waiting."""
        left: list[tuple[int, int, list[Row], bool]] = []
        held = set()
        try:
            while self.waiting:
                chunk, number, rows, ended = self.waiting[0]
                filled = self.claims.fill(rows)
                if chunk in held or not all(map(is_filled, filled)):
                    held.add(chunk)
                    left.append((chunk, number, filled, ended))
                else:
                    self.parts.write(chunk, number, filled, ended)
                del self.waiting[0]
        finally:
            self.waiting = left + self.waiting


def _with_absolute_paths(settings: ScanSettings) -> ScanSettings:
    """The settings with absolute paths, which mean the same wherever the command or a worker is started."""
    changes: dict[str, Any] = {"sources": tuple(map(absolute, settings.sources))}
    if settings.list_file is not None:
        path = os.path.abspath(settings.list_file)
        if is_odd_file(Path(path)):
            raise DataError(
                f"{path}: is a pipe or a device; a scan reads its list several times: save it to a file first"
            )
        try:
            digest = sha256_of(Path(path))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        changes |= {"list_file": path, "list_sha256": digest}
    return settings.model_copy(update=changes)


def _configuration(settings: ScanSettings, detector: Detector) -> dict[str, Any]:
    calibration = detector.calibration
    return {
        **settings.model_dump(mode="json"),
        "detector": detector.name,
        "precision": detector.precision,
        "thresholds": None if calibration is None else calibration.thresholds.model_dump(),
    }


def _begun(out: Path, configuration: dict[str, Any]) -> dict[str, Any]:
    """The content of an earlier run's `scan.json`; {} if there is none. Raises `ConfigError` if that was another
    scan."""
    path = out / SCAN
    if not any(out.glob("listing-*.parquet")):
        return {}  # there was nothing to scan, or it was killed before it began
    if not path.exists():
        raise DataError(f"{out}: holds listings and no {SCAN}; name another --out, or delete that folder")
    before = _read_scan(path)
    then, version = before["configuration"], before["format"]
    if version != FORMAT:
        raise ConfigError(f"{path}: is of format {version}, this clipmole writes {FORMAT}; name another --out")
    for key, value in configuration.items():
        if then.get(key) != value:
            raise ConfigError(
                f"{out}: was begun with {key}={then.get(key)}, and now it is {value}; the two must not be mixed: "
                "give the same again to go on, or name another --out"
            )
    return {"runs": before.get("runs", [])}


def _read_scan(path: Path) -> dict[str, Any]:
    """The content of `scan.json`. Raises `DataError` if it is damaged or something else."""
    facts = read_json(path, DataError, ANEW)
    if not isinstance(facts, dict) or not isinstance(facts.get("configuration"), dict) or "format" not in facts:
        raise DataError(f"{path}: is damaged; {ANEW}")
    return facts


def _read_lock(path: Path) -> None:
    if path.stat().st_size:
        raise DataError(f"{path}: is not the lock of a scan, which is empty")


def _write_scan(out: Path, facts: dict[str, Any]) -> None:
    write_texts(out, {SCAN: json.dumps(facts, indent=2) + "\n"})


def score_here(
    detector: Detector,
    settings: ScanSettings,
    listings: Listings,
    missing: Mapping[int, int],
    claims: LocalClaims,
    passed_over: Counter[str],
) -> Generator[ChunkRow, None, None]:
    """Rows of the missing chunks, one chunk after another without a pause between them.

    Args:
        missing: chunk -> rows of it that are there.
        passed_over: counts the leftovers of programs in tars, by kind.
    """
    scorer = EntryScorer(detector, claims, look_alikes=settings.look_alikes, sources=settings.sources)
    return scorer.rows(
        step
        for chunk, skip in missing.items()
        for step in entries_of(chunk, listings.items(chunk), settings, passed_over, skip)
    )
