"""Memory that a step of training frees is kept for the next one.

In: nothing. Out: whether it could be done. It knows nothing of training.
"""

from __future__ import annotations

import ctypes

# glibc's malloc.h: parameters of mallopt, and what they are set to. Large blocks come from the heap and not from the
# system one by one, and the heap is not given back.
_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -3, -1, -2
_SETTINGS = {_MMAP_THRESHOLD: 2**30, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**28}


def keep_freed_memory() -> bool:
    """Tell glibc to keep the memory that this process frees, until it ends.

    PyTorch frees its tensors after each operation. Without this the system takes and clears their pages each time,
    which takes a good part of a training step on a CPU. It holds for the whole process, so only a program may
    ask for it, not a library.

    Returns:
        False where the C library is another one; nothing is changed there.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl; Windows
        return False
    return 0 not in [mallopt(parameter, value) for parameter, value in _SETTINGS.items()]
