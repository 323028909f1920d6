"""Entries -> rows, by a `Detector`: the same class whatever engine calls it.

In: entries, chunk after chunk, None at the end of each. Out: their rows in the same order, and the ends. Bytes are
fetched by threads ahead of the detector. An image with the same bytes as another one is not scored: its row names that
one. It knows nothing of listings, parts or other workers.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from clipmole.data.audit.files import hash_and_thumbnail
from clipmole.data.containers.filesystems import read_location
from clipmole.errors import DataError, ImageError, ImageNotFound, ImageNotRead
from clipmole.images.formats import image_format
from clipmole.images.loading import load_image
from clipmole.inference.detector import Detector, Prepared, crop_count
from clipmole.plumbing.prefetch import ahead
from clipmole.records import Detection
from clipmole.scan.containers import Entry
from clipmole.scan.duplicates import Claims
from clipmole.scan.rows import Row, in_utf8, scored

READERS = 8  # threads that fetch bytes
CLAIMED = 16  # images that are looked up at once
HEAVY = 2**22  # bytes: a larger file counts as several images among those that are held
FAILURES = 100  # files in a row that cannot be fetched: the network is gone, not the files


def _holds_something(folder: str) -> bool:
    try:
        return bool(os.listdir(folder))
    except OSError:
        return False


ChunkRow = tuple[int, Row | None]
"""A chunk and one of its rows; None: it has no more."""


@dataclass(frozen=True, slots=True)
class _Read:
    """A row that lacks its score, and its bytes."""

    row: Row
    data: bytes | ImageError


def _weight(step: tuple[int, _Read | None]) -> int:
    data = b"" if step[1] is None else step[1].data
    return 1 + len(data) // HEAVY if isinstance(data, bytes) else 1


def _few(read: Iterator[tuple[int, _Read | None]]) -> Iterator[tuple[int, _Read | None]]:
    """The next steps, as many as are looked up at once."""
    held = 0
    while held < CLAIMED and (step := next(read, None)) is not None:
        held += _weight(step)
        yield step


class EntryScorer:
    """Scores entries with one detector.

    Args:
        claims: decides which of several identical images is scored.
        readers: threads that fetch bytes.
        look_alikes: also decode each image for a perceptual hash and a thumbnail.
        sources: those of the scan. If a source was a folder, and is gone or empty when one of its images is missing,
            the scan ends: a disk or a network drive is gone, and its images must not count as done.
    """

    def __init__(
        self,
        detector: Detector,
        claims: Claims,
        *,
        readers: int = READERS,
        look_alikes: bool = False,
        sources: Sequence[str] = (),
    ) -> None:
        self.detector = detector
        self.claims = claims
        self.readers = readers
        self.look_alikes = look_alikes
        self.sources = sources

    def rows(self, entries: Iterable[tuple[int, Entry | None]]) -> Generator[ChunkRow, None, None]:
        """One row for each entry, in order; the row of a copy only names the original.

        Raises `DataError` where no file can be fetched any more or a source is gone, and whatever `entries` raises.
        """
        scoring: deque[ChunkRow] = deque()  # of the images that the detector is working on
        failures = 0
        with closing(self._prepared(entries, scoring)) as prepared:
            for result in self.detector.finish(prepared):
                chunk, row = scoring.popleft() if isinstance(result, Detection) else result
                if row is not None and isinstance(result, Detection):
                    row = scored(row, result)
                if row is not None and row.duplicate_of is None:
                    failures = self._failures(row, failures)
                yield chunk, row

    def _prepared(
        self, entries: Iterable[tuple[int, Entry | None]], scoring: deque[ChunkRow]
    ) -> Generator[Prepared | ChunkRow | None, None, None]:
        """Decoded images, whose rows are put into `scoring`; in between, in order, the steps with nothing to score."""

        def prepare(claimed: tuple[int, _Read | Row | None]) -> tuple[ChunkRow, Prepared | None]:
            chunk, item = claimed
            if not isinstance(item, _Read):
                return (chunk, item), None
            result = self.detector.prepare(item.data)
            if isinstance(result, ImageError):
                return (chunk, scored(item.row, result)), None
            return (chunk, item.row), result

        def weigh(made: tuple[ChunkRow, Prepared | None]) -> int:
            return crop_count(made[1])

        workers, limit = self.detector.workers, self.detector.batch_size
        made = ahead(prepare, self._claimed(iter(entries)), workers=workers, limit=limit, weigh=weigh)
        with closing(made):
            for item in made:
                step, image = item or (None, None)
                if step is not None and image is not None:
                    scoring.append(step)
                yield image or step

    def _failures(self, row: Row, before: int) -> int:
        """Files in a row that could not be fetched. Raises `DataError` where they are too many or a source is gone."""
        if row.error_code == ImageNotFound.code and (gone := self._gone(row)):
            raise DataError(
                f"{gone}: is gone, or holds nothing any more, while it is scanned; {row.source} is the first "
                "image that is missed: bring it back and give the same command again to go on"
            )
        failures = before + 1 if row.error_code == ImageNotRead.code else 0
        if failures >= FAILURES:
            raise DataError(
                f"{FAILURES} files in a row could not be fetched, the last: {row.source}: {row.error}; repair "
                "that and give the same command again to go on"
            )
        return failures

    def _gone(self, row: Row) -> str | None:
        """The source that is gone as a whole, if that is why its image is missing."""
        if row.container is not None or row.bytes is None:  # it was not there when it was listed
            return None
        for source in self.sources:
            if row.source.startswith(os.path.join(source, "")) and not _holds_something(source):
                return source
        return None

    def _claimed(self, entries: Iterator[tuple[int, Entry | None]]) -> Iterator[tuple[int, _Read | Row | None]]:
        """The entries that were read; copies among them lose their bytes."""

        def fetch(step: tuple[int, Entry | None]) -> tuple[int, _Read | None]:
            return step[0], None if step[1] is None else self._fetch(step[1])

        fetched = ahead(fetch, entries, workers=self.readers, limit=2 * self.readers, weigh=_weight)
        read = (item for item in fetched if item is not None)
        while some := list(_few(read)):
            asked = [(item.row.sha256, item.row.source) for _, item in some if item is not None and item.row.sha256]
            owners = dict(zip((source for _, source in asked), self.claims.claim(asked), strict=True))
            for chunk, item in some:
                owner = None if item is None else owners.get(item.row.source)
                yield chunk, item if item is None or owner is None else replace(item.row, duplicate_of=owner)

    def _fetch(self, entry: Entry) -> _Read:
        """The bytes of an entry, or why there are none, and the fields that need no decoding."""
        data = entry.data
        if data is None:
            try:
                data = read_location(entry.source, entry.size)
            except ImageError as error:
                data = error
        row = Row(
            source=in_utf8(entry.source),
            container=None if entry.container is None else in_utf8(entry.container),
            member=None if entry.member is None else in_utf8(entry.member),
            sha256=hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else None,
            logit=None,
            probability=None,
            verdict=None,
            tiles=None,
            width=None,
            height=None,
            bytes=len(data) if isinstance(data, bytes) else entry.size,
            format=image_format(data) if isinstance(data, bytes) else None,
            error_code=None,
            error=None,
            detector=self.detector.name,
            time=datetime.now(UTC).replace(microsecond=0),
        )
        if self.look_alikes and isinstance(data, bytes):
            with suppress(ImageError):  # the detector says so
                phash, thumbnail = hash_and_thumbnail(load_image(data))
                row = replace(row, phash=None if phash is None else f"{phash:016x}", thumbnail=thumbnail)
        return _Read(row, data)
