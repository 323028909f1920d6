"""The network in PyTorch: float32 in the fastest arithmetic that is float32, bfloat16 by autocast, compiled or not.

In: a network and a device. Out: a `Runtime`. On a GPU the crops of the next batch are copied while this one computes.
It knows nothing of graphs of other libraries.

float32 on a CPU: PyTorch multiplies by MKL, which is slow on processors of other makers. Its precision "medium" lets
oneDNN multiply instead. What that means depends on the processor: with AMX, oneDNN then rounds to bfloat16; without, it
stays float32. So it is tried once, and used only if the product is as exact as float32's.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipmole.config import check_name
from clipmole.errors import ConfigError
from clipmole.inference.runtime import PRECISIONS, Precision, RuntimeName
from clipmole.models.network import MoLENetwork
from clipmole.plumbing.text import first_line

# Largest error of a product of 256 terms, in units of the largest product: float32 gives 3e-7, bfloat16 2e-3.
EXACT = 2e-6


class _Process:
    """The part of PyTorch's global state that threads share; `lock` protects it."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.users = 0  # threads in `matmul_precision`
        self.wanted = self.before = ""  # the precision they want, and the one that the host had set
        self.computed = False  # a network was loaded: OpenMP may have started its threads
        self.forked = False  # and then the process was forked: the threads are gone, and waiting for them never ends


_PROCESS = _Process()


def _after_fork() -> None:
    before = _PROCESS.computed
    _PROCESS.__init__()  # type: ignore[misc]  # the lock may have been held by a thread that is gone
    _PROCESS.forked = before


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """PyTorch's arithmetic of float32 matrix products, for as long as the context lasts.

    The setting is global. So the first thread sets it, and the last one restores the host's setting; a thread that
    wants another setting waits for those before it.
    """
    state = _PROCESS
    with state.lock:
        state.lock.wait_for(lambda: not state.users or state.wanted == name)
        if not state.users:
            state.wanted, state.before = name, torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision(name)
        state.users += 1
    try:
        yield
    finally:
        with state.lock:
            state.users -= 1
            if not state.users and torch.get_float32_matmul_precision() == name:
                torch.set_float32_matmul_precision(state.before)
            state.lock.notify_all()


def product_error(name: str) -> float:
    """Largest error of a float32 matrix product under a precision of PyTorch, over the largest entry."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    with matmul_precision(name):
        product = a @ b
    return float((product.double() - exact).abs().max() / exact.abs().max())


@cache
def exact_precision() -> str:
    """ "medium" where this processor's product stays float32 under it, else "highest"; tried once in a process."""
    return "medium" if product_error("medium") < EXACT else "highest"


@cache
def bfloat16_is_slow(device: str) -> bool:
    """Whether a product in bfloat16 takes many times as long as one in float32.

    An x86 processor is slow if it lacks instructions for it (AVX512_BF16 or AMX), such as one with AVX2 alone: so its
    load cannot change the answer, and with it what a run computes. For any other device, it is slow if a product takes
    more than twice the time, tried once in a process.
    """
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    told: list[Any] = [getattr(torch.cpu, name, None) for name in names]
    if device == "cpu" and platform.machine().lower() in {"x86_64", "amd64"} and all(told):
        return not any(supported() for supported in told)
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, times = torch.ones(256, 256, dtype=dtype, device=device), []
        for _ in range(4):  # the first warms up
            began = time.perf_counter()
            (a @ a)[0, 0].item()
            times.append(time.perf_counter() - began)
        seconds[dtype] = min(times[1:])
    return seconds[torch.bfloat16] > 2 * seconds[torch.float32]


def usable(device: str) -> torch.device:
    """The device of this name. Raises `ConfigError` if it cannot be used."""
    try:
        return torch.zeros(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={device}: cannot be used: {first_line(error)}") from error


class TorchRuntime:
    """The network itself.

    Args:
        network: in eval mode; it is moved to `device`.
        device: "cpu", "cuda", ...
        precision: float32, or bfloat16 by autocast.
        compiled: let torch.compile fuse the operations between the matrix products; on a GPU as a CUDA graph. It takes
            half a minute for each number of crops, so numbers are rounded up to a power of two.
    """

    def __init__(
        self, network: MoLENetwork, device: str = "cpu", precision: Precision = "float32", compiled: bool = False
    ) -> None:
        check_name("precision", precision, PRECISIONS)
        if precision == "int8":
            raise ConfigError("precision=int8: only exported graphs have it: clipmole export --int8")
        self.device = usable(device)
        try:
            self.network = network.to(self.device).eval()
        except RuntimeError as error:
            raise ConfigError(f"device={device}: has no room for the network: {first_line(error)}") from error
        _PROCESS.computed = True
        self.name: RuntimeName = "torch-compile" if compiled else "torch"
        self.precision: Precision = precision
        self.forward = _compiled(self.network, self.device) if compiled else self.network
        self.copies = (
            torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        )

    def outputs(self, crops: NDArray[np.uint8], batch_size: int) -> NDArray[np.float32]:
        """Crops (n, 3, S, S) -> logits (n,), or (n, m), in forward passes of at most `batch_size` crops.

        A process that was forked after a network was loaded computes on one thread.
        """
        if _PROCESS.forked:
            _PROCESS.forked = False
            torch.set_num_threads(1)
        precision = exact_precision() if self.device.type == "cpu" and self.precision == "float32" else "highest"
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")
        parts = []
        # torch.compile packs frozen weights, which it cannot do in inference mode.
        quiet = torch.no_grad() if self.name == "torch-compile" else torch.inference_mode()
        with quiet, autocast, matmul_precision(precision):
            batches = torch.split(torch.from_numpy(crops), batch_size)
            coming = self.on_device(self.padded(batches[0]))
            for i, batch in enumerate(batches):
                here, last = coming, i + 1 == len(batches)
                coming = here if last else self.on_device(self.padded(batches[i + 1]))  # while this one computes
                if self.copies is not None:
                    torch.cuda.current_stream(self.device).wait_stream(self.copies)
                parts.append(self.forward(here)[: len(batch)].float())
        return torch.cat(parts).cpu().numpy()

    def exact(self) -> TorchRuntime | None:
        """The same network, its weights shared, in float32; None unless this is bfloat16."""
        return TorchRuntime(self.network, str(self.device)) if self.precision == "bfloat16" else None

    def padded(self, batch: Tensor) -> Tensor:
        """The batch; for a compiled network filled up with its last crop to a power of two."""
        missing = (1 << (len(batch) - 1).bit_length()) - len(batch) if self.name == "torch-compile" else 0
        return torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])]) if missing else batch

    def on_device(self, batch: Tensor) -> Tensor:
        """The batch on the device; if there are streams, it is being copied on one of its own."""
        if self.copies is None:
            return batch.to(self.device)
        with torch.cuda.stream(self.copies):
            moved = batch.pin_memory().to(self.device, non_blocking=True)
        moved.record_stream(torch.cuda.current_stream(self.device))
        return moved


def _compiled(network: MoLENetwork, device: torch.device) -> torch.nn.Module:
    """The network by torch.compile: frozen weights prepacked on a CPU, CUDA graphs on a GPU."""
    options: dict[str, Any] = {"freezing": True}
    if device.type == "cuda":
        options["triton.cudagraphs"] = True
    return torch.compile(network.requires_grad_(False), options=options, dynamic=False)  # type: ignore[return-value]
