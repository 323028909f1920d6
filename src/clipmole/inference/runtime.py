"""Execution paths: crops in, logits out, with PyTorch, OpenVINO or ONNX Runtime.

In: crops (n, 3, S, S) uint8. Out: the outputs of the network in float32: logits (n,) or, with further ones, (n, m).
`pytorch` runs the network as it is; `graph` runs it as a graph of OpenVINO or ONNX Runtime with the adapter inside, and
`quantize` makes that graph int8. The first two give the `Detector` a `Runtime`, which is all that it knows of them.
They know nothing of images, image files or verdicts.
"""

from __future__ import annotations

from typing import Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from clipmole.config import check_name

RuntimeName = Literal["torch", "torch-compile", "openvino", "onnx"]
Precision = Literal["float32", "bfloat16", "int8"]
RUNTIMES: tuple[str, ...] = get_args(RuntimeName)
PRECISIONS: tuple[str, ...] = get_args(Precision)


class Runtime(Protocol):
    """One way to compute the outputs of a network.

    Attributes:
        name: "torch", "openvino", ...
        precision: of the matrix products. float32: equal to the network in float32, except for the order of additions.
        device: where.
    """

    name: RuntimeName
    precision: Precision
    device: torch.device

    def outputs(self, crops: NDArray[np.uint8], batch_size: int) -> NDArray[np.float32]:
        """Crops (n, 3, S, S), n >= 1 -> logits (n,), or (n, m), in forward passes of at most `batch_size` crops."""
        ...

    def exact(self) -> Runtime | None:
        """The same network in float32 if this runtime is in bfloat16; None otherwise."""
        ...


def logits_of(outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logits (n,) among the outputs of a runtime, (n,) or (n, m)."""
    return outputs.reshape(len(outputs), -1)[:, 0]


def check_arithmetic(runtime: str | None, precision: str | None) -> None:
    """Raise a `ConfigError` that lists the known names unless both are known, or None for the default."""
    check_name("runtime", runtime, ("auto", *RUNTIMES))
    check_name("precision", precision, PRECISIONS)


def batch_for(device: str | torch.device, asked: int | None = None) -> int:
    """Crops of a forward pass: as asked for, else 8 on a CPU, where more do not pay off (docs/performance.md)."""
    if asked is not None:
        return asked
    return 8 if str(device).startswith("cpu") else 32


def name_suffix(runtime: Runtime) -> str:
    """The suffix of a detector's name for its arithmetic: "" if it is float32."""
    if runtime.precision == "float32":
        return ""
    return f", {runtime.precision}" if runtime.name == "torch" else f", {runtime.name} {runtime.precision}"
