"""The process of one path: it loads, then measures whenever it is asked to.

In: a task as JSON on the command line, questions as JSON lines on stdin. Out: one answer per line on stdout. Output of
libraries goes to stderr. `python -m clipmole.speed.worker` is not for people.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipmole.plumbing.telemetry import switch_off
from clipmole.speed.paths import make_graph, open_path, parse_path, tower_of

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

SIZES = (1024, 2048, 4096)
ROWS = {"cpu": 1576, "cuda": 65792}  # of the activations: 8 images of 197 tokens, and 256 of 257


def peak_memory(device: str) -> int:
    """The most memory that this process has held, bytes; the GPU's memory if that computes."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage counts what the parent held when it started this process
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    if resource is None:
        return 0  # not known
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def timed(call: Callable[[], Any], seconds: float) -> list[float]:
    """Seconds of each call, for about so many seconds; at least one."""
    found: list[float] = []
    end = time.perf_counter() + seconds
    while not found or time.perf_counter() + found[-1] / 2 < end:
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return found


def peaks(seconds: float, device: str = "cpu") -> dict[str, float]:
    """10^9 operations a second of the fastest matrix product in each precision, over sizes and libraries.

    The last size is the first with a product that takes longer than `seconds`.
    """
    best: dict[str, float] = {}
    rows = ROWS[torch.device(device).type]
    for size in SIZES:
        longest = 0.0
        for precision, call in _products(rows, size, device).items():
            call()
            fastest = min(timed(call, seconds) if device == "cpu" else timed_on_gpu(call, seconds))
            name = precision.partition(" ")[0]
            best[name] = max(best.get(name, 0.0), 2 * rows * size * size / fastest / 1e9)
            longest = max(longest, fastest)
        if longest > seconds:
            break
    return best


def timed_on_gpu(call: Callable[[], Any], seconds: float) -> list[float]:
    """Seconds of a call in each of some turns of ten, by the GPU's own clock; for about so many seconds."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

    def turn() -> float:
        begin.record()
        for _ in range(10):
            call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e4

    found: list[float] = []
    timed(lambda: found.append(turn()), seconds)
    return found


def _products(rows: int, size: int, device: str) -> dict[str, Callable[[], Any]]:
    """Products of activations (rows, size) and weights (size, size), as the layers of a network compute them."""
    x, w = torch.randn(rows, size, device=device), torch.randn(size, size, device=device)
    x16, w16 = x.bfloat16(), w.bfloat16()
    calls: dict[str, Callable[[], Any]] = {
        "float32": lambda: torch.nn.functional.linear(x, w),
        "bfloat16": lambda: torch.nn.functional.linear(x16, w16),
    }
    return calls if device != "cpu" else calls | _packed_products(x, w, x16, w16)


def _packed_products(x: Tensor, w: Tensor, x16: Tensor, w16: Tensor) -> dict[str, Callable[[], Any]]:
    """The same on a CPU with weights packed before, in int8 too; those that this processor has."""
    rows, size = x.shape
    calls: dict[str, Callable[[], Any]] = {}
    x8 = torch.randint(0, 255, (rows, size), dtype=torch.uint8)
    w8 = torch.randint(-127, 127, (size, size), dtype=torch.int8)
    try:
        packed32 = torch.ops.mkldnn._reorder_linear_weight(w, rows)
        calls["float32 prepacked"] = lambda: torch.ops.mkldnn._linear_pointwise(x, packed32, None, "none", [], "")
        packed16 = torch.ops.mkldnn._reorder_linear_weight(w16, rows)
        calls["bfloat16 prepacked"] = lambda: torch.ops.mkldnn._linear_pointwise(x16, packed16, None, "none", [], "")
        packed8 = torch.ops.onednn.qlinear_prepack(w8, [rows, size])
        scales, zeros = torch.full((size,), 0.01), torch.zeros(size, dtype=torch.int64)
        calls["int8"] = lambda: torch.ops.onednn.qlinear_pointwise(
            x8, 0.01, 0, packed8, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        calls["int8"]()
    except (RuntimeError, AttributeError):  # operators of PyTorch's x86 builds
        calls.pop("int8", None)
    return calls


def main() -> None:
    """Load the network of the task, say so, and answer questions until stdin ends."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    switch_off()
    task = json.loads(sys.argv[1])
    if task.get("threads"):
        torch.set_num_threads(task["threads"])

    def say(answer: dict[str, Any]) -> None:
        channel.write(json.dumps(answer) + "\n")
        channel.flush()

    if task["path"] == "peak":
        say({"ready": True})
        for line in sys.stdin:
            say({"peaks": peaks(json.loads(line)["seconds"], task["device"])})
        return
    path = replace(parse_path(task["path"]), adapter=task["adapter"])
    folder = Path(task["folder"])
    if task.get("make"):
        make_graph(path, task["shape"], folder)
        say({"made": True})
        return
    forward = open_path(path, task["shape"], folder, task["device"])
    size = tower_of(task["shape"]).image_size
    rng = np.random.default_rng(0)
    say({"ready": True})
    for line in sys.stdin:
        question = json.loads(line)
        crops = rng.integers(0, 256, (question["batch"], 3, size, size), dtype=np.uint8)
        if question["warm"]:
            forward(crops)
        seconds = timed(lambda: forward(crops), question["seconds"])  # noqa: B023
        say({"seconds": seconds, "peak_memory": peak_memory(task["device"])})


if __name__ == "__main__":
    main()
