"""Whether the evidence map shows what the detector's logit rests on, and whether it finds what was pasted in.

    python benchmarks/evidence_map.py --corpus DIR --hosts MANIFEST --split val --detector NAME=DIR[,BACKBONE] ...

Deletion and insertion. Of every window that the detector gets right (photographs count with the sign turned round),
patches of the centre crop are replaced by blurred or by mean pixels in the order of the map, first those that speak
most for the answer (deletion), or the other way round brought back into a blurred or mean crop (insertion). Given is
the mean logit towards the right answer along the way: after deletion lower is better, after insertion higher. Beside
it a random map and one that falls off from the centre.

Splices. A window of 192, 128 or 64 pixels out of a generated image is pasted into a 448 x 448 cut of a photograph, at
a random place; every other composite is saved as JPEG of a quality drawn from 65..90 as a whole. The figure is the
share of the map's brightest patch (or tile) that lies inside the window, on average; chance is the window's share of
the area, and a map that falls off from the centre stands beside it. As a control the same with windows of other
photographs (not for val): a map that finds those as well reacts to the edge, not to what is inside. Maps are computed
in float32, the logits of the tests in bfloat16.

`--split val` compares the methods of clipmole.inference.attribution; any other split reports the one that was chosen
there, and is looked at once. Results are put into results/evidence-map.json and .md beside those of other splits and
detectors.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from clipmole.data import read_manifest, take_split
from clipmole.data.sample import Sample
from clipmole.images.loading import load_image
from clipmole.inference.attribution import METHODS, attribute, blurred
from clipmole.inference.detector import Detector
from clipmole.plumbing.environment import environment
from clipmole.plumbing.files import write_texts

HERE = Path(__file__).resolve().parent
CROP, SIDE, SIZES = 224, 448, (192, 128, 64)
STEPS = 5  # parts of the patches that are replaced one after the other
RESAMPLES = 2000
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Splice:
    """A composite as four crops (4, 3, 224, 224) uint8, and where the window lies."""

    crops: Tensor
    size: int
    left: int
    top: int
    jpeg: bool
    host: int


def random_maps(count: int, grid: tuple[int, int]) -> Tensor:
    return torch.rand(count, *grid, generator=torch.Generator().manual_seed(0))


def centre_map(grid: tuple[int, int]) -> Tensor:
    """Falls off with the square of the distance from the centre: (rows, columns)."""
    y, x = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in grid), indexing="ij")
    return -(y.square() + x.square())


def interval(values: Array, groups: Sequence[int] | None = None) -> dict[str, float]:
    """The mean with its 95 % bootstrap interval; values of one group are drawn together."""
    index = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    total, count = np.bincount(index, values), np.bincount(index)
    drawn = np.random.default_rng(0).integers(0, len(count), (RESAMPLES, len(count)))
    means = total[drawn].sum(1) / count[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"value": float(values.mean()), "low": float(low), "high": float(high), "n": len(values)}


def centre_crops(samples: Sequence[Sample]) -> Tensor:
    """(n, 3, 224, 224) uint8."""
    crops = []
    for sample in samples:
        image = load_image(sample.path)
        x, y = (image.width - CROP) // 2, (image.height - CROP) // 2
        crops.append(np.asarray(image.crop((x, y, x + CROP, y + CROP))).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(crops))


@torch.inference_mode()
def logits_of(detector: Detector, crops: Tensor) -> Tensor:
    """Crops (n, 3, 224, 224), values 0..255 -> logits (n,)."""
    with torch.autocast("cpu", torch.bfloat16):
        return torch.cat([detector.network(batch.float() / 255) for batch in crops.split(16)]).float()


def maps_of(detector: Detector, crops: Tensor, method: str) -> Tensor:
    """Maps (n, rows, columns) of crops (n, 3, 224, 224)."""
    return torch.cat([attribute(detector.network, batch, method) for batch in crops.split(4)])


def curve(detector: Detector, crops: Tensor, base: Tensor, order: Tensor, inserted: bool) -> Tensor:
    """Mean logit (n,) while patches go in `order` (n, patches), by the trapezium rule."""
    n, patches = order.shape
    side = round(patches**0.5)
    area = torch.zeros(n)
    for step in range(STEPS + 1):
        mask = torch.zeros(n, patches).scatter_(1, order[:, : patches * step // STEPS], 1.0)
        mask = F.interpolate(mask.view(n, 1, side, side), size=crops.shape[-2:])
        gone = 1 - mask if inserted else mask
        logits = logits_of(detector, crops * (1 - gone) + base * gone)
        area += logits * (0.5 if step in (0, STEPS) else 1.0)
    return area / STEPS


def deletion_insertion(detector: Detector, samples: Sequence[Sample], methods: Sequence[str]) -> dict[str, Any]:
    """{"deletion, blur": {map: {"area": interval, "against random": interval}}}; areas in logit units."""
    crops = centre_crops(samples)
    sign = torch.tensor([1.0 if sample.label else -1.0 for sample in samples])
    right = logits_of(detector, crops) * sign > 0
    crops, sign = crops[right].float(), sign[right]
    maps = {name: maps_of(detector, crops, name) for name in methods}
    grid = next(iter(maps.values())).shape[1:]
    orders = {
        name: (found * sign[:, None, None]).flatten(1).argsort(1, descending=True) for name, found in maps.items()
    }
    orders["random"] = random_maps(len(crops), (grid[0], grid[1])).flatten(1).argsort(1)
    orders["centre"] = centre_map((grid[0], grid[1])).flatten().argsort(descending=True).expand(len(crops), -1)
    result: dict[str, Any] = {}
    for what, base in (("blur", blurred(crops)), ("mean", crops.mean((2, 3), keepdim=True).expand_as(crops))):
        for how in ("deletion", "insertion"):
            areas = {
                name: (curve(detector, crops, base, order, how == "insertion") * sign).double().numpy()
                for name, order in orders.items()
            }
            result[f"{how}, {what}"] = {
                name: {"area": interval(area), "against random": interval(area - areas["random"])}
                for name, area in areas.items()
            }
    return result


def composites(hosts: Sequence[Sample], windows: Sequence[Sample], count: int, seed: int) -> Iterator[Splice]:
    """`count` composites of each size: a photograph, a window pasted in at random."""
    rng = np.random.default_rng(seed)
    for size in SIZES:
        for i in range(count):
            host, sample = int(rng.integers(len(hosts))), windows[rng.integers(len(windows))]
            picture, image = load_image(hosts[host].path), load_image(sample.path)
            x, y = (picture.width - SIDE) // 16 * 8, (picture.height - SIDE) // 16 * 8
            pixels = np.array(picture.crop((x, y, x + SIDE, y + SIDE)))
            left, top = (int(v) * 8 for v in rng.integers(0, (SIDE - size) // 8 + 1, 2))
            x, y = (int(v) * 8 for v in (rng.integers(0, (side - size) // 8 + 1) for side in image.size))
            pixels[top : top + size, left : left + size] = np.asarray(image.crop((x, y, x + size, y + size)))
            quality = int(rng.integers(65, 91))
            if i % 2:
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
                pixels = np.asarray(load_image(buffer.getvalue()))
            tiles = [pixels[v : v + CROP, u : u + CROP].transpose(2, 0, 1) for v in (0, CROP) for u in (0, CROP)]
            yield Splice(torch.from_numpy(np.stack(tiles)), size, left, top, bool(i % 2), host)


def joined(maps: Tensor) -> Tensor:
    """Maps (4, rows, columns) of the four crops -> one of the whole (2 rows, 2 columns)."""
    return torch.cat([torch.cat([maps[0], maps[1]], 1), torch.cat([maps[2], maps[3]], 1)], 0)


def inside(found: Tensor, splice: Splice) -> float:
    """Share of the brightest cell of a map that lies inside the window."""
    side = SIDE / found.shape[0]
    row, column = divmod(int(found.argmax()), found.shape[1])
    w = min((column + 1) * side, splice.left + splice.size) - max(column * side, splice.left)
    h = min((row + 1) * side, splice.top + splice.size) - max(row * side, splice.top)
    return max(0.0, w) * max(0.0, h) / side**2


def find_splices(detector: Detector, splices: Sequence[Splice], methods: Sequence[str]) -> dict[str, Any]:
    """{map: {size or "as JPEG": interval}} of the share of the peak inside the window."""
    shares: dict[str, list[float]] = defaultdict(list)
    seconds: dict[str, float] = defaultdict(float)
    for splice in splices:
        shares["tile logits"].append(inside(logits_of(detector, splice.crops).view(2, 2), splice))
        shares["centre"].append(inside(centre_map((28, 28)), splice))
        shares["chance"].append((splice.size / SIDE) ** 2)
        for name in methods:
            began = time.perf_counter()
            found = maps_of(detector, splice.crops, name)
            seconds[name] += time.perf_counter() - began
            shares[name].append(inside(joined(found), splice))
    kinds: dict[str, NDArray[np.bool_]] = {str(size): np.array([s.size == size for s in splices]) for size in SIZES}
    kinds |= {"all": np.ones(len(splices), bool), "all, as JPEG": np.array([s.jpeg for s in splices])}
    hosts = np.array([s.host for s in splices])
    return {
        name: {kind: interval(np.array(values)[mask], hosts[mask].tolist()) for kind, mask in kinds.items()}
        | ({"seconds a tile": seconds[name] / len(splices) / 4} if name in seconds else {})
        for name, values in shares.items()
    }


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def cell(figure: dict[str, float], percent: bool = False) -> str:
    low, high, value = (figure[key] * (100 if percent else 1) for key in ("low", "high", "value"))
    return f"{value:.0f} % [{low:.0f}, {high:.0f}]" if percent else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def as_markdown(runs: Sequence[dict[str, Any]]) -> str:
    """The tables of all runs."""
    lines = []
    for run in runs:
        found, of = run["found"], f"{run['detector']} on `{run['split']}`"
        tests = found["deletion and insertion"]
        first = next(iter(tests.values()))
        lines += [f"**{of}**: mean logit towards the right answer, {first['random']['area']['n']} windows", ""]
        rows = [
            [
                m,
                *(cell(tests[t][m]["area"]) for t in tests),
                *(f"{tests[t][m]['against random']['value']:+.2f}" for t in tests),
            ]
            for m in first
        ]
        lines += [*table(["map", *tests, *(f"{t}, minus random" for t in tests)], rows), ""]
        for kind in [key for key in found if "windows" in key]:
            splices = found[kind]
            n = splices["chance"]["all"]["n"]
            lines += [f"**{of}**: share of the map's peak inside pasted {kind}, {n} composites", ""]
            heads = [k for k in splices["chance"] if k != "seconds a tile"]
            rows = [[m, *(cell(splices[m][k], percent=True) for k in heads)] for m in splices]
            lines += [*table(["map", *(f"{h} px" if h.isdigit() else h for h in heads)], rows), ""]
    return "\n".join(lines)


def write_runs(folder: Path, new: Sequence[dict[str, Any]]) -> None:
    """Put runs into evidence-map.json and .md of `folder`, in place of those of the same detector and split."""
    file = folder / "evidence-map.json"
    old = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    runs = {(run["split"], run["detector"]): run for run in [*old, *new]}
    ordered = [runs[key] for key in sorted(runs)]
    write_texts(folder, {file.name: json.dumps(ordered, indent=1) + "\n", "evidence-map.md": as_markdown(ordered)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--hosts", type=Path, required=True, help="a manifest of photographs of 448 pixels or more")
    parser.add_argument("--split", required=True)
    parser.add_argument("--detector", action="append", required=True, help="NAME=DIR[,BACKBONE]")
    parser.add_argument("--windows", type=int, default=20, help="of each class, for deletion and insertion")
    parser.add_argument("--splices", type=int, default=40, help="composites of each size")
    parser.add_argument("--methods", nargs="+", default=None, choices=METHODS)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()

    methods = arguments.methods or (list(METHODS) if arguments.split == "val" else list(METHODS)[:1])
    samples = take_split(read_manifest(arguments.corpus / "manifest.csv"), arguments.split)
    rng = np.random.default_rng(0)
    of_class = {label: [s for s in samples if s.label == label] for label in (0, 1)}
    tested = [of[i] for of in of_class.values() for i in sorted(rng.permutation(len(of))[: arguments.windows])]
    hosts = [s for s in read_manifest(arguments.hosts) if s.label == 0 and min(Image.open(s.path).size) >= SIDE]
    recipe = {
        "command": f"python benchmarks/evidence_map.py --split {arguments.split} --windows {arguments.windows} "
        f"--splices {arguments.splices} --methods {' '.join(repr(m) for m in methods)}",
        "environment": environment(),
        "seed": 0,
        "hosts": len(hosts),
    }
    runs = []
    for given in arguments.detector:
        name, _, place = given.partition("=")
        folder, _, backbone = place.partition(",")
        detector = Detector.from_pretrained(folder, backbone=backbone or None)
        detector.network.requires_grad_(False)
        found: dict[str, Any] = {"deletion and insertion": deletion_insertion(detector, tested, methods)}
        kinds = {"generated windows": 1} | ({} if arguments.split == "val" else {"windows of photographs": 0})
        for kind, label in kinds.items():
            print(f"{name}: {kind}", file=sys.stderr)
            splices = list(composites(hosts, of_class[label], arguments.splices, seed=label))
            found[kind] = find_splices(detector, splices, methods)
        runs.append({"split": arguments.split, "detector": name, "id": detector.name} | recipe | {"found": found})
    write_runs(arguments.out, runs)
    print(json.dumps(runs))


if __name__ == "__main__":
    main()
