"""Facts of many files -> sets of files that are the same, or look the same.

In: digests, perceptual hashes and thumbnails. Out: sets of indices. It knows nothing of labels or splits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from clipmole.data.audit.files import FileFacts
from clipmole.plumbing.disjoint_sets import DisjointSets

BITS = 4  # of 64; the hashes of two files that look the same differ in at most this many
CORRELATION = 0.98  # and their thumbnails correlate at least this well
BAND = 8  # bits; hashes that differ in 4 bits agree in at least 4 of 8 bands
CROWD = 4000  # most files of one band that are compared with one another


def same_bytes(facts: Sequence[FileFacts]) -> list[list[int]]:
    """Sets of two and more indices whose files are the same, in order of the first."""
    found: dict[str, list[int]] = defaultdict(list)
    for i, each in enumerate(facts):
        if each.sha256 and each.size:
            found[each.sha256].append(i)
    return [members for members in found.values() if len(members) > 1]


def look_alikes(facts: Sequence[FileFacts]) -> list[list[int]]:
    """Sets of two and more indices whose files differ and look the same, in order of the first.

    Two images look the same if their perceptual hashes differ in at most 4 of 64 bits and their thumbnails correlate to
    at least 0.98: re-encoded, resized or slightly retouched copies. Identical files count once, by the first. Sets are
    joined where they share an image. Featureless images have no hash and are never found. If more than 4,000 files
    agree in a band of the hash, only neighbours in its order are compared.
    """
    first: dict[str, int] = {}
    for i, each in enumerate(facts):
        if each.phash is not None:
            first.setdefault(each.sha256, i)
    indices = np.array(list(first.values()), dtype=np.int64)
    if len(indices) < 2:
        return []
    hashes = np.array([facts[i].phash for i in indices], dtype=np.uint64)
    pixels = np.stack([np.frombuffer(facts[i].thumbnail, np.uint8) for i in indices])
    alike = DisjointSets(len(indices))
    for one, two in _near(hashes):
        if alike.find(one) != alike.find(two) and _correlation(pixels[one], pixels[two]) >= CORRELATION:
            alike.join(one, two)
    sets: dict[int, list[int]] = defaultdict(list)
    for i, index in enumerate(indices.tolist()):
        sets[alike.find(i)].append(index)
    return [members for members in sets.values() if len(members) > 1]


def _near(hashes: NDArray[np.uint64]) -> Iterable[tuple[int, int]]:
    """Pairs of indices whose hashes differ in at most `BITS` bits; a pair may come several times."""
    for shift in range(0, 64, BAND):
        band = (hashes >> np.uint64(shift)) & np.uint64(2**BAND - 1)
        order = np.lexsort((hashes, band))
        ends = np.append(np.flatnonzero(np.diff(band[order])) + 1, len(order))
        start = 0
        for end in ends.tolist():
            for piece in range(start, end, CROWD):
                members = order[piece : min(piece + CROWD, end)]
                for at in range(len(members) - 1):
                    apart = np.bitwise_count(hashes[members[at + 1 :]] ^ hashes[members[at]])
                    for other in np.flatnonzero(apart <= BITS).tolist():
                        yield int(members[at]), int(members[at + 1 + other])
            start = end


def _correlation(one: NDArray[np.uint8], two: NDArray[np.uint8]) -> float:
    a, b = one - one.mean(), two - two.mean()
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm else 0.0
