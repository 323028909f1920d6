"""Chunks that are missing -> their rows, scored by Ray's workers on one machine or many.

In: how to load the detector, and numbers of chunks. Out: rows and ends of chunks, in the order in which chunks are
finished. Ray Data hands out the chunks, starts and ends workers as there is work, and gives a chunk to another worker
when one dies with its node. An actor beside the driver, the desk, keeps the listing and says which images were seen,
so workers need no common disk but the one their images are on. It knows nothing of parts and reports.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipmole.detect import Detector
from clipmole.errors import ClipmoleError, ConfigError, DataError, MissingDependency
from clipmole.scan.firsts import Firsts
from clipmole.scan.listing import Listings
from clipmole.scan.local import entries_of
from clipmole.scan.rows import Row, from_table, to_table
from clipmole.scan.scorer import Scorer, Step
from clipmole.scan.settings import ScanSettings
from clipmole.scan.units import Unit

BEGUN = 6  # workers that may begin a chunk, where each dies
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
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
        self.begun: Counter[int] = Counter()

    def units(self, chunk: int) -> list[Unit]:
        """The units of a chunk that a worker begins; Ray Data itself would give it to new workers for ever."""
        units = self.listings.units(chunk)
        self.begun[chunk] += 1
        if self.begun[chunk] > BEGUN:
            raise DataError(
                f"{BEGUN} workers died over the images from {units[0].place} to {units[-1].place}; one may need "
                "more memory than there is: leave it out, or give the same command again to go on"
            )
        return units

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
    """Scores one chunk after the other; an actor that loads the detector once."""

    def __init__(self, load: Callable[[], Detector], settings: ScanSettings, desk: Any, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.desk = AtDesk(desk)
        self.settings = settings
        self.scorer = Scorer(load(), self.desk, look_alikes=settings.look_alikes)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """{"chunk": (1,), "skip": (1,)} -> {"chunk": (1,), "rows": (1,) bytes of an Arrow stream}."""
        import numpy as np
        import pyarrow as pa

        chunk, skip = int(batch["chunk"][0]), int(batch["skip"][0])
        steps = self.scorer.rows(entries_of(chunk, self.desk.units(chunk), self.settings, skip))
        table = to_table([row for _, row in steps if row is not None])
        with pa.BufferOutputStream() as memory:
            with pa.ipc.new_stream(memory, table.schema) as stream:
                stream.write_table(table)
            rows = memory.getvalue().to_pybytes()
        return {"chunk": np.array([chunk]), "rows": np.array([rows], dtype=object)}


def connect(cluster: Cluster) -> None:
    """Join a cluster, or start one. Nothing is reported to anybody and no dashboard is started.

    Raises `MissingDependency` without Ray, `ConfigError` if there is no cluster at the address.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
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
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


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

    Raises `DataError` where workers fail, and what they raise on purpose.
    """
    import pyarrow as pa
    import ray

    work = [{"chunk": chunk, "skip": skip} for chunk, skip in missing.items()]
    if not work:
        return
    made = ray.data.from_items(work, override_num_blocks=len(work)).map_batches(
        Worker,
        fn_constructor_args=(load, settings, desk.desk, max(1, cluster.cpus)),
        batch_size=1,
        concurrency=cluster.workers,
        num_cpus=cluster.cpus,
        num_gpus=cluster.gpus or None,
    )
    try:
        for result in made.iter_rows():
            for row in from_table(pa.ipc.open_stream(result["rows"]).read_all()):
                yield result["chunk"], row
            yield result["chunk"], None
    except ray.exceptions.RayError as error:
        raise _plain(error) from error


def _plain(error: BaseException) -> ClipmoleError:
    """What a worker raised on purpose; else one line."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ClipmoleError) and not type(cause).__name__.startswith("RayTaskError"):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return DataError(f"Ray's workers failed: {lines[-1].strip()[:300] if lines else type(error).__name__}")
