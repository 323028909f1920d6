"""Data sets of the Hugging Face library `datasets` -> samples: saved to a folder, of local files, or of the hub.

In: a data set's name, and which columns hold what. Out: samples. The library keeps images in Arrow files on the disk;
those are read in place, at random. Streamed images are unpacked. Images are never decoded here, so the bytes are
those that were stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from clipmole.data.containers.filesystems import reading
from clipmole.data.containers.huggingface import Query, arrow_bytes, arrow_table, image_column, load_splits, undecoded
from clipmole.data.containers.tables import image_bytes
from clipmole.data.labels import SPLITS, read_label, without_lone_train
from clipmole.data.sample import ArrowRow, Sample
from clipmole.data.samples import CAMERA, UNNAMED
from clipmole.data.unpack import Unpacking, unpack
from clipmole.errors import DataError


def read_dataset(name: str, query: Query, unsplit: str, how: Unpacking) -> list[Sample]:
    """Samples of a data set, split after split, in its order.

    Args:
        name: a folder that `save_to_disk` wrote, or what `load_dataset` takes: a folder of files, a hub id.
        unsplit: the split of a data set that has only one, called train, or none.

    Raises `DataError` if it cannot be loaded, or has no such columns; `MissingDependency` without the library.
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
            found = unpack(f"{name} ({split})", identity, _rows_of(name, split, part, columns, query), how)
        else:
            found = []
            facts = part.select_columns([columns[key] for key in ("label", "generator", "group") if key in columns])
            for row, (location, fact) in enumerate(zip(rows, facts, strict=True)):
                if query.take is not None and row >= query.take:
                    break
                fields = _fields(f"{name} ({split}), row {row}", split, fact, columns, part.features, query)
                inside = (
                    {"path": location.file / f"row {location.row}", "inside": location}
                    if isinstance(location, ArrowRow)
                    else {}
                )
                found.append(Sample.model_validate({"path": location} | fields | inside))
        samples += found
    if not samples:
        raise DataError(f"{name}: holds no samples")
    return without_lone_train(samples, unsplit)


def _columns(name: str, part: Any, query: Query) -> dict[str, str]:
    """Role -> its column. Images are set to stay undecoded."""
    features = part.features or {}
    image = image_column(name, part, query)
    if query.label not in features:
        raise DataError(f"{name}: has no column {query.label!r}, only {', '.join(features)}; say which: ?label=...")
    optional = {
        key: column for key, column in (("generator", query.generator), ("group", query.group)) if column in features
    }
    return {"image": image, "label": query.label, **optional}


def _in_place(part: Any, column: str) -> list[ArrowRow | Path] | None:
    """Where each image is: its row, or its file; None if they are not in Arrow files in the order of the rows."""
    import pyarrow.compute as pc

    locations: list[ArrowRow | Path] = []
    for cached in part.cache_files:
        file = Path(cached["filename"])
        images = arrow_table(file).column(column)
        if {field.name for field in images.type} != {"bytes", "path"}:
            return None
        for row, held in enumerate(pc.struct_field(images, "bytes").is_valid().to_pylist()):
            path = None if held else images[row]["path"].as_py()
            if not held and not (path and Path(path).is_file()):
                return None
            locations.append(Path(path) if path else ArrowRow(file=file, column=column, row=row))
    if len(locations) != len(part) or not locations:
        return None
    raw = undecoded(part, column)
    for row in {0, len(locations) // 2, len(locations) - 1}:  # a shuffled data set has its files in another order
        location, stored = locations[row], raw[row][column]
        if isinstance(location, ArrowRow):
            same = arrow_bytes(location.file, column, location.row) == stored["bytes"]
        else:
            same = str(location) == stored["path"]
        if not same:
            return None
    return locations


def _rows_of(
    name: str, split: str, part: Any, columns: Mapping[str, str], query: Query
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Bytes and fields of a data set's rows, one after the other."""
    with reading(f"{name} ({split})"):
        for number, row in enumerate(islice(undecoded(part, columns["image"]), query.take)):
            where = f"{name} ({split}), row {number}"
            data = image_bytes(row[columns["image"]], where)
            yield data, _fields(where, split, row, columns, part.features, query)


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

    label = read_label(text("label"), where, query.generated_labels)
    return {
        "label": label,
        "generator": (text("generator") or UNNAMED) if label else CAMERA,
        "split": SPLITS.get(split, split),
        "group": text("group"),
    }
