"""A function over an iterable, computed by threads ahead of the reader: ordered, bounded, and ended with the reader.

In: a function, an iterable that may be slow or endless, a number of threads, and a limit on results that wait. Out: the
results in the order of the iterable. It knows nothing of images or models.

The threads themselves take the items, one thread at a time, so a slow source does not hold up results that are ready.
An error of the source or of the function is raised at its position, and nothing comes after it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Generic, TypeVar

LINGER = 0.05  # seconds without a new item after which the reader is told that nothing is coming
GRACE = 0.2  # seconds that a source may take to return an item after the reader has gone

Given = TypeVar("Given")
Made = TypeVar("Made")


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ahead(
    make: Callable[[Given], Made],
    given: Iterable[Given],
    *,
    workers: int,
    limit: int,
    weigh: Callable[[Made], int] = lambda _made: 1,
) -> Generator[Made | None, None, None]:
    """`make` of each item of `given`, in order, computed by up to `workers` threads ahead of the reader.

    Args:
        make: called by several threads at once, each with a different item.
        workers: number of threads; 0: none, and each result is made when it is asked for.
        limit: no further item is taken while results of this total weight are waiting. Up to `workers` more are being
            made, whatever they will weigh.
        weigh: weight of a result.

    Yields:
        The results; and None, once, if all results have been handed out and the source has not given another item for
        `LINGER` seconds. A reader that collects results should then use those it has.

    Closing the iterator ends the threads: it waits for what they are making, but not for a source that does not answer
    (its daemon thread ends when the source does). Ctrl-C reaches the reader at once.
    """
    if workers == 0:
        for item in given:
            yield make(item)
        return
    prefetcher = _Prefetcher(make, iter(given), limit, weigh)
    prefetcher.start(workers)
    try:
        yield from prefetcher.results()
    finally:
        prefetcher.close()


class _Failure:
    """An error that was raised instead of a result."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Prefetcher(Generic[Given, Made]):
    """The state that the threads and the reader share; attributes below `state` are used only while it is held."""

    def __init__(
        self, make: Callable[[Given], Made], given: Iterator[Given], limit: int, weigh: Callable[[Made], int]
    ) -> None:
        self.make, self.given, self.limit, self.weigh = make, given, limit, weigh
        self.threads: list[threading.Thread] = []
        self.state = threading.Condition()
        self.ready: dict[int, tuple[Made, int] | _Failure] = {}  # by position in the order; with its weight
        self.weight = 0  # of all that is ready
        self.taken = 0  # items taken from the source
        self.given_out = 0  # results given to the reader
        self.ended = False  # nothing more is to be taken
        self.left = False  # the reader has gone
        self.asking: threading.Thread | None = None  # the thread that waits for the source

    def start(self, workers: int) -> None:
        for number in range(workers):
            thread = threading.Thread(target=self._work, name=f"clipmole-ahead-{number}", daemon=True)
            self.threads.append(thread)
            thread.start()

    def results(self) -> Iterator[Made | None]:
        told = False  # the reader knows that the source is silent
        while True:
            with self.state:
                idle = self.given_out == self.taken and not told
                if not self.state.wait_for(self._something, LINGER if idle else None):
                    told = self.given_out == self.taken  # else an item came while we waited, and is being made
                    result = None
                elif self.given_out not in self.ready:
                    return
                else:
                    made = self.ready.pop(self.given_out)
                    if isinstance(made, _Failure):
                        raise made.error
                    result, weight = made
                    self.weight -= weight
                    self.given_out += 1
                    told = False
                    self.state.notify_all()
            if result is not None or told:
                yield result

    def _something(self) -> bool:
        """Whether the reader can go on: the next result is ready, or there is none."""
        return self.given_out in self.ready or (self.ended and self.given_out == self.taken)

    def _work(self) -> None:
        while (item := self._next()) is not None:
            position, value = item
            made: tuple[Made, int] | _Failure
            try:
                result = self.make(value)
                made = (result, self.weigh(result))
            except BaseException as error:
                made = _Failure(error)
            with self.state:
                self._put(position, made)
            del item, value, made  # keep nothing of this item while the thread waits for the next one

    def _next(self) -> tuple[int, Given] | None:
        """The position of the next item and the item, once there is room; None if there is none or nobody wants it."""
        with self.state:
            self.state.wait_for(lambda: self._over() or (self.asking is None and self.weight < self.limit))
            if self._over():
                return None
            self.asking = threading.current_thread()
        try:
            value = next(self.given)
        except BaseException as error:
            with self.state:
                if not isinstance(error, StopIteration):
                    self.taken += 1
                    self._put(self.taken - 1, _Failure(error))
                self.ended, self.asking = True, None
                self.state.notify_all()
            return None
        with self.state:
            self.taken += 1
            self.asking = None
            self.state.notify_all()
            return self.taken - 1, value

    def _over(self) -> bool:
        return self.ended or self.left

    def _put(self, position: int, made: tuple[Made, int] | _Failure) -> None:
        self.ready[position] = made
        if isinstance(made, _Failure):
            self.ended = True
        else:
            self.weight += made[1]
        self.state.notify_all()

    def close(self) -> None:
        """End the threads, and wait for all of them except one that waits for the source."""
        with self.state:
            self.left = True
            self.state.notify_all()
            self.state.wait_for(lambda: self.asking is None, GRACE)
            stuck = self.asking
        for thread in self.threads:
            if thread is not stuck and thread is not threading.current_thread():
                thread.join()
        self.ready.clear()


def started_ahead(batches: Iterable[Given], start: Callable[[Given], Made], count: int = 2) -> Iterator[Made]:
    """`start` of each batch, in order; it has been called for `count` further batches when a result is given out."""
    started: deque[Made] = deque()
    for batch in batches:
        started.append(start(batch))
        if len(started) > count:
            yield started.popleft()
    yield from started
