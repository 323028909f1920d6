"""A lock on a file, which one process at a time can hold; it ends with the process, however that ends.

In: a path. Out: a block that only one process runs at a time. It knows nothing of what is done there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def locked_by(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock on the file `path`, which is created if it is not there.

    If the file system has no locks, or the file cannot be written, the block runs without one. With `wait` it runs
    when the lock is free; without, a lock that another process holds raises `TimeoutError`.
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
