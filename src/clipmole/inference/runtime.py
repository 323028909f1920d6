"""Execution paths: crops in, logits out, whatever multiplies the matrices.

In: crops (n, 3, S, S) uint8. Out: float32 what the network gives, logits (n,) or, with its second output, (n, 2).
`pytorch` runs the network as it is; `graph` runs it as a graph of OpenVINO or ONNX Runtime with the adapter inside, and
`quantize` makes that graph int8. The first two are a `Runtime` for the `Detector`, which knows no more of them. They
know nothing of images, files of images or verdicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from clipmole.errors import ConfigError

RuntimeName = Literal["torch", "torch-compile", "openvino", "onnx"]
Precision = Literal["float32", "bfloat16", "int8"]
RUNTIMES: tuple[str, ...] = get_args(RuntimeName)
PRECISIONS: tuple[str, ...] = get_args(Precision)


class Runtime(Protocol):
    """One way to compute what a network gives.

    Attributes:
        name: what computes.
        precision: of the matrix products. float32: equal to the network in float32 but for the order of additions.
        device: where.
    """

    name: RuntimeName
    precision: Precision
    device: torch.device

    def outputs(self, crops: NDArray[np.uint8], batch_size: int) -> NDArray[np.float32]:
        """Crops (n, 3, S, S), n >= 1 -> logits (n,), or (n, 2), in forward passes of at most `batch_size` crops."""
        ...

    def exact(self) -> Runtime | None:
        """The same network in float32, of a runtime in bfloat16; None of others."""
        ...


def logits_of(outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logits (n,) among what a runtime gives, (n,) or (n, 2)."""
    return outputs.reshape(len(outputs), -1)[:, 0]


def check_name(setting: str, given: str, known: Sequence[str]) -> None:
    """Raises `ConfigError` that lists what there is, unless `given` is one of `known`."""
    if given not in known:
        raise ConfigError(f"{setting}={given!r}: there is none; give one of {', '.join(known)}")


def batch_for(device: str | torch.device, asked: int | None = None) -> int:
    """Most crops of a forward pass: what is asked for, else 8 on a CPU, where more do not pay (docs/performance.md)."""
    if asked is not None:
        return asked
    return 8 if str(device).startswith("cpu") else 32


def name_suffix(runtime: Runtime) -> str:
    """What a detector's name says of its arithmetic: "" where it is float32."""
    if runtime.precision == "float32":
        return ""
    return f", {runtime.precision}" if runtime.name == "torch" else f", {runtime.name} {runtime.precision}"
