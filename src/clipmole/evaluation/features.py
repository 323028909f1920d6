"""Images -> what a linear head reads of a frozen backbone, computed once an image and kept in a file.

In: samples, a backbone and the condition under which they are looked at. Out: features (n, F). It knows nothing of
labels, heads or figures.

A linear head on the mean of an image's crops gives the mean of its logits of the crops, so an image needs one row. The
file is an array of float16 whose rows are nan until they are computed; a run that was stopped goes on with those.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from clipmole.config import MoLEConfig, PreprocessConfig
from clipmole.data.sample import Sample
from clipmole.errors import DataError, Stopped
from clipmole.evaluation.evaluate import CHUNK_IMAGES, prepared, take_chunk
from clipmole.images.conditions import Condition
from clipmole.images.crops import cut_crops
from clipmole.inference.pytorch import TorchRuntime
from clipmole.inference.runtime import Precision, batch_for
from clipmole.models.backbone import Backbone
from clipmole.models.network import MoLENetwork
from clipmole.plumbing.files import whole_file
from clipmole.plumbing.progress import SILENT, ProgressReporter
from clipmole.plumbing.text import escaped

ROWS_FILE = "features-{}.npy"


class FeatureNetwork(MoLENetwork):
    """Crops (B, 3, H, W) -> what the head of a linear probe reads (B, F), in the place of its logits."""

    def forward(self, crops: Tensor) -> Tensor:
        return self.features(self.embed(crops), 0)


class FeatureExtractor:
    """A frozen backbone and how it looks at an image.

    Args:
        backbone: its tower is used as it is.
        head_blocks: blocks whose class tokens are read beside the feature, as `MoLEConfig.head_blocks`.
        max_tiles: crops of an image, whose features are averaged; 1: the crop in the middle.
        condition: how images are changed before; the draws are `seed`'s.
        device, precision: of the forward passes.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        head_blocks: Sequence[int] = (),
        max_tiles: int = 1,
        condition: Condition,
        seed: int = 0,
        device: str = "cpu",
        precision: Precision = "float32",
    ) -> None:
        config = MoLEConfig(shared_rank=0, expert_ranks=(), head_blocks=tuple(head_blocks))
        network = FeatureNetwork(backbone.tower, config).eval()
        self.width = network.head.in_features
        self.runtime = TorchRuntime(network, device, precision)
        self.preprocess = PreprocessConfig(crop_size=backbone.tower.config.image_size, max_tiles=max_tiles)
        self.condition, self.seed = condition, seed
        what = {
            "backbone": backbone.sha256,
            "head_blocks": list(head_blocks),
            "preprocess": self.preprocess.model_dump(mode="json"),
            "condition": condition.model_dump(mode="json"),
            "seed": seed,
            "precision": precision,
        }
        self.digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def rows(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Images (H, W, 3) uint8 -> features (n, F), each the mean over the image's crops."""
        crops = [cut_crops(rgb, self.preprocess, max_tiles=self.preprocess.max_tiles).pixels for rgb in images]
        found = self.runtime.logits(np.concatenate(crops), batch_for(self.runtime.device))
        ends = np.cumsum([len(each) for each in crops])[:-1]
        return np.stack([each.mean(axis=0) for each in np.split(found, ends)])

    def extract(
        self, samples: Sequence[Sample], folder: Path, *, workers: int = 2, progress: ProgressReporter = SILENT
    ) -> tuple[NDArray[np.float32], dict[str, str]]:
        """Features (n, F) of all samples, kept in `folder`; rows of images that cannot be read are nan.

        Returns the features, and path -> reason for images that cannot be read. Raises `DataError` if the file cannot
        be written; `Stopped`, with what is done kept, once `progress` asks to stop.
        """
        names = "\n".join(f"{sample.path} {sample.ignore_bottom_px}" for sample in samples)
        key = hashlib.sha256(f"{self.digest}\n{names}".encode(errors="surrogateescape")).hexdigest()[:32]
        path = folder / ROWS_FILE.format(key)
        try:
            kept = opened(path, (len(samples), self.width))
        except OSError as error:
            raise DataError(f"{path}: cannot be written: {error.strerror}; name another --out or free space") from error
        waiting = np.flatnonzero(np.isnan(kept).any(axis=1)).tolist()
        places, failed = iter(waiting), dict[str, str]()
        with closing(prepared([samples[i] for i in waiting], [self.condition], self.seed, workers)) as images:
            chunks = iter(lambda: take_chunk(images, CHUNK_IMAGES), [])
            for chunk in progress.track(chunks, "looking at images", -(-len(waiting) // CHUNK_IMAGES)):
                readable = {}
                for (sample, pixels), place in zip(chunk, places, strict=False):
                    if isinstance(pixels, str):
                        failed[escaped(str(sample.path))] = pixels
                    else:
                        readable[place] = pixels[0]
                if readable:
                    kept[list(readable)] = self.rows(list(readable.values()))
                if progress.stopping():
                    kept.flush()
                    raise Stopped(f"stopped; features so far are kept in {path}: give the same command again to go on")
        kept.flush()
        return np.asarray(kept, dtype=np.float32), failed


def opened(path: Path, shape: tuple[int, int]) -> np.memmap[Any, np.dtype[np.float16]]:
    """The array in a file, to be changed in place; one of nan is made where there is none of this shape.

    Raises `OSError`.
    """
    try:
        kept = np.lib.format.open_memmap(path, mode="r+")
        if kept.shape == shape and kept.dtype == np.float16:
            return kept
    except (OSError, ValueError, EOFError):
        pass
    with whole_file(path) as file:
        np.save(file, np.full(shape, np.nan, dtype=np.float16))
    return np.lib.format.open_memmap(path, mode="r+")
