"""Manifests -> samples: a CSV file, or Parquet files that name the images or hold them.

In: a table with the columns path and label and, if there, generator, split, group, source, kind, category
and ignore_bottom_px; others are left alone. A Parquet table may have a column `image` with the files' bytes in place of
`path`. Out: samples in the table's order. It opens no image.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from clipmole.data.containers.tables import image_bytes, open_table, table_rows
from clipmole.data.labels import read_label, split_in_name, without_lone_train
from clipmole.data.sample import Sample
from clipmole.data.samples import CAMERA, IGNORE, UNNAMED
from clipmole.data.unpack import Unpacking, unpack
from clipmole.errors import DataError

NEEDED = ("path", "label")
OPTIONAL = ("generator", "split")  # not empty if there is such a column
FREE = (IGNORE, "group", "source", "kind", "category")
IMAGE = "image"


def read_manifest(path: str | Path, unsplit: str = "test") -> list[Sample]:
    """Samples of a CSV manifest (UTF-8), in its order; relative paths are taken from the manifest's folder.

    Without a column `split` all are of split `unsplit`; without a column `generator`, generated images are of the
    generator "unnamed" and photographs of "camera".

    Raises `DataError` naming the file and the line: unreadable, no rows, a missing column, an empty field, a
    label other than 0 and 1, or a path that is on two lines, which would count an image twice or show a
    test image in training. Whether the images exist is only checked when they are read.
    """
    manifest = Path(path)
    samples: list[Sample] = []
    lines: dict[str, int] = {}
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            _check_columns(manifest, rows.fieldnames or (), NEEDED)
            for row in rows:
                line = rows.line_num
                if None in row:
                    raise DataError(
                        f"{manifest}, line {line}: more fields than the first line; quote a path that holds a comma"
                    )
                sample = _sample(row, manifest.parent, f"{manifest}, line {line}", unsplit)
                _check_once(lines, sample, line, f"{manifest}, line {line}: path {row['path']}", "line")
                samples.append(sample)
    except OSError as error:
        raise DataError(f"{manifest}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{manifest}: not a CSV file in UTF-8: {error}") from error
    if not samples:
        raise DataError(f"{manifest}: holds no samples")
    return samples


def _check_columns(manifest: Path, there: Sequence[str], needed: Sequence[str]) -> None:
    missing = [column for column in needed if column not in there]
    if missing:
        first = f"the first line lacks the columns {', '.join(missing)} of {','.join(needed)}"
        raise DataError(f"{manifest}: {first}; {','.join(OPTIONAL)} are optional")
    if twice := [column for column in (*needed, *OPTIONAL) if there.count(column) > 1]:
        raise DataError(f"{manifest}: has the column {twice[0]} twice; leave one")


def _check_once(lines: dict[str, int], sample: Sample, line: int, what: str, unit: str) -> None:
    first = lines.setdefault(os.path.normpath(sample.path), line)
    if first != line:
        raise DataError(f"{what} is in {unit} {first} too")


def _sample(row: Mapping[str, Any], folder: Path, where: str, unsplit: str) -> Sample:
    """The sample of one row, whose values are text; the missing fields of a short line are None."""
    fields = {column: row.get(column) or "" for column in (*NEEDED, *OPTIONAL, *FREE)}
    fields |= {column: text.strip() for column, text in fields.items() if column != "path"}
    for column in (*NEEDED, *(name for name in OPTIONAL if name in row)):
        if not fields[column]:
            raise DataError(f"{where}: {column} is empty; fill it in")
    if fields["label"] not in ("0", "1"):
        raise DataError(f"{where}: label {fields['label']!r}: must be 1 (AI-generated) or 0 (photograph)")
    label = int(fields["label"])
    try:
        return Sample.model_validate(
            {
                "path": folder / fields["path"],
                "label": label,
                "generator": fields["generator"] or (UNNAMED if label else CAMERA),
                "split": fields["split"] or unsplit,
                **{column: fields[column] for column in FREE},
                IGNORE: fields[IGNORE] or 0,
            }
        )
    except ValidationError as error:
        raise DataError(f"{where}: {IGNORE} {fields[IGNORE]!r}: must be a number of pixels, 0 or more") from error


def read_parquet(source: str, files: Sequence[Path], unsplit: str, how: Unpacking) -> list[Sample]:
    """Samples of Parquet files with the columns of a manifest, or with the images themselves in a column `image`.

    `image` holds bytes, or a struct of bytes and path as Hugging Face writes it; such images are unpacked. Without a
    column `split` a file's name may begin with one, as in train-00000-of-00002.parquet, if they are not all train.

    Raises as `read_manifest`, `read_label`, `unpack` and `table_rows` do.
    """
    names: dict[Path, list[str]] = {}
    for file in files:
        with open_table(str(file)) as table:
            names[file] = table.schema_arrow.names
    held = any(IMAGE in there for there in names.values())
    for file, there in names.items():
        _check_columns(file, there, (IMAGE, "label") if held else NEEDED)
    if held:
        stamps = [f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
        samples = unpack(source, "\n".join(["parquet", unsplit, *stamps]), _held(files, unsplit), how)
    else:
        samples = []
        lines: dict[str, int] = {}
        for file in files:
            for number, row in enumerate(table_rows(str(file), (*NEEDED, *OPTIONAL, *FREE), held=1000)):
                text = {column: None if value is None else str(value) for column, value in row.items()}
                where = f"{file}, row {number + 1}"
                sample = _sample(text, file.parent, where, split_in_name(file.name, unsplit))
                _check_once(lines, sample, len(samples) + 1, f"{where}: path {text['path']}", "row")
                samples.append(sample)
    if not samples:
        raise DataError(f"{source}: holds no samples")
    in_column = any("split" in there for there in names.values())
    return samples if in_column else without_lone_train(samples, unsplit)


def _ignored(value: Any, where: str) -> int:
    try:
        if (pixels := int(value or 0)) >= 0:
            return pixels
    except (TypeError, ValueError):
        pass
    raise DataError(f"{where}: {IGNORE} {value!r}: must be a number of pixels, 0 or more")


def _held(files: Sequence[Path], unsplit: str) -> Iterator[tuple[bytes, dict[str, Any]]]:
    for file in files:
        for number, row in enumerate(table_rows(str(file), (IMAGE, "label", *OPTIONAL, *FREE))):
            where = f"{file}, row {number + 1}"
            data = image_bytes(row[IMAGE], where)
            label = read_label(row["label"], where)
            yield (
                data,
                {
                    "label": label,
                    "generator": str(row.get("generator") or (UNNAMED if label else CAMERA)),
                    "split": str(row.get("split") or split_in_name(file.name, unsplit)),
                    "group": str(row.get("group") or ""),
                    "source": str(row.get("source") or ""),
                    "kind": str(row.get("kind") or ""),
                    "category": str(row.get("category") or ""),
                    IGNORE: _ignored(row.get(IGNORE), where),
                },
            )
