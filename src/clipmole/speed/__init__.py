"""How fast each execution path is, side by side: shapes, batches and paths in, rows out.

In: names. Out: a `SpeedReport`: for each shape, batch and path images a second, latency, memory, operations a second
and the share of this machine's own matrix-multiply peak, measured in the same run. Every path runs in a process of
its own, whose memory is measured, and all take turns, so that other work on the machine affects all of them. It
knows nothing of accuracy: the towers have random weights.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import Field

from clipmole.errors import ClipmoleError
from clipmole.inference.pytorch import usable
from clipmole.plumbing.child import last_line, module_command
from clipmole.plumbing.environment import environment
from clipmole.records import Record, StoredRecord
from clipmole.report.page import markdown_table
from clipmole.speed.flops import flops
from clipmole.speed.paths import BASELINE, SpeedPath, adapter_of, available, is_graph, parse_path, tower_of

PAUSE = 0.2  # seconds between turns, because threads of the previous path spin for a moment


class SpeedRow(Record):
    """One path at one shape and batch.

    Attributes:
        path: its name; `adapter` says whether the MoLE adapter is in it.
        images_per_second: over all forward passes that were timed, `forwards` in number.
        p50, p95: of the seconds that a forward pass took.
        peak_memory: most memory of its process so far, bytes: weights, libraries, and batches up to this one. On a
            GPU the GPU's memory alone.
        gflops: 10^9 operations a second, by `flops`.
        share_of_peak: of the matrix-multiply peak in the same precision; None where none could be measured.
        over_baseline: images a second over those of the baseline; None if it was not in the run.
    """

    shape: str
    batch: int
    path: str
    adapter: bool
    images_per_second: float
    p50: float
    p95: float
    forwards: int
    peak_memory: int
    gflops: float
    share_of_peak: float | None
    over_baseline: float | None


class SpeedReport(StoredRecord):
    """What `clipmole benchmark speed` prints as JSON.

    Attributes:
        peaks: precision -> 10^9 operations a second of the fastest matrix product, the best of all turns.
        flops_per_image: shape -> multiplications and additions of an image; JSON: `operations_per_image`.
        left_out: path -> why it could not run here.
    """

    rows: tuple[SpeedRow, ...]
    peaks: dict[str, float]
    flops_per_image: dict[str, int] = Field(alias="operations_per_image")
    left_out: dict[str, str]
    settings: dict[str, Any]
    environment: dict[str, Any]


class PathFailed(ClipmoleError):
    """A path's process ended before it answered."""


class MeasuringProcess:
    """A process that measures when it is asked to."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.name = f"{task['path']} on {task['shape']}"
        self.process = subprocess.Popen(
            module_command("clipmole.speed.worker", json.dumps(task)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if task.get("quiet", True) else None,
            text=True,
        )

    def answer(self, question: dict[str, Any] | None = None) -> dict[str, Any]:
        """The process's answer to a question; without a question, its message that it is ready."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            if question is not None:
                self.process.stdin.write(json.dumps(question) + "\n")
                self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            errors = self.process.communicate()[1] or ""
            raise PathFailed(f"{self.name}: {last_line(errors, f'exit code {self.process.returncode}')}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End the process."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def measure_speed(
    shapes: Sequence[str],
    batches: Sequence[int],
    paths: Sequence[str],
    *,
    seconds: float = 2.0,
    repeats: int = 3,
    threads: int | None = None,
    device: str = "cpu",
    bare: bool = False,
    graphs: Path | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> SpeedReport:
    """Measure paths side by side.

    It has many parameters because it is the whole of `clipmole benchmark speed`.

    Args:
        shapes: of `config.CLIP_TOWERS`, "embedded", or TOML files of a `TowerConfig`.
        batches: crops of a forward pass.
        paths: of `paths.PATHS`; those whose library is absent are left out, and the report says why.
        seconds: of one turn, in which at least one forward pass is timed.
        repeats: turns of each path at each shape and batch.
        threads: of every path; None: as many as PyTorch takes.
        device: "cpu", or "cuda" for the paths of PyTorch; crops go there and logits come back in the time measured.
        bare: measure each path without the adapter too.
        graphs: folder where graphs are kept for a later run; None: they are made anew.
        say: gets a remark on each step.

    Raises `ConfigError` for unknown names, and for a device that cannot be used.
    """
    wanted = [parse_path(name) for name in paths]
    usable(device)
    chosen, left_out = available(wanted, device)
    chosen = [p for path in chosen for p in ([path, path.without_adapter()] if bare and path.ours else [path])]
    counts = {s: flops(tower_of(s), adapter_of(s), class_token_only=True) for s in shapes}
    rows: list[SpeedRow] = []
    peaks: dict[str, float] = {}
    for shape in shapes:
        with ExitStack() as stack:
            kept = graphs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            folder = kept / Path(shape).stem
            folder.mkdir(parents=True, exist_ok=True)
            task = {"shape": shape, "folder": str(folder), "threads": threads, "device": device}
            workers, broken = _start(task, chosen, stack, say)
            left_out |= broken
            machine = MeasuringProcess(task | {"path": "peak"})
            stack.callback(machine.close)
            machine.answer()
            for batch in batches:
                turns, new = _turns(workers, machine, batch, seconds, repeats, say)
                peaks |= {name: max(peaks.get(name, 0.0), value) for name, value in new.items()}
                rows += _speed_rows(shape, batch, turns)
    rows = [with_peak(row, peaks) for row in rows]
    return SpeedReport(
        rows=tuple(rows),
        peaks=peaks,
        flops_per_image=counts,
        left_out=left_out,
        settings={"seconds": seconds, "repeats": repeats, "batches": list(batches), "device": device},
        environment=environment() | ({"threads": threads} if threads else {}),
    )


def _start(
    common: dict[str, Any], chosen: Sequence[SpeedPath], stack: ExitStack, say: Callable[[str], None]
) -> tuple[dict[SpeedPath, MeasuringProcess], dict[str, str]]:
    """A process for each path, loaded; graphs are made by processes that end before."""
    shape = common["shape"]
    workers: dict[SpeedPath, MeasuringProcess] = {}
    left_out: dict[str, str] = {}
    for path in chosen:
        task = common | {"path": path.name, "adapter": path.adapter}
        try:
            if is_graph(path):
                say(f"{shape}: {path.label}: making the graph")
                maker = MeasuringProcess(task | {"make": True})
                stack.callback(maker.close)
                maker.answer()
                maker.process.wait()
            say(f"{shape}: {path.label}: loading")
            worker = MeasuringProcess(task)
            stack.callback(worker.close)
            worker.answer()
            workers[path] = worker
        except PathFailed as error:
            say(f"left out: {error}")
            left_out[f"{shape} {path.label}"] = str(error)
    return workers, left_out


def _turns(
    workers: dict[SpeedPath, MeasuringProcess],
    machine: MeasuringProcess,
    batch: int,
    seconds: float,
    repeats: int,
    say: Callable[[str], None],
) -> tuple[dict[SpeedPath, tuple[list[float], int]], dict[str, float]]:
    """Seconds of every forward pass and peak memory of each path; the machine's peaks."""
    turns: dict[SpeedPath, tuple[list[float], int]] = {path: ([], 0) for path in workers}
    peaks: dict[str, float] = {}
    for turn in range(repeats):
        peaks = {n: max(peaks.get(n, 0.0), value) for n, value in machine.answer({"seconds": 0.1})["peaks"].items()}
        for path, worker in workers.items():
            time.sleep(PAUSE)
            answer = worker.answer({"batch": batch, "seconds": seconds, "warm": turn == 0})
            turns[path] = (turns[path][0] + answer["seconds"], answer["peak_memory"])
            speed = batch * len(answer["seconds"]) / sum(answer["seconds"])
            say(f"{worker.name}, batch {batch}, turn {turn + 1}: {speed:.1f} images/s")
    return turns, peaks


def _speed_rows(shape: str, batch: int, turns: dict[SpeedPath, tuple[list[float], int]]) -> list[SpeedRow]:
    speeds = {path: batch * len(seconds) / sum(seconds) for path, (seconds, _) in turns.items()}
    baseline = next((speed for path, speed in speeds.items() if path.name == BASELINE), None)
    rows = []
    for path, (seconds, memory) in turns.items():
        mole = adapter_of(shape) if path.adapter else None
        each = flops(tower_of(shape), mole, class_token_only=path.ours)
        ordered = sorted(seconds)
        rows.append(
            SpeedRow(
                shape=Path(shape).stem,
                batch=batch,
                path=path.name,
                adapter=path.adapter,
                images_per_second=speeds[path],
                p50=statistics.median(seconds),
                p95=ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))],
                forwards=len(seconds),
                peak_memory=memory,
                gflops=each * speeds[path] / 1e9,
                share_of_peak=None,
                over_baseline=speeds[path] / baseline if baseline else None,
            )
        )
    return rows


def with_peak(row: SpeedRow, peaks: dict[str, float]) -> SpeedRow:
    peak = peaks.get(row.path.rsplit("-", 1)[1])
    return row.model_copy(update={"share_of_peak": row.gflops / peak if peak else None})


def speed_table(report: SpeedReport) -> list[str]:
    """The report for people, as the lines of a Markdown table."""
    heads = ["shape", "batch", "path", "images/s", "over baseline", "p50 ms", "p95 ms", "GFLOP/s", "of peak", "MiB"]
    rows = []
    for row in report.rows:
        path = row.path + ("" if row.adapter or row.path == BASELINE else ", no adapter")
        share = "" if row.share_of_peak is None else f"{100 * row.share_of_peak:.0f} %"
        over = "" if row.over_baseline is None else f"{row.over_baseline:.2f}"
        cells = [row.shape, str(row.batch), path, f"{row.images_per_second:.1f}", over]
        cells += [f"{1000 * row.p50:.1f}", f"{1000 * row.p95:.1f}", f"{row.gflops:.0f}", share]
        rows.append([*cells, f"{row.peak_memory / 2**20:.0f}"])
    return markdown_table(heads, rows, left=(0, 2))
