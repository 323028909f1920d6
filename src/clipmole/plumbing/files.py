"""Where clipmole keeps files of its own, and text files that are written whole or not at all.

In: names and texts. Out: files in a folder. It knows nothing of what they say.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def cache_folder(kind: str) -> Path:
    """`$CLIPMOLE_CACHE/KIND`, else `~/.cache/clipmole/KIND`: what can be made again."""
    return Path(os.environ.get("CLIPMOLE_CACHE") or Path.home() / ".cache" / "clipmole") / kind


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write every file aside, and put all in their places in `folder` once they are whole.

    Args:
        texts: file name -> its text, UTF-8, its line ends as they are.

    Raises `OSError`; older files of these names are then still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".write-", dir=folder) as scratch:
        for name, text in texts.items():
            with (Path(scratch) / name).open("w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        for name in texts:
            os.replace(Path(scratch) / name, folder / name)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write bytes to, aside in the same folder; it takes the place of `path` when the block ends.

    Then it is on the disk, and so is its name. If the block raises, nothing is left of it, and what was at `path` is
    still there. Raises `OSError` if it cannot be written. A kill leaves `.NAME.PID`.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
