"""Labelled images: a manifest file or a folder -> samples, and a sample -> its window.

In: a CSV with the columns path, label, generator, split (and, if there, ignore_bottom_px, group and source; others
are left alone), or a folder laid out as CNNSpot, UnivFD or GenImage are. Out: `Sample` records, and their pixels
under a condition. It knows nothing of crops, networks or metrics.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from clipmole.augment import RGB
from clipmole.errors import ConfigError, DataError
from clipmole.images import IMAGE_EXTENSIONS, load_image
from clipmole.perturb import Condition, apply, load_conditions
from clipmole.records import Sample

COLUMNS = ("path", "label", "generator", "split")
IGNORE = "ignore_bottom_px"
GROUP = "group"
SOURCE = "source"

Variant = Literal["as stored", "equalised"]
VARIANTS: tuple[Variant, ...] = ("as stored", "equalised")

CAMERA = "camera"  # generator of photographs
CNNSPOT = {"0_real": 0, "1_fake": 1}  # folder -> label
GENIMAGE = {"nature": 0, "ai": 1}
GENIMAGE_SPLITS = ("train", "val")
LAYOUTS = (
    "<generator>/[<class>/]0_real|1_fake/<images> (CNNSpot, UnivFD) or "
    "<generator>/train|val/nature|ai/<images> (GenImage)"
)


def read_data(path: str | Path, split: str | None = None) -> list[Sample]:
    """Samples of a manifest or of a folder, all of them or those of one split.

    A manifest (any file) is read by `read_manifest`, a folder by `read_folder`. Raises `DataError` if there is
    neither, or if nothing is in `split`.
    """
    place = Path(path)
    if not place.exists():
        raise DataError(f"{place}: there is no such file or folder; expected a manifest (.csv) or {LAYOUTS}")
    samples = read_folder(place) if place.is_dir() else read_manifest(place)
    if split is None:
        return samples
    chosen = [sample for sample in samples if sample.split == split]
    if not chosen:
        there = ", ".join(sorted({sample.split for sample in samples}))
        raise DataError(f"{place}: split {split!r} holds no images; the splits there are: {there}")
    return chosen


def read_folder(path: str | Path) -> list[Sample]:
    """Samples of a folder in one of the known layouts, sorted by path; links to folders are followed.

    CNNSpot and UnivFD: `<generator>/[<class>/]0_real|1_fake/<images>`, split "test". GenImage:
    `<generator>/train|val/nature|ai/<images>`, split from the folder. The top folder names the generator, `path`
    itself where the layout begins below it; photographs are of the generator "camera".

    Only files with the extension of an image count, hidden ones do not. Raises `DataError` if there are none, or
    if one lies in no such folder, which would drop it in silence.
    """
    root = Path(path)
    samples = []
    for parts in _image_files(root):
        file = root.joinpath(*parts)
        placed = _placed(parts, root.resolve().name)
        if placed is None:
            raise DataError(f"{file}: lies in no known layout; expected a manifest (.csv) or {LAYOUTS}")
        label, generator, split = placed
        samples.append(
            Sample(path=file, label=1 if label else 0, generator=generator if label else CAMERA, split=split)
        )
    if not samples:
        raise DataError(f"{root}: holds no images; expected a manifest (.csv) or {LAYOUTS}")
    return samples


def _image_files(root: Path) -> list[tuple[str, ...]]:
    """Parts of the paths of all images below `root`, relative to it and sorted."""
    found = []
    for folder, folders, files in os.walk(root, followlinks=True):
        place = Path(folder)
        folders[:] = [name for name in folders if _enters(place, name)]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_EXTENSIONS:
                found.append((*place.relative_to(root).parts, name))
    return sorted(found)


def _enters(place: Path, name: str) -> bool:
    """Whether to look into a folder: not into hidden ones, archivers' leftovers, and links back up the tree."""
    if name.startswith(".") or name == "__MACOSX":
        return False
    link = place / name
    return not (link.is_symlink() and place.resolve().is_relative_to(link.resolve()))


def _placed(parts: tuple[str, ...], own: str) -> tuple[int, str, str] | None:
    """Label, generator and split of an image at `parts` below a folder called `own`; None in no known layout."""
    for i, part in enumerate(parts[:-1]):
        if part in CNNSPOT:
            return CNNSPOT[part], parts[0] if i else own, "test"
        if part in GENIMAGE and i and parts[i - 1] in GENIMAGE_SPLITS:
            return GENIMAGE[part], parts[0] if i > 1 else own, parts[i - 1]
    return None


def read_manifest(path: str | Path) -> list[Sample]:
    """Samples of a CSV manifest (UTF-8), in its order; relative paths are taken from the manifest's folder.

    Raises `DataError` naming the file and the line: unreadable, no rows, a missing column, an empty field, a
    label other than 0 and 1, or a path that stands on two lines, which would count an image twice or show a
    test image in training. Whether the images exist is found out when they are read.
    """
    manifest = Path(path)
    samples: list[Sample] = []
    lines: dict[str, int] = {}
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
            if missing:
                needed = ",".join(COLUMNS)
                raise DataError(f"{manifest}: the first line misses the columns {', '.join(missing)} of {needed}")
            for row in rows:
                sample = _sample(row, manifest, rows.line_num)
                first = lines.setdefault(os.path.normpath(sample.path), rows.line_num)
                if first != rows.line_num:
                    raise DataError(f"{manifest}, line {rows.line_num}: path {row['path']} stands in line {first} too")
                samples.append(sample)
    except OSError as error:
        raise DataError(f"{manifest}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{manifest}: not a CSV file in UTF-8: {error}") from error
    if not samples:
        raise DataError(f"{manifest}: holds no samples")
    return samples


def _sample(row: dict[str, str], manifest: Path, line: int) -> Sample:
    """The sample of one line; the fields of a short line are None, the excess of a long one stands under None."""
    if None in row:
        raise DataError(f"{manifest}, line {line}: more fields than the first line; quote a path that holds a comma")
    fields = {column: row.get(column) or "" for column in (*COLUMNS, IGNORE, GROUP, SOURCE)}
    fields |= {column: text.strip() for column, text in fields.items() if column != "path"}
    for column in COLUMNS:
        if not fields[column]:
            raise DataError(f"{manifest}, line {line}: {column} is empty")
    if fields["label"] not in ("0", "1"):
        raise DataError(
            f"{manifest}, line {line}: label {fields['label']!r}: must be 1 (AI-generated) or 0 (photograph)"
        )
    try:
        return Sample.model_validate(
            {
                "path": manifest.parent / fields["path"],
                "label": int(fields["label"]),
                "generator": fields["generator"],
                "split": fields["split"],
                IGNORE: fields[IGNORE] or 0,
                GROUP: fields[GROUP],
                SOURCE: fields[SOURCE],
            }
        )
    except ValidationError as error:
        raise DataError(
            f"{manifest}, line {line}: {IGNORE} {fields[IGNORE]!r}: must be a number of pixels, 0 or more"
        ) from error


def take_split(samples: Sequence[Sample], split: str) -> list[Sample]:
    """The samples of one split, which must hold photographs and generated images."""
    chosen = [sample for sample in samples if sample.split == split]
    ai = sum(sample.label for sample in chosen)
    if not 0 < ai < len(chosen):
        raise DataError(
            f"split {split!r} holds {len(chosen) - ai} photographs (label 0) and {ai} generated images (label 1); "
            f"it needs both. The splits there are: {', '.join(sorted({sample.split for sample in samples}))}"
        )
    return chosen


def limit_samples(samples: Sequence[Sample], limit: int | None, seed: int = 0) -> list[Sample]:
    """At most `limit` samples of each class and generator, in the order of `samples`; None: all.

    Which ones depends on `seed` and the files' names alone, not on their order or on the other files: those whose
    seeded hash of the name is smallest. So a larger limit keeps what a smaller one took.
    """
    if limit is None:
        return list(samples)

    def draw(sample: Sample) -> tuple[bytes, str]:
        return hashlib.sha256(f"{seed}\0{sample.path.name}".encode()).digest(), sample.path.as_posix()

    taken: Counter[tuple[int, str]] = Counter()
    chosen = set()
    for sample in sorted(samples, key=draw):
        taken[sample.label, sample.generator] += 1
        if taken[sample.label, sample.generator] <= limit:
            chosen.add(sample.path)
    return [sample for sample in samples if sample.path in chosen]


def load_window(sample: Sample) -> RGB:
    """The sample's pixels (H, W, 3) uint8, without the rows that hold a visible mark.

    Raises `ImageError` if it cannot be read, `DataError` if no row would be left.
    """
    image = load_image(sample.path)
    height = image.height - sample.ignore_bottom_px
    if height < 1:
        raise DataError(f"{sample.path}: {IGNORE} {sample.ignore_bottom_px} leaves nothing of {image.height} rows")
    return np.asarray(image)[:height]


def sample_rng(seed: int, *keys: int | str) -> np.random.Generator:
    """A generator that depends on `seed` (0 or more) and `keys` alone, not on order, workers or earlier draws."""
    text = "\0".join(map(str, keys))
    words = np.frombuffer(hashlib.sha256(text.encode()).digest(), dtype="<u4")
    return np.random.default_rng([seed, *words.tolist()])


def labels_of(samples: Iterable[Sample]) -> NDArray[np.int64]:
    """Labels (n,), 1 = AI-generated."""
    return np.array([sample.label for sample in samples], dtype=np.int64)


def file_sha256(sample: Sample) -> str:
    """sha256 of the sample's file, hexadecimal. Raises `DataError` if it cannot be read."""
    try:
        with sample.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{sample.path}: cannot be read: {error.strerror}") from error


def sample_lines(samples: Iterable[Sample]) -> list[str]:
    """A line a sample, in their order: sha256 of its file's content, label, generator, split and ignored rows."""
    return [f"{file_sha256(s)} {s.label} {s.generator} {s.split} {s.ignore_bottom_px}" for s in samples]


def data_digest(samples: Iterable[Sample]) -> str:
    """sha256 over the samples' `sample_lines`, whatever their order and place."""
    return lines_digest(sample_lines(samples))


def lines_digest(lines: Iterable[str]) -> str:
    """`data_digest` of samples by their `sample_lines`."""
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def windows(samples: Iterable[Sample], condition: Condition | Variant, seed: int = 0) -> Iterator[RGB]:
    """The samples' pixels under a condition, or under a standard one by its name, one after the other.

    What a condition draws for a sample depends on `seed` and its file's content alone. So every detector that is
    compared sees the same pixels, wherever the files lie, and names that differ between the classes (all
    photographs `photo.jpg`, all generated images `output.png`) do not become qualities that do.
    """
    if not isinstance(condition, Condition):
        standard = {each.name: each for each in load_conditions("default")}
        if condition not in standard:
            raise ConfigError(f"condition {condition!r}: must be one of {', '.join(standard)}")
        condition = standard[condition]
    for sample in samples:
        rgb = load_window(sample)
        yield apply(condition, rgb, sample_rng(seed, file_sha256(sample))) if condition.steps else rgb
