"""The metadata of an image file: EXIF, XMP, IPTC fields, PNG text, comments.

In: the bytes of a file. Out: `Metadata`: texts with their places, EXIF tags, XMP properties. No pixel is decoded
where the format allows it. Hostile content costs bounded time and memory, and what cannot be read is named in
`damaged`. It knows nothing of what the texts mean.

Sources: PNG (W3C, third edition), the WebP container specification, EXIF 3.0 (CIPA DC-008), IPTC IIM 4.2.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image, ImageFile, IptcImagePlugin
from PIL.ExifTags import IFD, TAGS

from clipmole.images.loading import open_image
from clipmole.provenance.xmp import Property, UnsafeXMP, read_xmp

MAX_VALUE = 2**20  # characters of a text that are looked at
MAX_CHUNKS = 4096
_XMP_KEY = "XML:com.adobe.xmp"
_IIM = {  # IPTC IIM 4.2, record 2: the fields in which programs leave their names
    5: "Object Name",
    40: "Special Instructions",
    65: "Originating Program",
    80: "By-line",
    90: "City",
    110: "Credit",
    115: "Source",
    116: "Copyright Notice",
    120: "Caption",
    122: "Caption Writer",
}
_CHARSETS = {b"ASCII\0\0\0": "ascii", b"JIS\0\0\0\0\0": "iso2022_jp"}  # EXIF 3.0, 4.6.5, UserComment


class Text(NamedTuple):
    """One text: where it stands ("EXIF", "XMP", "PNG text", "IPTC", "comment"), under which name, and what it says."""

    place: str
    name: str
    value: str

    @property
    def key(self) -> str:
        return f"{self.place} {self.name}".strip()


@dataclass
class Metadata:
    """What a file holds beside its pixels.

    Attributes:
        format: "JPEG", "PNG", "WebP", ...
        size: (width, height) as stored, pixels; None if the header cannot be read.
        exif: EXIF tags of the image and of its Exif part, by their names; strings for texts.
        thumbnail: whether the EXIF block holds a preview, and its (width, height); None if there is none.
        gps: whether the EXIF block holds a position.
        xmp: properties of the XMP packets.
        texts: every text of all of them.
        credentials: whether a C2PA manifest seems to be embedded.
        damaged: parts that could not be read, a line each.
    """

    format: str
    size: tuple[int, int] | None = None
    exif: dict[str, Any] = field(default_factory=dict)
    thumbnail: tuple[int, int] | None = None
    gps: bool = False
    xmp: list[Property] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)
    credentials: bool = False
    damaged: list[str] = field(default_factory=list)


def read_metadata(data: bytes, found: str, image: ImageFile.ImageFile | None) -> Metadata:
    """All metadata of a file.

    Args:
        data, found, image: its bytes, its format, and it opened, as `images.open_image` gives them.
    """
    metadata = Metadata(found)
    metadata.credentials = b"jumb" in data and b"c2pa" in data
    exif, packets = b"", []
    if image is not None:
        metadata.size = image.size
    if found == "PNG":
        for place, key, value in _png_parts(data):
            if place == "exif":
                exif = exif or value
            elif place == "xmp" or key == _XMP_KEY:
                packets.append(value)
            else:
                metadata.texts.append(Text("PNG text", key, value.decode("utf-8", "replace")))
    elif found == "WebP":
        parts = dict(_webp_parts(data))
        exif, packets = parts.get(b"EXIF", b""), [parts[b"XMP "]] if b"XMP " in parts else []
    elif image is not None:
        exif = image.info.get("exif", b"") or b""
        packet = image.info.get("xmp")
        packets = [packet] if isinstance(packet, bytes) else []
        comment = image.info.get("comment")
        if isinstance(comment, bytes):
            metadata.texts.append(Text("comment", "", comment[:MAX_VALUE].decode("utf-8", "replace")))
    else:
        metadata.damaged.append(f"the {found} header cannot be read")
    _add_exif(metadata, exif, image)
    for packet in packets:
        _add_xmp(metadata, packet)
    if image is not None:
        _add_iptc(metadata, image)
    return metadata


def _inflate(data: bytes) -> bytes:
    """zlib data -> at most `MAX_VALUE` bytes; what is damaged ends it."""
    try:
        return zlib.decompressobj().decompress(data, MAX_VALUE)
    except zlib.error:
        return b""


def _png_parts(data: bytes) -> Iterator[tuple[str, str, bytes]]:
    """("text" | "exif" | "xmp", keyword, value in UTF-8) of a PNG's chunks, those behind the pixels too."""
    at = 8
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IEND":
            return
        if kind in (b"tEXt", b"zTXt", b"iTXt", b"eXIf"):
            body = data[at + 8 : at + 8 + min(length, 8 * MAX_VALUE)]
            if kind == b"eXIf":
                yield "exif", "", body
            else:
                yield _png_text(kind, body)
        at += 12 + length


def _png_text(kind: bytes, body: bytes) -> tuple[str, str, bytes]:
    keyword, _, rest = body.partition(b"\0")
    key = keyword[:79].decode("latin-1")
    if kind == b"tEXt":
        value = rest[:MAX_VALUE].decode("latin-1").encode()
    elif kind == b"zTXt":
        value = _inflate(rest[1:])
    else:
        compressed = rest[:1] == b"\1"
        text = rest[2:].split(b"\0", 2)[-1]
        value = _inflate(text) if compressed else text[:MAX_VALUE]
    if key.startswith("Raw profile type "):  # ImageMagick: a name, a length, then hexadecimal digits
        digits = b"".join(value.split()[2:])
        try:
            raw = bytes.fromhex(digits.decode("ascii"))
        except ValueError:
            return "text", key, b""
        place = {"exif": "exif", "APP1": "exif", "xmp": "xmp"}.get(key.rsplit(" ", 1)[1], "text")
        if raw.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            return "xmp", key, raw[29:]
        return (place, key, raw) if place != "text" else ("text", key, b"")
    return "text", key, value


def _webp_parts(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(FourCC, body) of the chunks of a WebP file that hold metadata."""
    at = 12
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind in (b"EXIF", b"XMP "):
            yield kind, data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def _add_exif(metadata: Metadata, block: bytes, image: Image.Image | None) -> None:
    """EXIF tags by name; of a TIFF those of the file itself."""
    try:
        if metadata.format == "TIFF" and image is not None:
            exif = image.getexif()
        elif block:
            exif = Image.Exif()
            exif.load(block)
        else:
            return
        tags: dict[int, Any] = dict(exif.items())
        tags |= dict(exif.get_ifd(IFD.Exif))
        metadata.gps = bool(exif.get_ifd(IFD.GPSInfo).get(2))
        preview = exif.get_ifd(IFD.IFD1)
    except Exception as error:  # hostile EXIF fails in many ways
        metadata.damaged.append(f"EXIF cannot be read ({type(error).__name__})")
        return
    names = {int(tag): value for tag, value in tags.items() if tag in TAGS}
    metadata.exif = {TAGS[tag]: _exif_value(TAGS[tag], value) for tag, value in names.items()}
    if block and 0x0201 in preview:
        metadata.thumbnail = _thumbnail_size(block, preview[0x0201])
    metadata.texts += [
        Text("EXIF", name, value) for name, value in metadata.exif.items() if isinstance(value, str) and value
    ]


def _exif_value(name: str, value: Any) -> Any:
    """Texts as `str`, numbers and the rest as they are."""
    if isinstance(value, str):
        return value[:MAX_VALUE].strip("\0 ")
    if not isinstance(value, bytes):
        return value
    if name.startswith("XP"):  # Windows: UTF-16, little endian
        return value[:MAX_VALUE].decode("utf-16-le", "replace").strip("\0 ")
    if name == "UserComment":
        return _user_comment(value[:MAX_VALUE])
    return value if name == "MakerNote" else value[:64].decode("latin-1").strip("\0 ")


def _user_comment(value: bytes) -> str:
    """The text after the 8 bytes that name its character code; not every program keeps to the code it names."""
    code, body = value[:8], value[8:]
    if code == b"UNICODE\0":
        if body[:2] in (b"\xfe\xff", b"\xff\xfe"):
            encoding = "utf-16"
        elif 0 not in body and _is_utf8(body):
            encoding = "utf-8"
        else:
            encoding = "utf-16-be" if body[::2].count(0) > body[1::2].count(0) else "utf-16-le"
    elif code in _CHARSETS or code == bytes(8):
        encoding = _CHARSETS.get(code, "utf-8")
    else:
        encoding, body = "utf-8", value
    return body.decode(encoding, "replace").strip("\0 ")


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _thumbnail_size(block: bytes, offset: Any) -> tuple[int, int] | None:
    """(width, height) of the JPEG preview that starts `offset` bytes into the TIFF structure of an EXIF block."""
    base = 6 if block.startswith(b"Exif\0\0") else 0
    try:
        _, _, preview = open_image(block[base + int(offset) :])
    except Exception:  # whatever stands there
        return None
    return preview.size if preview is not None else None


def _add_xmp(metadata: Metadata, packet: bytes) -> None:
    try:
        found = read_xmp(packet)
    except UnsafeXMP as error:
        metadata.damaged.append(f"XMP cannot be read ({error})")
        return
    metadata.xmp += found
    metadata.texts += [Text("XMP", p.name, p.value[:MAX_VALUE]) for p in found]


def _add_iptc(metadata: Metadata, image: ImageFile.ImageFile) -> None:
    try:
        fields = IptcImagePlugin.getiptcinfo(image) or {}
    except Exception as error:  # hostile IPTC fails in many ways
        metadata.damaged.append(f"IPTC cannot be read ({type(error).__name__})")
        return
    for (record, number), value in fields.items():
        if record == 2 and number in _IIM:
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, bytes):
                    text = item[:MAX_VALUE].decode("utf-8", "replace")
                    metadata.texts.append(Text("IPTC", _IIM[number], text))
