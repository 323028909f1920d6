"""Collect the outside images from git clones of the repositories that outside.csv lists.

In: outside.csv and a directory of clones, `<owner>+<name>` or `<owner>/<name>`, bare or with a work tree. Out: every
file under its sha256, and `manifest.csv` beside them: path,label,generator,source,split (always "outside").
Each file is read at the commit the list names and checked against its sha256; nothing is decoded here.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "recipes" / "embedded"))

from originals import Row, git_dir, read_blobs  # noqa: E402  (a script beside the recipe, not a package)

COLUMNS = ("path", "label", "generator", "source", "split")


def collect(listing: Path, clones: Path, out: Path) -> int:
    """Write the listed files and `out`/manifest.csv; returns how many files there are."""
    with listing.open(newline="", encoding="utf-8") as file:
        rows: list[Row] = list(csv.DictReader(file))
    by_repository: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_repository[row["repository"]].append(row)
    directories = {repository: git_dir(clones, repository) for repository in by_repository}
    for repository, wanted in by_repository.items():
        for row, data in read_blobs(directories[repository], wanted):
            if hashlib.sha256(data).hexdigest() != row["sha256"]:
                sys.exit(f"{repository}: {row['path']}: the content is not the one listed (sha256 differs)")
            suffix = Path(row["path"]).suffix.lower()
            target = out / row["sha256"][:2] / (row["sha256"] + suffix)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            row["path"] = target.relative_to(out).as_posix()
            row["split"] = "outside"
    with (out / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--list", type=Path, default=HERE / "outside.csv", help="the list (default: outside.csv)")
    parser.add_argument("--clones", type=Path, required=True, help="directory of git clones")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    count = collect(args.list, args.clones, args.out)
    print(f"{count} files and {args.out / 'manifest.csv'}", file=sys.stderr)


if __name__ == "__main__":
    main()
