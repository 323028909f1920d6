"""One image file -> facts of its header, and a rough impression of its content.

In: a sample. Out: `FileFacts`: format, size, JPEG tables, digests, or why it cannot be read. It keeps no pixels except
a thumbnail, and compares nothing.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmole.data.reading import read_checked
from clipmole.data.sample import Sample
from clipmole.images.dct import dct_matrix

THUMBNAIL = 16  # pixels of an edge
HASHED = 32  # pixels of the edge that the perceptual hash looks at
# Luminance table of quality 50, in rows (ITU-T T.81, table K.1).
LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
).ravel()


@dataclass(frozen=True)
class FileFacts:
    """Facts of one file.

    Attributes:
        sha256: of its bytes; "" if they cannot be read.
        size: number of bytes.
        problem: why it cannot be read; "" if it can, and then the rest is known.
        format: "JPEG", "PNG", "WebP lossless", ...
        width, height: as stored, pixels.
        tables: JPEG quantisation tables in rows, (64,) each; () of other formats.
        subsampling: JPEG chroma subsampling, 0: 4:4:4, 1: 4:2:2, 2: 4:2:0; -1: other or no JPEG.
        phash: perceptual hash of 64 bits; None where the image is too even to have one.
        thumbnail: (256,) uint8, grey.
    """

    sha256: str
    size: int
    problem: str = ""
    format: str = ""
    width: int = 0
    height: int = 0
    tables: tuple[tuple[int, ...], ...] = ()
    subsampling: int = -1
    phash: int | None = None
    thumbnail: bytes = b""

    @property
    def quality(self) -> int | None:
        """JPEG quality on libjpeg's scale, the nearest by the luminance table; None of other formats."""
        return jpeg_quality(self.tables[0]) if self.tables else None


def file_facts(sample: Sample) -> FileFacts:
    """Read and decode a sample's image once."""
    data, image, problem = read_checked(sample)
    if data is None:
        return FileFacts("", 0, problem)
    sha256 = hashlib.sha256(data).hexdigest()
    if image is None:
        return FileFacts(sha256, len(data), problem)
    phash, thumbnail = hash_and_thumbnail(image)
    kind, size, tables, subsampling = _header(data, image)
    return FileFacts(sha256, len(data), "", kind, *size, tables, subsampling, phash, thumbnail)


def hash_and_thumbnail(image: Image.Image) -> tuple[int | None, bytes]:
    """Perceptual hash (None for an even image) and thumbnail of an RGB image."""
    grey = image.convert("L")
    small = np.asarray(grey.resize((HASHED, HASHED), Image.Resampling.BOX), dtype=np.float64)
    return perceptual_hash(small), grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX).tobytes()


def _header(data: bytes, decoded: Image.Image) -> tuple[str, tuple[int, int], tuple[tuple[int, ...], ...], int]:
    """Format, size as stored, JPEG tables and subsampling."""
    try:
        opened = Image.open(io.BytesIO(data))
    except Exception:  # of a format that only another library opens
        return "HEIC" if data[4:8] == b"ftyp" else "other", decoded.size, (), -1
    with opened:
        kind = {"MPO": "JPEG", "WEBP": "WebP lossless" if b"VP8L" in data[:64] else "WebP"}.get(
            opened.format or "", opened.format or "other"
        )
        found = getattr(opened, "quantization", None) or {}
        tables = tuple(tuple(int(value) for value in found[key]) for key in sorted(found)) if kind == "JPEG" else ()
        subsampling = -1
        if kind == "JPEG":
            from PIL import JpegImagePlugin

            subsampling = JpegImagePlugin.get_sampling(opened)
        return kind, opened.size, tables, subsampling


@cache
def _scaled_tables() -> NDArray[np.int64]:
    """(100, 64): libjpeg's luminance tables of the qualities 1 to 100 (jcparam.c, jpeg_quality_scaling)."""
    scale = np.array([5000 // quality if quality < 50 else 200 - 2 * quality for quality in range(1, 101)])
    tables: NDArray[np.int64] = np.clip((scale[:, None] * LUMINANCE + 50) // 100, 1, 255)
    return tables


def jpeg_quality(luminance: tuple[int, ...]) -> int:
    """Quality, 1 to 100, whose table is nearest in the mean absolute difference; exact for libjpeg's own tables."""
    distance = np.abs(_scaled_tables() - np.array(luminance)).sum(axis=1)
    return int(100 - np.argmin(distance[::-1]))  # of equally near ones the highest


@cache
def _cosines() -> NDArray[np.float64]:
    """(8, 32): the lowest rows of the DCT-II, each of amplitude 1; another scale would change stored hashes."""
    rows = 4 * dct_matrix(HASHED)[:8]  # exact: the matrix has sqrt(2 / 32) = 1 / 4 before the cosines
    rows[0] = 1
    return rows


def perceptual_hash(grey: NDArray[np.float64]) -> int | None:
    """pHash of a (32, 32) image: signs of its 8 x 8 lowest DCT coefficients against their median (Zauner 2010).

    None where the standard deviation is under 4 of 255: of an even image the signs are noise.
    """
    if grey.std() < 4:
        return None
    low = (_cosines() @ grey @ _cosines().T).ravel()
    bits = low > np.median(low[1:])
    return int(np.packbits(bits).view(">u8")[0])
