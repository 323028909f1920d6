"""Headers, segments and chunks of image files -> which files are refused before decoding, or cannot be decoded here.

In: a file's bytes. Out: the positions of its parts, an `ImageError`, or the reason why an intact file is not decoded.
It decodes no pixels and knows nothing of the user's limits on size.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from collections.abc import Iterator
from typing import Any

from PIL.TiffImagePlugin import ImageFileDirectory_v2

from clipmole.errors import ImageTooLarge, ImageUnreadable

SCANS = 100  # most scans of a progressive JPEG; encoders write about 10, and each costs a pass over all pixels
TILE = 2**24  # most pixels of a TIFF's tile; a larger tile may still have 4 times the image's pixels
PREVIEW_OF_RAW = "a camera's raw file, which holds only a preview as pixels; develop it, and export a JPEG or a TIFF"
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of a JPEG frame: ITU-T T.81, table B.1
_RAW_SIGNATURES = (b"IIU\0", b"IIRO", b"IIRS", b"MMOR", b"FUJIFILMCCD-RAW", b"FOVb", b"\0MRM")
_LFS = b"version https://git-lfs.github.com/spec/"
_SENSOR = {32803, 34892}  # photometric interpretations of raw pixels: a colour filter array, linear raw
# TIFF 6.0 and DNG 1.6 tags.
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR = 254, 256, 257, 258, 259, 262, 277, 284
_STRIPS, _TILES = 273, 324
_TILE_WIDTH, _TILE_HEIGHT, _SUB_DIRECTORIES, _SAMPLE_FORMAT, _DNG_VERSION = 322, 323, 330, 339, 50706


def known_as(head: bytes) -> str | None:
    """What a file is, in words, if it begins with `head` and cannot be read as an image; None if that is not known."""
    if head.startswith(_LFS):
        return "a Git LFS pointer, not the image itself; fetch it with: git lfs pull"
    if head.startswith(_RAW_SIGNATURES) or head[4:12] == b"ftypcrx ":
        return "a camera's raw file; develop it, and export a JPEG or a TIFF"
    return None


def check_header(data: bytes, found: str, name: str) -> None:
    """Raise `ImageError` if a file would be decoded to wrong pixels, or into far more memory than its size suggests.

    Args:
        data: the file's bytes.
        found: its format.
        name: of the image, for messages.
    """
    if found == "PNG" and data[12:16] == b"CgBI":
        raise ImageUnreadable(name, "a PNG in the form of iOS applications is not supported; export it as plain PNG")
    if found == "TIFF":
        with contextlib.suppress(*_BROKEN):  # the decoder reports the damage
            _check_tiff(data, name)


def unsupported(data: bytes, found: str, error: BaseException) -> str | None:
    """The kind of file that a decoder refused because it does not know that kind; None if the file is damaged.

    Args:
        data: the file's bytes.
        found: its format.
        error: the error that the decoder raised.
    """
    with contextlib.suppress(*_BROKEN):
        if found == "JPEG":
            return _unsupported_jpeg(data)
        # Pillow raises these for a kind of TIFF that it cannot read.
        if found == "TIFF" and isinstance(error, KeyError | SyntaxError):
            tags = next(_directories(data))
            if max(_numbers(tags, _STRIPS) or _numbers(tags, _TILES)) >= len(data):
                return None  # it was cut
            bits = " + ".join(str(each) for each in _numbers(tags, _BITS, 1))
            kinds = ("compression", _COMPRESSION, 1), ("photometric", _PHOTOMETRIC, 0), ("format", _SAMPLE_FORMAT, 1)
            rest = ", ".join(f"{kind} {_numbers(tags, tag, default)[0]}" for kind, tag, default in kinds)
            return f"a TIFF of {bits} bits per pixel ({rest})"
    message = str(error)
    if found == "BMP" and message.startswith("Unsupported "):
        return f"a BMP file: {message.removeprefix('Unsupported ')}"
    return None


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of each segment before the pixels of a JPEG; the offsets are those of its content."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in (0xD9, 0xDA):  # the end, or pixels
            return
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # no content
            at += 2
            continue
        length = struct.unpack_from(">H", data, at + 2)[0]
        yield marker, at + 4, min(at + 2 + length, len(data))
        at += 2 + max(length, 2)


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of each chunk of a PNG; the offsets are those of its content, which 4 bytes of CRC-32 follow.

    The end of the last chunk lies beyond `data` if the file is cut.
    """
    at = 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, at + 8, at + 8 + length
        at += 12 + length


def check_jpeg(data: bytes, scan: int, name: str) -> None:
    """Raise if a JPEG has no end-of-image marker, or too many scans.

    libjpeg makes pixels of any bytes, and a download that reserved its space and then stopped leaves zeros. Inside
    entropy-coded data 0xFF is always followed by 0 or by a restart marker, so FF D9 is the end.

    Args:
        data: the file's bytes.
        scan: offset at which entropy-coded data begin.
        name: of the image, for messages.

    Raises `EOFError` without the marker, `ImageTooLarge` for too many scans.
    """
    end = data.find(b"\xff\xd9", scan)
    if end < 0:
        raise EOFError("no end-of-image marker")
    scans = 1 + data.count(b"\xff\xda", scan, end)
    if scans > SCANS:
        raise ImageTooLarge(name, f"a JPEG of {scans:,} scans, which would take long to decode; export it again")


# What reading the directories of a damaged TIFF raises.
_BROKEN = (OSError, SyntaxError, LookupError, ValueError, TypeError, struct.error, OverflowError, StopIteration)


def _unsupported_jpeg(data: bytes) -> str | None:
    for marker, start, end in jpeg_segments(data):
        if marker in FRAMES and start < end:
            if data[start] != 8:
                return f"a JPEG of {data[start]} bits a channel"
            if marker not in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA):
                return f"a JPEG of process {marker - 0xC0}, lossless or hierarchical"
    return None


def _directories(data: bytes) -> Iterator[ImageFileDirectory_v2]:
    """The first directory of a TIFF, and the first eight of its subdirectories."""
    head = data[:16] if data[2:3] == b"+" or data[3:4] == b"+" else data[:8]  # of a BigTIFF
    file = io.BytesIO(data)

    def at(offset: int) -> ImageFileDirectory_v2:
        directory = ImageFileDirectory_v2(head)
        file.seek(offset)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            directory.load(file)
        return directory

    first = at(ImageFileDirectory_v2(head).next)
    yield first
    for offset in _numbers(first, _SUB_DIRECTORIES)[:8]:
        yield at(offset)


def _numbers(tags: ImageFileDirectory_v2, tag: int, *default: int) -> tuple[int, ...]:
    """The integers of a tag, or `default` if the tag is not there."""
    value: Any = tags.get(tag, default)
    return tuple(int(each) for each in value) if isinstance(value, tuple) else (int(value),)


def _check_tiff(data: bytes, name: str) -> None:
    problem = None
    directories = _directories(data)
    tags = next(directories)
    bits, samples = _numbers(tags, _BITS, 1), _numbers(tags, _SAMPLES, 1)[0]
    if _is_raw(data, tags, directories):
        problem = PREVIEW_OF_RAW
    elif max(bits) > 8 and samples > 1 and _numbers(tags, _PLANAR, 1)[0] == 2:
        kind = f"a TIFF of {max(bits)} bits with its channels in separate planes"
        problem = f"{kind} is not supported; export it interleaved, or with 8 bits"
    elif 2 in _numbers(tags, _SAMPLE_FORMAT, 1):
        problem = "a TIFF of signed values, which have no fixed range; export it with 8 or 16 bits unsigned"
    if problem is not None:
        raise ImageUnreadable(name, problem)
    if _TILE_WIDTH in tags:
        width, height = _numbers(tags, _TILE_WIDTH)[0], _numbers(tags, _TILE_HEIGHT, 0)[0]
        whole = _numbers(tags, _WIDTH, 0)[0] * _numbers(tags, _HEIGHT, 0)[0]
        if width * height > max(TILE, 4 * whole):
            size = f"{width:,} x {height:,} pixels, far larger than the image"
            raise ImageTooLarge(name, f"a TIFF with tiles of {size}; export it again")


def _is_raw(data: bytes, first: ImageFileDirectory_v2, below: Iterator[ImageFileDirectory_v2]) -> bool:
    """Whether a TIFF is a camera's raw file (DNG, NEF, CR2, ARW, ...), of which a preview at most can be read.

    Args:
        data: the file's bytes.
        first: its first directory.
        below: the subdirectories.
    """
    if _DNG_VERSION in first or data[8:10] == b"CR" or _numbers(first, _PHOTOMETRIC, 0)[0] in _SENSOR:
        return True
    if _SUB_DIRECTORIES not in first:
        return False
    reduced = bool(_numbers(first, _SUBFILE, 0)[0] & 1)
    return reduced or any(_numbers(each, _PHOTOMETRIC, 0)[0] in _SENSOR for each in below)
