"""The first bytes of a file -> its format, what reads it, and whether the file is whole.

In: bytes. Out: names of formats, Pillow's readers, and errors for files that are cut or damaged where Pillow would say
nothing. It knows nothing of limits, of pixels or of what an image is turned into.
"""

from __future__ import annotations

import importlib.util
import io
import struct
import zlib
from collections.abc import Callable

from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from clipmole.errors import ImageUnreadable

try:
    from PIL.AvifImagePlugin import SUPPORTED as _AVIF  # Pillow 11.3 and later, if built with libavif
except ImportError:
    _AVIF = False

_HEIF = importlib.util.find_spec("pillow_heif") is not None

IMAGE_EXTENSIONS: frozenset[str] = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".tif", ".tiff", ".bmp"}
    | ({".avif"} if _AVIF else set())
    | ({".heic", ".heif", ".hif"} if _HEIF else set())
)
"""Lower-case endings, with the dot, of the files that can be decoded here."""

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
HEAD = 64  # bytes that tell the format
ORIENTATION = 0x0112  # EXIF and TIFF tag


def image_format(data: bytes) -> str | None:
    """The format whose signature a file's first bytes carry, such as "JPEG"; None: none that is read."""
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
    """The class that reads a format: these few and no other, so no Ghostscript and no vector format."""
    if found == "AVIF":
        if not _AVIF:
            raise ImageUnreadable(name, "AVIF needs a newer Pillow; it comes with: pip install -U pillow")
        from PIL.AvifImagePlugin import AvifImageFile

        return AvifImageFile
    if found == "HEIC":
        if not _HEIF:
            raise ImageUnreadable(name, "HEIC needs pillow-heif; it comes with: pip install 'clipmole[heif]'")
        import pillow_heif

        heif: Callable[[io.BytesIO], ImageFile.ImageFile] = pillow_heif.HeifImageFile
        return heif
    return _READERS[found]


def check_whole(data: bytes, image: ImageFile.ImageFile, scan: int, name: str) -> None:
    """Raise if a file's bytes end early or are damaged in a way that Pillow would not see, or would read wrongly.

    Args:
        image: what the format's reader opened of them; not decoded yet.
        scan: offset that the reader has come to.
    """
    if isinstance(image, JpegImageFile):
        check_jpeg(data, scan)
    elif isinstance(image, PngImageFile):
        _check_png(data, image, name)
    elif isinstance(image, TiffImageFile):
        _prepare_tiff(image, name)


def check_jpeg(data: bytes, scan: int) -> None:
    """Raise if no end-of-image marker follows `scan`, the offset where entropy-coded data begin.

    libjpeg makes pixels of whatever stands there; a download that reserved its space and stopped leaves
    zeros. Inside entropy-coded data 0xFF is always followed by 0 or a restart marker, so FF D9 is the end.
    """
    if data.find(b"\xff\xd9", scan) < 0:
        raise EOFError("no end-of-image marker")


def _check_png(data: bytes, image: PngImageFile, name: str) -> None:
    """Raise unless every chunk is whole, down to IEND: Pillow does not compare the checksums of pixel data."""
    view, at, kind = memoryview(data), 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        (checksum,) = struct.unpack_from(">I", data, at + 8 + length)
        if zlib.crc32(view[at + 4 : at + 8 + length]) != checksum:
            raise ValueError(f"wrong checksum at byte {at}")
        at += 12 + length
    key_is_8_bit = image.mode == "P" or image.tile[0][3] in ("L", "RGB")
    if "transparency" in image.info and not key_is_8_bit:  # Pillow compares it with the scaled values
        raise ImageUnreadable(
            name, "a PNG that is not 8-bit and names a transparent colour; export it with an alpha channel"
        )


def _prepare_tiff(image: TiffImageFile, name: str) -> None:
    """Refuse what Pillow would read wrongly, and make room for the pixels, which Pillow then need not check."""
    orientation = image.tag_v2.get(ORIENTATION)
    size = image.size[::-1] if orientation in (5, 6, 7, 8) else image.size  # as stored
    bits, photometric = image.tag_v2.get(258), image.tag_v2.get(262)
    if image.mode.startswith("I;16") and (bits != (16,) or photometric != 1):
        raise ImageUnreadable(name, f"a TIFF of {bits} bits, photometric {photometric}; export it as 16-bit grey")
    if max(tile[1][3] for tile in image.tile if tile[1]) < size[1]:
        raise EOFError("strips of pixels are missing")
    image.im = Image.new(image.mode, size).im  # else load() compares with Image.MAX_IMAGE_PIXELS
