"""Data sets of the Hugging Face library `datasets` -> their splits, and their images as they are stored.

In: what `load_from_disk` or `load_dataset` takes, and which part of it. Out: data sets of the library, whose images
stay undecoded; and its Arrow files, in which every image can be read by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from pydantic import Field

from clipmole.config import Config
from clipmole.data.containers.filesystems import reading
from clipmole.errors import DataError, MissingDependency
from clipmole.plumbing.progress import Say
from clipmole.plumbing.text import one_line

PREFIX = "hf:"
SAVED = ("dataset_info.json", "dataset_dict.json")  # in a folder that save_to_disk wrote


class Query(Config):
    """What follows the question mark: which part of a data set, and which of its columns hold what.

    Attributes:
        config, split, revision: as `load_dataset` takes them; None: the only configuration, all splits, the newest.
        image: column of the images; None: the only one of images.
        label, generator, group: columns; a generator or group column that is missing is ignored.
        ai: values of the label column that mean AI-generated, separated by commas; None: the usual words.
        streaming: 1: read once from the network and unpack; 0: let `datasets` download it to its own cache.
        take: only the first `take` images of each split; None: all.
    """

    config: str | None = None
    split: str | None = None
    revision: str | None = None
    image: str | None = None
    label: str = "label"
    generator: str = "generator"
    group: str = "group"
    ai: str | None = None
    streaming: bool = False
    take: int | None = Field(None, gt=0)

    @property
    def generated_labels(self) -> tuple[str, ...]:
        """The values that mean AI-generated."""
        return tuple(filter(None, (self.ai or "").split(",")))


def read_query(spec: str) -> tuple[str, Query]:
    """Name and query of "name?key=value&...". Raises `ConfigError` naming a key or value that is wrong."""
    name, _, query = spec.partition("?")
    return name, Query.parse(dict(parse_qsl(query, keep_blank_values=True)), spec)


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote a folder."""
    return any((folder / file).is_file() for file in SAVED)


def load_splits(name: str, query: Query, say: Say) -> Mapping[str, Any]:
    """The data set's splits, or the one that the query names.

    Raises `DataError` if it cannot be loaded or has no such split; `MissingDependency` without the library.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingDependency("datasets", "data") from error
    datasets.disable_progress_bars()
    try:
        if is_saved(Path(name)):
            loaded = datasets.load_from_disk(name)
        else:
            say(
                f"{name}: streamed from where it is published"
                if query.streaming
                else f"{name}: datasets keeps a whole copy in its cache {datasets.config.HF_DATASETS_CACHE}; "
                "to read it once and keep at most --unpack-gib, say ?streaming=1"
            )
            loaded = datasets.load_dataset(name, query.config, revision=query.revision, streaming=query.streaming)
    except Exception as error:  # of networks, hubs, files and formats: a dozen kinds
        raise DataError(f"{name}: datasets cannot load it: {one_line(str(error))}") from error
    parts = dict(loaded) if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}
    if query.split is not None:
        if query.split not in parts:
            raise DataError(f"{name}: has no split {query.split!r}; there are {', '.join(parts)}")
        parts = {query.split: parts[query.split]}
    return parts


def image_column(name: str, part: Any, query: Query) -> str:
    """The column of a split that holds its images. Raises `DataError` if that is not clear."""
    import datasets

    features = part.features or {}
    images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    image = query.image or (images[0] if len(images) == 1 else None)
    if image is None or image not in features:
        raise DataError(
            f"{name}: its columns of images are {', '.join(images) or 'none'} of {', '.join(features)}; "
            "say which holds them: ?image=..."
        )
    return image


def undecoded(part: Any, column: str) -> Any:
    """A split whose images in `column` are rows of bytes and path, as `tables.image_bytes` takes them."""
    import datasets

    return part.cast_column(column, datasets.Image(decode=False))


@cache
def arrow_table(file: Path) -> Any:
    """The table in an Arrow file, mapped into memory, so that only what is used is read.

    Raises `ImageUnreadable` where it is damaged, and as `reading` does.
    """
    import pyarrow as pa

    with reading(str(file), "Arrow file", (pa.ArrowException,)), pa.memory_map(str(file)) as mapped:
        try:
            return pa.ipc.open_stream(mapped).read_all()
        except pa.ArrowInvalid:
            mapped.seek(0)
            return pa.ipc.open_file(mapped).read_all()


def arrow_bytes(file: Path, column: str, row: int) -> bytes:
    """Bytes of one image of an Arrow file. Raises as `arrow_table` does."""
    with reading(str(file), "Arrow file", (IndexError, KeyError)):
        return bytes(arrow_table(file).column(column)[row]["bytes"].as_py())
