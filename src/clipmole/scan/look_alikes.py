"""Rows with perceptual hashes -> which images look the same.

In: the folder of a scan that kept them. Out: `groups.parquet` with a source and the number of its group. It holds
about 400 bytes per image in memory: for more than a few million images, scan and group them folder by folder.
"""

from __future__ import annotations

from pathlib import Path

from clipmole.data.audit.duplicates import look_alikes
from clipmole.data.audit.files import FileFacts
from clipmole.errors import DataError
from clipmole.scan.listing import read_rows
from clipmole.scan.parts import write_parquet

GROUPS = "groups.parquet"


def write_groups(folder: Path) -> tuple[Path, int, int]:
    """Write the groups of two and more images that look the same but differ in their bytes.

    Returns the file, how many groups and how many images in them. Raises `DataError` if the scan kept no hashes.
    """
    import pyarrow as pa

    facts: list[FileFacts] = []
    sources: list[str] = []
    for row in read_rows(folder, columns=["source", "sha256", "bytes", "phash", "thumbnail", "duplicate_of"]):
        if row["phash"] is not None and row["duplicate_of"] is None:
            facts.append(
                FileFacts(row["sha256"], row["bytes"], phash=int(row["phash"], 16), thumbnail=row["thumbnail"])
            )
            sources.append(row["source"])
    if not facts:
        raise DataError(f"{folder}: keeps no perceptual hashes; scan with --look-alikes into a new folder")
    found = look_alikes(facts)
    pairs = [(sources[i], number) for number, members in enumerate(found) for i in members]
    table = pa.table({"source": [source for source, _ in pairs], "group": pa.array([n for _, n in pairs], pa.int64())})
    path = folder / GROUPS
    write_parquet(table, path)
    return path, len(found), len(pairs)
