"""The execution paths that can be measured, by name, and the networks they run.

In: a path's name and a shape's. Out: a function from a batch of crops to logits. It knows nothing of clocks.

    transformers-float32      transformers' own tower with its default settings: the baseline
    torch-float32 ...         this package's network in PyTorch
    torch-compile-bfloat16    the same by torch.compile
    openvino-... onnx-...     graphs, int8 too
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from clipmole.config import CLIP_TOWERS, MoLEConfig, TowerConfig
from clipmole.errors import ConfigError, MissingDependency
from clipmole.inference.graph import GRAPH, GraphRuntime, convert, open_graph
from clipmole.inference.pytorch import TorchRuntime
from clipmole.inference.quantize import quantise
from clipmole.inference.runtime import Precision, Runtime
from clipmole.models.adapter import load_adapter
from clipmole.models.network import MoLENetwork
from clipmole.models.vit import ViT

BASELINE = "transformers-float32"
PATHS = (
    BASELINE,
    "torch-float32",
    "torch-bfloat16",
    "torch-compile-float32",
    "torch-compile-bfloat16",
    "openvino-float32",
    "openvino-bfloat16",
    "openvino-int8",
    "openvino-dynamic-int8",
    "onnx-float32",
    "onnx-int8",
)
NEEDS = {"transformers": ("transformers",), "openvino": ("openvino", "nncf"), "onnx": ("onnxruntime", "onnxscript")}
BARE = MoLEConfig(shared_rank=0, expert_ranks=())

Forward = Callable[[NDArray[np.uint8]], Any]


@dataclass(frozen=True)
class SpeedPath:
    """A path of `PATHS`, with or without the MoLE adapter; `dynamic`: int8 of OpenVINO with ranges measured while it
    runs."""

    name: str
    runtime: str
    precision: Precision
    adapter: bool = True
    dynamic: bool = False

    @property
    def ours(self) -> bool:
        """Whether it runs this package's network."""
        return self.runtime != "transformers"

    @property
    def label(self) -> str:
        """Its name for people."""
        return self.name + ("" if self.adapter or not self.ours else ", no adapter")

    def without_adapter(self) -> SpeedPath:
        """The same path on the bare tower with a head."""
        return replace(self, adapter=False)


def parse_path(name: str) -> SpeedPath:
    """A path by its name. Raises `ConfigError` for an unknown one."""
    if name not in PATHS:
        raise ConfigError(f"paths: {name!r} is none of {', '.join(PATHS)}")
    runtime, precision = name.rsplit("-", 1)
    dynamic = runtime.endswith("-dynamic")
    runtime = runtime.removesuffix("-dynamic")
    return SpeedPath(name, runtime, cast(Precision, precision), adapter=name != BASELINE, dynamic=dynamic)


def available(paths: Sequence[SpeedPath], device: str = "cpu") -> tuple[list[SpeedPath], dict[str, str]]:
    """The paths whose libraries are installed and that compute on the device; why not, for the others."""
    missing = {
        path.name: str(MissingDependency(library, path.runtime))
        for path in paths
        for library in NEEDS.get(path.runtime, ())
        if find_spec(library) is None
    }
    if device != "cpu":
        missing |= {path.name: f"{path.runtime} computes on the cpu" for path in paths if is_graph(path)}
    return [path for path in paths if path.name not in missing], missing


def is_graph(path: SpeedPath) -> bool:
    """Whether a graph is made before it is run."""
    return path.runtime in GRAPH


@cache
def tower_of(shape: str) -> TowerConfig:
    """Geometry of a shape."""
    if shape in CLIP_TOWERS:
        return CLIP_TOWERS[shape]
    if shape == "embedded":
        return load_adapter("embedded").network.tower.config
    if Path(shape).is_file():
        return TowerConfig.from_toml(shape)
    raise ConfigError(f"shapes: {shape!r} is none of {', '.join(CLIP_TOWERS)}, embedded, and no TOML file of a tower")


def adapter_of(shape: str) -> MoLEConfig:
    """The adapter that is measured: the embedded detector's own, else the default one."""
    return load_adapter("embedded").config.mole if shape == "embedded" else MoLEConfig()


def benchmark_network(shape: str, adapter: bool) -> MoLENetwork:
    """The embedded detector, or a network with random weights, whose adapter is not zero."""
    if shape == "embedded" and adapter:
        return load_adapter("embedded").network
    torch.manual_seed(0)
    network = MoLENetwork(ViT(tower_of(shape)), MoLEConfig() if adapter else BARE)
    for layer in network.mole_layers:
        torch.nn.init.normal_(layer.lora_B, std=0.02)
    return network.eval().requires_grad_(False)


def make_graph(path: SpeedPath, shape: str, folder: Path) -> None:
    """Write the path's graph into `folder`, where there is none; float32 and bfloat16 run the same one."""
    plain = replace(path, precision="float32", dynamic=False)
    runtime = cast(GraphRuntime, path.runtime)
    size, width = tower_of(shape).image_size, tower_of(shape).width
    graph = graph_folder(plain, folder) / GRAPH[runtime]
    if not graph.exists():
        graph.parent.mkdir(exist_ok=True)
        convert(benchmark_network(shape, path.adapter), size, runtime, graph.parent)
    if path.precision == "int8" and not (graph_folder(path, folder) / graph.name).exists():
        graph_folder(path, folder).mkdir(exist_ok=True)
        noise = np.random.default_rng(0).integers(0, 256, (4, 1, 3, size, size), dtype=np.uint8)
        quantise(graph, runtime, width, [] if path.dynamic else list(noise), graph_folder(path, folder) / graph.name)


def open_path(path: SpeedPath, shape: str, folder: Path, device: str = "cpu") -> Forward:
    """A function from crops (n, 3, S, S) in the processor's memory to logits (n,) there, in one forward pass."""
    if path.runtime == "transformers":
        return _transformers(tower_of(shape), device)
    runtime: Runtime
    if is_graph(path):
        runtime = open_graph(graph_folder(path, folder), cast(GraphRuntime, path.runtime), path.precision)
    else:
        compiled = path.runtime == "torch-compile"
        runtime = TorchRuntime(benchmark_network(shape, path.adapter), device, path.precision, compiled)
    return lambda crops: runtime.outputs(crops, len(crops))


def graph_folder(path: SpeedPath, folder: Path) -> Path:
    """Where the path's graph is kept."""
    kind = f"{'dynamic-' * path.dynamic}int8" if path.precision == "int8" else "float"
    return folder / f"{path.runtime}-{kind}{'' if path.adapter else '-bare'}"


def _transformers(tower: TowerConfig, device: str) -> Forward:
    """transformers' tower of the same geometry as it comes: CLIP's where there is a projection, else ViT's."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, ViTConfig, ViTModel

    size: dict[str, Any] = {
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp_width,
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.heads,
        "patch_size": tower.patch_size,
        "image_size": tower.image_size,
    }
    torch.manual_seed(0)
    model: Any
    if tower.projection_dim:
        model = CLIPVisionModelWithProjection(CLIPVisionConfig(**size, projection_dim=tower.projection_dim))
    else:  # the embedded detector's convolutional stem is not in it: one convolution of a patch stands for it
        model = ViTModel(ViTConfig(**size), add_pooling_layer=False)
    model = model.eval().to(device)
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (tower.mean, tower.std))

    def forward(crops: NDArray[np.uint8]) -> Any:
        with torch.no_grad():
            return model(pixel_values=(torch.from_numpy(crops).to(device) / 255 - mean) / std)[0].cpu()

    return forward
