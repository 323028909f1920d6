"""Random generators that depend on a seed and on their purpose, not on order, workers or earlier draws.

In: a seed and keys. Out: a numpy generator. It knows nothing of what is drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def sample_rng(seed: int, *keys: int | str) -> np.random.Generator:
    """A generator that depends on `seed` (0 or more) and `keys` alone, not on order, workers or earlier draws."""
    text = "\0".join(map(str, keys))
    words = np.frombuffer(hashlib.sha256(text.encode(errors="surrogateescape")).digest(), dtype="<u4")
    return np.random.default_rng([seed, *words.tolist()])


@contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch's random numbers on the CPU within the block; afterwards the host's continue where they were."""
    import torch

    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)
