"""Labelled images: one argument that names them -> samples, and a sample -> its window.

In: a manifest (CSV, Parquet), a folder laid out as CNNSpot's, UnivFD's or GenImage's, folders of photographs and of
generated images, a data set of the library `datasets`, or WebDataset shards. Out: `Sample` records, and their pixels
under a condition. It knows nothing of crops, networks or metrics.
"""

from __future__ import annotations

import glob
import re
from pathlib import Path

from clipmole.data.containers.filesystems import is_address
from clipmole.data.containers.huggingface import PREFIX, is_saved, read_query
from clipmole.data.containers.tables import TABLE
from clipmole.data.containers.tar import TAR
from clipmole.data.folders import LAYOUTS, Folders, holds_images, read_folder, read_folders
from clipmole.data.huggingface import read_dataset
from clipmole.data.manifest import read_manifest, read_parquet
from clipmole.data.sample import Sample
from clipmole.data.samples import (
    CAMERA,
    IGNORE,
    VARIANTS,
    Variant,
    data_digest,
    file_sha256,
    labels_of,
    limit_samples,
    lines_digest,
    load_sample,
    load_window,
    sample_bytes,
    sample_lines,
    take_split,
    windows,
)
from clipmole.data.shards import read_shards
from clipmole.data.unpack import Unpacking
from clipmole.errors import ConfigError, DataError, ImageError
from clipmole.images.discovery import leftover_in
from clipmole.plumbing.files import is_odd_file
from clipmole.plumbing.seeding import sample_rng

__all__ = [
    "CAMERA",
    "IGNORE",
    "VARIANTS",
    "DataSource",
    "Folders",
    "Unpacking",
    "Variant",
    "data_digest",
    "file_sha256",
    "labels_of",
    "limit_samples",
    "lines_digest",
    "load_sample",
    "load_window",
    "read_data",
    "read_folder",
    "read_manifest",
    "sample_bytes",
    "sample_lines",
    "sample_rng",
    "take_split",
    "windows",
]

DataSource = str | Path | Folders
"""What `read_data` takes: the argument `--data`, or the folders of `--real` and `--fake`."""

EXPECTED = (
    f"expected a manifest (.csv, .parquet), shards (.tar), a data set (hf:owner/name, or a folder that save_to_disk "
    f"wrote), or {LAYOUTS}"
)


def read_data(
    source: DataSource, split: str | None = None, *, unsplit: str = "test", how: Unpacking | None = None
) -> list[Sample]:
    """Samples of a source, all of them or those of one split.

    Args:
        source: `Folders`; or a path: a manifest (`.parquet` is Parquet, any other file CSV), a tar file, a folder of
            one of the layouts, of Parquet files, of tar files, or that `datasets` saved; a pattern of Parquet or tar
            files with `*` or `{000..012}`; the address of a tar file; or `hf:` and what `datasets.load_dataset`
            takes. `hf:` and local tar files take options behind a question mark, as `huggingface.Query` says.
        split: that must hold images; None: all.
        unsplit: the split for images for which the source names none.
        how: where and how much to unpack of a source that cannot be read in place; None: the defaults of `Unpacking`.

    Returns:
        The samples in a fixed order, each with its path, label (1 = AI-generated), generator and split. No image
        is opened.

    Raises:
        DataError: there is no such source, `split` is empty, or a row or a folder is not as it should be.
        MissingDependency: a library of the extra `data` is not installed.

    Examples:
        >>> from clipmole import Folders, read_data
        >>> samples = read_data("labelled/manifest.csv", "val")
        >>> [(sample.path.name, sample.label) for sample in samples[:2]]
        [('val-0-0.png', 0), ('val-0-1.png', 0)]
        >>> len(read_data(Folders(real=("photos",), fake=("generated",))))
        24
    """
    try:
        samples = _read_source(source, unsplit, how or Unpacking())
    except ImageError as error:  # of a container: a part of it is not taken for the whole
        raise DataError(str(error)) from error
    if split is None:
        return samples
    chosen = [sample for sample in samples if sample.split == split]
    if not chosen:
        there = ", ".join(sorted({sample.split for sample in samples}))
        raise DataError(f"{source}: split {split!r} holds no images; the splits there are: {there}")
    return chosen


def _read_source(source: DataSource, unsplit: str, how: Unpacking) -> list[Sample]:
    if isinstance(source, Folders):
        return read_folders(source, unsplit, how.say)
    text = str(source)
    path = Path(text)
    if text.startswith(PREFIX):
        name, query = read_query(text.removeprefix(PREFIX))
        return read_dataset(name, query, unsplit, how)
    if is_address(text):
        return read_shards(text, braces(text), unsplit, how)
    if path.is_dir():
        return _read_folder(path, unsplit, how)
    return _read_files(text, unsplit, how)


def _read_files(text: str, unsplit: str, how: Unpacking) -> list[Sample]:
    """A manifest, or a tar or Parquet file or a pattern of them, with options behind a question mark."""
    name, query = (text, None) if Path(text).exists() else read_query(text)
    files = [name] if query is None else expand(name)
    if odd := next((file for file in files if is_odd_file(Path(file))), None):
        raise DataError(f"{odd}: is a pipe or a device; save its content to a file first")
    if files and all(TAR.search(file) for file in files):
        if query and query.model_fields_set - {"ai", "take"}:
            raise ConfigError(f"{text}: shards take the options ai and take")
        return read_shards(
            text, files, unsplit, how, query.generated_labels if query else (), query.take if query else None
        )
    if files and all(TABLE.search(file) for file in files):
        return read_parquet(text, [Path(file) for file in files], unsplit, how)
    if query is None:
        return read_manifest(text, unsplit)
    raise DataError(f"{text}: there is no such file or folder; {EXPECTED}")


def _read_folder(folder: Path, unsplit: str, how: Unpacking) -> list[Sample]:
    """A folder that `datasets` saved, of tar or Parquet files, or in a layout of images."""
    if is_saved(folder):
        return read_dataset(str(folder), read_query("")[1], unsplit, how)
    if holds_images(folder):  # the archives that they came in may lie beside them
        return read_folder(folder, unsplit, how.say)
    below = sorted(str(file) for pattern in ("*", "*/*") for file in folder.glob(pattern))
    files = [file for file in below if not leftover_in(file, str(folder))]
    shards = [file for file in files if TAR.search(file)]
    tables = [Path(file) for file in files if TABLE.search(file)]
    if shards and tables:
        raise DataError(f"{folder}: holds tar files and Parquet files; name those to read with a pattern")
    if shards:
        return read_shards(str(folder), shards, unsplit, how)
    if tables:
        return read_parquet(str(folder), tables, unsplit, how)
    return read_folder(folder, unsplit)


def expand(pattern: str) -> list[str]:
    """Files that a pattern names, sorted: `{000..012}` counts, `{a,b}` lists, `*` matches what is there.

    Raises `DataError` if something that was counted or listed is not there.
    """
    files: list[str] = []
    for each in braces(pattern):
        found = sorted(glob.glob(each)) if glob.has_magic(each) else [each] * Path(each).exists()
        if not found and each != pattern:
            raise DataError(f"{pattern}: there is no {each}")
        files += found
    return files


def braces(pattern: str) -> list[str]:
    """The names that a pattern counts and lists; itself if it has no braces."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    counted = re.fullmatch(r"(\d+)\.\.(\d+)", match.group(1))
    if counted:
        first, last = counted.groups()
        inner = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    else:
        inner = match.group(1).split(",")
    return [text for part in inner for text in braces(pattern[: match.start()] + part + pattern[match.end() :])]
