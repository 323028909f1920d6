"""The first bytes of a file -> its format, its reader, and whether the file is complete.

In: bytes. Out: names of formats, Pillow's readers, and errors for cut or damaged files that Pillow would accept. It
knows nothing of limits, of pixels or of how an image is converted.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import struct
import zlib
from collections.abc import Callable

from PIL import Image, ImageFile, ImagePalette
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from clipmole.errors import ImageUnreadable
from clipmole.images.headers import check_jpeg, png_chunks

try:
    from PIL.AvifImagePlugin import SUPPORTED as AVIF_SUPPORTED  # Pillow 11.3 and later, if built with libavif
except ImportError:
    AVIF_SUPPORTED = False

HEIF_INSTALLED = importlib.util.find_spec("pillow_heif") is not None

# Extensions of the files that can be decoded here, in lower case, with the dot.
IMAGE_EXTENSIONS: frozenset[str] = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".tif", ".tiff", ".bmp"}
    | ({".avif"} if AVIF_SUPPORTED else set())
    | ({".heic", ".heif", ".hif"} if HEIF_INSTALLED else set())
)
FORMATS = "JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, HEIC"
_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),  # BigTIFF
    (b"MM\0+", "TIFF"),
)
_READERS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WebP": WebPImageFile,
    "GIF": GifImageFile,
    "TIFF": TiffImageFile,
    "BMP": BmpImageFile,
}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
HEAD = 64  # bytes from which the format is told
ORIENTATION = 0x0112  # EXIF and TIFF tag
MAX_PROFILE = 2**20  # most bytes of metadata that are searched for an orientation


def has_image_extension(name: str) -> bool:
    """Whether a file's name or path has the extension of an image, in any case."""
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def image_format(data: bytes) -> str | None:
    """The format that the first `HEAD` bytes of a file show, such as "JPEG"; None if clipmole does not read it."""
    head = data[:HEAD]
    for signature, found in _SIGNATURES:
        if head.startswith(signature):
            return found
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp":  # ISO 14496-12: major brand, minor version, compatible brands
        end = min(int.from_bytes(head[:4], "big"), len(head))
        brands = {head[8:12], *(head[at : at + 4] for at in range(16, end, 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & _HEIC_BRANDS:
            return "HEIC"
    return None


def reader_of(found: str, name: str) -> Callable[[io.BytesIO], ImageFile.ImageFile]:
    """The class that reads a format. No others are used: no vector formats, and so no Ghostscript.

    Args:
        found: a result of `image_format`.
        name: of the image, for messages.

    Raises `ImageUnreadable` if the library for the format is not installed.
    """
    if found == "AVIF":
        if not AVIF_SUPPORTED:
            raise ImageUnreadable(name, "AVIF needs a newer Pillow; run: pip install -U pillow")
        from PIL.AvifImagePlugin import AvifImageFile

        return AvifImageFile
    if found == "HEIC":
        if not HEIF_INSTALLED:
            raise ImageUnreadable(name, "HEIC needs pillow-heif; in clipmole's folder, run: pip install -e '.[heif]'")
        import pillow_heif

        heif: Callable[[io.BytesIO], ImageFile.ImageFile] = pillow_heif.HeifImageFile
        return heif
    return _READERS[found]


def check_whole(data: bytes, image: ImageFile.ImageFile, scan: int, name: str) -> None:
    """Raise if a file ends early or is damaged in a way that Pillow would not notice, or would read wrongly.

    Args:
        data: the file's bytes.
        image: the file as the format's reader opened it; not decoded yet.
        scan: offset that the reader has reached.
        name: of the image, for messages.
    """
    if isinstance(image, JpegImageFile):
        check_jpeg(data, scan, name)
    elif isinstance(image, PngImageFile):
        key_is_8_bit = image.mode == "P" or image.tile[0][3] in ("L", "RGB")
        if "transparency" in image.info and not key_is_8_bit:  # Pillow compares it with the scaled values
            raise ImageUnreadable(
                name, "a PNG that is not 8-bit and names a transparent colour; export it with an alpha channel"
            )
    elif isinstance(image, TiffImageFile):
        _prepare_tiff(image, name)


def without_metadata(data: bytes) -> tuple[bytes, dict[str, bytes]]:
    """A PNG file with only the chunks that hold its pixels; and its EXIF and XMP, for the orientation.

    So a profile or text, however large or damaged, cannot keep the pixels from being read. Raises an error unless
    every chunk is there, down to IEND, and the chunks of the pixels have the right checksums, which Pillow does not
    compare.
    """
    view = memoryview(data)
    parts, found = [view[:8]], dict[str, bytes]()
    for kind, start, end in png_chunks(data):
        (checksum,) = struct.unpack_from(">I", data, end)
        if kind == b"tRNS" or not kind[0] & 0x20:  # a small first letter: a decoder may ignore the chunk
            if zlib.crc32(view[start - 4 : end]) != checksum:
                raise ValueError(f"wrong checksum at byte {start - 8}")
            parts.append(view[start - 8 : end + 4])
        elif kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
            found |= _orienting(kind, view[start:end])
        if kind == b"IEND":
            return b"".join(parts), found
    raise EOFError("no IEND chunk")


def _orienting(kind: bytes, content: memoryview) -> dict[str, bytes]:
    """The EXIF block or XMP packet in a chunk of a PNG, under the name that Pillow gives it; {} if it holds neither."""
    if kind == b"eXIf":
        return {"exif": b"Exif\0\0" + content}
    keyword = bytes(content[:80]).partition(b"\0")[0]
    text = bytes(content[len(keyword) + 1 :])
    if kind == b"iTXt" and keyword == b"XML:com.adobe.xmp":
        packet = text[2:].split(b"\0", 2)[-1]  # after a flag, a method, a language and the translated keyword
        return {"xmp": _inflated(packet) if text[:1] == b"\1" else packet}
    # ImageMagick writes EXIF as a text of hexadecimal digits.
    if kind != b"iTXt" and keyword in (b"Raw profile type exif", b"Raw profile type APP1"):
        with contextlib.suppress(ValueError):
            profile = _inflated(text[1:]) if kind == b"zTXt" else text
            return {"exif": bytes.fromhex("".join(profile.decode("latin-1").split("\n")[3:]))}
    return {}


def _inflated(packed: bytes) -> bytes:
    """The first `MAX_PROFILE` bytes of what zlib packed; empty if the data are damaged."""
    try:
        return zlib.decompressobj().decompress(packed, MAX_PROFILE)
    except zlib.error:
        return b""


def _prepare_tiff(image: TiffImageFile, name: str) -> None:
    """Refuse a TIFF that Pillow would read wrongly, and allocate its pixels.

    Pillow then does not compare their number with `Image.MAX_IMAGE_PIXELS`, a limit of the whole process.
    """
    orientation = image.tag_v2.get(ORIENTATION)
    size = image.size[::-1] if orientation in (5, 6, 7, 8) else image.size  # as stored
    bits, photometric = image.tag_v2.get(258), image.tag_v2.get(262)
    if image.mode.startswith("I;16") and bits != (16,):
        told = " + ".join(map(str, bits or (1,)))
        raise ImageUnreadable(name, f"a TIFF of {told} bits per pixel is not supported; export it with 8 or 16 bits")
    if image.mode.startswith("I;16") and photometric != 1:
        raise ImageUnreadable(name, f"a TIFF of 16 bits, photometric {photometric}; export it as 16-bit grey")
    if max(tile[1][3] for tile in image.tile if tile[1]) < size[1]:
        raise EOFError("strips of pixels are missing")
    colours = image.tag_v2.get(320)  # the palette: values of 16 bits, but some programs write 8
    if image.mode in ("P", "PA") and colours and max(colours) < 256:
        image.palette = ImagePalette.raw("RGB;L", colours)
    image.im = Image.new(image.mode, size).im
