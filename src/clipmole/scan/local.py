"""Chunks that are missing -> their rows, scored in this process.

In: listings, which chunks and from which row on. Out: rows, of one chunk in order, and the ends of chunks. It knows
nothing of parts and reports.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from clipmole.detect import Detector
from clipmole.scan.firsts import Firsts
from clipmole.scan.listing import Listings
from clipmole.scan.scorer import Scorer, Step
from clipmole.scan.settings import ScanSettings
from clipmole.scan.units import Entry, Unit, entries


def entries_of(
    chunk: int, units: Iterable[Unit], settings: ScanSettings, skip: int = 0
) -> Iterator[tuple[int, Entry | None]]:
    """The entries of a chunk from the one after `skip` on, and its end."""
    for entry in islice((entry for unit in units for entry in entries(unit, settings)), skip, None):
        yield chunk, entry
    yield chunk, None


def score_here(
    detector: Detector, settings: ScanSettings, listings: Listings, missing: Mapping[int, int], firsts: Firsts
) -> Iterator[Step]:
    """Rows of the missing chunks, one chunk after the other without a gap between them.

    Args:
        missing: chunk -> rows of it that are there.
    """
    scorer = Scorer(detector, firsts, look_alikes=settings.look_alikes)
    return scorer.rows(
        step for chunk, skip in missing.items() for step in entries_of(chunk, listings.units(chunk), settings, skip)
    )
