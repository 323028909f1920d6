"""Checks that this machine computes the same logits as others: synthetic images through every path, and stored logits.

In: the name of a detector. Out: for every installed runtime and precision, how far its logits lie from the stored ones,
which PyTorch computed in float32 on another machine. It knows nothing of image files or of verdicts.

The images are made of integers modulo 256, so they are the same bytes on every machine and with every library.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from clipmole.errors import ClipmoleError, MissingDependency
from clipmole.inference.detector import RECHECK, Detector
from clipmole.inference.pytorch import bfloat16_is_slow
from clipmole.inference.runtime import Precision, RuntimeName, logits_of
from clipmole.models.adapter import adapter_digest, find_adapter
from clipmole.records import Record

REFERENCES = "inference/reference_logits.json"  # {digest of the adapter: [logits in float32]}
IMAGES = 6
# float32 differs only in the order of additions; bfloat16 by less than the distance at which images are rescored.
TOLERANCES: dict[Precision, float] = {"float32": 0.01, "bfloat16": RECHECK, "int8": RECHECK}


class PathCheck(Record):
    """One execution path, compared with the stored logits.

    Attributes:
        runtime, precision: the path.
        difference: the largest distance of its logits from the stored ones; None if the path cannot run.
        tolerance: the largest distance that is expected of this precision.
        problem: why the path cannot run; None if it ran.
    """

    runtime: str
    precision: str
    difference: float | None
    tolerance: float
    problem: str | None = None

    @property
    def agrees(self) -> bool:
        """Whether the path ran and is within its tolerance."""
        return self.difference is not None and self.difference <= self.tolerance


def made_crops(size: int) -> NDArray[np.uint8]:
    """`IMAGES` crops (n, 3, size, size) uint8: gradients, waves of squares, and textures, the same bytes everywhere."""
    y, x = np.mgrid[:size, :size].astype(np.int64)
    crops = np.empty((IMAGES, 3, size, size), dtype=np.uint8)
    for k in range(IMAGES):
        for c in range(3):
            smooth = (x * (k + 1) + y * (c + 2)) // 3
            waves = (x * x * (k + 1) + y * y * (c + 1) + x * y) // 64
            texture = ((x * 37 + y * 101 + k * 17) ^ (x * y + c * 29)) % (8 << k)
            crops[k, c] = (smooth + waves * (k % 2) + texture) % 256
    return crops


def reference_logits(digest: str) -> NDArray[np.float32] | None:
    """The stored logits (n,) of the adapter with this digest; None if there are none."""
    kept = json.loads((resources.files("clipmole") / REFERENCES).read_text(encoding="utf-8"))
    return np.array(kept[digest], dtype=np.float32) if digest in kept else None


def self_test(name: str = "default", *, precision: Precision | None = None) -> Iterator[PathCheck]:
    """Check every execution path of a detector, PyTorch in float32 first.

    Args:
        name: as in `Detector.from_pretrained`. A detector that does not come with the package has no stored logits: its
            paths are compared with PyTorch in float32 on this machine.
        precision: one precision alone; None: float32 and bfloat16, in PyTorch where the processor is fast in it.

    Yields:
        One `PathCheck` for each path. Paths whose library is not installed are left out.

    Raises:
        ClipmoleError: the detector cannot be loaded.
    """
    detector = Detector.from_pretrained(name, runtime="torch")
    crops = made_crops(detector.preprocess.crop_size)
    expected = reference_logits(adapter_digest(find_adapter(name)[1]))
    if expected is None:
        expected = logits_of(detector.runtime.outputs(crops, IMAGES))
    precisions: tuple[Precision, ...] = (precision,) if precision else ("float32", "bfloat16")
    for runtime in (each for each in get_args(RuntimeName) if each != "torch-compile"):
        for each in precisions:
            if (runtime, each) == ("onnx", "bfloat16"):  # ONNX Runtime has none on a CPU
                continue
            if (runtime, each, precision) == ("torch", "bfloat16", None) and bfloat16_is_slow("cpu"):
                continue  # it would take minutes, and nobody would use it
            tolerance = TOLERANCES[each]
            try:
                path = Detector.from_pretrained(name, runtime=runtime, precision=each).runtime
                found = logits_of(path.outputs(crops, IMAGES))
            except MissingDependency:
                continue
            except ClipmoleError as error:
                yield PathCheck(
                    runtime=runtime, precision=each, difference=None, tolerance=tolerance, problem=str(error)
                )
                continue
            difference = float(np.abs(found - expected).max())
            yield PathCheck(runtime=runtime, precision=each, difference=difference, tolerance=tolerance)
