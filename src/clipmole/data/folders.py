"""Folders of images -> samples: CNNSpot's, UnivFD's and GenImage's layouts, or a folder for each class.

In: a folder, or folders of each class. Out: samples sorted by path; label, generator, split and category come from
the folders' names. It opens no image.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from clipmole.data.labels import SPLITS
from clipmole.data.sample import Sample
from clipmole.data.samples import CAMERA
from clipmole.errors import DataError
from clipmole.images.discovery import say_passed_over, walk_images
from clipmole.plumbing.progress import Say, silent
from clipmole.plumbing.text import escaped
from clipmole.records import Record

CNNSPOT = {"0_real": 0, "1_fake": 1}  # folder -> label
GENIMAGE = {"nature": 0, "ai": 1}
GENIMAGE_SPLITS = ("train", "val")
# The classes of LSUN that CNNSpot's ProGAN training set consists of (arXiv 1912.11035, section 3.1).
LSUN = {
    "airplane", "bicycle", "bird", "boat", "bottle", "bus", "car",
    "cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike",
    "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
}  # fmt: skip
LAYOUTS = (
    "<generator>/[<class>/]0_real|1_fake/<images> (CNNSpot, UnivFD) or "
    "<generator>/train|val/nature|ai/<images> (GenImage)"
)


class Folders(Record):
    """Photographs and generated images in folders of their own.

    Attributes:
        real: folders of photographs.
        fake: folders of generated images.
    """

    real: tuple[Path, ...]
    fake: tuple[Path, ...]

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.real))} (real) and {', '.join(map(str, self.fake))} (fake)"


def read_folder(path: str | Path, unsplit: str = "test", say: Say = silent) -> list[Sample]:
    """Samples of a folder in one of the known layouts, sorted by path; links to folders are followed.

    CNNSpot and UnivFD: `<generator>/[<class>/]0_real|1_fake/<images>`, of split `unsplit`; where all folders at the
    top are called train, val, test and the like, those are the splits and the layout begins below them. GenImage:
    `<generator>/train|val/nature|ai/<images>`, split from the folder. The top folder names the generator, `path`
    itself where the layout begins below it or where the folders are the object classes of CNNSpot's training set;
    photographs are of the generator "camera". The category is the folder that holds 0_real and 1_fake, or GenImage's
    generator.

    Only files with the extension of an image count, hidden ones do not; `say` is told what else was passed over.
    Raises `DataError` if there are none, if one lies in no such folder, or if a folder cannot be searched: that would
    silently drop images.
    """
    root = Path(path)
    files = _image_files(root, say)
    if not files:
        raise DataError(f"{root}: holds no images; expected a manifest (.csv) or {LAYOUTS}")
    split_above = _splits_above(files)
    own = escaped(root.resolve().name)
    samples = []
    for parts in files:
        below, split = (parts[1:], SPLITS[parts[0]]) if split_above else (parts, unsplit)
        placed = _in_layout(below, split)
        if placed is None:
            raise DataError(f"{root.joinpath(*parts)}: is in no known layout; expected a manifest (.csv) or {LAYOUTS}")
        label, above, split = placed
        samples.append(
            Sample(
                path=root.joinpath(*parts),
                label=1 if label else 0,
                generator=(escaped(above[0]) if above else own) if label else CAMERA,
                split=split,
                category=escaped("/".join(above)),
            )
        )
    if {sample.category for sample in samples} <= LSUN:
        samples = [s.model_copy(update={"generator": own}) if s.label else s for s in samples]
    return samples


def read_folders(folders: Folders, unsplit: str = "test", say: Say = silent) -> list[Sample]:
    """Samples of folders of photographs and of generated images, however deep the images lie in them.

    The generator of an image is the folder, below the given one, in which it lies; without such a folder, the given
    one. Where all folders at the top of a given one are called train, val, test and the like, those are
    the splits; else the split is `unsplit`.

    `say` is told what was passed over. Raises `DataError` if a folder is not there, holds no images or cannot be
    searched, or if one lies in the other.
    """
    samples: list[Sample] = []
    taken: dict[Path, Path] = {}
    for label, roots in ((0, folders.real), (1, folders.fake)):
        for root in roots:
            if not root.is_dir():
                raise DataError(f"{root}: there is no such folder")
            files = _image_files(root, say)
            if not files:
                raise DataError(f"{root}: holds no images")
            for other, name in taken.items():
                if root.resolve().is_relative_to(other) or other.is_relative_to(root.resolve()):
                    raise DataError(f"{root}: lies in {name} or holds it; give folders that are apart")
            taken[root.resolve()] = root
            split_above = _splits_above(files)
            for parts in files:
                below, split = (parts[1:], SPLITS[parts[0]]) if split_above else (parts, unsplit)
                made = escaped(below[0] if len(below) > 1 else root.resolve().name)
                samples.append(
                    Sample(
                        path=root.joinpath(*parts),
                        label=1 if label else 0,
                        generator=made if label else CAMERA,
                        split=split,
                    )
                )
    if not folders.real or not folders.fake:
        raise DataError("two folders: give photographs with --real and generated images with --fake")
    return samples


def holds_images(folder: Path) -> bool:
    """Whether there is an image file anywhere below a folder."""
    return bool(_image_files(folder))


def _image_files(root: Path, say: Say = silent) -> list[tuple[str, ...]]:
    """Parts of the paths of all images below `root`, relative to it and sorted."""
    passed_over: Counter[str] = Counter()
    failed: list[OSError] = []
    found = [
        Path(path).relative_to(root).parts for path in walk_images(str(root), passed_over, failed.append, once=False)
    ]
    if failed:
        raise DataError(f"{escaped(os.fsdecode(failed[0].filename))}: cannot be searched: {failed[0].strerror}")
    say_passed_over(passed_over, say)
    return sorted(parts for parts in found if not any(part.startswith(".") for part in parts))


def _splits_above(files: Iterable[Sequence[str]]) -> bool:
    """Whether all images lie below folders that are called as splits are, and these hold no class themselves."""
    return all(
        len(parts) > 1 and parts[0] in SPLITS and not (parts[0] in GENIMAGE_SPLITS and parts[1] in GENIMAGE)
        for parts in files
    )


def _in_layout(parts: Sequence[str], split: str) -> tuple[int, tuple[str, ...], str] | None:
    """Label, folders above the layout's own and split of an image at `parts`; None in no known layout."""
    for i, part in enumerate(parts[:-1]):
        if part in CNNSPOT:
            return CNNSPOT[part], tuple(parts[:i]), split
        if part in GENIMAGE and i and parts[i - 1] in GENIMAGE_SPLITS:
            return GENIMAGE[part], tuple(parts[: i - 1]), parts[i - 1]
    return None
