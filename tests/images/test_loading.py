"""images.py: every kind of source gives the same upright RGB pixels; everything else one clear line."""

from __future__ import annotations

import errno
import io
import os
import random
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import GifImagePlugin, Image, ImageFile, features

from clipmole.errors import ImageError, ImageNotFound, ImageNotRead, ImageTooLarge, ImageUnreadable
from clipmole.images import formats
from clipmole.images.formats import IMAGE_EXTENSIONS
from clipmole.images.loading import ImageLimits, ImageSource, load_image, source_name

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # its remarks on odd metadata

AVIF = "avif" in features.get_supported()
ORIENTATION = 0x0112


def picture(width: int = 56, height: int = 40) -> NDArray[np.uint8]:
    """Smooth colours with noise: no two rows, columns or channels alike."""
    y, x = np.mgrid[0:height, 0:width]
    ramps = np.stack([x * 255 // width, y * 255 // height, (x * y) % 256], axis=-1)
    return np.clip(ramps + np.random.default_rng(0).integers(-9, 10, ramps.shape), 0, 255).astype(np.uint8)


def encoded(image: Image.Image | NDArray[Any], kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(source: ImageSource, **options: Any) -> NDArray[np.uint8]:
    image = load_image(source, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def refusal(kind: type[ImageError], source: ImageSource, **options: Any) -> str:
    """The message with which `source` is refused: of the expected kind, and one line."""
    with pytest.raises(kind) as caught:
        load_image(source, **options)
    message = str(caught.value)
    assert message.isprintable()
    return message


def outcome(data: bytes, whole: NDArray[np.uint8]) -> str:
    try:
        found = pixels(data, limits=ImageLimits(max_pixels=100_000))
    except ImageError as error:
        return error.code
    return "same" if found.shape == whole.shape and np.array_equal(found, whole) else "other"


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG written by hand: `rows` with their filter bytes, `extra` chunks before the pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    middle = b"".join(chunk(*each) for each in extra)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + middle
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


RGB = Image.fromarray(picture())
FILES: dict[str, bytes] = {
    "jpeg": encoded(RGB, "JPEG"),
    "jpeg progressive": encoded(RGB, "JPEG", progressive=True),
    "jpeg restarts": encoded(RGB, "JPEG", restart_marker_blocks=2),
    "jpeg grey": encoded(RGB.convert("L"), "JPEG"),
    "jpeg cmyk": encoded(RGB.convert("CMYK"), "JPEG"),
    "png": encoded(RGB, "PNG"),
    "png grey": encoded(RGB.convert("L"), "PNG"),
    "png palette": encoded(RGB.quantize(16), "PNG"),
    "gif": encoded(RGB.quantize(64), "GIF"),
    "webp": encoded(RGB, "WEBP"),
    "webp lossless": encoded(RGB, "WEBP", lossless=True),
    "bmp": encoded(RGB, "BMP"),
    "bmp palette": encoded(RGB.quantize(16), "BMP"),
    "tiff": encoded(RGB, "TIFF"),
    "tiff lzw": encoded(RGB, "TIFF", compression="tiff_lzw"),
    "tiff deflate": encoded(RGB, "TIFF", compression="tiff_deflate"),
    "tiff jpeg": encoded(RGB, "TIFF", compression="jpeg"),
    "tiff palette": encoded(RGB.quantize(16), "TIFF"),
    "tiff 1-bit": encoded(RGB.convert("1"), "TIFF", compression="group4"),
} | ({"avif": encoded(RGB, "AVIF")} if AVIF else {})


# ---------------------------------------------------------------- one image, however it comes


@pytest.mark.parametrize("name", FILES)
def test_path_bytes_and_pil_image_give_the_same_pixels(name: str, tmp_path: Path) -> None:
    data = FILES[name]
    path = tmp_path / "a.b.image"  # the ending says nothing
    path.write_bytes(data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    for source in (path, str(path), data, Image.open(io.BytesIO(data))):
        np.testing.assert_array_equal(pixels(source), expected)


@pytest.mark.parametrize("name", ["png", "webp lossless", "bmp", "tiff", "tiff lzw", "tiff deflate"])
def test_lossless_formats_give_the_stored_values(name: str) -> None:
    np.testing.assert_array_equal(pixels(FILES[name]), picture())


def test_source_name() -> None:
    assert source_name("a/b.png") == "a/b.png"
    assert source_name(Path("a") / "b.png") == os.path.join("a", "b.png")
    assert source_name(b"") == "<bytes>"
    assert source_name(RGB) == "<image>"
    assert source_name(picture()) == "<array>"


def test_a_finished_pil_image_comes_back_itself() -> None:
    assert load_image(RGB) is RGB


@pytest.mark.parametrize("source", [None, 3, [1], io.BytesIO(b""), bytearray(3)])
def test_other_types_are_a_mistake_in_the_program(source: Any) -> None:
    with pytest.raises(TypeError, match="path, bytes, a PIL image or a numpy array"):
        load_image(source)


def test_extensions_are_those_that_can_be_decoded() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp"} <= IMAGE_EXTENSIONS
    assert (".avif" in IMAGE_EXTENSIONS) == AVIF
    assert all(ending == ending.lower() and ending[0] == "." for ending in IMAGE_EXTENSIONS)
    assert not {".svg", ".pdf", ".eps", ".psd", ".heic" if not formats.HEIF_INSTALLED else ""} & IMAGE_EXTENSIONS


# ---------------------------------------------------------------- orientation

UPRIGHT: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {  # EXIF 2.32, by numpy
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: np.rot90,
}


def tagged(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})],
)
def test_exif_orientation_is_applied_once(kind: str, options: dict[str, Any], orientation: int) -> None:
    stored = pixels(encoded(picture(), kind, **options))
    data = encoded(picture(), kind, exif=tagged(orientation), **options)
    expected = UPRIGHT[orientation](stored)
    image = load_image(data)
    np.testing.assert_array_equal(np.asarray(image), expected)
    np.testing.assert_array_equal(pixels(image), expected)  # not turned again
    np.testing.assert_array_equal(pixels(Image.open(io.BytesIO(data))), expected)  # the same as its file


def test_a_pil_image_is_not_changed_by_turning_it() -> None:
    image = Image.open(io.BytesIO(encoded(picture(), "PNG", exif=tagged(6))))
    load_image(image)
    np.testing.assert_array_equal(np.asarray(image), picture())
    assert image.getexif()[ORIENTATION] == 6


def test_a_pil_image_without_the_tag_is_taken_as_it_is() -> None:
    np.testing.assert_array_equal(pixels(Image.fromarray(picture())), picture())


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\xff\xff\xff\xff", tagged(9), tagged(0)])
def test_exif_that_says_nothing_usable_is_no_orientation(exif: Any) -> None:
    np.testing.assert_array_equal(pixels(encoded(picture(), "JPEG", exif=exif)), pixels(FILES["jpeg"]))


# ---------------------------------------------------------------- transparency


def over_white(rgb: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.float64]:
    share = alpha[..., None] / 255
    return rgb * share + 255 * (1 - share)


def rgba() -> NDArray[np.uint8]:
    return np.dstack([picture(), np.random.default_rng(1).integers(0, 256, (40, 56), dtype=np.uint8)])


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})])
def test_alpha_is_composited_over_white(kind: str, options: dict[str, Any]) -> None:
    found = pixels(encoded(rgba(), kind, **options))
    assert np.abs(found - over_white(picture(), rgba()[..., 3])).max() <= 1
    np.testing.assert_array_equal(pixels(rgba()), found)


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "RGBX"])
def test_opaque_alpha_leaves_the_exact_colours(mode: str) -> None:
    opaque = RGB.convert("RGBA")
    source = opaque if mode == "RGBA" else opaque.convert(mode)
    np.testing.assert_array_equal(pixels(source), picture())


def test_hidden_colours_under_full_transparency_are_white() -> None:
    hidden = np.dstack([picture(), np.zeros((40, 56), np.uint8)])
    assert (pixels(hidden) == 255).all()
    assert (pixels(encoded(hidden, "PNG")) == 255).all()


def test_grey_and_palette_with_alpha() -> None:
    grey = picture()[..., 0]
    alpha = rgba()[..., 3]
    both = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
    expected = over_white(np.dstack([grey] * 3), alpha)
    assert np.abs(pixels(both) - expected).max() <= 1
    assert np.abs(pixels(encoded(both, "PNG")) - expected).max() <= 1
    assert np.abs(pixels(both.convert("La")) - expected).max() <= 2  # premultiplied: rounded twice
    paletted = RGB.quantize(256)
    colours = np.asarray(paletted.convert("RGB"))
    translucent = Image.merge("PA", [paletted, Image.fromarray(alpha)])
    translucent.putpalette(paletted.getpalette() or [])
    found = pixels(translucent)
    assert np.abs(found - over_white(colours, alpha)).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(kind: str) -> None:
    paletted = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "L").convert("P")
    paletted.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    found = pixels(encoded(paletted, kind, transparency=1))
    assert found.tolist() == [[[10, 20, 30], [255, 255, 255]], [[70, 80, 90], [255, 255, 255]]]


def test_a_palette_with_several_alphas() -> None:
    paletted = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L").convert("P")
    paletted.putpalette([0, 0, 0, 100, 0, 0, 200, 200, 200])
    data = encoded(paletted, "PNG", transparency=bytes([255, 128, 0]))
    found = pixels(data)[0].astype(int)
    assert np.abs(found - [[0, 0, 0], [177, 127, 127], [255, 255, 255]]).max() <= 1
    image = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(pixels(image), pixels(image))  # a second look sees the same


def test_a_transparent_colour_is_white_where_it_is_read_rightly_and_refused_elsewhere() -> None:
    grey, colour = png(2, 1, 8, 0, b"\0\3\4", (b"tRNS", b"\0\3")), b"\0" + bytes([3, 4, 5, 3, 4, 6])
    assert pixels(grey).tolist() == [[[255] * 3, [4] * 3]]
    keyed = png(2, 1, 8, 2, colour, (b"tRNS", b"\0\3\0\4\0\5"))
    assert pixels(keyed).tolist() == [[[255] * 3, [3, 4, 6]]]
    for depth, kind, row, key in [
        (2, 0, b"\0\x1b", b"\0\1"),
        (4, 0, b"\0\x3f", b"\0\3"),
        (16, 0, b"\0\3\4\3\5", b"\3\4"),
        (16, 2, b"\0" + b"\3\4" * 6, b"\3\4" * 3),
    ]:
        assert "alpha channel" in refusal(ImageUnreadable, png(2, 1, depth, kind, row, (b"tRNS", key)))


# ---------------------------------------------------------------- depth and colour


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I"])
def test_16_bit_grey_keeps_its_upper_byte(mode: str) -> None:
    values = np.array([[0, 255, 256, 300], [32768, 65279, 65280, 65535]])
    form = {"I": "<i4", "I;16B": ">u2"}.get(mode, "<u2")
    image = Image.frombytes(mode, (4, 2), values.astype(form).tobytes())
    expected = np.dstack([values // 256] * 3)
    np.testing.assert_array_equal(pixels(image), expected)
    if mode in ("I;16", "I;16B"):
        for data in (encoded(image, "PNG"), encoded(image, "TIFF")):
            np.testing.assert_array_equal(pixels(data), expected)


def test_16_bit_files_and_arrays_agree() -> None:
    cv2 = pytest.importorskip("cv2")
    for channels in (1, 3, 4):
        array = np.random.default_rng(2).integers(0, 65536, (9, 11, channels), dtype=np.uint16)
        stored = array[..., [2, 1, 0, 3][:channels]] if channels > 1 else array  # OpenCV writes BGR
        for ending in (".png", ".tiff"):
            data = cv2.imencode(ending, stored)[1].tobytes()
            np.testing.assert_array_equal(pixels(data), pixels(array))
        if channels == 3:
            np.testing.assert_array_equal(pixels(array), array >> 8)
        np.testing.assert_array_equal(pixels(array), pixels(array.astype(">u2")))
        np.testing.assert_array_equal(pixels(array), pixels((array >> 8).astype(np.uint8)))


def tiff_of_grey(bits: int, photometric: int, content: bytes, sample_format: int = 1) -> bytes:
    """A 2 x 1 TIFF of one uncompressed strip, written by hand."""
    tags = {256: 2, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 200, 277: 1, 278: 1, 279: len(content)}
    tags[339] = sample_format
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head.ljust(200, b"\0") + content


def test_depths_without_a_known_range_are_refused() -> None:
    assert pixels(tiff_of_grey(16, 1, struct.pack("<HH", 0x1234, 0xFFFF))).tolist() == [[[0x12] * 3, [0xFF] * 3]]
    assert "12 bits per pixel is not supported" in refusal(ImageUnreadable, tiff_of_grey(12, 1, b"\x12\x34\x56"))
    assert "16-bit grey" in refusal(ImageUnreadable, tiff_of_grey(16, 0, b"\1\2\3\4"))  # white is zero
    assert "32-bit" in refusal(ImageUnreadable, tiff_of_grey(32, 1, struct.pack("<II", 1, 70000)))
    assert "floating-point" in refusal(ImageUnreadable, tiff_of_grey(32, 1, struct.pack("<ff", 0, 1), 3))
    assert "floating-point" in refusal(ImageUnreadable, Image.new("F", (2, 2)))
    assert "32-bit" in refusal(ImageUnreadable, Image.new("I", (2, 2), -1))


def test_grey_and_one_bit() -> None:
    grey = picture()[..., 1]
    np.testing.assert_array_equal(pixels(encoded(grey, "PNG")), np.dstack([grey] * 3))
    bits = Image.fromarray(np.array([[0, 255, 255]], np.uint8)).convert("1")
    assert pixels(encoded(bits, "PNG")).tolist() == [[[0] * 3, [255] * 3, [255] * 3]]
    assert pixels(encoded(bits, "TIFF")).tolist() == [[[0] * 3, [255] * 3, [255] * 3]]


def from_cmyk(values: NDArray[np.uint8]) -> NDArray[np.float64]:
    ink = values.astype(float)
    return (255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255


def test_cmyk_and_ycck_jpeg_with_adobes_inverted_values() -> None:
    ink = np.dstack([picture(), np.full((40, 56), 60, np.uint8)])
    data = encoded(Image.frombytes("CMYK", (56, 40), ink.tobytes()), "JPEG", quality=100)
    assert np.abs(pixels(data) - from_cmyk(ink)).max() <= 8  # a JPEG at quality 100
    at = data.index(b"Adobe")
    assert data[at + 11] == 0  # transform: none
    ycck = data[: at + 11] + b"\2" + data[at + 12 :]
    stored = 255.0 - np.asarray(Image.open(io.BytesIO(data)))  # the samples in the file: inverted ink
    luma, blue, red, black = stored[..., 0], stored[..., 1] - 128, stored[..., 2] - 128, stored[..., 3]
    # ITU-T T.871, 7; the ink C, M, Y stands for 255 - R, G, B, and Adobe inverts it in the file
    rgb = np.dstack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue])
    expected = (255 - np.clip(rgb, 0, 255)) * black[..., None] / 255
    assert np.abs(pixels(ycck) - expected).max() <= 2


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "LAB", "CMYK"])
def test_other_colour_spaces(mode: str) -> None:
    flat = Image.new("RGB", (4, 3), (200, 120, 40))
    assert np.abs(pixels(flat.convert(mode)).astype(int) - [200, 120, 40]).max() <= 3


# ---------------------------------------------------------------- arrays


def test_array_shapes() -> None:
    rgb, grey = picture(), picture()[..., 0]
    np.testing.assert_array_equal(pixels(rgb), rgb)
    for array in (grey, grey[..., None]):
        np.testing.assert_array_equal(pixels(array), np.dstack([grey] * 3))
    np.testing.assert_array_equal(pixels(np.dstack([rgb, np.full_like(grey, 255)])), rgb)
    np.testing.assert_array_equal(pixels(rgb[::-2, ::3]), rgb[::-2, ::3])  # any strides
    image = load_image(rgb)
    rgb[:] = 0
    assert np.asarray(image).any()  # a copy


@pytest.mark.parametrize(
    ("array", "cure"),
    [
        (np.zeros((4, 4, 3)), "uint8"),
        (np.zeros((4, 4, 3), np.float32), "uint8"),
        (np.zeros((4, 4), bool), "uint8"),
        (np.zeros((4, 4), np.int32), "uint8"),
        (np.array([["a"]]), "uint8"),
        (np.zeros((3, 8, 8), np.uint8), "transpose"),
        (np.zeros((8, 8, 2), np.uint8), "channels"),
        (np.zeros((1, 8, 8, 3), np.uint8), "array[0]"),
        (np.zeros(8, np.uint8), "(height, width)"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((4, 0), np.uint8), "no pixels"),
    ],
)
def test_arrays_that_would_have_to_be_guessed_are_refused(array: NDArray[Any], cure: str) -> None:
    message = refusal(ImageUnreadable, array)
    assert message.startswith("<array>: ")
    assert cure in message


# ---------------------------------------------------------------- only the first frame


def frames() -> list[Image.Image]:
    return [Image.new("RGB", (32, 24), colour) for colour in ("red", "lime", "blue")]


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})])
def test_the_first_frame_is_taken(kind: str, options: dict[str, Any]) -> None:
    data = encoded(frames()[0], kind, save_all=True, append_images=frames()[1:], **options)
    assert (pixels(data) == [255, 0, 0]).all()


def test_a_pil_image_gives_the_frame_it_stands_at() -> None:
    data = encoded(frames()[0], "TIFF", save_all=True, append_images=frames()[1:])
    image = Image.open(io.BytesIO(data))
    image.seek(1)
    assert (pixels(image) == [0, 255, 0]).all()


def test_later_frames_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(frames()[0], "GIF", save_all=True, append_images=frames()[1:])
    cut = data[: data.rindex(b"!\xf9") + 9]  # within the third frame
    monkeypatch.setattr(GifImagePlugin.GifImageFile, "seek", lambda *_: pytest.fail("looked at another frame"))
    assert (pixels(cut) == [255, 0, 0]).all()


# ---------------------------------------------------------------- what is no file


def test_a_missing_file(tmp_path: Path) -> None:
    path = str(tmp_path / "none.png")
    assert refusal(ImageNotFound, path) == f"{path}: no such file; check the path"
    assert "''" in refusal(ImageNotFound, "")
    assert "download" in refusal(ImageNotFound, "https://example.org/a.png")
    assert refusal(ImageNotFound, path, name="upload 3").startswith("upload 3: ")


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    assert "this name" in refusal(ImageNotFound, "a\0b.png")
    assert "this name" in refusal(ImageNotFound, "\ud800.png")
    assert "File name too long" in refusal(ImageNotFound, str(tmp_path / ("x" * 300)))
    assert "a\\u000ab" in refusal(ImageNotFound, str(tmp_path / "a\nb"))  # one line whatever the name
    assert "\\udcff" in refusal(ImageNotFound, os.fsdecode(b"/nowhere/\xff.png"))


def test_folders_links_pipes_and_devices(tmp_path: Path) -> None:
    assert "is a folder" in refusal(ImageUnreadable, tmp_path)
    (tmp_path / "real.png").write_bytes(FILES["png"])
    (tmp_path / "link.png").symlink_to("real.png")
    np.testing.assert_array_equal(pixels(tmp_path / "link.png"), picture())
    (tmp_path / "broken.png").symlink_to("nowhere.png")
    assert "no such file" in refusal(ImageNotFound, tmp_path / "broken.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert "cannot be read" in refusal(ImageNotFound, tmp_path / "loop.png")
    os.mkfifo(tmp_path / "pipe.png")  # nobody writes to it: opening it must not wait
    assert "device or a pipe" in refusal(ImageUnreadable, tmp_path / "pipe.png")
    assert "device or a pipe" in refusal(ImageUnreadable, "/dev/zero")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(FILES["png"])
    path.chmod(0)
    assert "Permission denied" in refusal(ImageNotFound, path)


def test_an_error_while_opening_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    assert "cannot be read: Permission denied" in refusal(ImageNotFound, tmp_path / "a.png")


@pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT])
def test_a_disk_or_network_that_fails_is_not_a_missing_file(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", failing)
    assert f"cannot be read: {os.strerror(number)}" in refusal(ImageNotRead, tmp_path / "a.png")


# ---------------------------------------------------------------- what is no image


def test_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    assert "is empty" in refusal(ImageUnreadable, tmp_path / "empty.jpg")
    assert refusal(ImageUnreadable, b"") == "<bytes>: is empty (0 bytes); fetch or export it again"
    assert "nothing to see" in refusal(ImageUnreadable, Image.new("RGB", (0, 3)))


@pytest.mark.parametrize(
    "data",
    [
        b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
        b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<!doctype html><title>404</title>",
        b"hello",
        b"\0",
        b"8BPS\0\1" + bytes(40),
        b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
        b"\xd7\xcd\xc6\x9a" + bytes(40),  # WMF
        encoded(RGB, "EPS"),
        encoded(RGB, "PDF"),
        encoded(RGB, "ICO"),
        encoded(RGB, "PPM"),
        encoded(RGB, "TGA"),
        encoded(RGB, "DIB"),
    ],
    ids=lambda data: repr(data[:8]),
)
def test_formats_that_are_not_read(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("started a program"))  # Ghostscript
    (tmp_path / "a.jpg").write_bytes(data)
    for source in (data, tmp_path / "a.jpg"):
        assert "not an image format clipmole reads (JPEG, PNG" in refusal(ImageUnreadable, source)


def test_only_the_head_of_what_is_no_image_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse: a terabyte of zeros
    assert "not an image" in refusal(ImageUnreadable, path, limits=ImageLimits(max_bytes=2**41))


def test_heic_without_its_plugin_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "HEIF_INSTALLED", False)
    heic = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(40)
    assert "pip install -e '.[heif]'" in refusal(ImageUnreadable, heic)
    monkeypatch.setattr(formats, "AVIF_SUPPORTED", False)
    assert "newer Pillow" in refusal(ImageUnreadable, b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf" + bytes(40))


def test_heic() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer, grey = io.BytesIO(), RGB.convert("L").convert("RGB")  # no colour to subsample
    pillow_heif.from_pillow(grey).save(buffer, quality=95)
    data = buffer.getvalue()
    assert np.abs(pixels(data).astype(int) - np.asarray(grey)).max() <= 8
    assert "HEIC" in refusal(ImageUnreadable, data[: len(data) // 2])
    assert {".heic", ".heif"} <= IMAGE_EXTENSIONS


# ---------------------------------------------------------------- what is damaged


@pytest.mark.parametrize("forgiving", [False, True], ids=["", "LOAD_TRUNCATED_IMAGES"])
@pytest.mark.parametrize("name", FILES)
def test_a_cut_file_is_refused_or_whole(name: str, forgiving: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", forgiving)
    data = FILES[name]
    whole = pixels(data)
    cuts = {*range(0, len(data), len(data) // 40), *range(len(data) - 20, len(data))}
    found = {cut: outcome(data[:cut], whole) for cut in cuts}
    assert set(found.values()) <= {"unreadable", "same"}
    assert not [cut for cut, result in found.items() if result == "same" and cut < len(data) - 4]


def test_a_jpeg_whose_tail_was_never_written_is_refused() -> None:
    for name in ("jpeg", "jpeg grey", "jpeg progressive", "jpeg restarts", "jpeg cmyk"):
        data = FILES[name]
        for filler in (b"\0", b"\xff"):
            for cut in range(len(data) // 2, len(data) - 1, 37):
                assert outcome(data[:cut] + filler * (len(data) - cut), pixels(data)) == "unreadable"


def test_what_follows_the_image_does_not_matter() -> None:
    for name in ("jpeg", "png", "gif", "webp", "bmp"):
        np.testing.assert_array_equal(pixels(FILES[name] + b"trailer" * 9), pixels(FILES[name]))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["png", "png grey", "png palette"]), st.integers(0), st.integers(0, 7))
def test_any_changed_bit_of_a_png_is_refused(name: str, at: int, bit: int) -> None:
    data = bytearray(FILES[name])
    data[at % len(data)] ^= 1 << bit
    assert outcome(bytes(data), pixels(FILES[name])) in ("unreadable", "too_large")


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(FILES)), st.randoms(use_true_random=False))
def test_hostile_bytes_give_an_image_or_an_image_error(name: str, rng: random.Random) -> None:
    data = bytearray(FILES[name])
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(len(data), rng.choice([40, 400, len(data)])))  # headers more often than pixels
        change = rng.choice(["set", "insert", "drop", "long"])
        if change == "set":
            data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif change == "insert":
            data[at:at] = rng.randbytes(rng.randint(1, 9))
        elif change == "drop":
            del data[at : at + rng.randint(1, 9)]
        else:
            data[at : at + 4] = rng.choice([b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4), b"\0\0\0\1"])
    assert outcome(bytes(data), picture()) in ("same", "other", "unreadable", "too_large")


@pytest.mark.parametrize("error", [MemoryError, OverflowError, RecursionError, struct.error, SyntaxError, zlib.error])
def test_whatever_a_decoder_raises_is_unreadable(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(formats.PngImageFile, "load", fail)
    assert f"truncated PNG ({error.__name__})" in refusal(ImageUnreadable, FILES["png"])


def orientation_in_xmp(value: str) -> bytes:
    """An XMP packet that states an orientation, `value` as it is written there."""
    return b"<x:xmpmeta><rdf:Description " + value.encode() + b"</rdf:Description></x:xmpmeta>"


BROKEN = b"\xff\0broken" * 4
METADATA: dict[str, tuple[tuple[bytes, bytes], ...]] = {
    "color profile of 2 MB": ((b"iCCP", b"p\0\0" + zlib.compress(bytes(2_000_000))),),
    "workflow of 2 MB": ((b"zTXt", b"workflow\0\0" + zlib.compress(b"A" * 2_000_000)),),
    "text bomb": ((b"zTXt", b"a\0\0" + zlib.compress(bytes(20_000_000))),),
    "many texts": ((b"zTXt", b"a\0\0" + zlib.compress(bytes(900_000))),) * 100,
    "broken": tuple(
        (kind, BROKEN) for kind in (b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"eXIf", b"pHYs", b"gAMA", b"cHRM")
    ),
    "empty": tuple((kind, b"") for kind in (b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"eXIf", b"pHYs", b"sRGB", b"tIME")),
    "an animation cut short": ((b"acTL", struct.pack(">II", 7, 0)), (b"fcTL", b"short"), (b"fdAT", b"")),
    "a broken EXIF in digits": ((b"tEXt", b"Raw profile type exif\0\nexif\n4\nzzzz"),),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_of_a_png_never_decide_whether_it_is_read(name: str) -> None:
    assert pixels(png(1, 1, 8, 0, b"\0\x2a", *METADATA[name])).tolist() == [[[42, 42, 42]]]


def test_a_wrong_checksum_counts_in_chunks_of_pixels_alone() -> None:
    data = png(1, 1, 8, 0, b"\0\x2a", (b"tEXt", b"a\0b"))
    at = data.index(b"tEXt") + 8
    assert pixels(data[:at] + b"\0\0\0\0" + data[at + 4 :]).tolist() == [[[42] * 3]]
    at = data.index(b"IDAT") + 4 + len(zlib.compress(b"\0\x2a"))
    assert "checksum" in refusal(ImageUnreadable, data[:at] + b"\0\0\0\0" + data[at + 4 :])


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "WEBP"] + ["AVIF"] * AVIF)
@pytest.mark.parametrize("junk", [b"", b"\0", b"\xff" * 40, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"II*\0" + bytes(400)])
def test_metadata_of_other_formats_never_decide_whether_it_is_read(kind: str, junk: bytes) -> None:
    plain = pixels(encoded(picture(), kind))
    if kind == "TIFF":
        tags = {700: junk or b"\0", 33723: junk or b"\0", 34675: junk or b"\0", 282: 0.0, 305: "\u00e9" * 9}
        data = encoded(picture(), kind, tiffinfo=tags)
    else:
        exif = b"" if kind == "AVIF" else junk  # Pillow's AVIF writer takes no EXIF that it cannot read
        data = encoded(picture(), kind, icc_profile=junk or None, exif=exif, xmp=junk)
    np.testing.assert_array_equal(pixels(data), plain)


@pytest.mark.parametrize(
    "value", ['tiff:Orientation="6">', "tiff:Orientation='6'>", 'tiff:Orientation = "6">', "><tiff:Orientation>6<"]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PNG packed", "TIFF", "WEBP"])
def test_an_orientation_that_stands_in_xmp_alone(kind: str, value: str) -> None:
    packet = orientation_in_xmp(value)
    if kind.startswith("PNG"):
        packed = kind == "PNG packed"
        text = b"XML:com.adobe.xmp\0" + bytes([packed, 0, 0, 0]) + (zlib.compress(packet) if packed else packet)
        data = png(2, 1, 8, 0, b"\0\1\2", (b"iTXt", text))
        assert pixels(data)[..., 0].tolist() == [[1], [2]]
        return
    options: dict[str, Any] = {"tiffinfo": {700: packet}} if kind == "TIFF" else {"xmp": packet}
    turned = pixels(encoded(picture(), kind, **options))
    np.testing.assert_array_equal(turned, UPRIGHT[6](pixels(encoded(picture(), kind))))


def test_exif_comes_before_xmp() -> None:
    data = encoded(picture(), "JPEG", exif=tagged(3), xmp=orientation_in_xmp('tiff:Orientation="6">'))
    np.testing.assert_array_equal(pixels(data), UPRIGHT[3](pixels(FILES["jpeg"])))


def test_an_orientation_in_the_digits_of_an_older_png() -> None:
    profile = tagged(6).tobytes().hex()
    text = f"\nexif\n{len(profile) // 2:8}\n{profile}\n".encode()
    for chunk in (
        (b"tEXt", b"Raw profile type exif\0" + text),
        (b"zTXt", b"Raw profile type APP1\0\0" + zlib.compress(text)),
    ):
        assert pixels(png(2, 1, 8, 0, b"\0\1\2", chunk))[..., 0].tolist() == [[1], [2]]


def test_a_png_without_pixels_and_a_tiff_with_missing_strips() -> None:
    data = png(1, 1, 8, 0, b"\0\1")
    at = data.index(b"IDAT") - 4
    assert "PNG" in refusal(ImageUnreadable, data[:at] + data[-12:])
    tall = tiff_of_grey(16, 1, bytes(4)).replace(struct.pack("<HHII", 257, 4, 1, 1), struct.pack("<HHII", 257, 4, 1, 9))
    assert "missing" in refusal(ImageUnreadable, tall)


# ---------------------------------------------------------------- what is too large


def test_the_byte_limit_is_looked_at_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    with path.open("wb") as file:
        file.write(FILES["jpeg"])
        file.truncate(2**40)
    assert "over the limit of 1,073,741,824" in refusal(ImageTooLarge, path)
    limits = ImageLimits(max_bytes=len(FILES["jpeg"]))
    load_image(FILES["jpeg"], limits=limits)
    assert "max_bytes" in refusal(ImageTooLarge, FILES["jpeg"] + b"\0", limits=limits)


@pytest.mark.parametrize("name", FILES)
def test_the_pixel_limit_is_looked_at_before_decoding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load_image(FILES[name], limits=ImageLimits(max_pixels=56 * 40))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    message = refusal(ImageTooLarge, FILES[name], limits=ImageLimits(max_pixels=56 * 40 - 1))
    assert message == "<bytes>: 56 x 40 pixels, over the limit of 2,239; crop it, or from Python raise max_pixels"


def test_arrays_and_pil_images_have_the_same_pixel_limit() -> None:
    limits = ImageLimits(max_pixels=56 * 40 - 1)
    for source in (picture(), RGB, Image.open(io.BytesIO(FILES["jpeg"]))):
        refusal(ImageTooLarge, source, limits=limits)


def test_decompression_bombs_by_default() -> None:
    refusal(ImageTooLarge, png(50_000, 50_000, 8, 2, b""))
    bmp = bytearray(FILES["bmp"])
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    refusal(ImageTooLarge, bytes(bmp))
    jpeg = bytearray(FILES["jpeg"])
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 64250, 64250)
    refusal(ImageTooLarge, bytes(jpeg))
    gif = bytearray(FILES["gif"])
    gif[6:10] = b"\xff" * 4
    refusal(ImageTooLarge, bytes(gif))
    assert ImageLimits().max_pixels >= 30_000 * 6_000


def test_pillows_globals_neither_matter_nor_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # a fraction of the test images
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filters = list(warnings.filters)
        for name, data in FILES.items():
            if name.startswith("webp"):  # Pillow's reader looks at it by itself
                continue
            assert load_image(data).size == (56, 40), name
        assert warnings.filters == filters
    assert Image.MAX_IMAGE_PIXELS == 100
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_many_threads_at_once() -> None:
    expected = {name: pixels(data) for name, data in FILES.items()}
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda name: (name, pixels(FILES[name])), sorted(FILES) * 5))
    for name, found in results:
        np.testing.assert_array_equal(found, expected[name])


# ---------------------------------------------------------------- memory


def tall_jpeg(width: int, height: int) -> bytes:
    """A baseline JPEG of `width` x `height` (a multiple of 16) made of one row of blocks, without its pixels.

    Every row starts at a restart marker, so its entropy-coded data can stand again and again.
    """
    row = np.random.default_rng(3).integers(0, 256, (16, width, 3), dtype=np.uint8)
    data = encoded(row, "JPEG", quality=30, restart_marker_rows=1)
    size = data.index(b"\xff\xc0") + 5
    scan = data.index(b"\xff\xda")
    start = scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")
    rows = [data[start:-2] + bytes([0xFF, 0xD0 + i % 8]) for i in range(height // 16)]
    rows[-1] = rows[-1][:-2] + b"\xff\xd9"
    return data[:size] + struct.pack(">H", height) + data[size + 2 : start] + b"".join(rows)


MEASURE = """
import sys
from clipmole.config import PreprocessConfig
from clipmole.images.loading import load_image
from clipmole.images.crops import cut_crops
def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
image = load_image(sys.argv[1])
tiles = cut_crops(image, PreprocessConfig()).pixels
print(*image.size, len(tiles), peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize(("width", "height"), [(4000, 3008), (30_000, 4000)], ids=["12 megapixels", "panorama"])
def test_peak_memory_is_the_file_and_one_image(width: int, height: int, tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    path.write_bytes(tall_jpeg(width, height))
    command = [sys.executable, "-P", "-c", MEASURE, str(path)]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    crops = 16 if width * height < 20e6 else 36  # more in a larger image, see `most_crops`
    assert found[:3] == [str(width), str(height), str(crops)]
    assert int(found[3]) < path.stat().st_size + 4 * width * height + 24 * 2**20
