"""Union-find against the components that a breadth-first search finds."""

from __future__ import annotations

import random

from clipmole.plumbing.disjoint_sets import DisjointSets


def test_sets_are_the_connected_components_named_by_their_smallest_member() -> None:
    rng = random.Random(0)
    pairs = [(rng.randrange(60), rng.randrange(60)) for _ in range(35)]
    sets = DisjointSets(60)
    for one, other in pairs:
        sets.join(one, other)
    for index in range(60):
        reached, edge = {index}, [index]
        while edge:
            near = {b for a in edge for pair in pairs if a in pair for b in pair} - reached
            reached |= near
            edge = list(near)
        assert sets.find(index) == min(reached)
