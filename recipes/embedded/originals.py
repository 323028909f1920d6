"""Collect the originals the embedded detector's trunk is trained on, from clones of public repositories.

In: originals.csv (repository,commit,path,sha256,label,generator,source,split,group,...,ignore_bottom_px) and a
directory of git clones, `<owner>+<name>` or `<owner>/<name>`, bare or with a work tree. Out: every file under
its sha256, and `manifest.csv` beside them: path,label,generator,source,split,group,ignore_bottom_px.
Each file is read at the commit the list names and checked against its sha256; nothing is decoded here.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

COLUMNS = ("path", "label", "generator", "source", "split", "group", "ignore_bottom_px")
Row = dict[str, str]


def read_rows(path: Path, splits: set[str]) -> list[Row]:
    """The rows of originals.csv that belong to one of `splits`."""
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["split"] in splits]


def git_dir(clones: Path, repository: str) -> Path:
    """The git directory of `owner/name` under `clones`; exits with one line that names the missing clone."""
    for folder in (clones / repository.replace("/", "+"), clones / repository):
        for candidate in (folder, folder / "repo"):
            for git in (candidate / ".git", candidate):
                if (git / "HEAD").is_file() and (git / "objects").is_dir():
                    return git
    target = clones / repository.replace("/", "+")
    sys.exit(f"no clone of {repository}: git clone --bare https://github.com/{repository} {target}")


def read_blobs(git: Path, rows: list[Row]) -> Iterator[tuple[Row, bytes]]:
    """Each row with its file's bytes, from one `git cat-file --batch`; exits if the commit or path is absent."""
    command = ["git", f"--git-dir={git}", "cat-file", "--batch"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for row in rows:
            process.stdin.write(f"{row['commit']}:{row['path']}\n".encode())
            process.stdin.flush()
            header = process.stdout.readline().split()  # <object> blob <size>, or <name> missing
            if len(header) != 3 or header[1] != b"blob":
                sys.exit(f"{row['repository']}: no {row['path']} at commit {row['commit']}: fetch that commit")
            data = process.stdout.read(int(header[2]))
            process.stdout.read(1)  # the newline after the object
            yield row, data
        process.stdin.close()


def collect(originals: Path, clones: Path, out: Path, splits: set[str]) -> int:
    """Write the files and `out`/manifest.csv; returns how many files there are."""
    by_repository: dict[str, list[Row]] = defaultdict(list)
    rows = read_rows(originals, splits)
    for row in rows:
        by_repository[row["repository"]].append(row)
    directories = {repository: git_dir(clones, repository) for repository in by_repository}
    for repository, wanted in by_repository.items():
        for row, data in read_blobs(directories[repository], wanted):
            if hashlib.sha256(data).hexdigest() != row["sha256"]:
                sys.exit(f"{repository}: {row['path']}: the content is not the one listed (sha256 differs)")
            suffix = Path(row["path"]).suffix.lower()
            row["path"] = f"{row['sha256'][:2]}/{row['sha256']}{suffix}"
            (out / row["path"]).parent.mkdir(parents=True, exist_ok=True)
            (out / row["path"]).write_bytes(data)
        print(f"{repository}: {len(wanted)} files", file=sys.stderr)
    with (out / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("originals", type=Path, help="originals.csv")
    parser.add_argument("--clones", type=Path, required=True, help="directory of git clones")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--splits", nargs="+", default=["train", "val"], choices=["train", "val"])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    count = collect(args.originals, args.clones, args.out, set(args.splits))
    print(f"{count} files and {args.out / 'manifest.csv'}", file=sys.stderr)


if __name__ == "__main__":
    main()
