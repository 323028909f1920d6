"""A tar that is damaged, cut or joined at any place gives what is whole and then an error, wherever it is read."""

from __future__ import annotations

import bz2
import gzip
import io
import tarfile
from pathlib import Path

import pytest
from scanning import run
from tiny import encoded, picture
from typer.testing import CliRunner

from clipmole.cli import app
from clipmole.data import Unpacking, read_data
from clipmole.data.containers.tar import MOST_PADDING, is_in_place, tar_members
from clipmole.errors import DataError, ImageUnreadable

fsspec = pytest.importorskip("fsspec")
COUNT = 6


@pytest.fixture(scope="module")
def whole() -> tuple[bytes, list[tarfile.TarInfo]]:
    """A tar of six images, each with its label behind it, as bytes; and its members."""
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for i in range(COUNT):
            image = encoded(picture(i, 40, 36))
            for name, data in ((f"{i}.png", image), (f"{i}.cls", str(i % 2).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                info.pax_headers = {"comment": "x" * 600} if i == 3 else {}
                tar.addfile(info, io.BytesIO(data))
    memory.seek(0)
    with tarfile.open(fileobj=memory) as tar:
        return memory.getvalue(), tar.getmembers()


DAMAGES = {
    "cut at a member": (3, "ends without an end marker"),
    "cut in a header": (3, "truncated header"),
    "cut behind a header": (3, "unexpected end of data"),
    "cut in an image": (3, "unexpected end of data"),
    "cut in a label": (4, "ends without an end marker"),
    "header overwritten": (2, "invalid header"),
    "header behind a pax header overwritten": (3, "header"),
    "header zeroed": (2, "data come after its end marker"),
    "end marker lacks": (COUNT, "ends without an end marker"),
    "another tar behind it": (COUNT, "data come after its end marker"),
    "rest is zeros": (COUNT, "bytes of zeros follow its end marker"),
}


def damaged(kind: str, whole: tuple[bytes, list[tarfile.TarInfo]]) -> bytes:
    """The tar with one damage. Image 3 has a pax header of its own before it."""
    data, members = whole
    third, image, label = members[4], members[6], members[7]
    end = members[-1].offset_data + 512
    return {
        "cut at a member": data[: image.offset],
        "cut in a header": data[: image.offset + 200],
        "cut behind a header": data[: image.offset_data],
        "cut in an image": data[: image.offset_data + 100],
        "cut in a label": data[: label.offset_data + 512],
        "header overwritten": data[: third.offset] + b"x" * 512 + data[third.offset + 512 :],
        "header behind a pax header overwritten": data[: image.offset_data - 512]
        + b"x" * 512
        + data[image.offset_data :],
        "header zeroed": data[: third.offset] + bytes(512) + data[third.offset + 512 :],
        "end marker lacks": data[:end],
        "another tar behind it": data + data,
        "rest is zeros": data + bytes(MOST_PADDING + 1),
    }[kind]


def test_headers_that_would_keep_tarfile_busy_for_ever_are_damage(tmp_path: Path) -> None:
    image = encoded(picture(0, 40, 36))
    back, long = tarfile.TarInfo("1.png"), tarfile.TarInfo("1.png")
    back.pax_headers = {"size": "-1536"}  # leads back to its own headers
    long.type, long.size = tarfile.XHDTYPE, 2**30
    for name, info, reason in (
        ("back.tar", back, "a size of -1,536 bytes"),
        ("long.tar", long, "a header of 1,073,741,824 bytes"),
    ):
        path = tmp_path / name
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            first = tarfile.TarInfo("0.png")
            first.size = len(image)
            tar.addfile(first, io.BytesIO(image))
            tar.addfile(info)
        found, error = images_until_the_error(path)
        assert found == [image]
        assert reason in error


def images_until_the_error(path: Path) -> tuple[list[bytes], str]:
    found = []
    try:
        for member, read in tar_members(str(path)):
            if member.name.endswith(".png"):
                found.append(read())
    except ImageUnreadable as error:
        return found, error.reason
    return found, ""


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("kind", DAMAGES)
def test_what_is_whole_comes_and_then_an_error(
    tmp_path: Path, whole: tuple[bytes, list[tarfile.TarInfo]], kind: str, packed: str
) -> None:
    data, (images, reason) = damaged(kind, whole), DAMAGES[kind]
    path = tmp_path / f"x.tar{packed}"
    path.write_bytes(gzip.compress(data) if packed else data)
    found, said = images_until_the_error(path)
    assert said.startswith("damaged or truncated tar file: ")
    assert said.endswith("; fetch it again")
    assert reason in said
    assert found == [encoded(picture(i, 40, 36)) for i in range(images)]
    with pytest.raises(DataError, match=reason):
        read_data(path, how=Unpacking(tmp_path / "out"))
    assert not list((tmp_path / "out").rglob("samples.jsonl"))


@pytest.mark.parametrize("kind", ["cut at a member", "header overwritten"])
def test_a_scan_has_an_error_row_for_the_rest_and_exits_with_1(
    tmp_path: Path, whole: tuple[bytes, list[tarfile.TarInfo]], kind: str
) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(damaged(kind, whole))
    rows = run(tmp_path / "out", path)
    images, reason = DAMAGES[kind]
    assert [(row["member"], row["error_code"]) for row in rows] == [
        (None, "unreadable"), *((f"{i}.png", None) for i in range(images)),
    ]  # fmt: skip
    assert reason in rows[0]["error"]
    assert rows[0]["source"] == rows[0]["container"] == str(path)
    assert [row["member"] for row in run(tmp_path / "again", tmp_path / "out")] == [f"{i}.png" for i in range(images)]


def test_a_cut_shard_ends_the_command_with_1(tmp_path: Path, whole: tuple[bytes, list[tarfile.TarInfo]]) -> None:
    (tmp_path / "x.tar").write_bytes(damaged("cut at a member", whole))
    result = CliRunner().invoke(app, ["scan", str(tmp_path / "x.tar"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "1 of 4 could not be scored" in result.stderr


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9, 0.999])
def test_a_compressed_tar_that_is_cut_is_an_error(
    tmp_path: Path, whole: tuple[bytes, list[tarfile.TarInfo]], cut: float
) -> None:
    packed = gzip.compress(whole[0])
    (tmp_path / "x.tgz").write_bytes(packed[: int(cut * len(packed))])
    with pytest.raises(ImageUnreadable, match="damaged or truncated"):
        list(tar_members(str(tmp_path / "x.tgz")))


def test_sums_of_gzip_are_checked(tmp_path: Path, whole: tuple[bytes, list[tarfile.TarInfo]]) -> None:
    packed = bytearray(gzip.compress(whole[0]))
    packed[-8] ^= 1  # of the sum
    (tmp_path / "x.tgz").write_bytes(packed)
    with pytest.raises(ImageUnreadable, match="CRC check failed"):
        list(tar_members(str(tmp_path / "x.tgz")))


def test_whole_tars_are_read_near_and_far_however_they_are_packed(
    tmp_path: Path, whole: tuple[bytes, list[tarfile.TarInfo]]
) -> None:
    data, members = whole
    memory = fsspec.filesystem("memory")
    for name, content in {"a.tar": data, "b.tar": gzip.compress(data), "c.tgz": gzip.compress(data[:4096]) +
                          gzip.compress(data[4096:]), "d.tar": bz2.compress(data)}.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
        memory.pipe_file(f"/tars/{name}", content)
        far = [(m.name, read()) for m, read in tar_members(f"memory://tars/{name}")]
        assert [name for name, _ in far] == [m.name for m in members]
        if name != "d.tar":
            assert [(m.name, read()) for m, read in tar_members(str(tmp_path / name))] == far
    memory.rm("/tars", recursive=True)
    assert is_in_place(str(tmp_path / "a.tar"))
    assert not is_in_place(str(tmp_path / "b.tar"))
    for member, read in tar_members(str(tmp_path / "a.tar")):
        assert data[member.offset_data :][: member.size] == read()


def test_a_member_whose_zeros_are_left_out_is_not_read_as_it_lies(tmp_path: Path) -> None:
    image = encoded(picture(0, 40, 36))
    with tarfile.open(tmp_path / "train-0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in (("0.png", image), ("0.cls", b"1")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if name == "0.png":
                info.pax_headers = {"GNU.sparse.map": f"4096,{len(data)}", "GNU.sparse.size": str(4096 + len(data))}
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(DataError, match=r"0\.png: its runs of zeros are left out; pack the shard without --sparse"):
        read_data(tmp_path / "train-0.tar")


def test_shards_at_an_address_are_unpacked(tmp_path: Path, whole: tuple[bytes, list[tarfile.TarInfo]]) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/shards/x-0.tar", whole[0])
    samples = read_data("memory://shards/x-{0..0}.tar", how=Unpacking(tmp_path / "out"))
    memory.rm("/shards", recursive=True)
    assert [(sample.label, sample.path.read_bytes()) for sample in samples] == [
        (i % 2, encoded(picture(i, 40, 36))) for i in range(COUNT)
    ]
