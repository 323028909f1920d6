"""Images -> the features of a frozen backbone for linear heads, computed once for each image and kept in a file.

In: samples, a backbone and the condition under which it sees them. Out: features (n, F). It knows nothing of
labels, heads or estimates.

A linear head on the mean of an image's crops gives the mean of its logits on the crops, so an image needs one row.
The row is kept by the digest of the content, so a run that was stopped, or one with more images, computes none twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import takewhile
from pathlib import Path

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
from clipmole.plumbing.progress import SILENT, ProgressReporter
from clipmole.plumbing.text import escaped

ROWS_FILE = "features-{}.f16"


class FeatureNetwork(MoLENetwork):
    """Crops (B, 3, H, W) -> the features (B, F) that the head of a linear probe reads, instead of its logits."""

    def forward(self, crops: Tensor) -> Tensor:
        return self.features(self.embed(crops), 0)


class FeatureExtractor:
    """A frozen backbone with its preprocessing.

    Args:
        backbone: its tower is used as it is.
        head_blocks: blocks whose class tokens are read besides the feature, as in `MoLEConfig.head_blocks`.
        max_tiles: crops of an image, whose features are averaged; 1: the crop in the middle.
        condition: how images are changed first; `seed` determines the draws.
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
        found = self.runtime.outputs(np.concatenate(crops), batch_for(self.runtime.device))
        ends = np.cumsum([len(each) for each in crops])[:-1]
        return np.stack([each.mean(axis=0) for each in np.split(found, ends)])

    def extract(
        self, samples: Sequence[Sample], digests: Sequence[str], folder: Path, progress: ProgressReporter = SILENT
    ) -> tuple[NDArray[np.float32], dict[str, str]]:
        """Features (n, F) of all samples, kept in `folder`; rows of images that cannot be read are nan.

        Args:
            digests: sha256 of each sample's file. Features that are kept for a digest are not computed again.

        Returns the features, and path -> reason for images that cannot be read. Raises `DataError` if they cannot be
        written; `Stopped`, once `progress` asks to stop, with the finished features kept.
        """
        keys = [f"{sha} {each.ignore_bottom_px}" for sha, each in zip(digests, samples, strict=True)]
        failed: dict[str, str] = {}
        try:
            kept = KeptRows(folder / ROWS_FILE.format(self.digest[:16]), self.width)
            waiting = {key: each for key, each in zip(keys, samples, strict=True) if key not in kept.row_of}
            coming = iter(waiting)
            with closing(prepared(waiting.values(), [self.condition], self.seed, 2)) as images:
                chunks = iter(lambda: take_chunk(images, CHUNK_IMAGES), [])
                for chunk in progress.track(chunks, "looking at images", -(-len(waiting) // CHUNK_IMAGES)):
                    readable = {}
                    for (sample, pixels), key in zip(chunk, coming, strict=False):
                        if isinstance(pixels, str):
                            failed[escaped(str(sample.path))] = pixels
                        else:
                            readable[key] = pixels[0]
                    if readable:
                        kept.add(list(readable), self.rows(list(readable.values())))
                    if progress.stopping():
                        raise Stopped(
                            f"stopped; the features so far are kept in {folder}: give the same command to continue"
                        )
            return kept.read(keys), failed
        except OSError as error:
            raise DataError(
                f"{folder}: cannot be written: {error.strerror}; name another --out, or free some space"
            ) from error


class KeptRows:
    """Rows of float16 by their keys, in a file that only grows; a line of a second file has the key and crc32 of each.

    What does not fit its line, and all after it, is dropped, to be computed again.

    Args:
        path: of the rows; the keys are beside it, in a file with the ending .txt.
        width: values of a row.

    Attributes:
        row_of: key -> number of its row.

    Raises `OSError`.
    """

    def __init__(self, path: Path, width: int) -> None:
        self.path, self.names, self.width = path, path.with_suffix(".txt"), width
        path.parent.mkdir(parents=True, exist_ok=True)
        for each in (path, self.names):
            each.touch()
        whole = list(takewhile(self._fits, self._lines()))
        os.truncate(path, len(whole) * 2 * width)
        os.truncate(self.names, sum(len(line) + 1 for line, _ in whole))
        self.row_of = {line[:-9].decode(): number for number, (line, _) in enumerate(whole)}

    def _lines(self) -> Iterator[tuple[bytes, bytes]]:
        """Each line without its end, and the bytes of its row."""
        with self.path.open("rb") as rows, self.names.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    yield line[:-1], rows.read(2 * self.width)

    def _fits(self, line: tuple[bytes, bytes]) -> bool:
        """Whether a row is the one of its line."""
        return len(line[1]) == 2 * self.width and line[0].endswith(b" %08x" % zlib.crc32(line[1]))

    def add(self, keys: Sequence[str], rows: NDArray[np.float32]) -> None:
        """Append rows (k, F), then their keys."""
        values = [row.tobytes() for row in rows.astype("<f2")]
        with self.path.open("ab") as file:
            file.write(b"".join(values))
        with self.names.open("ab") as file:
            file.writelines(
                b"%s %08x\n" % (key.encode(), zlib.crc32(row)) for key, row in zip(keys, values, strict=True)
            )
        for key in keys:
            self.row_of[key] = len(self.row_of)

    def read(self, keys: Sequence[str]) -> NDArray[np.float32]:
        """Rows (n, F) of keys; nan for those that are not there."""
        rows = np.fromfile(self.path, dtype="<f2").reshape(-1, self.width)
        found = np.full((len(keys), self.width), np.nan, dtype=np.float32)
        there = [(i, self.row_of[key]) for i, key in enumerate(keys) if key in self.row_of]
        if there:
            indices, numbers = zip(*there, strict=True)
            found[list(indices)] = rows[list(numbers)]
        return found
