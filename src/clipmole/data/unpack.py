"""Images inside tables, archives and streams -> files with their original bytes, in one folder of bounded size.

In: bytes and their fields, from a source that cannot be read at random. Out: samples whose images are
files. A source that was unpacked once is read again from the folder's own list. Bytes are written as they
are, never decoded. It knows nothing of where they come from.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from clipmole.data.sample import Sample
from clipmole.errors import DataError
from clipmole.images.formats import IMAGE_EXTENSIONS
from clipmole.plumbing.files import cache_folder, whole_file, write_texts
from clipmole.plumbing.json_toml import parse_json
from clipmole.plumbing.progress import Say, silent

LIST = "samples.jsonl"
GIB = 2**30


def unpack_folder() -> Path:
    """`$CLIPMOLE_CACHE/data`, else `~/.cache/clipmole/data`."""
    return cache_folder("data")


@dataclass(frozen=True)
class Unpacking:
    """Where original bytes may be unpacked to, and how many.

    Attributes:
        folder: holds one folder per source; None: `unpack_folder()`.
        gib: most GiB of one source.
        say: gets the announcement before anything is written, and a line at the end.
    """

    folder: Path | None = None
    gib: float = 20.0
    say: Say = silent


def unpack(source: str, identity: str, images: Iterable[tuple[bytes, dict[str, Any]]], how: Unpacking) -> list[Sample]:
    """Samples of `images`, (bytes, fields of `Sample` but the path), written to a folder of the source's own.

    Args:
        source: what to call it in messages.
        identity: a text that identifies this source's content; if it was completely unpacked under this identity
            before, it is taken from the folder.
        images: read once, and not at all where the folder is whole.

    A run that was stopped starts over and writes only what is missing. Raises `DataError` if the limit would be
    passed or the folder cannot be written; what is written stays.
    """
    folder = (how.folder or unpack_folder()) / hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[
        :16
    ]
    index = folder / LIST
    if index.is_file():
        how.say(f"{source}: taken from {folder}, where it was unpacked before; delete that folder to read it again")
        return _read_index(index)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free / GIB
        how.say(
            f"{source}: unpacking the original bytes to {folder}, at most {how.gib:g} GiB ({free:.1f} GiB are free)"
        )
        rows: list[dict[str, Any]] = []
        total = 0
        for data, fields in images:
            total += len(data)
            if total > how.gib * GIB:
                raise DataError(
                    f"{source}: more than {how.gib:g} GiB after {len(rows)} images; allow more with --unpack-gib, or "
                    "take the first images only: ?take=..."
                )
            name = f"{len(rows):08d}-{hashlib.sha256(data).hexdigest()[:16]}{_extension(data)}"
            if not (folder / name).is_file():  # a name stands for its content, and appears when that is complete
                with whole_file(folder / name) as file:
                    file.write(data)
            rows.append({"path": name, **fields})
        write_texts(folder, {LIST: "".join(json.dumps(row) + "\n" for row in rows)})
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written: {error.strerror}; free some space, or name another folder: --unpack-to"
        ) from error
    how.say(f"{source}: {len(rows)} images, {total / GIB:.2f} GiB")
    return _read_index(index)


def _read_index(index: Path) -> list[Sample]:
    try:
        rows = [parse_json(line) for line in index.read_text(encoding="utf-8").splitlines()]
        return [Sample.model_validate(row | {"path": index.parent / row["path"]}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{index}: is damaged; delete the folder {index.parent} to unpack it again") from error


def _extension(data: bytes) -> str:
    """The ending of the bytes' format; ".bin" if they are not an image, which is noticed when they are read."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            ending = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}.get(image.format or "", f".{image.format}".lower())
    except Exception:  # hostile bytes fail in many ways
        return ".bin"
    return ending if ending in IMAGE_EXTENSIONS else ".bin"
