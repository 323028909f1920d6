"""Where clipmole keeps files of its own, and text files that are written whole or not at all.

In: names and texts. Out: files in a folder. It knows nothing of what they say.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path


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
