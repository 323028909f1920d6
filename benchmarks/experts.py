"""What the default detector's experts specialise in: by texture, by kind of image, by generator.

    python benchmarks/experts.py --data score.csv [--count 120]

In: labelled images. Each is looked at once, as an equalised centre crop, and the router's gate of every patch token is
kept. Out, in `results/mole-vit-b-16`: `experts.md` and `experts.svg` (no image). For each adapted block and expert:

    photographs, generated    mean gate over all patches; chance is one divided by the number of experts
    between images            share of the gate's variance that lies between images, and not within them
    texture, brightness       Spearman's correlation with the gate over the patches of an image, mean over images.
                              Texture is the standard deviation of a patch's luma, brightness its mean.
    centre                    the same with the distance from the centre of the crop
    AUROC                     of an image's mean gate, for telling generated images from photographs: 0.5 is chance

Below them the largest difference of a generator's mean gate from that of all generated images. The picture shows the
mean gate by tenths of the patches in order of their texture.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr  # type: ignore[import-untyped]

from clipmole.config import PreprocessConfig
from clipmole.data import read_data, windows
from clipmole.images.crops import cut_crops
from clipmole.inference.attribution import gates_of
from clipmole.metrics import auroc
from clipmole.models.adapter import load_adapter
from clipmole.plumbing.environment import environment
from clipmole.report import plots

NAME = "mole-vit-b-16"
FOLDER = Path(__file__).parent / "results" / NAME
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
FEWEST = 8  # images of a generator that is named
ROWS = 16
Array = NDArray[np.float64]


def patches_of(crop: NDArray[np.uint8], side: int) -> Array:
    """Texture, brightness and distance from the centre (3, n) of a crop's patches, in the order of the tokens."""
    luma = crop.transpose(1, 2, 0) @ LUMA
    rows = len(luma) // side
    cells = luma.reshape(rows, side, rows, side).swapaxes(1, 2).reshape(rows * rows, -1)
    at = np.arange(rows) - (rows - 1) / 2
    return np.stack([cells.std(1), cells.mean(1), np.hypot(*np.meshgrid(at, at)).ravel()])


def measure(data: str, split: str, count: int) -> tuple[Array, Array, Array, list[str], list[int]]:
    """Gates (n, blocks, patches, E), properties (n, 3, patches), labels (n,), generators (n,), and the blocks."""
    network = load_adapter(NAME).network
    samples = read_data(data, split)
    rng = np.random.default_rng(0)
    queues = [rng.permutation([i for i, s in enumerate(samples) if s.label == label])[:count] for label in (0, 1)]
    chosen = [samples[i] for queue in queues for i in queue.tolist()]
    view = PreprocessConfig(mode="center_crop", crop_size=224)
    crops = np.stack([cut_crops(image, view).pixels[0] for image in windows(chosen, "equalised")])
    parts = [gates_of(network, torch.from_numpy(crops[i : i + ROWS])) for i in range(0, len(crops), ROWS)]
    blocks = list(parts[0])
    gates = np.stack([np.concatenate([part[b].flatten(1, 2).numpy() for part in parts]) for b in blocks], axis=1)
    side = network.tower.config.patch_size
    about = np.stack([patches_of(crop, side) for crop in crops])
    return gates.astype(float), about, np.array([s.label for s in chosen]), [s.generator for s in chosen], blocks


def row(gate: Array, about: Array, labels: Array) -> list[str]:
    """The cells of one expert: its gate (n, patches) against what is known of the patches."""
    means = gate.mean(1)
    between = means.var() / gate.var()
    related = [np.nanmean([spearmanr(g, a[k]).statistic for g, a in zip(gate, about, strict=True)]) for k in range(3)]
    shares = [f"{gate[labels == label].mean():.3f}" for label in (0, 1)]
    return [*shares, f"{100 * between:.0f} %", *(f"{r:+.2f}" for r in related), f"{auroc(labels, means):.2f}"]


def picture(gates: Array, about: Array, blocks: list[int]) -> str:
    """Mean gate by tenths of texture: a chart for each block, a line for each expert."""
    order = np.argsort(np.argsort(about[:, 0].ravel())).reshape(about[:, 0].shape) * 10 // about[:, 0].size
    x = plots.even_axis("tenth of the patches, flat to textured", 0, 10, percent=False)
    y = plots.even_axis("mean gate", 0, 1, percent=False)
    tenths = [i + 0.5 for i in range(10)]
    drawings = []
    for b, block in enumerate(blocks):
        curves = [[float(gates[:, b, :, e][order == i].mean()) for i in range(10)] for e in range(gates.shape[-1])]
        lines = [plots.Line(e, tenths, curve, marked=True) for e, curve in enumerate(curves)]
        title = f"block {block}"
        drawings.append((title, plots.chart(lines, x, y, f"Mean gate by texture in {title}")))
    legend = [f"expert {e + 1}" for e in range(gates.shape[-1])]
    return plots.standalone(plots.tiled(drawings, "Mean gates by the texture of a patch", legend))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--count", type=int, default=120, help="images of a class")
    arguments = parser.parse_args()
    gates, about, labels, generators, blocks = measure(arguments.data, arguments.split, arguments.count)
    means = gates.mean(2)  # (n, blocks, E)
    named = sorted({name for name in generators if generators.count(name) >= FEWEST} - {"camera"})
    head = "| block | expert | photographs | generated | between images | texture | brightness | centre | AUROC |"
    lines = [head, "|--:|--:|--:|--:|--:|--:|--:|--:|--:|"]
    apart = []
    for b, block in enumerate(blocks):
        for e in range(gates.shape[-1]):
            lines.append(f"| {block} | {e + 1} | {' | '.join(row(gates[:, b, :, e], about, labels))} |")
            for name in named:
                own = np.array([each == name for each in generators])
                difference = float(means[own, b, e].mean() - means[labels == 1, b, e].mean())
                apart.append((abs(difference), f"{name} (block {block}, expert {e + 1}: {difference:+.3f})"))
    real, generated = (int((labels == label).sum()) for label in (0, 1))
    now = environment()
    lines += [
        "",
        f"Largest differences of a generator's mean gate: {'; '.join(text for _, text in sorted(apart)[:-4:-1])}.",
        "",
        f"{real} photographs and {generated} generated images of the split `{arguments.split}`, drawn by seed 0, "
        f"equalised centre crops. {now['cpu']}, torch {now['torch']}, {now['date']}. `python benchmarks/experts.py`",
    ]
    (FOLDER / "experts.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (FOLDER / "experts.svg").write_text(picture(gates, about, blocks), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
