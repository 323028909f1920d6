"""EXIF blocks, and the tags of a TIFF file, which have the same structure.

In: the bytes of a block or a TIFF file. Out: its tags by their names. Every value is bounded by the budget before it is
read, however often the block points at the same bytes. It knows nothing of what the tags mean.

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
_MAX_NUMBERS = 16  # of one tag; what holds more (offsets of strips, curves) says nothing of where an image comes from
_EXIF_DIRECTORY, _GPS_DIRECTORY, _THUMBNAIL = 0x8769, 0x8825, 0x0201


class UnreadableExif(ValueError):
    """The block is not of the structure that EXIF has."""


@dataclass
class Exif:
    """The tags of a block.

    Attributes:
        tags: of the image and of its Exif part, by their names: texts, numbers, tuples of numbers, or bytes.
        gps: tags of the position, by their names.
        thumbnail: offset of the preview in `block`, bytes; None if there is none.
        packets: values of tags that are metadata of another kind, by tag number: XMP, IPTC, Photoshop, ICC.
        block: what was read, without the mark before it.
    """

    tags: dict[str, Any] = field(default_factory=dict)
    gps: dict[str, Any] = field(default_factory=dict)
    thumbnail: int | None = None
    packets: dict[int, bytes] = field(default_factory=dict)
    block: bytes = b""


XMP, IPTC, PHOTOSHOP, ICC = 700, 33723, 34377, 34675
_PACKETS = (XMP, IPTC, PHOTOSHOP, ICC)


class _Entry(NamedTuple):
    tag: int
    type: int
    n: int  # values
    at: int  # offset of the value, bytes
    size: int  # of the value, bytes


class _Layout(NamedTuple):
    """How offsets and numbers are packed: as TIFF, or as BigTIFF."""

    order: str
    n_entries: str
    entry: str
    offset: str

    def unpack(self, packed: str, data: bytes, at: int) -> tuple[Any, ...]:
        """Raises `UnreadableExif` where the data end before that."""
        try:
            return struct.unpack_from(self.order + packed, data, at)
        except struct.error as error:
            raise UnreadableExif("ends early") from error


def read_exif(block: bytes, budget: Budget) -> Exif:
    """The tags of an EXIF block, with or without the mark "Exif", or of a TIFF file. Raises `UnreadableExif`."""
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

    An offset of 0 or behind the block is no directory.
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
    """The first value of an entry that is an offset; 0 if it holds no whole number."""
    packed = _FORMATS[entry.type]
    return int(layout.unpack(packed, block, entry.at)[0]) if packed in ("H", "I", "Q") else 0


def _add(tags: dict[str, Any], name: str, layout: _Layout, block: bytes, entry: _Entry, budget: Budget) -> None:
    """Read the value of one entry into `tags`; the first entry of a name counts."""
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
    """Texts that EXIF keeps as bytes; the rest as it is."""
    if name.startswith("XP"):  # Windows: UTF-16, little endian
        return value.decode("utf-16-le", "replace").strip("\0 ")
    if name == "UserComment":
        return _user_comment(value)
    text = decoded(value).strip("\0 ")
    return text if all(c.isprintable() or c.isspace() for c in text) else value


def _user_comment(value: bytes) -> str:
    """The text after the 8 bytes that name its character code (EXIF 3.0, 4.6.5), to which not all programs keep."""
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
