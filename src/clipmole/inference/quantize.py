"""A graph in float32 -> the same graph in int8, by the libraries of OpenVINO and ONNX Runtime.

In: a graph's file, and, for fixed ranges, sample crops. Out: another file. It knows nothing of networks, and does not
check the result (`clipmole.inference.export` does).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmole.errors import MissingDependency
from clipmole.inference.graph import GraphRuntime, save_openvino
from clipmole.plumbing.telemetry import without_telemetry


def quantise(
    graph: Path, runtime: GraphRuntime, width: int, crops: Sequence[NDArray[np.uint8]] = (), target: Path | None = None
) -> Path:
    """Write an int8 version of a graph, beside it or to `target`.

    The frozen matrix products of the tower, which do nearly all of the work, become int8. Products with a side shorter
    than the width of a token (`width`) keep their precision: routers, LoRAs, head, CLIP's projection; so does the
    patch embedding, which sees the traces first. ONNX Runtime, which has one range for all activations of a batch, also
    keeps the second product of each MLP: its input, after the activation, has few large values and makes most of the
    error (docs/performance.md).

    Args:
        crops: samples (1, 3, S, S) uint8 from which OpenVINO takes the ranges of the activations, which are then fixed
            (static). Without them ranges are measured while it runs (dynamic): slower, closer to float32. ONNX Runtime
            is always dynamic.

    Raises `MissingDependency`.
    """
    target = target or graph.with_name(f"int8-{graph.name}")
    with without_telemetry():
        if runtime == "openvino":
            _quantise_openvino(graph, width, crops, target)
        else:
            _quantise_onnx(graph, width, target)
    return target


def _quantise_openvino(graph: Path, width: int, crops: Sequence[NDArray[np.uint8]], target: Path) -> None:
    try:
        import nncf
    except ImportError as error:
        raise MissingDependency("nncf", "openvino") from error
    import openvino

    nncf.set_log_level(logging.ERROR)
    model = openvino.Core().read_model(graph)
    kept = [op.get_friendly_name() for op in model.get_ordered_ops() if _keeps_precision(op, width)]
    scope = nncf.IgnoredScope(names=kept)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        if crops:
            quantised = nncf.quantize(
                model,
                nncf.Dataset(list(crops)),
                model_type=nncf.ModelType.TRANSFORMER,
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(crops),
                ignored_scope=scope,
            )
        else:  # weights alone; OpenVINO quantises the activations (`GROUP`)
            quantised = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM, ignored_scope=scope)
    save_openvino(quantised, target)


def _keeps_precision(op: Any, width: int) -> bool:
    """Whether an operation of an OpenVINO graph stays as it is: convolutions, and products with a short weight."""
    if op.get_type_name() == "Convolution":
        return True
    if op.get_type_name() != "MatMul":
        return False
    weight = op.input_value(1).get_node()
    while weight.get_type_name() in ("Convert", "Transpose", "Reshape") and weight.get_input_size():
        weight = weight.input_value(0).get_node()
    if weight.get_type_name() != "Constant":
        return False
    return min(op.input(1).get_shape()) < width  # type: ignore[no-any-return]


def _quantise_onnx(graph: Path, width: int, target: Path) -> None:
    try:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise MissingDependency("onnx", "onnx") from error

    model = onnx.load(graph)
    sizes = {weight.name: list(weight.dims) for weight in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        size = sizes.get(node.input[1], []) if node.op_type in ("MatMul", "Gemm") else []
        if any(attribute.name == "transB" and attribute.i for attribute in node.attribute):
            size = size[::-1]
        if len(size) == 2 and (min(size) < width or size[0] > size[1]):
            kept.append(node.name)
    kept += [f"{name}_MatMul" for name in kept]  # what the quantiser calls a Gemm that it has taken apart
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it recommends a pre-processing that fails on a dynamic batch
    try:
        quantize_dynamic(
            graph,
            target,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=kept,
        )
    finally:
        root.setLevel(level)
