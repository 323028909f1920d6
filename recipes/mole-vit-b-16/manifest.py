"""Lists of images in public repositories, and a folder with their files -> a manifest that clipmole reads.

    python recipes/mole-vit-b-16/manifest.py MODERN CORPUS OUTSIDE --images IMAGES --out WORK

In: lists (`originals.csv`, or the outside list) and a folder with the files that they name, as `<sha256>.<ending>`.
Out: `train.csv` with train and val of the first list and, as train, train of the second; `score.csv` with calibration
and test of the first, as outside, the third, and, as seen, images of the training's own repositories. In train a
repository gives at most `MOST` images of a class, so that none outweighs the others. What is over, up to `SEEN` of a
class and repository, and val of the second list are what is seen. Files that cannot be read are left out and named.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from clipmole import ImageError
from clipmole.images.loading import load_pixels

MOST = 250
SEEN = 150
FILES = {"train.csv": ("train", "val"), "score.csv": ("calibration", "test", "outside", "seen")}
COLUMNS = ("path", "label", "generator", "split", "source", "group", "kind", "ignore_bottom_px", "sha256")
KINDS = {"photograph-like": "photo", "drawn or rendered": "drawn"}  # words of the outside list's note


def rows_of(path: Path, images: Path, older: bool) -> Iterator[dict[str, str]]:
    """One row an image of a list, with its repository."""
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            note = row.get("note", "")
            yield {
                "path": str((images / f"{row['sha256']}{Path(row['path']).suffix.lower() or '.jpg'}").resolve()),
                "split": "seen" if older and row["split"] == "val" else row.get("split", "outside"),
                "kind": row.get("kind") or next((kind for words, kind in KINDS.items() if note.startswith(words)), ""),
                "group": row.get("group", ""),
                "ignore_bottom_px": row.get("ignore_bottom_px") or "0",
                **{key: row[key] for key in ("sha256", "label", "generator", "source", "repository")},
            }


def capped(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """At most `MOST` training images of a repository and class, drawn by seed 0, in the order of the lists.

    Up to `SEEN` more get the split seen; the others are left out.
    """
    left_out, counts = set(), Counter[tuple[str, str]]()
    for i in np.random.default_rng(0).permutation(len(rows)).tolist():
        if rows[i]["split"] == "train":
            key = (rows[i]["repository"], rows[i]["label"])
            counts[key] += 1
            if counts[key] > MOST:
                rows[i]["split"] = "seen"
            if counts[key] > MOST + SEEN:
                left_out.add(i)
    return [row for i, row in enumerate(rows) if i not in left_out]


def readable(row: dict[str, str]) -> bool:
    """Whether clipmole can read the file; says so where not."""
    try:
        load_pixels(row["path"])
    except ImageError as error:
        print(f"left out: {error}")
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("modern", "corpus", "outside"):
        parser.add_argument(name, type=Path, metavar=name.upper())
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    modern, corpus, outside = arguments.modern, arguments.corpus, arguments.outside
    rows = [row for path in (modern, corpus, outside) for row in rows_of(path, arguments.images, path == corpus)]
    rows = [row for row in capped(rows) if readable(row)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, splits in FILES.items():
        with (arguments.out / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(row for row in rows if row["split"] in splits)
    for split, count in Counter((row["split"], row["label"]) for row in rows).items():
        print(*split, count)


if __name__ == "__main__":
    main()
