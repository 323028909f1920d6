"""EXIF blocks, and the tags of a TIFF file, which have the same structure.

In: the bytes of a block or a TIFF file. Out: its tags by their names. Each value is charged to the budget before it is
read, even if the block points at the same bytes again and again. It knows nothing of what the tags mean.

Sources: TIFF 6.0, EXIF 3.0 (CIPA DC-008-2023).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL.ExifTags import GPSTAGS, TAGS

from clipmole.provenance.budget import Budget
from clipmole.provenance.texts import decoded

_FORMATS = {  # TIFF type -> how one value is packed; 2 is text, 7 bytes of any meaning
    1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 6: "b", 7: "s", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d", 13: "I",
    16: "Q", 17: "q", 18: "Q", 129: "s",
}  # fmt: skip
_TEXT, _UTF8, _BYTES = 2, 129, (1, 7)
_MAX_TAGS = 4096  # of one directory; cameras write about a hundred
_MAX_NUMBERS = 16  # of one tag; longer ones (offsets of strips, curves) say nothing about where an image comes from
_EXIF_DIRECTORY, _GPS_DIRECTORY, _THUMBNAIL = 0x8769, 0x8825, 0x0201


class UnreadableExif(ValueError):
    """The block does not have the structure of EXIF."""


@dataclass
class Exif:
    """The tags of a block.

    Attributes:
        tags: tags of the image and of its Exif directory, by name: texts, numbers, tuples of numbers, or bytes.
        gps: tags of the GPS directory, by name.
        thumbnail: offset of the preview in `block`, bytes; None if there is none.
        packets: values of tags that hold metadata of another kind, by tag number: XMP, IPTC, Photoshop, ICC.
        block: what was read, without the mark "Exif" before it.
    """

    tags: dict[str, Any] = field(default_factory=dict)
    gps: dict[str, Any] = field(default_factory=dict)
    thumbnail: int | None = None
    packets: dict[int, bytes] = field(default_factory=dict)
    block: bytes = b""


XMP, IPTC, PHOTOSHOP, ICC = 700, 33723, 34377, 34675
_PACKETS = (XMP, IPTC, PHOTOSHOP, ICC)


class _Entry(NamedTuple):
    """One entry of a directory."""

    tag: int
    type: int
    n: int  # values
    at: int  # offset of the value, bytes
    size: int  # of the value, bytes


class _Layout(NamedTuple):
    """How offsets and numbers are packed, in TIFF or in BigTIFF, as formats of `struct`."""

    order: str
    n_entries: str
    entry: str
    offset: str

    def unpack(self, packed: str, data: bytes, at: int) -> tuple[Any, ...]:
        """The values packed at offset `at`. Raises `UnreadableExif` if the data end before."""
        try:
            return struct.unpack_from(self.order + packed, data, at)
        except struct.error as error:
            raise UnreadableExif("ends early") from error


def read_exif(block: bytes, budget: Budget) -> Exif:
    """The tags of an EXIF block, with or without the mark "Exif", or of a TIFF file.

    Args:
        block: the bytes.
        budget: how much may still be read.

    Raises `UnreadableExif`.
    """
    while block.startswith(b"Exif\0\0"):
        block = block[6:]
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        raise UnreadableExif("no byte order")
    big = struct.unpack_from(order + "H", block.ljust(4), 2)[0] == 43
    layout = _Layout(order, "Q", "HHQ", "Q") if big else _Layout(order, "H", "HHI", "I")
    found = Exif(block=block)
    entries, following = _directory(layout, block, layout.unpack(layout.offset, block, 8 if big else 4)[0])
    directories: dict[int, int] = {}
    for entry in entries:
        if entry.tag in (_EXIF_DIRECTORY, _GPS_DIRECTORY):
            directories[entry.tag] = _offset(layout, block, entry)
        elif entry.tag in _PACKETS:
            if budget.admits(entry.size, f"EXIF {TAGS.get(entry.tag, entry.tag)}"):
                found.packets[entry.tag] = block[entry.at : entry.at + entry.size]
        elif entry.tag in TAGS:
            _add(found.tags, TAGS[entry.tag], layout, block, entry, budget)
    for directory, names, tags in ((_EXIF_DIRECTORY, TAGS, found.tags), (_GPS_DIRECTORY, GPSTAGS, found.gps)):
        for entry in _directory(layout, block, directories.get(directory, 0))[0]:
            if entry.tag in names:
                _add(tags, names[entry.tag], layout, block, entry, budget)
    for entry in _directory(layout, block, following)[0]:
        if entry.tag == _THUMBNAIL:
            found.thumbnail = _offset(layout, block, entry)
    return found


def _directory(layout: _Layout, block: bytes, at: int) -> tuple[list[_Entry], int]:
    """The entries of the directory at offset `at` whose values lie in the block, and the offset of the next directory.

    At offset 0, or behind the end of the block, there is no directory.
    """
    if not 0 < at < len(block):
        return [], 0
    (n,) = layout.unpack(layout.n_entries, block, at)
    at += struct.calcsize(layout.order + layout.n_entries)
    head, inside = struct.calcsize(layout.order + layout.entry), struct.calcsize(layout.order + layout.offset)
    each = head + inside
    end = at + n * each
    following = layout.unpack(layout.offset, block, end)[0] if end + inside <= len(block) else 0
    entries = []
    for start in range(at, min(end, len(block) - each + 1, at + _MAX_TAGS * each), each):
        tag, type_, count = layout.unpack(layout.entry, block, start)
        size = count * struct.calcsize(layout.order + _FORMATS.get(type_, ""))
        value = start + head if size <= inside else layout.unpack(layout.offset, block, start + head)[0]
        if type_ in _FORMATS and count and value + size <= len(block):
            entries.append(_Entry(tag, type_, count, value, size))
    return entries, following


def _offset(layout: _Layout, block: bytes, entry: _Entry) -> int:
    """The offset that an entry holds, its first value; 0 if that is not a whole number."""
    packed = _FORMATS[entry.type]
    return int(layout.unpack(packed, block, entry.at)[0]) if packed in ("H", "I", "Q") else 0


def _add(tags: dict[str, Any], name: str, layout: _Layout, block: bytes, entry: _Entry, budget: Budget) -> None:
    """Read the value of an entry into `tags`, unless an earlier entry has this name or the budget is used up."""
    packed = _FORMATS[entry.type]
    textual = packed == "s" or (entry.type == 1 and entry.n > 4)
    if name in tags or (not textual and entry.n > _MAX_NUMBERS) or not budget.admits(entry.size, f"EXIF {name}"):
        return
    if textual:
        value = block[entry.at : entry.at + entry.size]
        tags[name] = _text_value(name, value) if entry.type in (_TEXT, _UTF8) else _of_bytes(name, value)
        return
    numbers = layout.unpack(packed * entry.n, block, entry.at)
    if len(packed) == 2:
        numbers = tuple(a / b if b else None for a, b in zip(numbers[::2], numbers[1::2], strict=True))
    tags[name] = numbers[0] if len(numbers) == 1 else numbers


def _text_value(name: str, value: bytes) -> str:
    return _user_comment(value) if name == "UserComment" else decoded(value).strip("\0 ")


def _of_bytes(name: str, value: bytes) -> Any:
    """The text that EXIF keeps as bytes under some names; any other bytes as they are."""
    if name.startswith("XP"):  # Windows: UTF-16, little endian
        return value.decode("utf-16-le", "replace").strip("\0 ")
    if name == "UserComment":
        return _user_comment(value)
    text = decoded(value).strip("\0 ")
    return text if all(c.isprintable() or c.isspace() for c in text) else value


def _user_comment(value: bytes) -> str:
    """The text after the 8 bytes that name its encoding (EXIF 3.0, 4.6.5), a rule that not all programs follow."""
    code, body = value[:8], value[8:]
    if code == b"UNICODE\0":
        if body[:2] in (b"\xfe\xff", b"\xff\xfe"):
            return body.decode("utf-16", "replace").strip("\0 ")
        if 0 in body:
            order = "be" if body[::2].count(0) > body[1::2].count(0) else "le"
            return body.decode(f"utf-16-{order}", "replace").strip("\0 ")
        return decoded(body, "utf-16-be").strip("\0 ")
    if code == b"JIS\0\0\0\0\0":
        return body.decode("iso2022_jp", "replace").strip("\0 ")
    return decoded(body if code in (b"ASCII\0\0\0", bytes(8)) else value).strip("\0 ")
