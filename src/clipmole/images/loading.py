"""A file, its bytes, a PIL image or an array -> one whole, upright RGB image.

In: anything in `ImageSource`. Out: a decoded `PIL.Image.Image` of mode "RGB". Any problem is an `ImageError` of one
line; nothing is repaired, resized or guessed. It knows nothing of crops, tensors or models.

What the pixels are:
- The values are those that are stored. ICC profiles are not applied: a colour transform would rewrite the low bits,
  which are the evidence, and the published detectors were trained without it.
- The EXIF orientation is applied, for PIL images too: `Image.open(path)` and `path` give the same pixels. A
  PIL image without the tag is taken as it is. An EXIF block that cannot be parsed counts as no orientation.
- Animated files give their first frame (a PIL image: its current frame).
- A transparent image is laid over white, as on a page. Dropping alpha instead would show hidden colours, often black.
  Opaque pixels keep their exact values.
- 16-bit channels keep their upper 8 bits (v >> 8), in files and arrays alike. Pillow's own conversion of
  16-bit grey clips at 255, which makes almost everything white.

What cannot be seen: only PNG (and deflated TIFF) carries checksums, and those are compared. libjpeg fills in
damaged entropy-coded data with a warning that Pillow does not pass on, so bytes changed in the middle of a
JPEG are noticed only if they break its structure; the same holds for WebP, AVIF, GIF, BMP and other TIFF. A file
that was cut is refused in every format, as is a JPEG whose tail was never written, even in a process
where somebody has set `ImageFile.LOAD_TRUNCATED_IMAGES`. The limits bound memory, not the time to decode.

Memory: the file and one decoded image (Pillow holds RGB in 4 bytes per pixel); two images if it has to be turned or
converted, or is a progressive JPEG; three for 16-bit grey; four for WebP, whose decoder keeps one of its own. Safe to
use from many threads: no global variable of Pillow is set, and only its reader of WebP obeys `Image.MAX_IMAGE_PIXELS`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from clipmole.errors import ImageError, ImageNotFound, ImageNotRead, ImageTooLarge, ImageUnreadable
from clipmole.images import fast_jpeg
from clipmole.images.formats import (
    FORMATS,
    HEAD,
    ORIENTATION,
    check_whole,
    image_format,
    reader_of,
    without_metadata,
)
from clipmole.images.headers import check_header, check_jpeg, known_as, unsupported
from clipmole.plumbing.text import escaped, first_line

ImageSource = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]


@dataclass(frozen=True)
class ImageLimits:
    """Limits on one image, checked before anything of that size is read or decoded.

    Attributes:
        max_bytes: of the file. The default, 1 GiB, admits an uncompressed 30,000 x 6,000 image with alpha.
        max_pixels: width x height. The default admits a 30,000 x 6,000 panorama and the largest phone
            photos (16,320 x 12,240) and bounds one decoded image to 0.8 GB.
    """

    max_bytes: int = 2**30
    max_pixels: int = 200_000_000


DEFAULT_LIMITS = ImageLimits()

_TURNS = {  # EXIF 2.32, table 5: how to turn the stored image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The same for arrays (H, W, 3), as views.
_TURNED: defaultdict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = defaultdict(
    lambda: lambda pixels: pixels,
    {
        2: lambda pixels: pixels[:, ::-1],
        3: lambda pixels: pixels[::-1, ::-1],
        4: lambda pixels: pixels[::-1],
        5: lambda pixels: pixels.swapaxes(0, 1),
        6: lambda pixels: pixels.swapaxes(0, 1)[:, ::-1],
        7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
        8: lambda pixels: pixels.swapaxes(0, 1)[::-1],
    },
)
# Errors of the system that speak of the path or of permissions, not of a disk or a network.
_NO_SUCH_PATH = {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
_XMP_ORIENTATION = re.compile(rb"""tiff:Orientation(?:\s*=\s*["']|>)\s*([1-8])""")


def source_name(source: ImageSource) -> str:
    """The name of `source` in a message or a table: the path, `escaped`, or "<bytes>", "<array>" or "<image>"."""
    if isinstance(source, str | os.PathLike):
        return escaped(os.fsdecode(source)) or "''"
    if isinstance(source, bytes):
        return "<bytes>"
    return "<image>" if isinstance(source, Image.Image) else "<array>"


def load_image(source: ImageSource, *, name: str | None = None, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Decode `source` completely: upright, first frame, mode "RGB".

    Args:
        source: a path, the bytes of a file, a PIL image, or an array: uint8 or uint16 (16-bit values, >> 8)
            of shape (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA.
        name: for messages, `escaped` if others chose it; None: `source_name(source)`.
        limits: the largest file and image to admit.

    Returns:
        The image. A PIL image that is already RGB and upright is returned itself, not copied.

    Raises:
        ImageNotFound: there is no such file, or it may not be read.
        ImageNotRead: a disk or a network failed to deliver the file.
        ImageUnreadable: empty, truncated, damaged, or not an image of a supported format.
        ImageTooLarge: over `limits`.
        TypeError: `source` is none of the above kinds.
    """
    if not isinstance(source, str | os.PathLike | bytes | Image.Image | np.ndarray):
        raise TypeError(
            f"an image is a path, bytes, a PIL image or a numpy array, not {type(source).__name__}; "
            "of an open file give file.read(), of a tensor give tensor.numpy()"
        )
    name = source_name(source) if name is None else name
    if isinstance(source, Image.Image):
        image = source
        _check_pixels(image.size, name, limits)
        with _decoding(name, image.format or "image"):
            image.load()
    elif isinstance(source, np.ndarray):
        image = _from_array(source, name, limits)
    else:
        image = _decode(source if isinstance(source, bytes) else _read(source, name, limits), name, limits)
    turn = _TURNS.get(_orientation(image))
    with _decoding(name, f"{image.mode} image"):
        image = _to_rgb(image, name)
        if turn is not None:
            image = image.transpose(turn)
            image.info.clear()  # of our own copy; its orientation must not be applied a second time
    return image


def load_pixels(
    source: ImageSource, *, name: str | None = None, limits: ImageLimits = DEFAULT_LIMITS
) -> Image.Image | NDArray[np.uint8]:
    """The image of `load_image`, or the same pixels as an array (H, W, 3) uint8 if that is faster.

    It is faster for an RGB JPEG if `clipmole[fast]` is installed; the array may be a rotated view. Arguments and errors
    are those of `load_image`.
    """
    if not isinstance(source, str | os.PathLike | bytes):
        return load_image(source, name=name, limits=limits)
    name = source_name(source) if name is None else name
    data = source if isinstance(source, bytes) else _read(source, name, limits)
    pixels = _jpeg_pixels(data, name, limits) if image_format(data) == "JPEG" else None
    return load_image(data, name=name, limits=limits) if pixels is None else pixels


def _jpeg_pixels(data: bytes, name: str, limits: ImageLimits) -> NDArray[np.uint8] | None:
    """Upright pixels of an RGB JPEG; None if Pillow has to decode it. Its header is checked as always."""
    if len(data) > limits.max_bytes:
        raise _too_many_bytes(len(data), name, limits)
    with _decoding(name, "JPEG", data), _Stream(data) as stream:
        image = JpegImageFile(stream)
        _check_pixels(image.size, name, limits)
        check_jpeg(data, stream.tell(), name)
        pixels = fast_jpeg.decode(data, *image.size) if image.mode == "RGB" else None
        return None if pixels is None else _TURNED[_orientation(image)](pixels)


def _read(path: str | os.PathLike[str], name: str, limits: ImageLimits) -> bytes:
    """The bytes of a regular file; only its first ones if they show no known format, and `_decode` then refuses it."""

    def without_waiting(file: str, flags: int) -> int:  # a FIFO must not block
        return os.open(file, flags | getattr(os, "O_NONBLOCK", 0))

    try:
        with open(path, "rb", opener=without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageUnreadable(name, "is a device or a pipe; save its content to a file first")
            if status.st_size > limits.max_bytes:
                raise _too_many_bytes(status.st_size, name, limits)
            head = file.read(HEAD)
            if image_format(head) is None:
                return head
            file.seek(0)
            return file.read()
    except IsADirectoryError as error:
        raise ImageUnreadable(name, "is a folder; give one of the images in it") from error
    except FileNotFoundError as error:
        cure = "URLs are not fetched, download it first" if "://" in name else "check the path"
        raise ImageNotFound(name, f"no such file; {cure}") from error
    except OSError as error:
        kind = ImageNotFound if error.errno in _NO_SUCH_PATH else ImageNotRead
        raise kind(name, f"cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL, or characters that the file system does not allow
        raise ImageNotFound(name, "no file can have this name; check the path") from error


class _Stream(io.BytesIO):
    """A file in memory that raises an error if it is read past its end while pixels are being decoded.

    Pillow itself refuses a file that ends early, unless somebody has set `ImageFile.LOAD_TRUNCATED_IMAGES` in the
    process; here it is refused even then.
    """

    decoding = False

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if self.decoding and not data and size != 0:
            raise EOFError("the data end early")
        return data


def _admitted(data: bytes, name: str, limits: ImageLimits) -> str:
    """The format of a file's bytes. Raises `ImageError` if there are none or too many, or if they are not an image."""
    if not data:
        raise ImageUnreadable(name, "is empty (0 bytes); fetch or export it again")
    if len(data) > limits.max_bytes:
        raise _too_many_bytes(len(data), name, limits)
    found = image_format(data)
    if found is None:
        raise ImageUnreadable(name, known_as(data[:HEAD]) or f"not an image format clipmole reads ({FORMATS})")
    return found


def _decode(data: bytes, name: str, limits: ImageLimits) -> Image.Image:
    """The first frame of a file's bytes, in the mode and orientation it is stored in."""
    found = _admitted(data, name, limits)
    reader = reader_of(found, name)
    check_header(data, found, name)
    with _decoding(name, found, data):
        pixels, oriented = without_metadata(data) if found == "PNG" else (data, {})
        with _Stream(pixels) as stream:
            # Not Image.open: it warns above Image.MAX_IMAGE_PIXELS and refuses above twice that, a global variable
            # that is smaller than our limit and cannot be changed for one thread alone.
            image = reader(stream)
            _check_pixels(image.size, name, limits)
            check_whole(pixels, image, stream.tell(), name)
            if isinstance(image, TiffImageFile):
                oriented = _xmp_of_tiff(image)
            stream.decoding = True
            image.load()
    image.info.update(oriented.items())
    return image


def _from_array(array: NDArray[Any], name: str, limits: ImageLimits) -> Image.Image:
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise ImageUnreadable(
            name,
            f"values of type {array.dtype}; give uint8 (0..255) or uint16 (0..65535), for instance "
            "(array * 255).round().astype('uint8') if they run from 0 to 1",
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageUnreadable(
            name,
            f"an array of shape {array.shape}; give (height, width) or (height, width, channels) with 1, 3 or "
            "4 channels: array.transpose(1, 2, 0) moves the channels last, array[0] takes one of a batch",
        )
    if array.size == 0:
        raise ImageUnreadable(name, f"an array of shape {array.shape} has no pixels; check how it was cut")
    _check_pixels((array.shape[1], array.shape[0]), name, limits)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype.itemsize == 2:
        array = (array >> 8).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array))


def _orientation(image: Image.Image) -> int:
    """The orientation in EXIF or, without one there, in XMP: 1..8; 1 if there is none or it cannot be parsed."""
    with contextlib.suppress(Exception):  # hostile EXIF fails in many ways, and the pixels do not need it
        value = image.getexif().get(ORIENTATION)
        if isinstance(value, int):
            return value
    packet = image.info.get("XML:com.adobe.xmp") or b""
    if not packet and not isinstance(image, TiffImageFile):  # Pillow has already turned it
        packet = image.info.get("xmp") or b""
    stated = _XMP_ORIENTATION.search(packet.encode(errors="replace") if isinstance(packet, str) else packet)
    return int(stated[1]) if stated else 1


def orientation_of(data: bytes) -> int:
    """The orientation that the bytes of a file state, as in EXIF: 1..8; 1 if they state none or are no image."""
    with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as image:
        return _orientation(image)
    return 1


def turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) as they are stored -> upright, as a view."""
    return _TURNED[orientation](pixels)


def as_stored(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Upright pixels (H, W, 3) -> as they are stored, as a view."""
    return turned(pixels, {6: 8, 8: 6}.get(orientation, orientation))  # a quarter turn back; the rest undo themselves


def _xmp_of_tiff(image: TiffImageFile) -> dict[str, bytes]:
    """The XMP packet of a TIFF whose tags state no orientation, else {}.

    It is removed from the image, because Pillow does not understand every form of it.
    """
    packet = image.info.pop("xmp", None)
    return {"XML:com.adobe.xmp": packet} if packet and ORIENTATION not in image.tag_v2 else {}


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """An image of any mode in mode "RGB", 8 bits per channel, over white where it is transparent."""
    mode, keyed = image.mode, "transparency" in image.info
    if mode == "F":
        raise ImageUnreadable(name, "floating-point pixels have no fixed range; export it with 8 or 16 bits")
    if mode == "I" or mode.startswith("I;16"):
        if keyed:
            raise ImageUnreadable(name, "16-bit grey with a transparent colour; export it with an alpha channel")
        return _from_16_bits(image, name)
    if mode == "La":  # Pillow converts it to LA only
        image = image.convert("LA")
    transparent = mode in ("LA", "La", "PA", "RGBA", "RGBa") or (mode == "P" and image.has_transparency_data)
    if transparent or (keyed and mode in ("1", "L", "RGB")):
        image = image if mode == "RGBA" else image.convert("RGBA")
        page = Image.new("RGB", image.size, "white")
        page.paste(image, mask=image)
        return page
    return image if mode == "RGB" else image.convert("RGB")


def _from_16_bits(image: Image.Image, name: str) -> Image.Image:
    wide = image.convert("I")
    low, high = cast(tuple[int, int], wide.getextrema())
    if low < 0 or high > 65535:
        raise ImageUnreadable(name, "32-bit pixels have no fixed range; export it with 8 or 16 bits")
    return wide.point([value >> 8 for value in range(65536)], "L").convert("RGB")


def _check_pixels(size: tuple[int, int], name: str, limits: ImageLimits) -> None:
    if size[0] * size[1] > limits.max_pixels:
        raise ImageTooLarge(
            name,
            f"{size[0]} x {size[1]} pixels, over the limit of {limits.max_pixels:,}; crop it, or from Python raise "
            "max_pixels",
        )
    if min(size) < 1:
        raise ImageUnreadable(name, f"{size[0]} x {size[1]} pixels: nothing to see; check how it was made")


def _too_many_bytes(size: int, name: str, limits: ImageLimits) -> ImageTooLarge:
    cure = "save a smaller copy, or from Python raise max_bytes"
    return ImageTooLarge(name, f"{size:,} bytes, over the limit of {limits.max_bytes:,}; {cure}")


@contextlib.contextmanager
def _decoding(name: str, what: str, data: bytes = b"") -> Iterator[None]:
    """Turn any error of the decoder of `what` into an `ImageError`; `data`: the file, if there is one."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, which its WebP reader insists on
        raise ImageTooLarge(name, f"{first_line(error)} Crop it.") from error
    except Exception as error:  # on hostile bytes: OSError, SyntaxError, struct.error, MemoryError, ...
        if reason := unsupported(data, what, error):
            raise ImageUnreadable(name, f"{reason} is not supported; export it as PNG or as 8-bit JPEG") from error
        detail = first_line(error)
        raise ImageUnreadable(name, f"damaged or truncated {what} ({detail}); fetch or export it again") from error


def read_file(
    source: str | os.PathLike[str] | bytes, name: str | None = None, limits: ImageLimits = DEFAULT_LIMITS
) -> tuple[bytes, str]:
    """A file's bytes and its format, for reading metadata.

    Arguments and errors are those of `load_image`, but damaged content is no error.
    """
    name = source_name(source) if name is None else name
    data = source if isinstance(source, bytes) else _read(source, name, limits)
    return data, _admitted(data, name, limits)


def open_file(data: bytes, found: str) -> ImageFile.ImageFile | None:
    """A file of the format `found`, opened by Pillow but not decoded; None if its header cannot be read."""
    try:
        return reader_of(found, "image")(io.BytesIO(data))
    except Exception:  # hostile headers fail in many ways
        return None
