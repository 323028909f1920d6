"""Pairs that belong together -> sets, by union-find with path halving (Tarjan and van Leeuwen, J. ACM 31, 1984).

In: pairs of indices. Out: the representative of each index. It knows nothing of what the indices stand for.
"""

from __future__ import annotations


class DisjointSets:
    """Sets of the indices 0 to `size` - 1, each by itself at first; the representative of a set is its smallest."""

    def __init__(self, size: int) -> None:
        self.parent = list(range(size))

    def find(self, index: int) -> int:
        """The representative of the set that an index is in."""
        while self.parent[index] != index:
            self.parent[index] = self.parent[self.parent[index]]
            index = self.parent[index]
        return index

    def join(self, one: int, other: int) -> None:
        """Make one set of the two that hold these indices."""
        one, other = self.find(one), self.find(other)
        self.parent[max(one, other)] = min(one, other)
