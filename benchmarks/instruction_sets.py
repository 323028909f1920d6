"""The default detector's logits on one processor whose instruction sets are held back, against PyTorch in float32.

    python benchmarks/instruction_sets.py

Each path runs in a process of its own on the project-made images of `clipmole selftest`. What is held back: for PyTorch
`ATEN_CPU_CAPABILITY` and oneDNN's `ONEDNN_MAX_CPU_ISA`, for OpenVINO that and `OV_CPU_MAX_ISA`; ONNX Runtime cannot be
told. Out: `results/instruction-sets.json` and `.md`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from clipmole.plumbing.environment import environment

DETECTOR = "mole-vit-b-16"
SETS = {  # name -> oneDNN's and OpenVINO's word for it, and PyTorch's
    "all that there is": ("", ""),
    "AVX512 with BF16": ("AVX512_CORE_BF16", "avx512"),
    "AVX512 with VNNI": ("AVX512_CORE_VNNI", "avx512"),
    "AVX512": ("AVX512_CORE", "avx512"),
    "AVX2": ("AVX2", "avx2"),
}
OUT = Path(__file__).parent / "results" / "instruction-sets"


def logits(cache: str) -> dict[str, list[float]]:
    """Path -> logits of the made images, as this process computes them."""
    from clipmole import Detector
    from clipmole.inference.graph import convert, open_graph
    from clipmole.inference.quantize import quantise
    from clipmole.inference.runtime import logits_of
    from clipmole.inference.selftest import IMAGES, made_crops

    def found(runtime: str, precision: str) -> list[float]:
        detector = Detector.from_pretrained(DETECTOR, runtime=runtime, precision=precision)  # type: ignore[arg-type]
        crops = made_crops(detector.preprocess.crop_size)
        return [float(x) for x in logits_of(detector.runtime.outputs(crops, IMAGES))]

    paths = [("torch", "float32"), ("torch", "bfloat16"), ("openvino", "float32"), ("openvino", "bfloat16")]
    all_of = {
        f"{runtime} {precision}": found(runtime, precision) for runtime, precision in [*paths, ("onnx", "float32")]
    }
    detector = Detector.from_pretrained(DETECTOR)
    size, folder = detector.preprocess.crop_size, Path(cache)
    graph = convert(detector.network, size, "openvino", folder)
    quantised = quantise(graph, "openvino", detector.network.tower.config.width, (), folder / "int8" / graph.name)
    outputs = open_graph(quantised.parent, "openvino", "int8").outputs(made_crops(size), IMAGES)
    return all_of | {"openvino int8, ranges taken while it runs": [float(x) for x in logits_of(outputs)]}


def held_back(onednn: str, aten: str) -> dict[str, list[float]]:
    """`logits` of a process that may use no more than these."""
    limits = {"ONEDNN_MAX_CPU_ISA": onednn, "OV_CPU_MAX_ISA": onednn, "ATEN_CPU_CAPABILITY": aten}
    with tempfile.TemporaryDirectory() as cache:
        (Path(cache) / "int8").mkdir()
        env = os.environ | {name: value for name, value in limits.items() if value} | {"CLIPMOLE_CACHE": cache}
        done = subprocess.run(
            [sys.executable, "-P", __file__, cache], env=env, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(logits(sys.argv[1])))
        return
    found = {name: held_back(*limits) for name, limits in SETS.items()}
    about = environment()
    OUT.with_suffix(".json").write_text(json.dumps({"environment": about, "logits": found}, indent=1) + "\n")
    exact = np.array(found["all that there is"]["torch float32"])
    lines = [f"| path | {' | '.join(SETS)} |", "|---|" + "--:|" * len(SETS)]
    for path in found["AVX2"]:
        cells = [f"{np.abs(np.array(each[path]) - exact).max():.4f}" for each in found.values()]
        lines.append(f"| {path} | {' | '.join(cells)} |")
    text = (
        f"Largest difference of a logit from PyTorch in float32 on {len(exact)} made images, whose logits have a "
        f"standard deviation of {exact.std():.2f}. {about['cpu']}, torch {about['torch']}, {about['date']}. "
        "`python benchmarks/instruction_sets.py`\n\n"
    )
    OUT.with_suffix(".md").write_text(text + "\n".join(lines) + "\n", encoding="utf-8")
    print(text + "\n".join(lines))


if __name__ == "__main__":
    main()
