"""Execution paths: each gives the network's logits, says its arithmetic, and is kept once it is made."""

from __future__ import annotations

import os
import pickle
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from processes import FORKS
from tiny import PREPROCESS, picture, tiny_backbone, tiny_network, write_adapter

from clipmole import Detector
from clipmole.config import MoLEConfig
from clipmole.errors import CheckpointError, ConfigError
from clipmole.inference import pytorch
from clipmole.inference.graph import GRAPH, GraphRuntime, convert, graph_cache, open_graph
from clipmole.inference.pytorch import TorchRuntime, bfloat16_is_slow, exact_precision, matmul_precision, product_error
from clipmole.inference.quantize import quantise
from clipmole.inference.runtime import logits_of, name_suffix
from clipmole.models.network import MoLENetwork

LIBRARIES = {"openvino": ["openvino"], "onnx": ["onnxruntime", "onnxscript"]}


def need(runtime: str) -> None:
    for library in LIBRARIES[runtime]:
        pytest.importorskip(library, reason=f"needs {library}: pip install 'clipmole[{runtime}]'")


def crops(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


def shallow_network(config: MoLEConfig | None = None) -> MoLENetwork:
    """A block that is adapted behind one that is not: each costs a second to make a graph of."""
    return tiny_network(tiny_backbone(depth=2), config)


@pytest.fixture(scope="module")
def network() -> MoLENetwork:
    return shallow_network()


@pytest.fixture(scope="module")
def graph_of(network: MoLENetwork, tmp_path_factory: pytest.TempPathFactory) -> Callable[[GraphRuntime], Path]:
    """The folder with the network's graph, made once for each runtime."""

    @cache
    def made(runtime: GraphRuntime) -> Path:
        need(runtime)
        folder = tmp_path_factory.mktemp(runtime)
        assert convert(network, 32, runtime, folder) == folder / GRAPH[runtime]
        return folder

    return made


@pytest.fixture(scope="module")
def exact(network: MoLENetwork) -> NDArray[np.float32]:
    with torch.no_grad():
        logits: NDArray[np.float32] = network(torch.from_numpy(crops(5))).numpy()
    return logits


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An adapter directory and its backbone's."""
    return write_adapter(tmp_path_factory.mktemp("adapter"), depth=2)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_pytorch_gives_the_networks_logits_in_any_batches(
    network: MoLENetwork, exact: NDArray[np.float32], batch_size: int
) -> None:
    assert TorchRuntime(network).outputs(crops(5), batch_size) == pytest.approx(exact, abs=1e-5)


def test_bfloat16_is_near_and_says_so(network: MoLENetwork, exact: NDArray[np.float32]) -> None:
    runtime = TorchRuntime(network, precision="bfloat16")
    difference = np.abs(runtime.outputs(crops(5), 8) - exact).max()
    assert 1e-6 < difference < 0.1 * np.abs(exact).max()
    assert name_suffix(runtime) == ", bfloat16"
    assert name_suffix(TorchRuntime(network)) == ""


@pytest.mark.parametrize("runtime", ["openvino", "onnx"])
def test_a_graph_gives_the_networks_logits_for_any_number_of_crops(
    exact: NDArray[np.float32], runtime: GraphRuntime, graph_of: Callable[[GraphRuntime], Path]
) -> None:
    graph = open_graph(graph_of(runtime), runtime, "float32")
    for count in (5, 1, 3):
        assert graph.outputs(crops(5)[:count], 2) == pytest.approx(exact[:count], abs=2e-5)
    assert graph.outputs(crops(5), 5).dtype == np.float32
    assert name_suffix(graph) == ""


@pytest.mark.parametrize(
    "config",
    [
        MoLEConfig(top_k=1),
        MoLEConfig(shared_rank=0),
        MoLEConfig(expert_ranks=()),
        MoLEConfig(router="image"),
        MoLEConfig(router="local-global"),
        MoLEConfig(extension_ranks=(3,)),
        MoLEConfig(shared_rank=0, expert_ranks=(), extension_ranks=(3,)),
    ],
)
def test_every_kind_of_adapter_is_in_the_graph(config: MoLEConfig, tmp_path: Path) -> None:
    need("openvino")
    network = shallow_network(config)
    convert(network, 32, "openvino", tmp_path)
    with torch.no_grad():
        expected = network(torch.from_numpy(crops(4))).numpy()
    assert open_graph(tmp_path, "openvino", "float32").outputs(crops(4), 4) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("runtime", ["openvino", "onnx"])
def test_int8_is_near_and_leaves_router_adapter_and_head_alone(
    exact: NDArray[np.float32], runtime: GraphRuntime, graph_of: Callable[[GraphRuntime], Path], tmp_path: Path
) -> None:
    if runtime == "openvino":
        pytest.importorskip("nncf", reason="needs nncf: pip install 'clipmole[openvino]'")
    (tmp_path / "int8").mkdir()
    graph = graph_of(runtime) / GRAPH[runtime]
    given = [crops(1, seed) for seed in range(8)]
    quantise(graph, runtime, 24, given, tmp_path / "int8" / GRAPH[runtime])
    logits = open_graph(tmp_path / "int8", runtime, "int8").outputs(crops(5), 5)
    assert 1e-6 < np.abs(logits - exact).max() < 0.5 * np.abs(exact).max()
    products = 4 if runtime == "openvino" else 3  # qkv, out, fc1 and, but for ONNX Runtime, fc2 of each block
    assert quantised_weights(tmp_path / "int8" / GRAPH[runtime], runtime) == products * 2  # blocks


def quantised_weights(graph: Path, runtime: str) -> int:
    """Matrices that are stored in 8 bits."""
    if runtime == "onnx":
        import onnx

        return sum(
            w.data_type == onnx.TensorProto.INT8 and len(w.dims) == 2 for w in onnx.load(graph).graph.initializer
        )
    import openvino

    ops = openvino.Core().read_model(graph).get_ordered_ops()
    constants = [op for op in ops if op.get_type_name() == "Constant" and op.get_element_type().get_type_name() == "i8"]
    return sum(len(op.get_output_shape(0)) == 2 and min(op.get_output_shape(0)) >= 24 for op in constants)


def test_openvino_takes_the_ranges_of_int8_while_it_runs_if_none_are_shown(
    exact: NDArray[np.float32], graph_of: Callable[[GraphRuntime], Path], tmp_path: Path
) -> None:
    pytest.importorskip("nncf", reason="needs nncf: pip install 'clipmole[openvino]'")
    (tmp_path / "int8").mkdir()
    quantise(graph_of("openvino") / "model.xml", "openvino", 24, (), tmp_path / "int8" / "model.xml")
    logits = open_graph(tmp_path / "int8", "openvino", "int8").outputs(crops(5), 5)
    assert 1e-6 < np.abs(logits - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("runtime", ["openvino", "onnx"])
def test_a_detector_is_converted_once_and_then_kept(
    runtime: GraphRuntime, adapter: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    need(runtime)
    monkeypatch.setenv("CLIPMOLE_CACHE", str(tmp_path))
    folder, backbone = adapter
    images = [picture(i, 70, 50) for i in range(3)]
    plain = Detector.from_pretrained(folder, backbone=backbone)
    first = Detector.from_pretrained(folder, backbone=backbone, runtime=runtime)
    assert len(graphs()) == 1
    again = Detector.from_pretrained(folder, runtime=runtime)  # the backbone is in the graph
    assert first.score(images) == pytest.approx(plain.score(images), abs=5e-5)
    assert (again.score(images) == first.score(images)).all()
    assert (pickle.loads(pickle.dumps(first)).score(images) == first.score(images)).all()  # to another process
    assert again.name == plain.name
    assert again.calibration == plain.calibration
    with pytest.raises(ConfigError, match="is a graph without a network"):
        _ = again.network


@pytest.fixture(scope="module")
def cached(
    adapter: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[GraphRuntime], tuple[Path, float]]:
    """A cache that holds the adapter's graph, made once for each runtime, and the logit of `picture(0)` by it."""

    @cache
    def made(runtime: GraphRuntime) -> tuple[Path, float]:
        need(runtime)
        folder = tmp_path_factory.mktemp("cache")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CLIPMOLE_CACHE", str(folder))
            detector = Detector.from_pretrained(adapter[0], backbone=adapter[1], runtime=runtime)
            return folder, float(detector.score([picture(0)])[0])

    return made


def graphs() -> list[Path]:
    """The graphs in the cache, and whatever else was left there but locks."""
    return [path for path in graph_cache().iterdir() if path.suffix != ".lock"]


def use_cache(folder: str) -> None:
    """In a process of its own, which has the variables of the time when the first was forked."""
    os.environ["CLIPMOLE_CACHE"] = folder


def load(folder: Path, backbone: Path, runtime: GraphRuntime) -> list[float]:
    torch.set_num_threads(1)
    detector = Detector.from_pretrained(folder, backbone=backbone, runtime=runtime)
    return detector.score([picture(0)]).tolist()


def test_processes_that_convert_at_the_same_time_share_one_graph(
    adapter: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    need("openvino")
    monkeypatch.setenv("CLIPMOLE_CACHE", str(tmp_path))
    with ProcessPoolExecutor(3, FORKS, initializer=use_cache, initargs=(str(tmp_path),)) as pool:
        found = [each.result() for each in [pool.submit(load, *adapter, "openvino") for _ in range(3)]]
    assert found[0] == found[1] == found[2]
    assert len(graphs()) == 1
    assert len(list(graphs()[0].glob("compiled/*/*.blob"))) == 1


def test_openvino_in_bfloat16_says_so(adapter: tuple[Path, Path]) -> None:
    need("openvino")
    folder, backbone = adapter
    plain = Detector.from_pretrained(folder, backbone=backbone)
    detector = Detector.from_pretrained(folder, backbone=backbone, runtime="openvino", precision="bfloat16")
    assert detector.name == f"{plain.name}, openvino bfloat16"
    assert detector.detect(picture(0)).detector == detector.name


def test_what_openvino_compiled_in_float32_is_not_used_in_bfloat16(
    graph_of: Callable[[GraphRuntime], Path], tmp_path: Path
) -> None:
    folder = graph_of("openvino")
    expected = {p: open_graph(folder, "openvino", p).outputs(crops(5), 5) for p in ("float32", "bfloat16")}  # type: ignore[arg-type]
    for precision in ("float32", "bfloat16", "float32", "bfloat16"):
        found = open_graph(folder, "openvino", precision, tmp_path / "compiled").outputs(crops(5), 5)  # type: ignore[arg-type]
        assert found == pytest.approx(expected[precision], abs=1e-6)
    assert [len(list(each.glob("*.blob"))) for each in (tmp_path / "compiled").iterdir() if each.is_dir()] == [1, 1]


def test_bfloat16_has_an_exact_twin(
    network: MoLENetwork, exact: NDArray[np.float32], graph_of: Callable[[GraphRuntime], Path]
) -> None:
    for reduced in (
        open_graph(graph_of("openvino"), "openvino", "bfloat16"),
        TorchRuntime(network, precision="bfloat16"),
    ):
        twin = reduced.exact()
        assert twin is not None
        assert twin.precision == "float32"
        assert twin.outputs(crops(5), 5) == pytest.approx(exact, abs=2e-5)
        assert twin.exact() is None


def test_what_cannot_be_is_refused(adapter: tuple[Path, Path], tmp_path: Path) -> None:
    folder, backbone = adapter
    with pytest.raises(ConfigError, match="precision=int8"):
        Detector.from_pretrained(folder, backbone=backbone, precision="int8")
    with pytest.raises(ConfigError, match="computes on the cpu"):
        Detector.from_pretrained(folder, backbone=backbone, runtime="openvino", device="cuda")
    with pytest.raises(CheckpointError, match=r"holds no model\.onnx"):
        open_graph(tmp_path, "onnx", "float32")
    with pytest.raises(ConfigError, match="is a graph without a network"):
        Detector(None, PREPROCESS)


def test_a_graph_that_is_damaged_is_one_line(tmp_path: Path) -> None:
    need("onnx")
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(CheckpointError, match=r"cannot be run by ONNX Runtime: .*; export it again"):
        open_graph(tmp_path, "onnx", "float32")
    with pytest.raises(ConfigError, match="not bfloat16"):
        open_graph(tmp_path, "onnx", "bfloat16")


def test_float32_is_left_to_onednn_only_where_it_stays_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, expected in ((1e-7, "medium"), (2e-3, "highest")):
        exact_precision.cache_clear()
        monkeypatch.setattr(pytorch, "product_error", lambda _name, error=error: error)
        assert exact_precision() == expected
    monkeypatch.undo()
    exact_precision.cache_clear()
    assert product_error(exact_precision()) < 2e-6
    assert product_error("highest") < 2e-6


def test_the_setting_of_matrix_products_is_put_back() -> None:
    before = torch.get_float32_matmul_precision()
    with matmul_precision("medium"):
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == before


def test_a_compiled_network_sees_few_sizes_of_batches(network: MoLENetwork) -> None:
    runtime = TorchRuntime(network, compiled=True)
    assert [len(runtime.padded(torch.zeros(n, 3, 2, 2))) for n in (1, 2, 3, 5, 8, 9)] == [1, 2, 4, 8, 8, 16]
    batch = torch.arange(3).view(3, 1)
    assert runtime.padded(batch).flatten().tolist() == [0, 1, 2, 2]
    assert len(TorchRuntime(network).padded(torch.zeros(3, 1))) == 3


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_logits() -> None:
    network = tiny_network(tiny_backbone(depth=1))
    exact = TorchRuntime(network).outputs(crops(5), 8)
    runtime = TorchRuntime(network, compiled=True)
    try:
        logits = runtime.outputs(crops(5), 8)
    except RuntimeError as error:
        pytest.skip(f"torch.compile needs a C++ compiler: {str(error).splitlines()[0]}")
    assert logits == pytest.approx(exact, abs=1e-4)
    assert logits.shape == (5,)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_logits(exact: NDArray[np.float32]) -> None:
    for precision, tolerance in (("float32", 1e-3), ("bfloat16", 0.5)):
        runtime = TorchRuntime(shallow_network(), "cuda", precision)  # type: ignore[arg-type]
        assert runtime.outputs(crops(5), 2) == pytest.approx(exact, abs=tolerance)


def flip(path: Path, place: int) -> None:
    """Damage a file by one bit."""
    data = bytearray(path.read_bytes())
    data[place] ^= 0x40
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "damage"), [("openvino", "flipped"), ("openvino", "gone"), ("onnx", "cut")])
def test_a_damaged_graph_in_the_cache_is_made_again(
    runtime: GraphRuntime,
    damage: str,
    adapter: tuple[Path, Path],
    cached: Callable[[GraphRuntime], tuple[Path, float]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    whole, expected = cached(runtime)
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("CLIPMOLE_CACHE", str(tmp_path))
    folder, backbone = adapter
    kept = next(path for path in graphs()[0].iterdir() if path.suffix in (".bin", ".onnx"))
    data = kept.read_bytes()
    if damage == "flipped":
        flip(kept, len(data) // 2)
    elif damage == "cut":
        kept.write_bytes(data[: len(data) // 2])
    else:
        kept.unlink()
    for path in graphs()[0].glob("compiled/*/*.blob"):
        flip(path, path.stat().st_size // 2)
    again = Detector.from_pretrained(folder, backbone=backbone, runtime=runtime).score([picture(0)])
    assert again.tolist() == [expected]
    assert Detector.from_pretrained(folder, runtime=runtime).score([picture(0)]) == expected  # kept, not made again


def test_a_damaged_compiled_graph_is_compiled_again(
    adapter: tuple[Path, Path],
    cached: Callable[[GraphRuntime], tuple[Path, float]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    whole, expected = cached("openvino")
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("CLIPMOLE_CACHE", str(tmp_path))
    folder, _ = adapter
    blobs = list(graphs()[0].glob("compiled/*/*.blob"))
    assert blobs
    for blob in blobs:
        for part in range(1, 8):
            flip(blob, blob.stat().st_size * part // 8)
    assert Detector.from_pretrained(folder, runtime="openvino").score([picture(0)]) == expected


def test_settings_that_there_are_not_are_refused_with_those_that_there_are(adapter: tuple[Path, Path]) -> None:
    folder, backbone = adapter
    for options, message in {
        ("runtime", "foo"): "runtime='foo': is unknown; give one of auto, torch, torch-compile, openvino, onnx",
        ("precision", "float16"): "precision='float16': is unknown; give one of float32, bfloat16, int8",
    }.items():
        with pytest.raises(ConfigError, match=message):
            Detector.from_pretrained(folder, backbone=backbone, **dict([options]))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="precision='float16'"):
        TorchRuntime(Detector.from_pretrained(folder, backbone=backbone).network, precision="float16")  # type: ignore[arg-type]


def test_threads_share_the_precision_and_give_back_what_the_host_had_set() -> None:
    """Each thread waits for all others to be within: without counting, the last one restores its neighbour's."""
    torch.set_float32_matmul_precision("high")
    within = threading.Barrier(4)
    seen: list[str] = []

    def work() -> None:
        for _ in range(20):
            with matmul_precision("medium"):
                within.wait(10)
                seen.append(torch.get_float32_matmul_precision())

    def other() -> None:
        for _ in range(20):
            with matmul_precision("highest"):
                seen.append("highest" if torch.get_float32_matmul_precision() == "highest" else "wrong")

    try:
        threads = [threading.Thread(target=work) for _ in range(4)] + [threading.Thread(target=other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert torch.get_float32_matmul_precision() == "high"
        assert sorted(set(seen)) == ["highest", "medium"]
        with matmul_precision("medium"):
            torch.set_float32_matmul_precision("highest")  # the host's own wish, meanwhile
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("runtime", ["torch", "openvino", "onnx"])
def test_a_second_output_stands_behind_the_logit(runtime: str, tmp_path: Path) -> None:
    """The logits are those of the network without it."""
    one, two = shallow_network(), shallow_network(MoLEConfig(drawn=True))
    two.load_state_dict(one.state_dict(), strict=False)
    assert two.drawn is not None
    torch.nn.init.normal_(two.drawn.weight)
    with torch.no_grad():
        expected = two(torch.from_numpy(crops(5))).numpy()
        assert logits_of(expected) == pytest.approx(one(torch.from_numpy(crops(5))).numpy(), abs=1e-6)
    assert expected.shape == (5, 2)
    assert np.abs(expected[:, 1] - expected[:, 0]).min() > 1e-3
    if runtime == "torch":
        found = TorchRuntime(two).outputs(crops(5), 2)
    else:
        need(runtime)
        convert(two, 32, runtime, tmp_path)  # type: ignore[arg-type]
        found = open_graph(tmp_path, runtime, "float32").outputs(crops(5), 2)  # type: ignore[arg-type]
    assert found == pytest.approx(expected, abs=5e-5)


def test_a_processor_without_instructions_for_bfloat16_counts_as_slow_at_any_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pytorch.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(pytorch.time, "perf_counter", lambda: pytest.fail("it was measured"))
    for avx512, amx in ((False, False), (True, False), (False, True)):
        bfloat16_is_slow.cache_clear()
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=avx512: has, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=amx: has, raising=False)
        assert bfloat16_is_slow("cpu") is not (avx512 or amx)
    bfloat16_is_slow.cache_clear()


def test_elsewhere_a_product_in_bfloat16_that_takes_twice_the_time_counts_as_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for each, expected in ((3.0, True), (1.5, False)):
        bfloat16_is_slow.cache_clear()
        ticks = iter(np.cumsum([0, 1] * 4 + [0, each] * 4).tolist())  # before and after each product
        monkeypatch.setattr(pytorch.platform, "machine", lambda: "aarch64")
        monkeypatch.setattr(pytorch.time, "perf_counter", lambda ticks=ticks: next(ticks))
        assert bfloat16_is_slow("cpu") is expected
        monkeypatch.undo()
    bfloat16_is_slow.cache_clear()
