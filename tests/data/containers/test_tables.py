"""Tables in every layout of Arrow give the same images; one that is damaged or cut is an error, not the whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from scanning import run
from tiny import encoded, picture
from typer.testing import CliRunner

from clipmole.cli import app
from clipmole.data import Unpacking, file_sha256, read_data, sample_bytes
from clipmole.data.containers.huggingface import arrow_bytes
from clipmole.data.containers.tables import image_bytes, table_columns, table_rows
from clipmole.errors import DataError, ImageNotFound, ImageNotRead, ImageUnreadable

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
IMAGES = [encoded(picture(i, 40, 36)) for i in range(6)]
SIZE = max(map(len, IMAGES))
EQUAL = [image + bytes(SIZE - len(image)) for image in IMAGES]  # zeros behind its end do a PNG no harm


def image_array(layout: str) -> Any:
    kinds = {"binary": pa.binary(), "large": pa.large_binary(), "view": pa.binary_view(), "fixed": pa.binary(SIZE)}
    if layout == "dictionary":
        return pa.array(IMAGES).dictionary_encode()
    if layout in kinds:
        return pa.array(EQUAL if layout == "fixed" else IMAGES, kinds[layout])
    kind = pa.struct({"bytes": pa.binary_view(), "path": pa.string_view()})
    return pa.array([{"bytes": data, "path": None} for data in IMAGES], kind)


def path_array(names: list[str], layout: str) -> Any:
    kinds = {"string": pa.string(), "large": pa.large_string(), "view": pa.string_view()}
    return pa.array(names).dictionary_encode() if layout == "dictionary" else pa.array(names, kinds[layout])


@pytest.mark.parametrize("layout", ["binary", "large", "view", "fixed", "dictionary", "struct of views"])
def test_images_of_every_layout_are_read(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"image": image_array(layout), "label": [0, 1] * 3}), path)
    expected = EQUAL if layout == "fixed" else IMAGES
    assert table_columns(str(path)) == ("image", None, 6)
    rows = table_rows(str(path), ["image"])
    assert [image_bytes(row["image"], "x") for row in rows] == expected
    assert [sample_bytes(s) for s in read_data(path, how=Unpacking(tmp_path / "out"))] == expected
    scanned = run(tmp_path / "scan", path)
    assert [row["error"] for row in scanned] == [None] * 6


@pytest.mark.parametrize("layout", ["string", "large", "view", "dictionary"])
def test_paths_of_every_layout_are_read(tmp_path: Path, layout: str) -> None:
    names = [f"{i}.png" for i in range(6)]
    for name, data in zip(names, IMAGES, strict=True):
        (tmp_path / name).write_bytes(data)
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"path": path_array(names, layout), "label": [0, 1] * 3}), path)
    assert table_columns(str(path)) == (None, "path", 6)
    assert [sample_bytes(sample) for sample in read_data(path)] == IMAGES
    assert [row["source"] for row in run(tmp_path / "scan", path)] == [str(tmp_path / name) for name in names]


def test_pandas_own_path_column_is_read(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    (tmp_path / "a.png").write_bytes(IMAGES[0])
    pandas.DataFrame({"path": [str(tmp_path / "a.png")]}).to_parquet(tmp_path / "t.parquet")
    (row,) = run(tmp_path / "scan", tmp_path / "t.parquet")
    assert (row["source"], row["error_code"]) == (str(tmp_path / "a.png"), None)


def test_the_bytes_of_an_image_in_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(IMAGES[0])
    assert image_bytes({"bytes": None, "path": str(tmp_path / "a.png")}, "x") == IMAGES[0]
    for value in (None, "text", {"bytes": None, "path": None}, {}):
        with pytest.raises(ImageUnreadable, match="x: holds no bytes of an image file"):
            image_bytes(value, "x")
    with pytest.raises(ImageNotRead, match=r"x: .*absent\.png cannot be read"):
        image_bytes({"bytes": None, "path": str(tmp_path / "absent.png")}, "x")


# -- damage ---------------------------------------------------------------------------------------------------


def damaged_table(path: Path, columns: dict[str, Any]) -> Path:
    """Three row groups of two rows, of which the second cannot be read."""
    parquet.write_table(pa.table(columns), path, row_group_size=2, compression="none", use_dictionary=False)
    at = parquet.read_metadata(path).row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[at : at + 8] = b"\xff" * 8  # of the page's header
    path.write_bytes(data)
    return path


def test_a_damaged_row_group_ends_a_table_with_an_error(tmp_path: Path) -> None:
    path = damaged_table(tmp_path / "t.parquet", {"image": IMAGES, "label": [0, 1] * 3})
    rows = table_rows(str(path), ["image"], held=2)
    assert [next(rows)["image"] for _ in range(2)] == IMAGES[:2]
    with pytest.raises(ImageUnreadable, match=r"t\.parquet: damaged or truncated Parquet file: .*; fetch it again"):
        next(rows)
    with pytest.raises(DataError, match="damaged or truncated Parquet file"):
        read_data(path, how=Unpacking(tmp_path / "out"))
    result = CliRunner().invoke(app, ["scan", str(path), "--out", str(tmp_path / "scan")])
    assert result.exit_code == 1, result.output
    rows = parquet.read_table(tmp_path / "scan" / "parts").to_pylist()
    (error,) = [row for row in rows if row["error_code"]]
    assert (error["source"], error["member"], error["error_code"]) == (str(path), None, "unreadable")


def test_a_table_of_paths_that_breaks_off_gives_those_before_and_an_error_row(tmp_path: Path) -> None:
    names = [f"{i:04d}.png" for i in range(3000)]
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"path": names}), path, row_group_size=1000, compression="none", use_dictionary=False)
    data = bytearray(path.read_bytes())
    at = parquet.read_metadata(path).row_group(1).column(0).data_page_offset
    data[at : at + 8] = b"\xff" * 8
    path.write_bytes(data)
    rows = run(tmp_path / "scan", path)
    assert [row["source"] for row in rows[:-1]] == [str(tmp_path / name) for name in names[:1000]]
    assert (rows[-1]["source"], rows[-1]["error_code"]) == (str(path), "unreadable")


@pytest.mark.parametrize("cut", [0, 4, 500, -1, -20])
def test_a_table_that_is_cut_is_an_error_row_beside_whole_ones(tmp_path: Path, cut: int) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    parquet.write_table(pa.table({"image": IMAGES}), folder / "a.parquet")
    (folder / "b.parquet").write_bytes((folder / "a.parquet").read_bytes()[:cut])
    rows = run(tmp_path / "scan", folder)
    assert [row["error_code"] for row in rows] == [None] * 6 + ["unreadable"]
    assert rows[-1]["source"] == str(folder / "b.parquet")


def test_sums_of_pages_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"image": IMAGES}), path, compression="none", write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[data.index(IMAGES[3]) + 60] ^= 1
    path.write_bytes(data)
    with pytest.raises(ImageUnreadable, match="CRC checksum"):
        list(table_rows(str(path), ["image"]))


def test_a_table_that_is_gone_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ImageNotFound):
        table_columns(str(tmp_path / "absent.parquet"))


def test_rows_of_an_arrow_file_are_read_in_place(tmp_path: Path) -> None:
    images = pa.array([{"bytes": data, "path": None} for data in IMAGES])
    for name, new in (("stream.arrow", pa.ipc.new_stream), ("file.arrow", pa.ipc.new_file)):
        table = pa.table({"image": images})
        with pa.OSFile(str(tmp_path / name), "wb") as file, new(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
        assert [arrow_bytes(tmp_path / name, "image", row) for row in range(6)] == IMAGES
    (tmp_path / "cut.arrow").write_bytes((tmp_path / "file.arrow").read_bytes()[:1000])
    with pytest.raises(ImageUnreadable, match="damaged or truncated Arrow file"):
        arrow_bytes(tmp_path / "cut.arrow", "image", 0)


def test_a_saved_data_set_that_is_cut_is_refused(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [{"bytes": data, "path": None} for data in IMAGES], "label": [0, 1] * 3}
    datasets.Dataset.from_dict(rows, features).save_to_disk(tmp_path / "saved")
    samples = read_data(tmp_path / "saved")
    assert [sample_bytes(sample) for sample in samples] == IMAGES
    assert len({file_sha256(sample) for sample in samples}) == 6
    cut = shutil.copytree(tmp_path / "saved", tmp_path / "cut")
    (arrow,) = cut.glob("*.arrow")
    os.truncate(arrow, arrow.stat().st_size // 2)
    with pytest.raises(DataError, match=str(cut)):
        read_data(cut)


# -- lists ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_lists_of_a_scan_are_read_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.png").write_bytes(IMAGES[0])
    (tmp_path / "b.png").write_bytes(IMAGES[1])
    text = "".join(f"{tmp_path}/{name}.png\r\n" for name in "abc")
    (tmp_path / "list.txt").write_bytes(text.encode(encoding))
    rows = run(tmp_path / "scan", list_file=str(tmp_path / "list.txt"))
    assert [Path(row["source"]).name for row in rows] == ["a.png", "b.png", "c.png"]
    assert [row["error_code"] for row in rows] == [None, None, "not_found"]


def test_a_list_that_is_cut_in_a_character_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("/a.png\n/b.png\n".encode("utf-16")[:-1])
    with pytest.raises(DataError, match="is a list in UTF-16 that is cut short"):
        run(tmp_path / "scan", list_file=str(tmp_path / "list.txt"))
    assert not list((tmp_path / "scan").glob("listing*"))
