"""A trained adapter -> the same with a second output: whether an image is drawn, painted or rendered.

    python recipes/mole-vit-b-16/drawn.py ADAPTER --list MODERN --images IMAGES --by-people FOLDER ... --out ADAPTER

In: an adapter, the list (`originals.csv`), a folder with its files, named by sha256, and folders of pictures that
people drew. Out: an adapter directory whose logits are the same. The output is a logistic regression on what the head
reads of the view of the whole: drawn are the generated images of `train` that the list says are, and the folders;
not drawn are its photographs and its generated images that look like photographs. Its bias is moved so that of the
photographs of `calibration` the share `MOST` is above 0.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from views import SIZE, Listed, pixels, read_list

from clipmole import ImageError
from clipmole.config import PreprocessConfig
from clipmole.errors import CheckpointError
from clipmole.images.crops import cut_crops
from clipmole.images.discovery import find_images
from clipmole.images.loading import load_pixels
from clipmole.models.adapter import CARD, TRAIN, load_adapter, save_adapter
from clipmole.models.backbone import load_backbone
from clipmole.models.network import MoLENetwork
from clipmole.plumbing.json_toml import read_json
from clipmole.plumbing.prefetch import started_ahead

REGULARISATION = 0.01  # scikit-learn's C
MOST = 0.02  # share of the photographs of `calibration` that may lose their verdict
PHOTOGRAPHS = 0.2  # share of those of `train` that are looked at: there are many, and they are told apart easily
PER_FOLDER = 150  # pictures of one folder at most, drawn by seed 0
BATCH = 32
Image = Listed | Path


def views_of(images: Sequence[Image], config: PreprocessConfig) -> Iterator[tuple[Image, NDArray[np.uint8]]]:
    """Each image that can be read, and its view of the whole (3, S, S) uint8; a line for the others."""

    def view(image: Image) -> NDArray[np.uint8] | ImageError:
        try:
            rgb = pixels(image) if isinstance(image, Listed) else load_pixels(image)
        except ImageError as error:
            return error
        return cut_crops(rgb, config).pixels[-1]

    with ThreadPoolExecutor(2) as pool:
        for image, future in zip(images, started_ahead(images, lambda image: pool.submit(view, image), 8), strict=True):
            found = future.result()
            if isinstance(found, ImageError):
                print(f"left out: {found}")
            else:
                yield image, found


@torch.inference_mode()
def features_of(
    network: MoLENetwork, images: Sequence[Image], config: PreprocessConfig
) -> tuple[list[Image], NDArray[np.float32]]:
    """The images that can be read, and what the head reads of them (n, F)."""
    read, parts = [], []
    views = views_of(images, config)
    while batch := list(islice(views, BATCH)):
        crops = torch.from_numpy(np.stack([crop for _, crop in batch]))
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(network.features(network.before(crops, 0), 0).float().numpy())
        read += [image for image, _ in batch]
        print(f"{len(read)} of {len(images)}", flush=True)
    return read, np.concatenate(parts)


def pictures_of(folder: Path) -> list[Path]:
    """At most `PER_FOLDER` pictures of a folder whose sides are at least a view's."""
    large = []
    for path in map(Path, find_images([folder])):
        with suppress(OSError), PIL.Image.open(path) as picture:
            large += [path] * (min(picture.size) >= SIZE)
    return [large[i] for i in np.random.default_rng(0).permutation(len(large))[:PER_FOLDER].tolist()]


def is_drawn(image: Image) -> bool:
    return not isinstance(image, Listed) or image.kind == "drawn"


def chosen(listed: Sequence[Listed]) -> list[Listed]:
    """Images of `train` of which it is known whether they are drawn, the photographs of `calibration`, and `val`."""
    kept = np.random.default_rng(0).random(len(listed)) < PHOTOGRAPHS
    return [
        image
        for image, lucky in zip(listed, kept, strict=True)
        if (image.split, image.label) == ("calibration", 0)
        or (image.split == "val" and (image.kind or not image.label))
        or (image.split == "train" and (image.kind if image.label else lucky))
    ]


def fit(images: Sequence[Image], features: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
    """Weights (F,) and bias of the second output; prints how it does on `val`."""
    split = np.array([image.split if isinstance(image, Listed) else "train" for image in images])
    label = np.array([image.label if isinstance(image, Listed) else 0 for image in images])
    drawn = np.array([is_drawn(image) for image in images])
    train = split == "train"
    model = LogisticRegression(C=REGULARISATION, max_iter=600, class_weight="balanced")
    model.fit(features[train], drawn[train])
    weight = model.coef_[0]
    outputs = features @ weight
    bias = -float(np.quantile(outputs[(split == "calibration") & (label == 0)], 1 - MOST))
    for name, own in (
        ("photographs", label == 0),
        ("generated, like photographs", (label == 1) & ~drawn),
        ("generated, drawn", (label == 1) & drawn),
    ):
        of = outputs[(split == "val") & own] + bias > 0
        print(f"val, {name}: {of.sum()} of {of.size} look drawn ({100 * of.mean():.1f} %)")
    return weight, bias


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--list", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--by-people", type=Path, nargs="*", default=[], metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    adapter = load_adapter(arguments.adapter)
    by_people = [path for folder in arguments.by_people for path in pictures_of(folder)]
    images: list[Image] = [*chosen(read_list(arguments.list, arguments.images)), *by_people]
    weight, bias = fit(*features_of(adapter.network, images, adapter.config.preprocess))

    backbone = load_backbone(adapter.config.backbone.id)
    network = MoLENetwork(backbone.tower, adapter.config.mole.model_copy(update={"drawn": True}))
    assert network.drawn is not None
    network.load_state_dict(adapter.network.adapter_parameters(), strict=False)
    with torch.no_grad():
        network.drawn.weight.copy_(torch.from_numpy(weight[None]))
        network.drawn.bias.fill_(bias)
    save_adapter(
        arguments.out,
        network.eval(),
        backbone,
        adapter.config.preprocess,
        adapter.calibration,
        train=read_json(arguments.adapter / TRAIN, CheckpointError),
        card=(arguments.adapter / CARD).read_text(encoding="utf-8") if (arguments.adapter / CARD).is_file() else None,
    )


if __name__ == "__main__":
    main()
