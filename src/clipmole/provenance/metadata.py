"""The metadata of an image file: EXIF, XMP, IPTC fields, PNG text, comments, text in the alpha channel.

In: the bytes of a file. Out: `Metadata`: texts and where they stand, EXIF tags, XMP properties. One budget limits all
of them together. What exceeds it, and what cannot be read, is named in `damaged`. It knows nothing of what the texts
mean.

Sources: PNG (W3C, third edition), JPEG (ITU-T T.81), XMP part 3 (Adobe), the WebP container specification, IPTC IIM
4.2.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from PIL import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from clipmole.images.headers import FRAMES, jpeg_segments, png_chunks
from clipmole.provenance import exif, stealth
from clipmole.provenance.budget import Budget
from clipmole.provenance.exif import UnreadableExif, read_exif
from clipmole.provenance.texts import Text, decoded, untrusted_json
from clipmole.provenance.xmp import Property, UnsafeXMP, read_xmp

WALKED = ("PNG", "JPEG")  # formats whose metadata are found without Pillow, which would read them without a limit
MAX_CHUNKS = 2**20  # of a PNG or WebP file
_XMP_KEY = "XML:com.adobe.xmp"
_PHOTOSHOP_IPTC = 0x0404  # number of the resource that holds IPTC fields
_SEGMENTS = (  # place, JPEG marker, first bytes, bytes to skip after them
    ("EXIF", 0xE1, b"Exif\0\0", 0),
    ("XMP", 0xE1, b"http://ns.adobe.com/xap/1.0/\0", 0),
    ("XMP, extended", 0xE1, b"http://ns.adobe.com/xmp/extension/\0", 40),  # a digest, the whole length, an offset
    ("IPTC", 0xED, b"Photoshop 3.0\0", 0),
    ("ICC profile", 0xE2, b"ICC_PROFILE\0", 2),  # which part of how many
)
_IIM = {  # IPTC IIM 4.2, record 2
    5: "Object Name", 15: "Category", 25: "Keywords", 40: "Special Instructions", 55: "Date Created",
    60: "Time Created", 65: "Originating Program", 70: "Program Version", 80: "By-line", 85: "By-line Title",
    90: "City", 95: "Province/State", 101: "Country", 103: "Original Transmission Reference", 105: "Headline",
    110: "Credit", 115: "Source", 116: "Copyright Notice", 118: "Contact", 120: "Caption", 122: "Caption Writer",
}  # fmt: skip


@dataclass
class Metadata:
    """What a file holds beside its pixels.

    Attributes:
        format: "JPEG", "PNG", "WebP", ...
        size: (width, height) as stored, pixels; None if the header cannot be read.
        exif: tags as in `Exif.tags`.
        thumbnail: (width, height) of the preview in the EXIF block, pixels; None if there is none.
        gps: tags as in `Exif.gps`.
        xmp: properties of the XMP packets.
        texts: all texts, those of EXIF and XMP too.
        others: values that are not texts, written as texts: numbers, positions, sizes of blocks.
        credentials: whether a C2PA manifest seems to be embedded.
        damaged: what could not be read, and why, one line each.
    """

    format: str
    size: tuple[int, int] | None = None
    exif: dict[str, Any] = field(default_factory=dict)
    thumbnail: tuple[int, int] | None = None
    gps: dict[str, Any] = field(default_factory=dict)
    xmp: list[Property] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)
    others: list[Text] = field(default_factory=list)
    credentials: bool = False
    damaged: list[str] = field(default_factory=list)


def read_metadata(data: bytes, found: str, image: ImageFile.ImageFile | None, budget: Budget | None = None) -> Metadata:
    """All metadata of a file.

    Args:
        data: its bytes.
        found: its format.
        image: the file opened by Pillow, not decoded; None for the formats in `WALKED`, or if Pillow cannot read the
            header.
        budget: how much to read; None: `budget.MAX_BYTES`.
    """
    budget = budget or Budget()
    metadata = Metadata(found, image.size if image is not None else _size(data, found))
    metadata.credentials = b"jumb" in data and b"c2pa" in data
    walk = {"PNG": _png_parts, "JPEG": _jpeg_parts, "WebP": _webp_parts}.get(found)
    if walk is not None:
        parts = walk(data, budget)
    elif image is not None:
        parts = _opened_parts(data, image, budget)
    else:
        parts = iter(())
    if metadata.size is None:
        metadata.damaged.append(f"the {found} header cannot be read")
    for place, name, value in parts:
        if place == "EXIF":
            _add_exif(metadata, value, budget)
        elif place == "XMP":
            _add_xmp(metadata, value, budget)
        elif place == "IPTC":
            _add_iptc(metadata, value, budget)
        elif place == "ICC profile":
            metadata.others.append(Text(place, "", name))
        else:
            metadata.texts.append(Text(place, name, decoded(value)))
    if found == "PNG" or (found == "WebP" and image is not None):
        _add_hidden_text(metadata, data, image, budget)
    if remark := budget.remark():
        metadata.damaged.append(remark)
    return metadata


# Place ("EXIF", "XMP", "IPTC", or as in `Text`), name, and content; of an ICC profile the name states the size.
_Part = tuple[str, str, bytes]


def _size(data: bytes, found: str) -> tuple[int, int] | None:
    """(width, height) that the header of a PNG or JPEG states, pixels."""
    if found == "PNG" and data[12:16] == b"IHDR" and len(data) >= 24:
        return struct.unpack(">II", data[16:24])
    for marker, start, end in jpeg_segments(data) if found == "JPEG" else ():
        if marker in FRAMES and end - start >= 5:
            height, width = struct.unpack_from(">HH", data, start + 1)
            return width, height
    return None


def _jpeg_parts(data: bytes, budget: Budget) -> Iterator[_Part]:
    """The metadata in the segments of a JPEG; a block that is split over several segments is joined."""
    blocks: dict[str, list[bytes]] = {}
    profile = 0
    for marker, start, end in jpeg_segments(data):
        if marker == 0xFE:
            if budget.admits(end - start, "comment"):
                yield "comment", "", data[start:end]
            continue
        for place, number, mark, skipped in _SEGMENTS:
            if marker == number and data.startswith(mark, start):
                content = data[start + len(mark) + skipped : end]
                if place == "ICC profile":
                    profile += len(content)
                elif budget.admits(len(content), place):
                    blocks.setdefault(place, []).append(content)
                break
    for place, split in blocks.items():
        block = b"".join(split)
        yield ("IPTC", "", _photoshop_iptc(block)) if place == "IPTC" else (place.split(",")[0], "", block)
    if profile:
        yield "ICC profile", f"{profile:,} bytes", b""


def _photoshop_iptc(block: bytes) -> bytes:
    """The IPTC fields among Photoshop's resources; b"" if there are none."""
    at = 0
    while at + 12 <= len(block) and block[at : at + 4] == b"8BIM":
        (number,) = struct.unpack_from(">H", block, at + 4)
        at += 6 + (block[at + 6] // 2 + 1) * 2  # past the name, padded to an even length
        if at + 4 > len(block):
            break
        (length,) = struct.unpack_from(">I", block, at)
        if number == _PHOTOSHOP_IPTC:
            return block[at + 4 : at + 4 + length]
        at += 4 + length + length % 2
    return b""


def _png_parts(data: bytes, budget: Budget) -> Iterator[_Part]:
    """The metadata in a PNG's chunks, also in those after the pixels."""
    for count, (kind, start, end) in enumerate(png_chunks(data)):
        if count == MAX_CHUNKS:
            budget.left_out.append(f"PNG chunks after the first {MAX_CHUNKS:,}")
        if count == MAX_CHUNKS or kind == b"IEND":
            return
        if kind == b"eXIf":
            if budget.admits(end - start, "EXIF"):
                yield "EXIF", "", data[start:end]
        elif kind == b"iCCP":
            yield "ICC profile", f"{end - start:,} bytes", b""
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            part = _png_text(kind, data, start, end, budget)
            if part is not None:
                yield part


def _png_text(kind: bytes, data: bytes, start: int, end: int, budget: Budget) -> _Part | None:
    """The text of one chunk, whose content lies at `data[start:end]`; None if it is left out."""
    keyword = data[start : min(end, start + 80)].partition(b"\0")[0]
    key, start = decoded(keyword), start + len(keyword) + 1
    name = f"PNG text {key}"
    compressed = kind == b"zTXt"
    if compressed:
        start += 1
    elif kind == b"iTXt":
        compressed = data[start : start + 1] == b"\1"
        start += 2
        for _ in range(2):  # skip the language, and the keyword in that language
            start = data.find(b"\0", start, end) + 1 or end
    if compressed:
        value = budget.inflated(data[start:end], name)
    else:
        value = data[start:end] if budget.admits(max(0, end - start), name) else None
    if value is None:
        return None
    if key == _XMP_KEY:
        return "XMP", "", value
    return _raw_profile(key, value) if key.startswith("Raw profile type ") else ("PNG text", key, value)


def _raw_profile(key: str, value: bytes) -> _Part:
    """The block that ImageMagick or ExifTool wrote as a text: a name, a length, then hexadecimal digits."""
    try:
        block = bytes.fromhex(b"".join(value.split()[2:]).decode("ascii"))
    except ValueError:
        return "PNG text", key, b""
    if block.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
        return "XMP", "", block[29:]
    kind = key.rsplit(" ", 1)[1]
    if kind == "iptc":
        return "IPTC", "", _photoshop_iptc(block) or block
    if kind == "icc":
        return "ICC profile", f"{len(block):,} bytes", b""
    place = {"exif": "EXIF", "APP1": "EXIF", "xmp": "XMP"}.get(kind)
    return (place, "", block) if place else ("PNG text", key, b"")


def _webp_parts(data: bytes, budget: Budget) -> Iterator[_Part]:
    """The metadata in the chunks of a WebP file."""
    at = 12
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return
        kind, length = struct.unpack_from("<4sI", data, at)
        place = {b"EXIF": "EXIF", b"XMP ": "XMP", b"ICCP": "ICC profile"}.get(kind)
        if place == "ICC profile":
            yield place, f"{length:,} bytes", b""
        elif place and budget.admits(length, place):
            yield place, "", data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    budget.left_out.append(f"WebP chunks after the first {MAX_CHUNKS:,}")


def _opened_parts(data: bytes, image: ImageFile.ImageFile, budget: Budget) -> Iterator[_Part]:
    """The metadata that Pillow found when it opened a file."""
    for place, key in (("EXIF", "exif"), ("XMP", "xmp")):
        block = image.info.get(key)
        if isinstance(block, bytes) and block and budget.admits(len(block), place):
            yield place, "", block
    if data[:2] in (b"II", b"MM"):  # a TIFF
        yield "EXIF", "", data
    if profile := image.info.get("icc_profile"):
        yield "ICC profile", f"{len(profile):,} bytes", b""
    comment = image.info.get("comment")
    if isinstance(comment, bytes) and budget.admits(len(comment), "comment"):
        yield "comment", "", comment


def _add_exif(metadata: Metadata, block: bytes, budget: Budget) -> None:
    """Add the tags of an EXIF block or of a TIFF file, and the packets of XMP and IPTC among them."""
    try:
        found = read_exif(block, budget)
    except UnreadableExif as error:
        metadata.damaged.append(f"EXIF cannot be read ({error})")
        return
    metadata.exif = found.tags | metadata.exif
    metadata.gps = found.gps | metadata.gps
    if found.thumbnail:
        metadata.thumbnail = metadata.thumbnail or _thumbnail_size(found.block[found.thumbnail :])
    for name, value in found.tags.items():
        if isinstance(value, str):
            if value:
                metadata.texts.append(Text("EXIF", name, value))
        else:
            metadata.others.append(Text("EXIF", name, _written(value)))
    metadata.others += [Text("EXIF", name, _written(value)) for name, value in found.gps.items()]
    if (packet := found.packets.get(exif.XMP)) and not metadata.xmp:
        _add_xmp(metadata, packet, budget)
    if fields := found.packets.get(exif.IPTC):
        _add_iptc(metadata, fields, budget)


def _written(value: Any) -> str:
    """The value of a tag as text; of bytes only how many they are."""
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, tuple):
        return ", ".join(_written(each) for each in value)
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def _thumbnail_size(block: bytes) -> tuple[int, int] | None:
    """(width, height) of the JPEG that a block begins with, pixels; None if it does not begin with one."""
    try:
        return JpegImageFile(io.BytesIO(block)).size
    except Exception:  # hostile bytes fail in many ways
        return None


def _add_xmp(metadata: Metadata, packet: bytes, budget: Budget) -> None:
    try:
        found = read_xmp(packet)
    except UnsafeXMP as error:
        metadata.damaged.append(f"XMP cannot be read ({error})")
        return
    found = [p for p in found if budget.admits(len(p.value), f"XMP {p.name}")]
    metadata.xmp += found
    metadata.texts += [Text("XMP", p.name, p.value) for p in found]


def _add_iptc(metadata: Metadata, block: bytes, budget: Budget) -> None:
    """Add the fields of record 2 of an IPTC block, up to the first bytes that do not fit its structure."""
    at = 0
    while at + 5 <= len(block) and block[at] == 0x1C:
        record, number, length = struct.unpack_from(">BBH", block, at + 1)
        name = _IIM.get(number, f"field {number}")
        if length >= 0x8000:  # an extended length: no field of text has one
            return
        if record == 2 and number and budget.admits(length, f"IPTC {name}"):
            metadata.texts.append(Text("IPTC", name, decoded(block[at + 5 : at + 5 + length])))
        at += 5 + length


def _add_hidden_text(metadata: Metadata, data: bytes, image: ImageFile.ImageFile | None, budget: Budget) -> None:
    """Add the text in the alpha channel, and if it is a JSON object, each text in it as well."""
    if not stealth.has_alpha(data, image):
        return
    width, height = metadata.size or (0, 0)
    if width * height > stealth.MAX_PIXELS:
        metadata.damaged.append(f"text in the alpha channel: {width} x {height} pixels are not decoded for it")
        return
    text = stealth.hidden_text(data, image, budget)
    if text:
        metadata.texts.append(Text(stealth.PLACE, "", text))
        entries = untrusted_json(text)
        for name, value in entries.items() if isinstance(entries, dict) else ():
            if isinstance(value, str) and budget.admits(len(value), stealth.PLACE):
                metadata.texts.append(Text(stealth.PLACE, name, value))
