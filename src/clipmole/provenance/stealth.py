"""Text hidden in the lowest bits of an image's alpha channel ("stealth PNG info"), as NovelAI and others leave it.

In: the bytes of a PNG or WebP file. Out: the hidden text. The pixels are decoded for this, and only their alpha is
looked at. It knows nothing of what the text means.

Source: ashen-sensored/sd_webui_stealth_pnginfo. There is one bit per pixel, column by column from the upper left, the
highest bit of each byte first. The bits are a mark of 15 characters, the number of bits of the text as 32 bits, and the
text in UTF-8, plain or packed by gzip.
"""

from __future__ import annotations

import io
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile
from PIL.PngImagePlugin import PngImageFile

from clipmole.images.headers import png_chunks
from clipmole.provenance.budget import Budget

MAX_PIXELS = 2**26  # of an image that is decoded for this; it takes 256 MiB
PLACE = "alpha bits"
_PLAIN, _PACKED = b"stealth_pnginfo", b"stealth_pngcomp"
_HEAD = 8 * len(_PLAIN) + 32  # bits before the text
_GZIP = 31  # zlib's number for that format
_PIXEL_CHUNKS = (b"IHDR", b"IDAT", b"IEND")


def has_alpha(data: bytes, image: ImageFile.ImageFile | None) -> bool:
    """Whether a PNG or WebP file has an alpha channel of 8 bits.

    Args:
        data: the file's bytes.
        image: a WebP file, opened by Pillow; None for a PNG.
    """
    return image.mode == "RGBA" if image is not None else data[24:26] == b"\x08\x06"  # IHDR: bit depth, colour type


def hidden_text(data: bytes, image: ImageFile.ImageFile | None, budget: Budget) -> str:
    """The hidden text; "" if there is none, if it is too long, or if the pixels cannot be decoded.

    Args:
        data, image: as in `has_alpha`.
        budget: how much may still be read.
    """
    try:
        opened = image if image is not None else PngImageFile(io.BytesIO(_pixels_alone(data)))
        alpha = np.asarray(opened.getchannel("A"), dtype=np.uint8)
    except Exception:  # hostile bytes fail in many ways
        return ""
    head = _bits(alpha, 0, _HEAD)
    if head is None or head[:-4] not in (_PLAIN, _PACKED):
        return ""
    (n_bits,) = struct.unpack(">I", head[-4:])
    if head[:-4] == _PLAIN and not budget.admits(n_bits // 8, PLACE):
        return ""
    content = _bits(alpha, _HEAD, n_bits - n_bits % 8) or b""
    if head[:-4] == _PACKED:
        content = budget.inflated(content, PLACE, _GZIP) or b""
    return content.decode("utf-8", "replace")


def _bits(alpha: NDArray[np.uint8], start: int, n: int) -> bytes | None:
    """The lowest bits of `n` pixels, the first of them number `start` column by column, as bytes.

    None if the image has fewer pixels.
    """
    height = alpha.shape[0]
    if start + n > alpha.size:
        return None
    first, last = start // height, -(-(start + n) // height)
    bits = alpha[:, first:last].T.ravel()[start - first * height :][:n] & 1
    return np.packbits(bits).tobytes()


def _pixels_alone(data: bytes) -> bytes:
    """A PNG with only the chunks of its pixels, so that its texts are not decompressed a second time."""
    chunks = [data[start - 8 : end + 4] for kind, start, end in png_chunks(data) if kind in _PIXEL_CHUNKS]
    return b"".join([data[:8], *chunks])
