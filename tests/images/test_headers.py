"""What a header shows: files that are refused by name, those that no decoder here reads, and bombs."""

from __future__ import annotations

import io
import struct
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from clipmole.errors import ImageTooLarge, ImageUnreadable
from clipmole.images.headers import SCANS, jpeg_segments
from clipmole.images.loading import load_image, load_pixels

Tags = dict[int, tuple[int, list[int]]]
SHORT, LONG = 3, 4
PICTURE = np.random.default_rng(5).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def tiff(tags: Tags, *strips: bytes, order: str = "<", below: bytes = b"", magic: bytes = b"") -> bytes:
    """A TIFF written by hand: its strips, one after the other, or one tile; `below` ends the file."""
    places = 324 if 322 in tags else 273
    counts = 325 if 322 in tags else 279
    tags = tags | {places: (LONG, [0] * len(strips)), counts: (LONG, [len(strip) for strip in strips])}

    def written(start: int) -> bytes:
        table, values, at = b"", b"", 8 + len(magic) + 2 + 12 * len(tags) + 4
        starts = [start + sum(map(len, strips[:i])) for i in range(len(strips))]
        for tag, (kind, given) in sorted(tags.items()):
            numbers = starts if tag == places else given
            packed = struct.pack(f"{order}{len(numbers)}{'HI'[kind - SHORT]}", *numbers)
            head = struct.pack(f"{order}HHI", tag, kind, len(numbers))
            if len(packed) <= 4:
                table += head + packed.ljust(4, b"\0")
            else:
                table += head + struct.pack(f"{order}I", at + len(values))
                values += packed
        mark = b"II*\0" if order == "<" else b"MM\0*"
        first = struct.pack(f"{order}I", 8 + len(magic))
        return mark + first + magic + struct.pack(f"{order}H", len(tags)) + table + bytes(4) + values

    return written(len(written(0))) + b"".join(strips) + below


def kind(width: int, height: int, bits: list[int], photometric: int, **more: tuple[int, list[int]]) -> Tags:
    """The tags of an uncompressed image of one strip."""
    return {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, bits),
        259: (SHORT, [1]),
        262: (SHORT, [photometric]),
        277: (SHORT, [len(bits)]),
        278: (LONG, [height]),
    } | {int(tag[1:]): value for tag, value in more.items()}


def decoded_elsewhere(data: bytes) -> NDArray[np.uint8]:
    """RGB of OpenCV's own libtiff, 8 bits a channel."""
    cv2 = pytest.importorskip("cv2")
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert found is not None
    found = np.dstack([found] * 3) if found.ndim == 2 else found
    rgb: NDArray[Any] = found[..., [2, 1, 0]]
    return (rgb >> 8).astype(np.uint8) if rgb.dtype == np.uint16 else rgb


def refusal(error: type[Exception], data: bytes) -> str:
    with pytest.raises(error) as caught:
        load_image(data, name="x")
    return str(caught.value)


# ---------------------------------------------------------------- right pixels


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("depth", [8, 16])
def test_interleaved_colors(depth: int, order: str) -> None:
    values = PICTURE.astype(f"{order}u{depth // 8}") * (257 if depth == 16 else 1)
    data = tiff(kind(32, 24, [depth] * 3, 2), values.tobytes(), order=order)
    np.testing.assert_array_equal(np.asarray(load_image(data)), PICTURE)
    np.testing.assert_array_equal(decoded_elsewhere(data), PICTURE)


def test_planes_of_8_bits() -> None:
    data = tiff(kind(32, 24, [8] * 3, 2, _284=(SHORT, [2])), *(PICTURE[..., c].tobytes() for c in range(3)))
    np.testing.assert_array_equal(np.asarray(load_image(data)), PICTURE)
    np.testing.assert_array_equal(decoded_elsewhere(data), PICTURE)


@pytest.mark.parametrize("order", ["<", ">"])
def test_planes_of_16_bits_are_refused_by_name(order: str) -> None:
    planes = [(PICTURE[..., c].astype(f"{order}u2") * 256 + 7).tobytes() for c in range(3)]
    data = tiff(kind(32, 24, [16] * 3, 2, _284=(SHORT, [2])), *planes, order=order)
    expected = "x: a TIFF of 16 bits with its channels in separate planes is not supported; export it interleaved"
    assert refusal(ImageUnreadable, data).startswith(expected)


@pytest.mark.parametrize("scale", [1, 257])
def test_a_palette_of_8_or_of_16_bits(scale: int) -> None:
    colors = np.random.default_rng(6).integers(0, 256, (3, 256))
    colors[:, 0] = 255
    index = np.random.default_rng(7).integers(0, 256, (24, 32), dtype=np.uint8)
    data = tiff(kind(32, 24, [8], 3, _320=(SHORT, (colors * scale).ravel().tolist())), index.tobytes())
    expected = colors[:, index].transpose(1, 2, 0)
    np.testing.assert_array_equal(np.asarray(load_image(data)), expected)
    if scale == 257:
        np.testing.assert_array_equal(decoded_elsewhere(data), expected)


# ---------------------------------------------------------------- raw files


def preview_and_sensor(subfile: int, photometric: int, **more: tuple[int, list[int]]) -> bytes:
    """A small preview whose file holds the sensor's values in a directory below."""
    preview = kind(32, 24, [8] * 3, 2, _254=(LONG, [subfile]), _330=(LONG, [0]), **more)
    sensor = kind(512, 384, [16], photometric)
    start = len(tiff(preview, PICTURE.tobytes()))
    entries = b"".join(
        struct.pack("<HHII", tag, LONG, len(numbers), numbers[0]) for tag, (_, numbers) in sorted(sensor.items())
    )
    below = struct.pack("<H", len(sensor)) + entries + bytes(4)
    return tiff(preview | {330: (LONG, [start])}, PICTURE.tobytes(), below=below)


RAW = {
    "DNG": preview_and_sensor(1, 32803, _50706=(LONG, [0x0401])),
    "linear DNG": tiff(kind(32, 24, [8] * 3, 34892, _50706=(LONG, [0x0401])), PICTURE.tobytes()),
    "NEF": preview_and_sensor(1, 32803),
    "preview marked as the image": preview_and_sensor(0, 32803),
    "sensor first": tiff(kind(32, 24, [16], 32803), bytes(2 * 32 * 24)),
    "CR2": tiff(kind(32, 24, [8] * 3, 2), PICTURE.tobytes(), magic=b"CR\2\0\0\0\0\0"),
    "ORF": b"IIRO\x08\0\0\0" + bytes(60),
    "RW2": b"IIU\0\x18\0\0\0" + bytes(60),
    "RAF": b"FUJIFILMCCD-RAW 0201" + bytes(60),
    "CR3": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(60),
}


@pytest.mark.parametrize("name", RAW)
def test_a_cameras_raw_file_is_refused_by_name(name: str) -> None:
    assert "a camera's raw file" in refusal(ImageUnreadable, RAW[name])


def test_a_pyramid_and_an_image_with_pages_are_no_raw_files() -> None:
    data = preview_and_sensor(0, 1)  # a smaller or larger copy in grey lies below the image
    np.testing.assert_array_equal(np.asarray(load_image(data)), PICTURE)
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))])
    np.testing.assert_array_equal(np.asarray(load_image(file.getvalue())), PICTURE)


def test_a_git_lfs_pointer_is_named() -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n"
    expected = "x: a Git LFS pointer, not the image itself; fetch it with: git lfs pull"
    assert refusal(ImageUnreadable, pointer) == expected


# ---------------------------------------------------------------- not supported is not damaged


@pytest.mark.parametrize("bits", [10, 12, 14, 24, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_depths_of_a_tiff_that_are_not_read(bits: int, channels: int) -> None:
    content = bytes(24 * ((32 * bits * channels + 7) // 8))
    message = refusal(ImageUnreadable, tiff(kind(32, 24, [bits] * channels, 1 if channels == 1 else 2), content))
    assert f" {' + '.join([str(bits)] * channels)} bits per pixel" in message
    assert "not supported" in message
    assert "damaged" not in message


@pytest.mark.parametrize(
    ("tags", "told"),
    [
        (kind(32, 24, [8] * 3, 2, _259=(SHORT, [34712])), "compression 34712"),
        (kind(32, 24, [32] * 3, 2, _339=(SHORT, [3] * 3)), "32 + 32 + 32 bits"),
        (kind(32, 24, [8] * 2, 2), "8 + 8 bits"),
        (kind(32, 24, [8], 1, _339=(SHORT, [2])), "signed"),
        (kind(32, 24, [16], 1, _339=(SHORT, [2])), "signed"),
    ],
)
def test_other_kinds_of_tiff_that_are_not_read(tags: Tags, told: str) -> None:
    message = refusal(ImageUnreadable, tiff(tags, bytes(24 * 32 * 12)))
    assert told in message
    assert "damaged" not in message


def jpeg(**options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("at", "value", "told"), [(4, 12, "a JPEG of 12 bits a channel"), (1, 0xC5, "a JPEG of process 5")]
)
def test_kinds_of_jpeg_that_are_not_read(at: int, value: int, told: str) -> None:
    data = bytearray(jpeg())
    data[data.index(b"\xff\xc0") + at] = value
    assert f"{told}" in (message := refusal(ImageUnreadable, bytes(data)))
    assert "not supported" in message
    with pytest.raises(ImageUnreadable, match="not supported"):
        load_pixels(bytes(data))


def test_a_bmp_of_an_unknown_depth() -> None:
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, "BMP")
    data = bytearray(file.getvalue())
    data[28:30] = struct.pack("<H", 64)
    assert "pixel depth (64) is not supported" in refusal(ImageUnreadable, bytes(data))


def test_a_png_of_ios() -> None:
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, "PNG")
    data = file.getvalue()
    extra = struct.pack(">I4s4sI", 4, b"CgBI", b"\x50\0\x20\x02", 0x2BD5B37F)
    assert "iOS" in refusal(ImageUnreadable, data[:8] + extra + data[8:])


@pytest.mark.parametrize("cut", [100, 300, 900])
def test_a_file_that_is_cut_stays_damaged(cut: int) -> None:
    whole = tiff(kind(32, 24, [8] * 3, 2), PICTURE.tobytes())
    for data in (jpeg()[:cut], whole[: cut + 8]):
        assert "damaged or truncated" in refusal(ImageUnreadable, data)


# ---------------------------------------------------------------- bombs


def progressive(width: int, height: int, scans: int) -> bytes:
    """A grey progressive JPEG in which each scan after the first says nothing of all blocks in a few bytes."""

    def bits(text: str) -> bytes:
        text += "1" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")

    blocks = -(-width // 8) * -(-height // 8)
    out = b"\xff\xd8\xff\xdb" + struct.pack(">HB", 67, 0) + bytes([16] * 64)
    out += b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, height, width, 1) + bytes([1, 0x11, 0])
    out += b"\xff\xc4" + struct.pack(">HB", 20, 0) + bytes([1] + [0] * 15 + [0])
    out += b"\xff\xc4" + struct.pack(">HB", 20, 0x10) + bytes([1] + [0] * 15 + [0xE0])
    out += b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 0, 0) + bits("0" * blocks)
    runs = ""
    while blocks > 0:
        run = max(1 << 14, min(blocks, (1 << 15) - 1))
        runs += "0" + format(run - (1 << 14), "014b")
        blocks -= run
    return out + (b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 63, 0) + bits(runs)) * scans + b"\xff\xd9"


@pytest.mark.parametrize("load", [load_image, load_pixels])
def test_a_jpeg_of_very_many_scans_is_refused_in_no_time(load: Any) -> None:
    data = progressive(4000, 4000, 10_000)
    began = time.process_time()
    with pytest.raises(ImageTooLarge, match="a JPEG of 10,001 scans"):
        load(data)
    assert time.process_time() - began < 1


def test_a_jpeg_of_as_many_scans_as_may_be_is_read() -> None:
    assert load_image(progressive(64, 64, SCANS - 1)).size == (64, 64)
    refusal(ImageTooLarge, progressive(64, 64, SCANS))


def test_a_second_image_behind_a_jpeg_does_not_count() -> None:
    data = jpeg(progressive=True) + jpeg() * 200
    np.testing.assert_array_equal(np.asarray(load_image(data)), np.asarray(load_image(jpeg(progressive=True))))


@pytest.mark.parametrize(("width", "height"), [(32_768, 20_000), (65_520, 65_520)])
def test_a_small_tiff_of_a_huge_tile_is_refused(width: int, height: int) -> None:
    tags = kind(64, 64, [8] * 3, 2, _259=(SHORT, [8]), _322=(LONG, [width]), _323=(LONG, [height]))
    del tags[278]
    message = refusal(ImageTooLarge, tiff(tags, b"x\x9c" + bytes(1000)))
    assert message.startswith(f"x: a TIFF with tiles of {width:,} x {height:,} pixels, far larger than the image")


def test_an_image_in_a_larger_tile_is_read() -> None:
    tile = np.zeros((1024, 1024, 3), np.uint8)
    tile[:24, :32] = PICTURE
    tags = kind(32, 24, [8] * 3, 2, _322=(LONG, [1024]), _323=(LONG, [1024]))
    del tags[278]
    data = tiff(tags, tile.tobytes())
    np.testing.assert_array_equal(np.asarray(load_image(data)), PICTURE)


def test_segments_of_a_jpeg() -> None:
    data = jpeg(comment=b"hello")
    found = [(marker, data[start:end]) for marker, start, end in jpeg_segments(data)]
    assert (0xFE, b"hello") in found
    assert [marker for marker, _ in found if marker == 0xC0] == [0xC0]
