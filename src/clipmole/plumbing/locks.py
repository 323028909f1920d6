"""A lock that one process at a time holds, by a file; it ends with the process, however that ends.

In: a path. Out: a block that nobody else is in. It knows nothing of what is done there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def locked_by(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock on the file `path`, which is made if it is not there.

    Where the file system has no locks, or the file cannot be written, the block runs without one. With `wait` it runs
    when the lock is free; without, a lock that somebody else holds raises `TimeoutError`.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        lock.release()
