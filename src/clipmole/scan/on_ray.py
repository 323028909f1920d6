"""Chunks that are missing -> their rows, scored by Ray's workers on one machine or many.

In: how to load the detector, and numbers of chunks. Out: rows and ends of chunks, in the order in which chunks are
finished. Workers are actors, started and ended as there is work; what one had in hand that died goes to others, and
none waits for one for which there is no room. (Ray Data can be told so only by options that are being taken away, and
waits for dead actors for ever where there is no room to start them anew.) An actor beside the driver, the desk, keeps
the listing and says which images were seen, so workers need no common disk but the one their images are on. It knows
nothing of parts and reports.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmole.detect import Detector
from clipmole.errors import ClipmoleError, ConfigError, DataError, MissingDependency
from clipmole.scan.firsts import Firsts
from clipmole.scan.listing import Listings
from clipmole.scan.local import entries_of
from clipmole.scan.places import one_line
from clipmole.scan.rows import Row, from_table, to_table
from clipmole.scan.scorer import Scorer, Step
from clipmole.scan.settings import ScanSettings
from clipmole.scan.units import Unit

if TYPE_CHECKING:
    import pyarrow as pa

ROUNDS = 3  # workers that die over the same chunk, before a scan stops
AHEAD = 2  # chunks that a worker has in hand, so that it does not wait for the driver between two
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


@dataclass(frozen=True)
class Cluster:
    """Where to work and with how many.

    Attributes:
        address: of a running cluster, "auto": the one of this machine; None: one is started here for the scan.
        workers: fewest and most; they are started as there is work and room.
        cpus, gpus: of each worker.
    """

    address: str | None = None
    workers: tuple[int, int] = (1, 1)
    cpus: int = 1
    gpus: float = 0.0


class Desk:
    """What workers ask for: the units of a chunk, and who scores an image."""

    def __init__(self, folder: Path) -> None:
        self.listings = Listings(folder)
        self.firsts = Firsts()

    def units(self, chunk: int) -> list[Unit]:
        return self.listings.units(chunk)

    def claim(self, asked: Sequence[tuple[str, str]]) -> list[str | None]:
        return self.firsts.claim(asked)

    def put(self, rows: Sequence[Row]) -> None:
        self.firsts.put(rows)

    def fill(self, rows: Sequence[Row]) -> list[Row]:
        return self.firsts.fill(rows)


class AtDesk:
    """`Firsts` as seen from another process."""

    def __init__(self, desk: Any) -> None:
        self.desk = desk

    def _ask(self, name: str, argument: Any) -> Any:
        import ray

        return ray.get(getattr(self.desk, name).remote(argument))

    def claim(self, asked: Sequence[tuple[str, str]]) -> list[str | None]:
        found: list[str | None] = self._ask("claim", asked) if asked else []
        return found

    def put(self, rows: Sequence[Row]) -> None:
        self._ask("put", rows)

    def fill(self, rows: Sequence[Row]) -> list[Row]:
        copies = [row for row in rows if row.duplicate_of is not None]
        filled = iter(self._ask("fill", copies) if copies else [])
        return [row if row.duplicate_of is None else next(filled) for row in rows]

    def units(self, chunk: int) -> list[Unit]:
        found: list[Unit] = self._ask("units", chunk)
        return found


class Worker:
    """Scores one chunk after the other; an actor that loads the detector once.

    What goes wrong is a result: `(reason, None)` in place of `("", ...)`.
    """

    def __init__(self, load: Callable[[], Detector], settings: ScanSettings, desk: Any, cluster: Cluster) -> None:
        self.load = load
        self.settings = settings
        self.desk = AtDesk(desk)
        self.cluster = cluster

    def start(self) -> tuple[str, None]:
        """Load the detector."""
        import torch

        torch.set_num_threads(self.cluster.cpus)
        try:
            detector = self.load()
        except Exception as problem:
            return _reason(problem), None
        if not self.cluster.gpus:  # the network needs the cores itself
            detector.workers = min(detector.workers, self.cluster.cpus)
        self.scorer = Scorer(detector, self.desk, look_alikes=self.settings.look_alikes)
        return "", None

    def score(self, chunk: int, skip: int) -> tuple[str, pa.Table | None]:
        """The rows of a chunk from the one after `skip` on."""
        try:
            steps = self.scorer.rows(entries_of(chunk, self.desk.units(chunk), self.settings, skip))
            return "", to_table([row for _, row in steps if row is not None])
        except Exception as problem:
            return _reason(problem), None


def _reason(problem: Exception) -> str:
    if isinstance(problem, ClipmoleError):
        return str(problem)
    return f"a worker failed: {type(problem).__name__}: {one_line(problem)}"


def connect(cluster: Cluster) -> None:
    """Join a cluster, or start one. Nothing is reported to anybody and no dashboard is started.

    Raises `MissingDependency` without Ray, `ConfigError` if there is no cluster at the address.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise MissingDependency("ray", "ray") from error
    if not ray.is_initialized():
        own = {"include_dashboard": False} if cluster.address is None else {"address": cluster.address}
        try:
            ray.init(**own, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"--address {cluster.address}: no Ray cluster can be had there: {reason}") from error
    room: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    if room.get("CPU", 0) < cluster.cpus or room.get("GPU", 0) < cluster.gpus:
        raise ConfigError(
            f"a worker is to have {cluster.cpus} CPUs and {cluster.gpus:g} GPUs; Ray has {room.get('CPU', 0):g} and "
            f"{room.get('GPU', 0):g}; ask for less, or give the address of a larger cluster"
        )
    logging.getLogger("ray").setLevel(logging.ERROR)


def open_desk(folder: Path) -> AtDesk:
    """The desk, on this process's own node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return AtDesk(ray.remote(Desk).options(num_cpus=0, scheduling_strategy=node).remote(folder.resolve()))


def score_on_ray(
    load: Callable[[], Detector], settings: ScanSettings, missing: Mapping[int, int], desk: AtDesk, cluster: Cluster
) -> Iterator[Step]:
    """Rows of the missing chunks, a chunk whole at a time.

    Args:
        load: makes the detector in each worker; can be pickled.
        missing: chunk -> rows of it that are there.

    Raises `DataError` where a worker fails, where workers die over the same chunk, and where all die.
    """
    import ray

    remote = ray.remote(Worker).options(
        num_cpus=cluster.cpus, num_gpus=cluster.gpus or None, scheduling_strategy="SPREAD"
    )
    crew = _Crew(lambda: remote.remote(load, settings, desk.desk, cluster), missing, desk, cluster.workers)
    try:
        for chunk, table in crew.results():
            for row in from_table(table):
                yield chunk, row
            yield chunk, None
    finally:
        crew.end(crew.hands)


@dataclass(eq=False)
class _Hand:
    """A worker, and its tasks in their order: promise of a result -> chunk; None: it is being started."""

    actor: Any
    tasks: dict[Any, int | None] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        return None not in self.tasks.values()

    @property
    def busy(self) -> bool:
        return bool(self.tasks) and self.ready


class _Crew:
    """The workers of a scan, between fewest and most of them, and the chunks that they have in hand."""

    def __init__(
        self, hire: Callable[[], Any], missing: Mapping[int, int], desk: AtDesk, span: tuple[int, int]
    ) -> None:
        self.hire = hire
        self.missing = missing
        self.desk = desk
        self.wanted, self.most = span
        self.queue = deque(missing)
        self.hands: list[_Hand] = []
        self.deaths: Counter[int | None] = Counter()  # workers that died over a chunk; None: while they started
        self.idle = 0  # workers that died since a chunk was finished

    def results(self) -> Iterator[tuple[int, pa.Table]]:
        """Chunks and their rows, as they are finished."""
        import ray

        while self.queue or any(hand.busy for hand in self.hands):
            self._staff()
            self._deal()
            promises = {promise: hand for hand in self.hands for promise in hand.tasks}
            (promise, *_), _ = ray.wait(list(promises), num_returns=1)
            hand = promises[promise]
            try:
                reason, table = ray.get(promise)
            except ray.exceptions.RayError as error:
                self._died(hand, one_line(error))
                continue
            if reason:
                raise DataError(reason)
            chunk = hand.tasks.pop(promise)
            if chunk is not None:
                self.idle = 0
                yield chunk, table

    def _staff(self) -> None:
        """Start workers while there is work for more, twice as many when all have begun, and end those without."""
        if self.queue and len(self.hands) >= self.wanted and all(hand.ready for hand in self.hands):
            self.wanted = min(2 * self.wanted, self.most)
        busy = sum(hand.busy for hand in self.hands)
        while len(self.hands) < min(self.wanted, busy + len(self.queue)):
            hand = _Hand(self.hire())
            hand.tasks[hand.actor.start.remote()] = None
            self.hands.append(hand)
        if not self.queue:
            self.end([hand for hand in self.hands if not hand.busy])

    def _deal(self) -> None:
        """Give each worker a chunk, and then another while enough are left that none is without one at the end."""
        ready = [hand for hand in self.hands if hand.ready]
        for held, left in ((0, 0), *((held, len(ready)) for held in range(1, AHEAD))):
            for hand in ready:
                if len(hand.tasks) == held and len(self.queue) > left:
                    chunk = self.queue.popleft()
                    hand.tasks[hand.actor.score.remote(chunk, self.missing[chunk])] = chunk

    def end(self, hands: Sequence[_Hand]) -> None:
        """Let workers go, and with them what they have in hand."""
        import ray

        for hand in list(hands):
            self.hands.remove(hand)
            ray.kill(hand.actor)

    def _died(self, hand: _Hand, reason: str) -> None:
        """Put back what a worker had in hand: what it was at comes last, for it may be why it died.

        Raises `DataError` if that happened too often.
        """
        self.end([hand])
        at, *others = hand.tasks.values()
        self.queue.extendleft(chunk for chunk in reversed(others) if chunk is not None)
        self.deaths[at] += 1
        self.idle += 1
        if at is not None:
            self.queue.append(at)
            if self.deaths[at] < ROUNDS and self.idle < ROUNDS * self.most:
                return
            units = self.desk.units(at)
            raise DataError(
                f"workers died {max(self.deaths[at], self.idle)} times, the last over the images from "
                f"{units[0].place} to {units[-1].place}; one may need more memory than there is: leave it out, or "
                f"give the same command again; {reason}"
            )
        if self.idle >= ROUNDS * self.most:
            raise DataError(
                f"workers died {self.idle} times and finished nothing, the last while it loaded the detector, which "
                f"may need more memory than there is; {reason}"
            )
