"""One labelled image of a data set, and where its bytes are stored.

Frozen records. They know nothing of how data sets are laid out or read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from clipmole.records import Record


class ByteRange(Record):
    """A run of bytes in a file: one image inside a shard.

    Attributes:
        file: the file that holds them.
        offset, size: first byte and number of bytes.
    """

    file: Path
    offset: int = Field(ge=0)
    size: int = Field(ge=0)


class ArrowRow(Record):
    """A row of an Arrow file: one image of a data set that the library `datasets` keeps on the disk.

    Attributes:
        file: the file that holds it.
        column: of the images, whose values are bytes and path.
        row: its number in the file, from 0.
    """

    file: Path
    column: str
    row: int = Field(ge=0)


class Sample(Record):
    """One labelled image of a data set.

    Attributes:
        path: the file; of an image inside another file, that file's path with the image's name below it.
        label: 1 = AI-generated, 0 = photograph.
        generator: what made it; "camera" for photographs.
        split: the part of the data set that it belongs to; "": the data set names none.
        ignore_bottom_px: rows at the lower edge that hold a visible mark and are never used.
        group: images of one group show the same scene or prompt and are not independent; "": its own.
        source: collection that it was taken from; "": not known.
        kind: of a photograph, such as "camera-file", "stock" or "scan"; "": not known.
        category: the class folder of the layout that it lies in, such as "progan/airplane"; "": there is none.
        inside: where its bytes are, if it is not a file of its own.
    """

    path: Path
    label: Literal[0, 1]
    generator: str
    split: str
    ignore_bottom_px: int = Field(0, ge=0)
    group: str = ""
    source: str = ""
    kind: str = ""
    category: str = ""
    inside: ByteRange | ArrowRow | None = None
