"""Data sets of the Hugging Face library `datasets` -> samples: saved to a folder, of local files, or of the hub.

In: what `load_from_disk` or `load_dataset` takes, and which columns hold what. Out: samples. The library keeps images
uncompressed in Arrow files on the disk; those are read in place, at random. What is streamed is unpacked. Images are
never decoded here, so their bytes stay the stored ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from pydantic import Field

from clipmole.config import Config
from clipmole.data.labels import SPLITS, read_label, without_lone_train
from clipmole.data.sample import ByteRange, Sample
from clipmole.data.samples import CAMERA, UNNAMED
from clipmole.data.unpack import Unpacking, unpack
from clipmole.errors import DataError, MissingDependency
from clipmole.plumbing.progress import Say

PREFIX = "hf:"
SAVED = ("dataset_info.json", "dataset_dict.json")  # in a folder that save_to_disk wrote


class Query(Config):
    """What follows the question mark: which part of a data set, and which of its columns hold what.

    Attributes:
        config, split, revision: as `load_dataset` takes them; None: the only configuration, all splits, the newest.
        image: column of the images; None: the only one of images.
        label, generator, group: columns; a generator or group column that is not there is none.
        ai: values of the label column that mean AI-generated, separated by commas; None: the usual words.
        streaming: 1: read once from the network and unpack; 0: let `datasets` download it to its own cache.
        take: the first so many images of each split only; None: all.
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
    def words(self) -> tuple[str, ...]:
        """The values that mean AI-generated."""
        return tuple(filter(None, (self.ai or "").split(",")))


def read_query(spec: str) -> tuple[str, Query]:
    """Name and query of "name?key=value&...". Raises `ConfigError` naming a key or value that is wrong."""
    name, _, query = spec.partition("?")
    return name, Query.parse(dict(parse_qsl(query, keep_blank_values=True)), spec)


def read_dataset(name: str, query: Query, unsplit: str, how: Unpacking) -> list[Sample]:
    """Samples of a data set, split after split, in its order.

    Args:
        name: a folder that `save_to_disk` wrote, or what `load_dataset` takes: a folder of files, a hub id.
        unsplit: the split where the data set has one only that is called train, or none.

    Raises `DataError` if it cannot be had, or has no such columns; `MissingDependency` without the library.
    """
    parts = load_splits(name, query, how.say)
    samples: list[Sample] = []
    for split, part in parts.items():
        columns = _columns(name, part, query)
        rows = None if query.streaming else _in_place(part, columns["image"])
        if rows is None:
            identity = "\n".join(
                ["hf", name, str(split), query.model_dump_json(), str(getattr(part, "_fingerprint", ""))]
            )
            found = unpack(f"{name} ({split})", identity, _held(name, split, part, columns, query), how)
        else:
            found = []
            facts = part.select_columns([columns[key] for key in ("label", "generator", "group") if key in columns])
            for row, (place, fact) in enumerate(zip(rows, facts, strict=True)):
                if query.take is not None and row >= query.take:
                    break
                fields = _fields(f"{name} ({split}), row {row}", split, fact, columns, part.features, query)
                inside = {"path": place.file / f"row {row}", "inside": place} if isinstance(place, ByteRange) else {}
                found.append(Sample.model_validate({"path": place} | fields | inside))
        samples += found
    if not samples:
        raise DataError(f"{name}: holds no samples")
    return without_lone_train(samples, unsplit)


def load_splits(name: str, query: Query, say: Say) -> Mapping[str, Any]:
    """The data set's splits, or the one that the query names.

    Raises `DataError` if it cannot be had or has no such split; `MissingDependency` without the library.
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
        raise DataError(f"{name}: datasets cannot load it: {' '.join(str(error).split())[:300]}") from error
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


def _columns(name: str, part: Any, query: Query) -> dict[str, str]:
    """What -> its column. Images are set to stay undecoded."""
    features = part.features or {}
    image = image_column(name, part, query)
    if query.label not in features:
        raise DataError(f"{name}: has no column {query.label!r}, only {', '.join(features)}; say which: ?label=...")
    optional = {
        key: column for key, column in (("generator", query.generator), ("group", query.group)) if column in features
    }
    return {"image": image, "label": query.label, **optional}


def _in_place(part: Any, column: str) -> list[ByteRange | Path] | None:
    """Where the bytes of each image are, or its file; None if they are not in Arrow files in the order of the rows."""
    import datasets

    places: list[ByteRange | Path] = []
    for file in part.cache_files:
        found = arrow_places(Path(file["filename"]), column)
        if found is None:
            return None
        places += found
    if len(places) != len(part) or not places:
        return None
    raw = part.cast_column(column, datasets.Image(decode=False))
    for row in {0, len(places) // 2, len(places) - 1}:  # a shuffled data set has its files in another order
        place, stored = places[row], raw[row][column]
        if isinstance(place, Path):
            if str(place) != stored["path"]:
                return None
        else:
            with place.file.open("rb") as opened:
                opened.seek(place.offset)
                if opened.read(place.size) != stored["bytes"]:
                    return None
    return places


def arrow_places(file: Path, column: str) -> list[ByteRange | Path] | None:
    """Where the images of a column of {bytes, path} lie in an Arrow file, row by row; a path where bytes are not.

    An Arrow stream that is not compressed holds the values of a column one after the other, and a memory map shows
    them where they are: a value's address less the map's is its offset. None if the file is laid out otherwise.
    """
    import pyarrow as pa

    with pa.memory_map(str(file)) as mapped:
        size = mapped.size()
        start = mapped.read_buffer(size).address
        mapped.seek(0)
        try:
            batches = list(pa.ipc.open_stream(mapped))
        except pa.ArrowInvalid:
            mapped.seek(0)
            reader = pa.ipc.open_file(mapped)
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        places: list[ByteRange | Path] = []
        for batch in batches:
            values = batch.column(column)
            if not pa.types.is_struct(values.type) or {field.name for field in values.type} != {"bytes", "path"}:
                return None
            data, paths = values.field("bytes"), values.field("path").to_pylist()
            wide = pa.types.is_large_binary(data.type)
            if not wide and not pa.types.is_binary(data.type):
                return None
            _, ends, held = data.buffers()
            offsets = memoryview(ends).cast("q" if wide else "i")[data.offset :] if len(data) else []
            base = held.address - start if held is not None else 0
            if held is not None and held.size and not 0 <= base <= size - held.size:
                return None  # decompressed into memory
            present = data.is_valid().to_pylist()
            for row, path in enumerate(paths):
                if present[row]:
                    first, last = offsets[row], offsets[row + 1]
                    places.append(ByteRange(file=file, offset=base + first, size=last - first))
                elif path and Path(path).is_file():
                    places.append(Path(path))
                else:
                    return None
    return places


def _held(
    name: str, split: str, part: Any, columns: Mapping[str, str], query: Query
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Bytes and fields of a data set's rows, one after the other."""
    import datasets

    rows = iter(part.cast_column(columns["image"], datasets.Image(decode=False)))
    for number, row in enumerate(islice(rows, query.take)):
        where = f"{name} ({split}), row {number}"
        yield _bytes(row[columns["image"]], where), _fields(where, split, row, columns, part.features, query)


def _bytes(image: Mapping[str, Any], where: str) -> bytes:
    if image["bytes"] is not None:
        return bytes(image["bytes"])
    import fsspec

    try:
        with fsspec.open(image["path"], "rb") as file:
            return bytes(file.read())
    except Exception as error:  # of networks, archives and file systems
        raise DataError(f"{where}: {image['path']} cannot be read: {error}") from error


def _fields(
    where: str,
    split: str,
    row: Mapping[str, Any],
    columns: Mapping[str, str],
    features: Mapping[str, Any],
    query: Query,
) -> dict[str, Any]:
    """The sample's fields but its path; a class label counts by its name."""

    def text(key: str) -> str:
        if key not in columns:
            return ""
        value, kind = row[columns[key]], features[columns[key]]
        named = value is not None and hasattr(kind, "int2str") and value >= 0
        return str(kind.int2str(value) if named else "" if value is None else value)

    label = read_label(text("label"), where, query.words)
    return {
        "label": label,
        "generator": (text("generator") or UNNAMED) if label else CAMERA,
        "split": SPLITS.get(split, split),
        "group": text("group"),
    }


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote a folder."""
    return any((folder / file).is_file() for file in SAVED)
