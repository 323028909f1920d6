"""The prefix cache: tokens before the first adapted block, computed once for each view and kept on disk.

Everything before the first adapted block is a fixed function of the view, so training on kept tokens is the same as
training on views, except for the rounding to bfloat16. In: a network, samples and a configuration. Out: tokens (B, T,
d) bfloat16 of any items.

There is one file for each view, `<digest>-<view>.npy`: an array of records, one for each sample, with the tokens' bits
and their CRC-32. The digest covers everything that the tokens depend on (backbone, data in their order, augmentation,
crop size, seed, first adapted block, precision), so every run that would compute the same tokens uses the file,
whatever its learning rate, ranks or epochs. A file is written under another name, continues after a kill where it was,
and is renamed when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipmole.config import TrainConfig
from clipmole.data import Variant, sample_lines
from clipmole.data.sample import Sample
from clipmole.errors import ConfigError, DataError
from clipmole.images.crops import most_crops
from clipmole.inference.graph import installed, openvino_prefix
from clipmole.inference.runtime import RuntimeName
from clipmole.models.network import MoLENetwork
from clipmole.plumbing.files import cache_folder
from clipmole.plumbing.prefetch import started_ahead
from clipmole.plumbing.progress import ProgressReporter, Say
from clipmole.training.augmented_views import MakeView, centre_and_whole, fixed_view, training_view, views
from clipmole.training.distributed import Distributed
from clipmole.training.sampling import Item

FORMAT = 2  # increased when the same settings would give other tokens
ROWS = 32  # of a forward pass; fixed, so that a pass that was killed rounds as one that was not
GIB = 2**30
OWN_NAME = re.compile(r"[0-9a-f]{32}-\d+\.(npy|partial|new)")  # other files in the folder are never deleted


def prefix_cache_folder() -> Path:
    """`$CLIPMOLE_CACHE/prefix`, else `~/.cache/clipmole/prefix`."""
    return cache_folder("prefix")


def cached_blocks(network: MoLENetwork, config: TrainConfig) -> int:
    """Blocks whose output is kept. Raises `ConfigError` if one of them is adapted."""
    frozen = network.first_adapted_block
    if config.cached_blocks is not None and config.cached_blocks > frozen:
        raise ConfigError(f"cached_blocks={config.cached_blocks}: only the first {frozen} blocks are frozen")
    return frozen if config.cached_blocks is None else config.cached_blocks


def cache_runtime(config: TrainConfig) -> RuntimeName:
    """The runtime that computes the kept tokens."""
    if config.cache_runtime != "auto":
        return config.cache_runtime
    return "openvino" if installed("openvino") and not torch.cuda.is_available() else "torch"


def prefix_digest(
    network: MoLENetwork, backbone_sha256: str, data: Sequence[str], config: TrainConfig, variant: Variant | None = None
) -> str:
    """sha256 of everything that the tokens depend on.

    Args:
        data: `data.sample_lines` of the images, in their order.
        variant: for `fixed_view` in this variant; None: for `training_view`.
    """
    start = cached_blocks(network, config)
    what = {
        "format": FORMAT,
        "backbone": backbone_sha256,
        "data": hashlib.sha256("\n".join(data).encode()).hexdigest(),
        "augment": variant or config.run_settings()["augment"],
        "crop_size": config.preprocess.crop_size,
        "seed": config.view_seed,
        "first_adapted_block": start,
        "precision": config.precision,
    }
    if config.whole_share:
        what["whole_share"] = config.whole_share
    if (runtime := cache_runtime(config)) != "torch":
        what["cache_runtime"] = runtime
    if network.crop_rows:
        what["crop_rows"] = network.crop_rows
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def record_type(network: MoLENetwork, config: TrainConfig) -> np.dtype[Any]:
    """The record of one view of one sample: bits of its tokens in bfloat16, and their CRC-32.

    They are the tokens (T + n, d) before block n, the last of them the class tokens after each block so far: runs whose
    heads read different blocks share them. With a companion the rows of the view itself come between them.
    """
    tower = network.tower.config
    patches = (config.preprocess.crop_size // tower.patch_size) ** 2 if tower.depth else 0  # 0: of concatenated towers
    tokens = 1 + patches * (1 + network.crop_rows) + cached_blocks(network, config)
    return np.dtype([("crc32", "<u4"), ("tokens", "<u2", (tokens, tower.width))])


class PrefixCache:
    """The tokens of every sample in several views.

    Building it computes the missing views; all processes of `distributed` do so together.

    It has many parameters because it computes missing views, with the network and the threads of the run.

    Args:
        folder: of the files; made if it is not there. All processes must see the same one.
        digest: `prefix_digest` of the rest.
        progress: gets remarks on how much will be written and where, and on damaged files.
        count, make: number of views of a sample, and the function that makes them; by default `config.cached_views`
            for training.

    Raises:
        ConfigError: the files would be larger than `config.cache_gib`.
        DataError: there is no room for them, or they cannot be written.
    """

    def __init__(
        self,
        network: MoLENetwork,
        samples: Sequence[Sample],
        config: TrainConfig,
        folder: Path,
        digest: str,
        *,
        distributed: Distributed,
        pool: ThreadPoolExecutor,
        progress: ProgressReporter,
        count: int | None = None,
        make: MakeView = training_view,
    ) -> None:
        self.pool, self.make, self.start = pool, make, cached_blocks(network, config)
        blocks = network.head_blocks[: network.carried(self.start)]
        self.carried = len(blocks)
        self.count = count = config.cached_views or 0 if count is None else count
        self._type = record_type(network, config)
        self._length = len(samples)
        own = self._type["tokens"].shape[0] - self.start  # T, and the rows of the view
        self._read = [*range(own), *(own + block for block in blocks)]
        paths = [folder / f"{digest[:32]}-{view}.npy" for view in range(count)]
        found = {path: self._whole(path) for path in paths}
        if distributed.is_main:
            self._announce(folder, found, config, progress.say)
        distributed.wait()
        prefix = cache(lambda: self._prefix(network, config, distributed))  # a graph is made once for all views
        for number, path in enumerate(paths):
            if found[path] is None:
                self._compute(prefix, samples, config, path, number, distributed, progress)
                found[path] = np.load(path, mmap_mode="r")
            elif distributed.is_main:
                with suppress(OSError):  # a folder that may only be read
                    os.utime(path)  # the least recently used are deleted first
        self._views = [found[path] for path in paths]

    def read(self, batches: Iterable[Sequence[Item]]) -> Iterator[Tensor]:
        """Tokens (B, T, d) bfloat16 of each batch of items, read ahead of their use."""

        def copy(batch: Sequence[Item]) -> Tensor:
            rows = np.stack([self._views[view]["tokens"][index][self._read] for index, view in batch])  # type: ignore[index]
            return torch.from_numpy(rows.view(np.int16)).view(torch.bfloat16)

        for future in started_ahead(batches, lambda batch: self.pool.submit(copy, batch)):
            yield future.result()

    def class_tokens(self, view: int) -> NDArray[np.float32]:
        """The k class tokens (n, k, d) of head blocks that the tokens of one view carry, one row per sample."""
        records: Any = self._views[view]
        bits = np.array(records["tokens"][:, self._read[len(self._read) - self.carried :]])
        return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()

    def _whole(self, path: Path) -> NDArray[Any] | None:
        """The records of a file, mapped; None if it is not there, of another kind or damaged."""
        try:
            records: NDArray[Any] = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return None
        if records.dtype != self._type or records.shape != (self._length,):
            return None
        return records if all(fits(record) for record in records) else None

    def _announce(self, folder: Path, found: dict[Path, NDArray[Any] | None], config: TrainConfig, say: Say) -> None:
        """Announce what will be written, and make room for it within `config.cache_gib`."""
        size = self._length * self._type.itemsize
        all_gib, limit = len(found) * size / GIB, config.cache_gib
        what = f"prefix cache: {len(found)} views of {self._length} images, {all_gib:.3g} GiB in {folder}"
        if all_gib > limit:
            raise ConfigError(
                f"{what}: more than cache_gib={limit:g}; raise it, lower cached_views={len(found)}, or leave "
                "cached_views out to compute every view anew"
            )
        missing = [path for path, records in found.items() if records is None]
        for path in missing:
            if path.exists():
                say(f"{path}: is damaged; it is computed again")
                path.unlink()
        if not missing:
            say(f"{what}: is there and is used")
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            make_room(folder, found, limit * GIB - len(found) * size, say)
            begun = sum(path.with_suffix(".partial").stat().st_size for path in missing if exists_partly(path))
            free = shutil.disk_usage(folder).free + begun
        except OSError as error:
            raise DataError(_unwritable(folder, error)) from error
        if len(missing) * size > free:
            raise DataError(
                f"{what}: only {free / GIB:.3g} GiB are free there; free space, name another folder "
                "(--cache-dir), or lower cached_views"
            )
        say(f"{what} (at most {limit:g}): {len(missing)} to be computed")

    def _compute(
        self,
        prefix: Callable[[], Callable[[Tensor], Tensor]],
        samples: Sequence[Sample],
        config: TrainConfig,
        path: Path,
        number: int,
        distributed: Distributed,
        progress: ProgressReporter,
    ) -> None:
        """Write the file of one view, or the missing part of it; every process writes its share."""
        partial = path.with_suffix(".partial")
        try:
            if distributed.is_main:
                self._reserve(partial)
            distributed.wait()
            begun: NDArray[Any] = np.load(partial, mmap_mode="r")
            starts = range(distributed.rank * ROWS, self._length, distributed.size * ROWS)
            todo = [s for s in starts if not all(fits(record) for record in begun[s : s + ROWS])]
            batches = [[(i, number) for i in range(s, min(s + ROWS, self._length))] for s in todo]
            done = zip(todo, views(samples, batches, config, self.pool, self.make), strict=True)
            run = prefix() if todo else None
            with partial.open("r+b") as file:
                for start, crops in progress.track(done, f"view {number + 1}/{self.count}", len(todo)):
                    data = self._records(run(crops)).tobytes()  # type: ignore[misc]
                    file.seek(begun.offset + start * self._type.itemsize)  # type: ignore[attr-defined]
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
            distributed.wait()
            if distributed.is_main:
                publish(partial, path)
            distributed.wait()
        except OSError as error:
            raise DataError(_unwritable(path.parent, error)) from error

    def _reserve(self, partial: Path) -> None:
        """Make a file of the right size and kind with no record in it, unless there is one that was begun."""
        try:
            begun: NDArray[Any] = np.load(partial, mmap_mode="r")
            if begun.dtype == self._type and begun.shape == (self._length,):
                return
        except (OSError, ValueError, EOFError):
            pass
        head: dict[str, Any] = {
            "descr": np.lib.format.dtype_to_descr(self._type),
            "fortran_order": False,
            "shape": (self._length,),
        }
        fresh = partial.with_suffix(".new")
        try:
            with fresh.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, head)
                size = file.tell() + self._length * self._type.itemsize
                file.flush()
                if hasattr(os, "posix_fallocate"):  # a full disk is noticed now, not when the pages are written
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    file.truncate(size)
            os.replace(fresh, partial)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise

    def _prefix(
        self, network: MoLENetwork, config: TrainConfig, distributed: Distributed
    ) -> Callable[[Tensor], Tensor]:
        """Crops (B, 3, S, S) uint8 -> tokens (B, T + start, d): see `record_type`."""
        reduced = config.precision == "bfloat16"
        if cache_runtime(config) == "openvino":
            return openvino_prefix(network, self.start, config.preprocess.crop_size, config.precision)

        @torch.inference_mode()
        def run(crops: Tensor) -> Tensor:
            with torch.autocast(distributed.device.type, torch.bfloat16, enabled=reduced):
                return network.before(crops.to(distributed.device), self.start, range(self.start))

        return run

    def _records(self, tokens: Tensor) -> NDArray[Any]:
        bits = tokens.bfloat16().cpu().contiguous().view(torch.int16).numpy()
        records = np.zeros(len(bits), dtype=self._type)
        records["tokens"] = bits.view(np.uint16)
        records["crc32"] = [zlib.crc32(record["tokens"].tobytes()) for record in records]
        return records


def fixed_cache(
    network: MoLENetwork,
    backbone_sha256: str,
    samples: Sequence[Sample],
    config: TrainConfig,
    folder: Path,
    variant: Variant,
    *,
    lines: Sequence[str] | None = None,
    **workers: Any,
) -> PrefixCache:
    """The tokens of samples in their fixed views, for validation and comparisons.

    Args:
        lines: `data.sample_lines` of the samples; None: they are read.
        workers: `distributed`, `pool` and `progress` of `PrefixCache`.
    """
    key = prefix_digest(network, backbone_sha256, sample_lines(samples) if lines is None else lines, config, variant)
    count = most_crops(centre_and_whole(config))
    make = partial(fixed_view, variant=variant)
    return PrefixCache(network, samples, config, folder, key, count=count, make=make, **workers)


def fits(record: np.void) -> bool:
    """Whether a record's bits are those that were written; a reserved one's are not."""
    return zlib.crc32(record["tokens"].tobytes()) == int(record["crc32"])


def publish(partial: Path, path: Path) -> None:
    """Rename a complete file; if another run that wrote the same bytes was faster, its file stays."""
    try:
        os.replace(partial, path)
    except FileNotFoundError:
        if not path.exists():
            raise


def exists_partly(path: Path) -> bool:
    """Whether the file of a view was begun."""
    return path.with_suffix(".partial").is_file()


def make_room(folder: Path, keep: Iterable[Path], budget: float, say: Say) -> None:
    """Delete the least recently used files of the cache until the rest fits in `budget` bytes; `keep` stay."""
    kept = {path.stem for path in keep}
    others = [p for p in folder.iterdir() if OWN_NAME.fullmatch(p.name) and p.stem not in kept]
    sizes = {path: path.stat() for path in others}
    left = sum(stat.st_size for stat in sizes.values())
    for path in sorted(others, key=lambda p: sizes[p].st_mtime):
        if left <= budget:
            break
        say(f"prefix cache: {path.name}, the least recently used, is deleted to make room")
        path.unlink(missing_ok=True)
        left -= sizes[path].st_size


def _unwritable(folder: Path, error: OSError) -> str:
    return (
        f"{folder}: the prefix cache cannot be written: {error.strerror}; free space, name another folder "
        "(--cache-dir), or leave cached_views out"
    )
