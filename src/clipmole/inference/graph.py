"""The network as a graph of OpenVINO or ONNX Runtime, with normalisation, tower, adapter and head inside.

In: a network, or a folder that holds its graph. Out: graph files, or a `Runtime` that runs them on the CPU. The graph
takes crops (n, 3, S, S) uint8 of any number n and of the size S it was traced with, and gives what the network gives.
It knows nothing of adapter directories or of whether a graph is right (`clipmole.inference.export` checks that).

OpenVINO would choose bfloat16 on its own if the processor supports it, so the precision is always stated.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clipmole.errors import CheckpointError, ConfigError, MissingDependency
from clipmole.inference.runtime import Precision, Runtime, RuntimeName
from clipmole.models.network import MoLENetwork
from clipmole.plumbing.child import last_line
from clipmole.plumbing.files import cache_folder, is_sealed, replacing_folder, seal
from clipmole.plumbing.locks import locked_by
from clipmole.plumbing.telemetry import without_telemetry
from clipmole.plumbing.text import first_line

GraphRuntime = Literal["openvino", "onnx"]
GRAPH: dict[str, str] = {"openvino": "model.xml", "onnx": "model.onnx"}
OPSET = 18
GROUP = 64  # channels of a token that share a range, in OpenVINO's dynamic int8; divides the widths of all presets


def graph_cache() -> Path:
    """`$CLIPMOLE_CACHE/graphs`, else `~/.cache/clipmole/graphs`."""
    return cache_folder("graphs")


def library(runtime: GraphRuntime) -> Any:
    """The library that runs a graph. Raises `MissingDependency` if it is not installed."""
    try:
        with without_telemetry():
            if runtime == "openvino":
                import openvino

                return openvino
            import onnxruntime

            onnxruntime.disable_telemetry_events()  # in case the host imported it before
            return onnxruntime
    except ImportError as error:
        raise MissingDependency(runtime if runtime == "openvino" else "onnxruntime", runtime) from error


def installed(runtime: GraphRuntime) -> bool:
    """Whether the library that runs a graph is installed."""
    return find_spec("openvino" if runtime == "openvino" else "onnxruntime") is not None


def convert(network: MoLENetwork, crop_size: int, runtime: GraphRuntime, folder: Path) -> Path:
    """Write the graph of a network in float32 into `folder`; returns the graph's file."""
    library(runtime)
    network = network.to("cpu").eval()
    example = torch.zeros(2, 3, crop_size, crop_size, dtype=torch.uint8)
    target = folder / GRAPH[runtime]
    with warnings.catch_warnings(), torch.no_grad(), without_telemetry():
        warnings.simplefilter("ignore")  # of the tracer: the shapes it fixes are those of the crops
        if runtime == "openvino":
            save_openvino(_openvino_graph(network, example), target)
        else:
            _save_onnx(network, example, target)
    return target


def _openvino_graph(network: nn.Module, example: torch.Tensor) -> Any:
    import openvino

    shape = openvino.PartialShape([-1, *example.shape[1:]])
    return openvino.convert_model(network, example_input=example, input=[shape])


class _Prefix(nn.Module):
    """The blocks of a network before block `stop`, and the class tokens after each (`MoLENetwork.before`)."""

    def __init__(self, network: MoLENetwork, stop: int) -> None:
        super().__init__()
        self.network, self.stop = network, stop

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        return self.network.before(crops, self.stop, range(self.stop))


def openvino_prefix(
    network: MoLENetwork, stop: int, crop_size: int, precision: Precision
) -> Callable[[torch.Tensor], torch.Tensor]:
    """`network.before(crops, stop, range(stop))`, run by OpenVINO on the CPU.

    The returned function takes crops (B, 3, S, S) uint8 and gives tokens (B, T + stop, d). Raises
    `MissingDependency` if OpenVINO is not installed.
    """
    openvino = library("openvino")
    example = torch.zeros(2, 3, crop_size, crop_size, dtype=torch.uint8)
    with warnings.catch_warnings(), torch.no_grad(), without_telemetry():
        warnings.simplefilter("ignore")
        graph = _openvino_graph(_Prefix(network, stop).eval(), example)
    hint = "bf16" if precision == "bfloat16" else "f32"
    compiled = openvino.Core().compile_model(
        graph, "CPU", {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    )
    return lambda crops: torch.from_numpy(compiled(crops.numpy())[0])


def save_openvino(graph: Any, target: Path) -> None:
    """Write an OpenVINO graph, its weights as they are (OpenVINO would halve them)."""
    import openvino

    openvino.save_model(graph, target, compress_to_fp16=False)


def _save_onnx(network: MoLENetwork, example: torch.Tensor, target: Path) -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingDependency("onnxscript", "onnx") from error
    shapes = ({0: torch.export.Dim("batch")},)
    logger = logging.getLogger("torch.onnx._internal.exporter")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns about torchvision, which is not used here
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            torch.onnx.export(
                network,
                (example,),
                target,
                dynamo=True,
                input_names=["crops"],
                output_names=["logits"],
                dynamic_shapes=shapes,
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
    finally:
        logger.setLevel(level)


class OpenVINORuntime:
    """A graph that OpenVINO runs on the CPU.

    Args:
        graph: the .xml file.
        precision: int8 means that the graph is quantised; the rest of it is computed in bfloat16 if the processor has
            that, else in float32.
        compiled: folder in which OpenVINO keeps the graph that it compiled, by processor and arithmetic; None: it is
            not kept.
    """

    name: RuntimeName = "openvino"
    device = torch.device("cpu")

    def __init__(self, graph: Path, precision: Precision, compiled: Path | None = None) -> None:
        core = library("openvino").Core()
        self.precision: Precision = precision
        self.made_of = (graph, precision, compiled)
        abilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        has_bfloat16 = "BF16" in abilities
        reduced = precision == "bfloat16" or (precision == "int8" and has_bfloat16)
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if reduced else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        if precision == "int8":
            settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = GROUP
        if compiled is not None:
            # OpenVINO's own key has neither, and what was compiled for float32 gives NaN or crashes in bfloat16.
            made_for = [core.get_property("CPU", "FULL_DEVICE_NAME"), *abilities, settings["INFERENCE_PRECISION_HINT"]]
            compiled = compiled / hashlib.sha256(" ".join(made_for).encode()).hexdigest()[:16]
            settings["CACHE_DIR"] = str(compiled)
        try:
            with _compiled_here(compiled) if compiled else nullcontext():
                self.request = core.compile_model(graph, "CPU", settings).create_infer_request()
        except RuntimeError as error:
            reason = last_line(str(error), "no reason given")
            raise CheckpointError(f"{graph}: cannot be run by OpenVINO: {reason}; export it again") from error

    def __reduce__(self) -> tuple[type[OpenVINORuntime], tuple[Any, ...]]:
        return OpenVINORuntime, self.made_of  # in another process it is compiled again

    def outputs(self, crops: NDArray[np.uint8], batch_size: int) -> NDArray[np.float32]:
        """Crops (n, 3, S, S) -> logits (n,), or (n, m), in forward passes of at most `batch_size` crops."""
        return _in_batches(crops, batch_size, lambda batch: self.request.infer([batch], share_inputs=True)[0])

    def exact(self) -> OpenVINORuntime | None:
        """The same graph in float32; None unless this is bfloat16."""
        graph, _, compiled = self.made_of
        return OpenVINORuntime(graph, "float32", compiled) if self.precision == "bfloat16" else None


class ONNXRuntime:
    """A graph that ONNX Runtime runs on the CPU.

    Args:
        graph: the .onnx file.
        precision: float32, or int8 for a quantised graph.
    """

    name: RuntimeName = "onnx"
    device = torch.device("cpu")

    def __init__(self, graph: Path, precision: Precision) -> None:
        onnxruntime = library("onnx")
        if precision == "bfloat16":
            raise ConfigError("runtime=onnx: computes in float32 or int8, not bfloat16; take openvino or torch")
        self.precision: Precision = precision
        self.made_of = (graph, precision)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors share no base but Exception
            reason = first_line(error)
            raise CheckpointError(f"{graph}: cannot be run by ONNX Runtime: {reason}; export it again") from error

    def __reduce__(self) -> tuple[type[ONNXRuntime], tuple[Any, ...]]:
        return ONNXRuntime, self.made_of  # in another process it is opened again

    def outputs(self, crops: NDArray[np.uint8], batch_size: int) -> NDArray[np.float32]:
        """Crops (n, 3, S, S) -> logits (n,), or (n, m), in forward passes of at most `batch_size` crops."""
        return _in_batches(crops, batch_size, lambda batch: self.session.run(None, {"crops": batch})[0])

    def exact(self) -> None:
        """None, because it does not compute in bfloat16."""


def _in_batches(
    crops: NDArray[np.uint8], batch_size: int, forward: Callable[[NDArray[np.uint8]], Any]
) -> NDArray[np.float32]:
    parts = [
        np.array(forward(np.ascontiguousarray(crops[start : start + batch_size])), dtype=np.float32)
        for start in range(0, len(crops), batch_size)
    ]
    return np.concatenate(parts)


def open_graph(folder: Path, runtime: GraphRuntime, precision: Precision, compiled: Path | None = None) -> Runtime:
    """The graph that `folder` holds, ready to run."""
    graph = folder / GRAPH[runtime]
    if not graph.is_file():
        raise CheckpointError(f"{folder}: holds no {GRAPH[runtime]}; export the detector again")
    if runtime == "openvino":
        return OpenVINORuntime(graph, precision, compiled)
    return ONNXRuntime(graph, precision)


def cached_graph(
    load: Callable[[], MoLENetwork], digest: str, crop_size: int, runtime: GraphRuntime, precision: Precision
) -> Runtime:
    """The graph of a detector, converted at first use and kept under `$CLIPMOLE_CACHE`.

    Args:
        load: returns the network, and is only called if there is no graph yet.
        digest: of the detector, all of its weights.
    """
    if precision == "int8":
        raise ConfigError(f"precision=int8: needs a graph that was checked: clipmole export --to {runtime} --int8")
    what = f"{digest} {crop_size} {runtime} {library(runtime).__version__} {torch.__version__}"
    folder = graph_cache() / hashlib.sha256(what.encode()).hexdigest()[:32]
    with _alone(folder):
        if not is_sealed(folder):  # not there yet, or changed since it was written: it is made again
            try:
                with replacing_folder(folder) as new:
                    convert(load(), crop_size, runtime, new)
                    seal(new)
            except OSError as error:
                raise CheckpointError(
                    f"{folder}: cannot be written: {error}; set CLIPMOLE_CACHE to another folder"
                ) from error
    return open_graph(folder, runtime, precision, folder / "compiled")


@contextmanager
def _compiled_here(folder: Path) -> Iterator[None]:
    """OpenVINO's folder of compiled graphs, for one process at a time; emptied if it was changed since."""
    with _alone(folder):
        if not is_sealed(folder):
            shutil.rmtree(folder, ignore_errors=True)
        before = set(folder.glob("*"))
        yield
        if set(folder.glob("*")) != before:
            with suppress(OSError):
                seal(folder)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make other processes wait, so that none converts the same graph or reads a half-compiled one.

    If the file system has no locks, or cannot be written, they do not wait.
    """
    with suppress(OSError):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with locked_by(folder.with_suffix(".lock"), wait=True):
        yield
