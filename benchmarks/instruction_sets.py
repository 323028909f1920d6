"""The default detector's logits on one processor whose instruction sets are held back, against PyTorch in float32.

    python benchmarks/instruction_sets.py

The paths run on the project-made images of `clipmole selftest`, in a process for each set of instructions. What is
held back: for PyTorch `ATEN_CPU_CAPABILITY` and oneDNN's `ONEDNN_MAX_CPU_ISA`, for OpenVINO that and `OV_CPU_MAX_ISA`;
ONNX Runtime cannot be told. A dash: the library crashed under that limit, which says nothing of a processor that has no
more. Out: `results/instruction-sets.json` and `.md`.
"""

from __future__ import annotations

import argparse
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
    "AVX512 with VNNI": ("AVX512_CORE_VNNI", "avx512"),
    "AVX2": ("AVX2", "avx2"),
}
OUT = Path(__file__).parent / "results" / "instruction-sets"


def print_logits(cache: str) -> None:
    """A line of JSON a path: its name, and logits of the made images, as this process computes them."""
    from clipmole import Detector
    from clipmole.inference.graph import convert, open_graph
    from clipmole.inference.quantize import quantise
    from clipmole.inference.runtime import Runtime, logits_of
    from clipmole.inference.selftest import IMAGES, made_crops

    def show(path: str, runtime: Runtime) -> None:
        logits = logits_of(runtime.outputs(made_crops(size), IMAGES))
        print(json.dumps([path, [float(logit) for logit in logits]]), flush=True)

    detector = Detector.from_pretrained(DETECTOR)
    size, folder = detector.preprocess.crop_size, Path(cache)
    for path in ("torch float32", "torch bfloat16", "onnx float32", "openvino float32", "openvino bfloat16"):
        runtime, precision = path.split()
        show(path, Detector.from_pretrained(DETECTOR, runtime=runtime, precision=precision).runtime)  # type: ignore[arg-type]
    graph = convert(detector.network, size, "openvino", folder)
    quantised = quantise(graph, "openvino", detector.network.tower.config.width, (), folder / "int8" / graph.name)
    show("openvino int8, ranges taken while it runs", open_graph(quantised.parent, "openvino", "int8"))


def held_back(onednn: str, aten: str) -> dict[str, list[float]]:
    """Path -> logits, of a process that may use no more than these; what it did not live to see is missing."""
    limits = {"ONEDNN_MAX_CPU_ISA": onednn, "OV_CPU_MAX_ISA": onednn, "ATEN_CPU_CAPABILITY": aten}
    with tempfile.TemporaryDirectory() as cache:
        (Path(cache) / "int8").mkdir()
        env = os.environ | {name: value for name, value in limits.items() if value} | {"CLIPMOLE_CACHE": cache}
        done = subprocess.run(
            [sys.executable, "-P", __file__, "--graphs", cache], env=env, stdout=subprocess.PIPE, text=True, check=False
        )
        return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", help=argparse.SUPPRESS)  # the folder that the processes of one run share
    if graphs := parser.parse_args().graphs:
        print_logits(graphs)
        return
    found = {name: held_back(*limits) for name, limits in SETS.items()}
    about = environment()
    OUT.with_suffix(".json").write_text(json.dumps({"environment": about, "logits": found}, indent=1) + "\n")
    exact = np.array(found["all that there is"]["torch float32"])
    lines = [f"| path | {' | '.join(SETS)} |", "|---|" + "--:|" * len(SETS)]
    for path in found["all that there is"]:
        cells = [
            f"{np.abs(np.array(each[path]) - exact).max():.4f}" if path in each else "-" for each in found.values()
        ]
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
