"""Chunks that are missing -> their rows, scored by Ray's workers on one machine or many.

In: how to load the detector, and numbers of chunks. Out: rows and ends of chunks, in the order in which chunks are
finished. Ray Data hands out the chunks, starts and ends workers according to the work, and restarts one that died on
the same chunk. An actor beside the driver, the coordinator, keeps the listing and records which images were seen, so
workers need no shared disk except the one with their images. It knows nothing of parts and reports.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmole.errors import ClipmoleError, ConfigError, DataError, MissingDependency
from clipmole.plumbing.telemetry import environment_variables
from clipmole.plumbing.text import first_line, one_line
from clipmole.scan.containers import WorkItem, entries_of
from clipmole.scan.duplicates import LocalClaims
from clipmole.scan.listing import Listings
from clipmole.scan.rows import Row, from_table, to_table
from clipmole.scan.settings import ScanSettings

if TYPE_CHECKING:  # the coordinator's process does without PyTorch
    from clipmole.inference.detector import Detector
    from clipmole.scan.scorer import ChunkRow

TRIES = 3  # deaths of workers on the same chunk before it is put off; a round that finishes no chunk ends the scan
NAME = "clipmole-worker-"  # of the actors; by it those are found that Ray Data has forgotten
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster and the number of workers.

    Attributes:
        address: of a running cluster, "auto": the one of this machine; None: one is started here for the scan.
        workers: fewest and most; they are started as there is work and room.
        cpus, gpus: of each worker.
    """

    address: str | None = None
    workers: tuple[int, int] = (1, 1)
    cpus: int = 1
    gpus: float = 0.0


class Coordinator(LocalClaims):
    """Answers workers: which source is scored for given bytes, and the items of a chunk."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.listings = Listings(folder)

    def items(self, chunk: int) -> list[WorkItem]:
        return self.listings.items(chunk)


class RemoteClaims:
    """The `Coordinator` as seen from another process."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def _ask(self, name: str, argument: Any) -> Any:
        import ray

        return ray.get(getattr(self.actor, name).remote(argument))

    def claim(self, asked: Sequence[tuple[str, str]]) -> list[str | None]:
        found: list[str | None] = self._ask("claim", asked) if asked else []
        return found

    def put(self, rows: Sequence[Row]) -> None:
        self._ask("put", rows)

    def fill(self, rows: Sequence[Row]) -> list[Row]:
        copies = [row for row in rows if row.duplicate_of is not None]
        filled = iter(self._ask("fill", copies) if copies else [])
        return [row if row.duplicate_of is None else next(filled) for row in rows]

    def items(self, chunk: int) -> list[WorkItem]:
        found: list[WorkItem] = self._ask("items", chunk)
        return found


class Worker:
    """An actor that loads the detector once and scores one chunk after another."""

    def __init__(self, load: Callable[[], Detector], settings: ScanSettings, coordinator: Any, threads: int) -> None:
        import torch

        from clipmole.scan.scorer import EntryScorer

        torch.set_num_threads(threads)
        self.coordinator = RemoteClaims(coordinator)
        self.settings = settings
        detector = load()
        if detector.device.type == "cpu":  # the network needs the cores itself
            detector.workers = min(detector.workers, threads)
        self.scorer = EntryScorer(
            detector, self.coordinator, look_alikes=settings.look_alikes, sources=settings.sources
        )

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """{"chunk": (1,), "skip": (1,)} -> {"chunk", "error", "rows", "passed_over"}, (1,) each.

        `rows` are bytes of an Arrow stream, `passed_over` is JSON.
        """
        import numpy as np

        chunk, skip = int(batch["chunk"][0]), int(batch["skip"][0])
        error, rows, passed_over = "", b"", Counter[str]()
        try:
            rows = self._score(chunk, skip, passed_over)
        except ClipmoleError as problem:
            error = str(problem)
        except Exception as problem:  # a result, so that the scan ends with its reason
            error = f"a worker failed: {type(problem).__name__}: {first_line(problem)}"
        result = {"chunk": chunk, "error": error, "rows": rows, "passed_over": json.dumps(passed_over)}
        return {name: np.array([value], dtype=object) for name, value in result.items()}

    def _score(self, chunk: int, skip: int, passed_over: Counter[str]) -> bytes:
        import pyarrow as pa

        steps = self.scorer.rows(entries_of(chunk, self.coordinator.items(chunk), self.settings, passed_over, skip))
        table = to_table([row for _, row in steps if row is not None])
        with pa.BufferOutputStream() as memory:
            with pa.ipc.new_stream(memory, table.schema) as stream:
                stream.write_table(table)
            return bytes(memory.getvalue().to_pybytes())


def connect(cluster: Cluster) -> None:
    """Join a cluster, or start one. Usage reports are off and no dashboard is started.

    Raises `MissingDependency` without Ray, `ConfigError` if there is no cluster at the address.
    """
    with environment_variables(QUIET):
        _connect(cluster)


def _connect(cluster: Cluster) -> None:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependency("ray", "ray") from error
    if not ray.is_initialized():
        own = (
            {"address": "local", "include_dashboard": False}
            if cluster.address is None
            else {"address": cluster.address}
        )
        # Otherwise Ray puts the current folder first on its workers' path, and a numpy.py in it would be executed.
        job = ray.job_config.JobConfig(_client_job=True)
        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(**own, job_config=job, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = one_line(str(error), 200)
            raise ConfigError(
                f"--address {cluster.address}: no Ray cluster could be reached there: {reason}"
            ) from error
        finally:  # Ray puts a handler of its own there, which ends the process at once
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)
    room: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    if room.get("CPU", 0) < cluster.cpus or room.get("GPU", 0) < cluster.gpus:
        raise ConfigError(
            f"each worker needs {cluster.cpus} CPUs and {cluster.gpus:g} GPUs; Ray has {room.get('CPU', 0):g} and "
            f"{room.get('GPU', 0):g}; ask for less, or give the address of a larger cluster"
        )
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


def start_coordinator(folder: Path) -> RemoteClaims:
    """The coordinator, on this process's own node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return RemoteClaims(ray.remote(Coordinator).options(num_cpus=0, scheduling_strategy=node).remote(folder.resolve()))


def score_on_ray(
    load: Callable[[], Detector],
    settings: ScanSettings,
    missing: Mapping[int, int],
    coordinator: RemoteClaims,
    cluster: Cluster,
    passed_over: Counter[str],
) -> Generator[ChunkRow, None, None]:
    """Rows of the missing chunks, one whole chunk at a time.

    A chunk on which a worker died `TRIES` times, or whose rows were lost with their node, is tried again in the next
    round, when the others are done.

    Args:
        load: makes the detector in each worker; can be pickled.
        missing: chunk -> rows of it that are there.
        passed_over: counts the leftovers of programs in tars, by kind.

    Raises `DataError` if workers fail, or if no worker finishes a chunk in several rounds.
    """
    import pyarrow as pa
    import ray

    left, reason = dict(missing), ""
    while left:
        there = len(left)
        try:
            for result in _round(load, settings, left, coordinator, cluster).iter_rows():
                if result["error"]:
                    raise DataError(result["error"])
                chunk = int(result["chunk"])
                for row in from_table(pa.ipc.open_stream(result["rows"]).read_all()):
                    yield chunk, row
                yield chunk, None
                passed_over.update(json.loads(result["passed_over"]))
                del left[chunk]
        except ray.exceptions.RayError as error:
            reason = first_line(error)
        finally:
            _let_go()
        if len(left) == there:
            items = coordinator.items(next(iter(left)))
            raise DataError(
                f"workers died {TRIES} times and more over the images from {items[0].location} to "
                f"{items[-1].location}, and perhaps others; one may need more memory than there is: leave it out, or "
                f"give the same command again; {reason or 'Ray did not say why'}"
            )


def _round(
    load: Callable[[], Detector],
    settings: ScanSettings,
    chunks: Mapping[int, int],
    coordinator: RemoteClaims,
    cluster: Cluster,
) -> Any:
    """The rows that Ray Data gives for the chunks; those of chunks whose worker dies are missing."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1
    work = [{"chunk": chunk, "skip": skip} for chunk, skip in chunks.items()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is no other way yet to say how often a worker is given a task again
        return ray.data.from_items(work, override_num_blocks=len(work)).map_batches(
            Worker,
            fn_constructor_args=(load, settings, coordinator.actor, max(1, cluster.cpus)),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                min_size=min(cluster.workers[0], len(work)),
                max_size=min(cluster.workers[1], len(work)),
                max_tasks_in_flight_per_actor=1,  # else a chunk that waits behind a deadly one is tried less often
            ),
            num_cpus=cluster.cpus,
            num_gpus=cluster.gpus or None,
            ray_remote_args_fn=_persistent,
        )


def _persistent() -> dict[str, Any]:
    """Restart a worker that died, on the same chunk, up to `TRIES` times."""
    return {"name": f"{NAME}{uuid.uuid4()}", "max_restarts": -1, "max_task_retries": TRIES - 1}


def _let_go() -> None:
    """End the workers of a round: Ray Data releases them, but one that was restarted would stay.

    Workers that stay keep their cores, and those of the next round wait for them forever (seen with Ray 2.60).
    """
    import ray

    for name in ray.util.list_named_actors():  # of this driver
        if name.startswith(NAME):
            with suppress(ValueError):  # it has just ended
                ray.kill(ray.get_actor(name))
