"""Views -> tokens before the first adapted block, with the class tokens of the blocks before: written once, read often.

    python recipes/mole-vit-b-16/tokens.py --lists MODERN CORPUS --images IMAGES --out TOKENS

In: the two lists (`originals.csv`) and a folder with their files, named by sha256. Out: for each set of `SETS` a file
`<set>.tokens`, the bits of (n, 197 + 9, 768) bfloat16, and `<set>.csv` with one row a view: what `fit.py` reads. A set
that is there is left alone, so that a run that was stopped goes on with the next one. OpenVINO computes, in bfloat16.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from views import Listed, pixels, read_list, view

from clipmole.config import MoLEConfig, PreprocessConfig
from clipmole.errors import ImageError
from clipmole.images.crops import cut_crops
from clipmole.images.transforms import equalise
from clipmole.inference.graph import library
from clipmole.models.backbone import load_backbone
from clipmole.models.network import MoLENetwork
from clipmole.plumbing.prefetch import started_ahead
from clipmole.plumbing.seeding import sample_rng
from clipmole.plumbing.telemetry import switch_off

MOLE = MoLEConfig(head_blocks=tuple(range(11)))
PREPROCESS = PreprocessConfig(max_tiles=4, whole_weight=0.5)
BATCH = 16  # views of a forward pass


@dataclass(frozen=True)
class Set:
    """Views that are made together.

    Attributes:
        name: of the images; part of the seed.
        list_name, split: whose images.
        number, kind: of the view; kind "score": the crops and the view of the whole that a detector looks at,
            equalised.
        most: images of one repository and class, drawn; None: all.
    """

    name: str
    list_name: str
    split: str
    number: int
    kind: str
    most: int | None = None

    @property
    def file(self) -> str:
        return f"{self.name}-{self.number}-{self.kind}"


SETS = (
    Set("modern", "modern", "train", 0, "native"),
    Set("modern", "modern", "train", 1, "whole", 200),
    Set("modern", "modern", "train", 2, "native", 200),
    Set("corpus", "corpus", "train", 0, "native", 150),
    Set("corpus", "corpus", "train", 1, "whole", 250),
    Set("corpus", "corpus", "train", 2, "native", 250),
    Set("val", "modern", "val", 0, "score"),
)


class Prefix(nn.Module):
    """The frozen half of the network."""

    def __init__(self, network: MoLENetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, crops: Tensor) -> Tensor:
        return self.network.prefix(crops)


def chosen(images: Sequence[Listed], made: Set) -> list[Listed]:
    """At most `most` images of a repository and class, drawn by the set's number, in the order of the list."""
    if made.most is None:
        return list(images)
    kept, seen = [], Counter[tuple[str, int]]()
    for i in np.random.default_rng(made.number).permutation(len(images)):
        key = (images[i].repository, images[i].label)
        if seen[key] < made.most:
            seen[key] += 1
            kept.append(int(i))
    return [images[i] for i in sorted(kept)]


def crops_of(image: Listed, made: Set) -> NDArray[np.uint8] | None:
    """Views (k, 3, S, S) of one image; None if it cannot be read."""
    try:
        if made.kind == "score":
            rgb = equalise(pixels(image), (65, 90), sample_rng(0, image.sha256))
            return cut_crops(rgb, PREPROCESS).pixels
        return view(image, made.name, made.number, made.kind).transpose(2, 0, 1)[None]
    except ImageError as error:
        print(f"left out: {error}")
        return None


def batches(
    images: Sequence[Listed], made: Set, pool: ThreadPoolExecutor
) -> Iterator[tuple[NDArray[np.uint8], list[int]]]:
    """Views in batches of `BATCH`, with the index of the image of each."""
    waiting, owners = np.empty((0, 3, 224, 224), dtype=np.uint8), []
    futures = started_ahead(enumerate(images), lambda each: (each[0], pool.submit(crops_of, each[1], made)), 12)
    for index, future in futures:
        crops = future.result()
        if crops is None:
            continue
        waiting, owners = np.concatenate([waiting, crops]), [*owners, *[index] * len(crops)]
        while len(waiting) >= BATCH:
            yield waiting[:BATCH], owners[:BATCH]
            waiting, owners = waiting[BATCH:], owners[BATCH:]
    if owners:
        yield waiting, owners


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=Path, nargs=2, required=True, metavar=("MODERN", "CORPUS"))
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    lists = {
        name: read_list(path, arguments.images)
        for name, path in zip(("modern", "corpus"), arguments.lists, strict=True)
    }
    network = MoLENetwork(load_backbone("clip-vit-b-16-int8").tower, MOLE).eval()
    example = torch.zeros(2, 3, 224, 224, dtype=torch.uint8)
    switch_off()
    ov = library("openvino")
    graph = ov.convert_model(Prefix(network), example_input=example, input=[-1, 3, 224, 224])
    prefix = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    arguments.out.mkdir(parents=True, exist_ok=True)
    for made in SETS:
        target = arguments.out / f"{made.file}.csv"
        if target.exists():
            continue
        images = chosen([each for each in lists[made.list_name] if each.split == made.split], made)
        rows: list[int] = []
        with ThreadPoolExecutor(3) as pool, (arguments.out / f"{made.file}.tokens").open("wb") as file:
            for crops, owners in batches(images, made, pool):
                tokens = torch.from_numpy(prefix(np.ascontiguousarray(crops))[0]).bfloat16()
                file.write(tokens.view(torch.int16).numpy().tobytes())
                rows += owners
        with target.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["sha256", "label", "stratum", "source", "kind"])
            for owner in rows:
                image = images[owner]
                writer.writerow([image.sha256, image.label, image.stratum, image.source, image.kind])
        print(f"{made.file}: {len(rows)} views of {len(images)} images", flush=True)


if __name__ == "__main__":
    main()
