"""Scanning in this process: every kind of source, the same logits as detect, copies scored once, follow-ups."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import clipmole, start_clipmole
from scanning import TOLERANCE, rows_of, run, start, tiny_detector, write_images, write_tar
from tiny import encoded, picture, write_adapter
from typer.testing import CliRunner

from clipmole.cli import app
from clipmole.errors import ConfigError, DataError, Stopped
from clipmole.inference.detector import Detector
from clipmole.inference.export import export_detector
from clipmole.scan import scorer
from clipmole.scan.containers import Entry
from clipmole.scan.duplicates import LocalClaims
from clipmole.scan.listing import Listings
from clipmole.scan.report import thumbnails
from clipmole.scan.settings import ScanSettings

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
fsspec = pytest.importorskip("fsspec")


@pytest.fixture(scope="module")
def images() -> dict[str, bytes]:
    """Name -> bytes of images that differ."""
    made = {f"{i:03d}.png": encoded(picture(i, 40 + i, 36)) for i in range(7)}
    return made | {"007.jpg": encoded(picture(7, 90, 70), "JPEG")}


@pytest.fixture(scope="module")
def logits(images: dict[str, bytes]) -> dict[str, float]:
    """What `Detector.score` says of each, alone."""
    detector = tiny_detector(batch_size=1)
    return {name: float(detector.score([data])[0]) for name, data in images.items()}


@pytest.fixture
def folder(tmp_path: Path, images: dict[str, bytes]) -> Path:
    place = tmp_path / "images"
    (place / "deep").mkdir(parents=True)
    for i, (name, data) in enumerate(images.items()):
        (place / ("deep" if i % 2 else "") / name).write_bytes(data)
    return place


def assert_same(rows: list[dict[str, Any]], logits: dict[str, float], name: Any = lambda row: row["source"]) -> None:
    """Each image has one row, with the logit that it has alone."""
    found = {name(row).rpartition("/")[2]: row["logit"] for row in rows}
    assert len(rows) == len(logits)
    assert found.keys() == logits.keys()
    assert max(abs(found[key] - logits[key]) for key in logits) <= TOLERANCE


def test_a_row_says_what_detect_says(tmp_path: Path, folder: Path, images: dict[str, bytes]) -> None:
    rows = run(tmp_path / "scan", folder)
    detector = tiny_detector()
    for row in rows:
        path = Path(row["source"])
        said = detector.detect(path)
        assert row["source"] == said.source
        assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert abs(row["logit"] - said.logit) <= TOLERANCE
        assert row["probability"] == pytest.approx(said.probability, abs=TOLERANCE)
        assert row["verdict"] == said.verdict.value
        assert (row["tiles"], row["width"], row["height"]) == (said.tiles, said.width, said.height)
        assert row["bytes"] == path.stat().st_size
        assert row["format"] == {".png": "PNG", ".jpg": "JPEG"}[path.suffix]
        assert row["detector"] == said.detector
        assert abs(row["time"] - datetime.now(UTC)) < timedelta(hours=1)
    assert len(rows) == len(images)
    facts = json.loads((tmp_path / "scan" / "scan.json").read_text())
    assert facts["finished"]
    assert facts["counts"]["rows"] == facts["counts"]["scored"] == len(images)
    assert facts["configuration"]["detector"] == "tiny@0"
    assert facts["versions"]["clipmole"]
    assert sum(facts["counts"]["verdicts"].values()) == len(images)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_logits_do_not_depend_on_batches_or_parts(
    tmp_path: Path, folder: Path, logits: dict[str, float], batch_size: int
) -> None:
    load = partial(tiny_detector, batch_size=batch_size)
    assert_same(run(tmp_path / "scan", folder, load=load, part_rows=batch_size), logits)


def test_logits_do_not_depend_on_the_order(tmp_path: Path, folder: Path, logits: dict[str, float]) -> None:
    paths = sorted(map(str, folder.rglob("*.*")))
    random.Random(0).shuffle(paths)
    assert_same(run(tmp_path / "scan", *paths), logits)
    stored = parquet.read_table(tmp_path / "scan" / "parts").column("source").to_pylist()
    assert stored == paths != sorted(paths)


def test_a_pattern_a_list_and_an_overlap_count_each_image_once(
    tmp_path: Path, folder: Path, logits: dict[str, float]
) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"{folder}/000.png\n{folder}/absent.png\n{folder}/deep\n")
    rows = run(tmp_path / "scan", f"{folder}/*.png", f"{folder}/000.png", list_file=str(listed))
    absent = [row for row in rows if row["error_code"]]
    assert [(row["source"], row["error_code"]) for row in absent] == [(f"{folder}/absent.png", "not_found")]
    assert_same([row for row in rows if not row["error_code"]], logits)


@pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz")])
def test_shards_are_read_in_place(
    tmp_path: Path, images: dict[str, bytes], logits: dict[str, float], suffix: str, mode: str
) -> None:
    first = dict(list(images.items())[:5])
    write_tar(tmp_path / f"a-0{suffix}", first, mode)
    write_tar(tmp_path / f"a-1{suffix}", {name: images[name] for name in images if name not in first}, mode)
    rows = run(tmp_path / "scan", f"{tmp_path}/a-{{0..1}}{suffix}", part_rows=2)
    assert_same(rows, logits)
    assert {row["container"] for row in rows} == {f"{tmp_path}/a-{i}{suffix}" for i in (0, 1)}
    assert {row["member"] for row in rows} == set(images)
    assert len(list((tmp_path / "scan" / "parts").iterdir())) == 3 + 2


def test_tables_hold_images_or_their_paths(
    tmp_path: Path, folder: Path, images: dict[str, bytes], logits: dict[str, float]
) -> None:
    names = list(images)
    held = pa.table({"image": [{"bytes": images[name], "path": name} for name in names], "label": [0] * len(names)})
    parquet.write_table(held, tmp_path / "held.parquet", row_group_size=3)
    rows = run(tmp_path / "one", tmp_path / "held.parquet")
    assert_same(rows, logits, lambda row: names[int(row["member"])])
    paths = [os.path.relpath(path, tmp_path) for path in folder.rglob("*.*")]
    parquet.write_table(pa.table({"path": paths}), tmp_path / "paths.parquet")
    assert_same(run(tmp_path / "two", tmp_path / "paths.parquet"), logits)


@pytest.mark.parametrize("options", ["?split=train", "?split=train&streaming=1"])
def test_a_hugging_face_data_set(
    tmp_path: Path, images: dict[str, bytes], logits: dict[str, float], options: str
) -> None:
    datasets = pytest.importorskip("datasets")
    names = list(images)
    held = {"image": [{"bytes": images[name], "path": None} for name in names]}
    made = datasets.Dataset.from_dict(held, datasets.Features({"image": datasets.Image()}))
    if "streaming" in options:
        (tmp_path / "set").mkdir()
        made.to_parquet(str(tmp_path / "set" / "train.parquet"))
    else:
        datasets.DatasetDict({"train": made}).save_to_disk(str(tmp_path / "set"))
    rows = run(tmp_path / "scan", f"hf:{tmp_path}/set{options}", part_rows=3)
    assert_same(rows, logits, lambda row: names[int(row["member"])])
    (tmp_path / "list.txt").write_text(f"hf:{tmp_path}/set{options}\n")
    listed = run(tmp_path / "listed", list_file=str(tmp_path / "list.txt"), part_rows=3)
    assert [row["source"] for row in listed] == [row["source"] for row in rows]


def test_addresses_of_fsspec(tmp_path: Path, folder: Path, images: dict[str, bytes], logits: dict[str, float]) -> None:
    memory = fsspec.filesystem("memory")
    for i, (name, data) in enumerate(images.items()):
        memory.pipe_file(f"/bucket/{'deep/' if i % 2 else ''}{name}", data)
    memory.pipe_file("/bucket/notes.txt", b"no image")
    rows = run(tmp_path / "one", "memory://bucket")
    assert_same(rows, logits)
    assert rows[0]["source"] == "memory://bucket/000.png"
    assert_same(run(tmp_path / "two", f"file://{folder}"), logits)
    some = run(tmp_path / "three", "memory://bucket/*.png")
    assert {row["source"] for row in some} == {
        f"memory://bucket/{name}" for name in ("000.png", "002.png", "004.png", "006.png")
    }
    with write_tar(tmp_path / "x.tar", images).open("rb") as file:
        memory.pipe_file("/shards/x.tar", file.read())
    assert_same(run(tmp_path / "four", "memory://shards"), logits)
    memory.rm("/bucket", recursive=True)
    memory.rm("/shards", recursive=True)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of an S3 server in this process."""
    server = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    stand_in = server.ThreadedMotoServer(port=0, verbose=False)
    stand_in.start()
    host, port = stand_in.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("pictures")
    yield "pictures"
    s3fs.S3FileSystem().rm("pictures", recursive=True)  # the server's next start would find it
    stand_in.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_bucket(tmp_path: Path, bucket: str, images: dict[str, bytes], logits: dict[str, float]) -> None:
    import s3fs

    fs = s3fs.S3FileSystem()
    for i, (name, data) in enumerate(images.items()):
        fs.pipe_file(f"{bucket}/2026/{i % 3}/{name}", data)
    rows = run(tmp_path / "scan", f"s3://{bucket}/2026", since=datetime(2020, 1, 1, tzinfo=UTC))
    assert_same(rows, logits)
    assert rows[0]["source"] == f"s3://{bucket}/2026/0/000.png"
    with pytest.raises(DataError, match=r"holds no images|there is no such"):
        run(tmp_path / "none", f"s3://{bucket}/1999")


def test_what_cannot_be_scored_is_a_row_with_a_code(tmp_path: Path, folder: Path, images: dict[str, bytes]) -> None:
    (folder / "empty.png").touch()
    (folder / "cut.jpg").write_bytes(images["007.jpg"][:-200])
    (folder / "text.png").write_text("no image")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    whole = write_tar(tmp_path / "x.tar", images).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    rows = run(tmp_path / "scan", folder, tmp_path / "cut.tar")
    codes = {Path(row["source"]).name: row["error_code"] for row in rows if row["error_code"]}
    assert codes == {
        "empty.png": "unreadable", "cut.jpg": "unreadable", "text.png": "unreadable", "gone.png": "not_found",
        "pipe.png": "unreadable", "cut.tar": "unreadable",
    }  # fmt: skip
    assert all(row["logit"] is None and row["error"] for row in rows if row["error_code"])
    facts = json.loads((tmp_path / "scan" / "scan.json").read_text())
    assert facts["counts"]["errors"] == {"not_found": 1, "unreadable": 5}
    again = run(tmp_path / "scan", folder, tmp_path / "cut.tar")  # a row with an error is done
    assert again == rows


def test_a_name_that_is_not_utf8(tmp_path: Path, images: dict[str, bytes]) -> None:
    place = tmp_path / "images"
    place.mkdir()
    for name, data in ((b"a\xff.png", images["000.png"]), (b"b\xfe.png", b"no image")):
        (place / os.fsdecode(name)).write_bytes(data)
    shard = write_tar(tmp_path / "x\udcfd.tar", {"c\udcff.png": images["001.png"]})
    rows = run(tmp_path / "scan", place, os.fsdecode(shard))
    names = [f"{place}/a\\udcff.png", f"{place}/b\\udcfe.png", f"{tmp_path}/x\\udcfd.tar/c\\udcff.png"]
    assert [row["source"] for row in rows] == names
    assert [row["error_code"] for row in rows] == [None, "unreadable", None]
    assert rows[0]["sha256"] == hashlib.sha256(images["000.png"]).hexdigest()
    assert [picture is not None for picture in thumbnails(rows).values()] == [True, False, True]
    again = run(tmp_path / "again", tmp_path / "scan")  # by the names in the rows
    assert [(row["source"], row["sha256"], row["logit"]) for row in again] == [
        (row["source"], row["sha256"], row["logit"]) for row in rows
    ]


def test_a_folder_of_shards_may_hold_the_scan_links_and_tables_of_addresses(
    tmp_path: Path, images: dict[str, bytes], logits: dict[str, float]
) -> None:
    place, said = tmp_path / "shards", list[str]()
    place.mkdir()
    write_tar(place / "00000.tar", images)
    (place / "round").symlink_to(place)
    (place / "round-again").symlink_to(place)
    addresses = {"key": ["000", "001"], "url": ["memory://gone/000.png", "memory://gone/001.png"]}
    parquet.write_table(pa.table(addresses), place / "00000.parquet")  # as img2dataset writes it
    rows = run(place / "scan", place, say=said.append)
    assert_same(rows, logits)
    (line,) = said
    assert "since they describe the shards of their names: 1 tables" in line
    assert run(place / "scan", place) == rows
    assert len(run(tmp_path / "table", place / "00000.parquet")) == 2


def test_a_folder_that_may_not_be_searched_does_not_hide_shards(
    tmp_path: Path, images: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = tmp_path / "shards" / "lost+found"
    locked.mkdir(parents=True)
    write_tar(tmp_path / "shards" / "x.tar", images)
    scandir, access = os.scandir, os.access

    def denied(path: Any) -> Any:
        if str(path) == str(locked):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(locked) and access(path, mode))
    rows = run(tmp_path / "scan", tmp_path / "shards")
    assert [row["source"] for row in rows if row["error_code"] != "not_found"] == [
        f"{tmp_path}/shards/x.tar/{name}" for name in sorted(images)
    ]
    assert len(rows) == len(images) + 1


def test_an_address_that_is_none_is_a_row_with_a_code(tmp_path: Path, folder: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"{folder}/000.png\nhtp://host/a.png\n{folder}/002.png\n")
    rows = run(tmp_path / "scan", list_file=str(listed))
    assert [row["error_code"] for row in rows] == [None, None, "not_read"]
    assert rows[2]["error"] == "cannot be read: Protocol not known: htp"


def test_copies_are_scored_once_also_across_parts_and_runs(tmp_path: Path, images: dict[str, bytes]) -> None:
    place = tmp_path / "images"
    place.mkdir()
    for i in range(12):
        (place / f"{i:02d}.png").write_bytes(images[f"00{i % 3}.png"])
    (place / "90.png").write_text("no image")
    (place / "91.png").write_text("no image")
    scored: list[int] = []

    def load() -> Any:
        detector = tiny_detector()
        inner = detector.runtime.outputs

        def counted(crops: Any, batch_size: int) -> Any:
            scored.append(len(crops))
            return inner(crops, batch_size)

        detector.runtime.outputs = counted  # type: ignore[method-assign]
        return detector

    rows = run(tmp_path / "scan", place, load=load, part_rows=2)
    tiles = [row["tiles"] for row in rows[:3]]
    assert sum(scored) == sum(tiles)
    for i, row in enumerate(rows[:12]):
        assert row["duplicate_of"] == (None if i < 3 else f"{place}/{i % 3:02d}.png")
        assert [row[key] for key in ("logit", "verdict", "tiles")] == [
            rows[i % 3][key] for key in ("logit", "verdict", "tiles")
        ]
    assert [row["error_code"] for row in rows[12:]] == ["unreadable"] * 2
    assert rows[13]["duplicate_of"] == f"{place}/90.png"
    (place / "99.png").write_bytes(images["001.png"])
    (place / "98.png").write_bytes(images["005.png"])
    before = sum(scored)
    more = {row["source"]: row for row in run(tmp_path / "scan", place, load=load, part_rows=2)}
    assert len(more) == 16
    assert more[f"{place}/99.png"]["duplicate_of"] == f"{place}/01.png"
    assert sum(scored) - before == more[f"{place}/98.png"]["tiles"]


def test_the_first_that_claims_a_content_scores_it() -> None:
    claims = LocalClaims()
    one, two = "00" * 32, "ff" * 32
    assert claims.claim([(one, "a"), (two, "b"), (one, "c")]) == [None, None, "a"]
    assert claims.claim([(one, "a"), (one, "d"), (two, "a")]) == [None, "a", "b"]  # who asks again gets the same


def test_a_change_is_refused_and_says_how_to_go_on(tmp_path: Path, folder: Path) -> None:
    run(tmp_path / "scan", folder)
    with pytest.raises(ConfigError, match=r"begun with detector=tiny@0, and now it is other@1.*name another --out"):
        run(tmp_path / "scan", folder, load=partial(tiny_detector, name="other@1"))
    with pytest.raises(ConfigError, match="begun with part_rows=1000"):
        run(tmp_path / "scan", folder, part_rows=5)
    with pytest.raises(ConfigError, match="begun with sources="):
        run(tmp_path / "scan", folder / "deep")
    assert len(run(tmp_path / "scan", folder, load=partial(tiny_detector, batch_size=2))) == 8


def test_since_limit_and_sample(tmp_path: Path, folder: Path, images: dict[str, bytes]) -> None:
    old = datetime(2021, 5, 1, tzinfo=UTC)
    for name in ("000.png", "002.png"):
        os.utime(folder / name, (old.timestamp(), old.timestamp()))
    rows = run(tmp_path / "since", folder, since=old + timedelta(days=1))
    assert {Path(row["source"]).name for row in rows} == set(images) - {"000.png", "002.png"}
    assert len(run(tmp_path / "at", folder, since=old)) == 8
    assert [Path(row["source"]).name for row in run(tmp_path / "limit", folder, limit=3)] == [
        "000.png",
        "002.png",
        "004.png",
    ]
    shard = write_tar(tmp_path / "x.tar", images)
    assert [row["member"] for row in run(tmp_path / "shard", folder, shard, limit=11)][-3:] == [
        "000.png",
        "001.png",
        "002.png",
    ]
    many = write_tar(tmp_path / "many.tar", {f"{i:04d}.png": images["000.png"] for i in range(400)})
    some = run(tmp_path / "some", many, sample=0.25, seed=1)
    expected = [f"{many}/{i:04d}.png" for i in range(400)]
    settings = ScanSettings(sample=0.25, seed=1)
    assert [row["source"] for row in some] == [source for source in expected if settings.draws(source)]
    assert 70 < len(some) < 130  # 100 expected, standard deviation 8.7
    other = run(tmp_path / "other", many, sample=0.25, seed=2)
    assert {row["source"] for row in other} != {row["source"] for row in some}


def test_since_leaves_what_is_not_there_a_row_with_a_code(tmp_path: Path, folder: Path, bucket: str) -> None:
    import s3fs

    s3fs.S3FileSystem().pipe_file(f"{bucket}/there.png", encoded(picture(60)))
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    table = tmp_path / "paths.parquet"
    parquet.write_table(pa.table({"path": ["absent-2.png"]}), table)
    listed = tmp_path / "list.txt"
    listed.write_text(f"{folder}/000.png\n{folder}/absent.png\ns3://{bucket}/there.png\ns3://{bucket}/absent.png\n")
    old = datetime(2021, 5, 1, tzinfo=UTC)
    os.utime(folder / "000.png", (old.timestamp(),) * 2)
    rows = run(tmp_path / "scan", folder, table, list_file=str(listed), since=old + timedelta(days=1))
    codes = {row["source"]: row["error_code"] for row in rows}
    assert len(rows) == len(codes) == 7 + 1 + 1 + 3
    assert {source for source, code in codes.items() if code} == {
        f"{folder}/gone.png", f"{folder}/absent.png", f"{tmp_path}/absent-2.png", f"s3://{bucket}/absent.png",
    }  # fmt: skip
    assert set(codes.values()) == {None, "not_found"}
    assert codes[f"s3://{bucket}/there.png"] is None
    assert f"{folder}/000.png" not in codes


def test_lines_of_a_list_may_be_patterns_and_names_with_brackets(
    tmp_path: Path, folder: Path, logits: dict[str, float]
) -> None:
    shutil.copy(folder / "000.png", folder / "a[1].png")
    listed = tmp_path / "list.txt"
    listed.write_text(f"{folder}/00*.png\n{folder}/a[1].png\n{folder}/b[1].png\n{folder}/deep/*\n")
    rows = {row["source"]: row for row in run(tmp_path / "scan", list_file=str(listed))}
    assert rows.pop(f"{folder}/a[1].png")["duplicate_of"] == f"{folder}/000.png"
    assert rows.pop(f"{folder}/b[1].png")["error_code"] == "not_found"
    assert_same(list(rows.values()), logits)


def test_members_of_one_name_are_told_apart_and_read_again(
    tmp_path: Path, images: dict[str, bytes], logits: dict[str, float]
) -> None:
    one, two, three = (images[f"{i:03d}.png"] for i in range(3))
    shard = tmp_path / "x.tar"
    with tarfile.open(shard, "w") as tar:
        for name, data in (("a.png", one), ("b.png", three), ("a.png", two), ("a.png", three)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    rows = {row["member"]: row for row in run(tmp_path / "scan", shard)}
    assert {name: row["sha256"] for name, row in rows.items()} == {
        name: hashlib.sha256(data).hexdigest()
        for name, data in {"a.png": one, "b.png": three, "a.png#2": two, "a.png#3": three}.items()
    }
    assert rows["a.png#2"]["source"] == f"{shard}/a.png#2"
    assert rows["a.png#2"]["logit"] == pytest.approx(logits["001.png"], abs=TOLERANCE)
    where = (f"sha256={hashlib.sha256(two).hexdigest()}",)
    (again,) = run(tmp_path / "again", tmp_path / "scan", where=where)
    assert (again["source"], again["sha256"]) == (f"{shard}/a.png#2", hashlib.sha256(two).hexdigest())
    found = thumbnails([rows["a.png#2"], rows["a.png"]])
    assert all(found.values())
    assert found[f"{shard}/a.png#2"] != found[f"{shard}/a.png"]


def test_an_image_of_a_container_counts_once_however_it_is_named(tmp_path: Path, images: dict[str, bytes]) -> None:
    shard = write_tar(tmp_path / "x.tar", images)
    one, two = tmp_path / "one", tmp_path / "two"
    run(one, shard)
    run(two, shard, limit=5)
    every = [f"{shard}/{name}" for name in images]
    assert [row["source"] for row in run(tmp_path / "both", two, one)] == every
    assert [row["source"] for row in run(tmp_path / "whole", shard, one)] == every
    with pytest.raises(ConfigError, match=r"x\.tar: is given whole, and images of it by an earlier scan"):
        run(tmp_path / "late", two, shard)


def test_images_of_an_earlier_scan_that_are_gone_are_rows_with_a_code(tmp_path: Path, images: dict[str, bytes]) -> None:
    shard, table = write_tar(tmp_path / "x.tar", images), tmp_path / "t.parquet"
    parquet.write_table(pa.table({"image": list(images.values())}), table)
    first = run(tmp_path / "first", shard, table, part_rows=3)
    assert len(first) == 16
    write_tar(shard, dict(list(images.items())[1:]))
    table.unlink()
    rows = run(tmp_path / "second", tmp_path / "first", part_rows=3)
    assert [row["source"] for row in rows] == [row["source"] for row in first]
    codes = {row["source"]: row["error_code"] for row in rows if row["error_code"]}
    assert codes.pop(f"{shard}/000.png") == "not_found"
    assert codes == {f"{table}/row {i}": "not_found" for i in range(8)}


def test_rows_of_an_earlier_scan_are_scanned_by_another_detector(
    tmp_path: Path, folder: Path, images: dict[str, bytes]
) -> None:
    shard = write_tar(tmp_path / "x.tar", images)
    table = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"image": list(images.values())}), table)
    rows = run(tmp_path / "first", folder, shard, table)
    middle = float(np.median([row["probability"] for row in rows]))
    chosen = {row["source"] for row in rows if row["probability"] > middle}
    assert 0 < len(chosen) < len(rows)
    where = (f"probability>{middle!r}",)
    again = run(tmp_path / "second", tmp_path / "first", where=where, load=partial(tiny_detector, name="other@1"))
    assert {row["source"] for row in again} == chosen
    assert {row["detector"] for row in again} == {"other@1"}
    by_source = {row["source"]: row for row in rows}
    assert all(abs(row["logit"] - by_source[row["source"]]["logit"]) <= TOLERANCE for row in again)
    verdicts = {row["source"] for row in rows if row["verdict"] in ("real", "uncertain")}
    third = run(tmp_path / "third", tmp_path / "first", where=("verdict=real,uncertain", "container="))
    assert {row["source"] for row in third} == {source for source in verdicts if source.startswith(str(folder))}
    for wrong in ("verdict", "colour=red", "tiles>many"):
        with pytest.raises(ConfigError, match="--where"):
            run(tmp_path / "wrong", tmp_path / "first", where=(wrong,))


def test_a_scan_that_is_complete_takes_what_is_new(tmp_path: Path, folder: Path) -> None:
    said: list[str] = []
    first = run(tmp_path / "scan", folder)
    assert run(tmp_path / "scan", folder, say=said.append) == first
    (folder / "new.png").write_bytes(encoded(picture(50)))
    left = tmp_path / "scan" / "parts" / ".write-killed"
    left.mkdir()
    (left / "part-0000000-000-end.parquet").write_bytes(b"half")
    rows = run(tmp_path / "scan", folder, say=said.append)
    assert not left.exists()
    assert [row for row in rows if not row["source"].endswith("new.png")] == first
    assert len(rows) == len(first) + 1
    assert "no new sources" in said[0]
    assert "1 new sources" in said[1]
    assert Listings(tmp_path / "scan").images == 9


@pytest.mark.slow
def test_killed_at_random_moments_nothing_is_lost_or_twice(tmp_path: Path) -> None:
    """Twenty SIGKILLs over files and a shard, with copies and damaged images, against a run that was left alone."""
    rng = random.Random(0)
    place = tmp_path / "images"
    paths = write_images(place, 260)
    shutil.copy(paths[3], place / "copy-1.png")
    shutil.copy(paths[200], place / "copy-2.png")
    (place / "damaged.png").write_bytes(paths[0].read_bytes()[:100])
    shard = write_tar(tmp_path / "x.tar", {f"{i}.png": encoded(picture(1000 + i % 230, 40, 36)) for i in range(260)})
    sources = [str(place), str(shard)]
    left_alone = run(tmp_path / "alone", *sources, part_rows=12)
    out, kills = tmp_path / "scan", 0
    scoring = tmp_path / "scan.scoring"
    while kills < 20:
        scoring.unlink(missing_ok=True)
        process = start(out, sources, 0.0015, 12)
        begun = rng.random() < 0.85  # some die before they score: while they load or list
        limit = time.monotonic() + 60
        while begun and not scoring.exists() and process.is_alive() and time.monotonic() < limit:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.07))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
        if process.exitcode != -signal.SIGKILL:
            break  # it was done before all the kills
        kills += 1
        for path in (out / "parts").glob("part-*.parquet"):  # whatever is there is whole
            assert parquet.read_metadata(path).num_rows > 0
    assert kills >= 20, "the scan was over too early to be killed 20 times"
    rows = run(out, *sources, part_rows=12)
    assert len(rows) == len({row["source"] for row in rows}) == len(left_alone) == 260 + 3 + 260
    same = (
        "source",
        "container",
        "member",
        "sha256",
        "verdict",
        "tiles",
        "bytes",
        "error_code",
        "error",
        "duplicate_of",
    )
    for row, other in zip(rows, left_alone, strict=True):
        assert [row[key] for key in same] == [other[key] for key in same]
        assert row["logit"] == pytest.approx(other["logit"], abs=TOLERANCE)
    assert not [path for path in (out / "parts").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_a_source_that_goes_while_it_is_scanned_is_waited_for(tmp_path: Path, left: str) -> None:
    images, away = tmp_path / "images", tmp_path / "away"
    last = write_images(images, 200)[60].read_bytes()  # others are read already, or on their way

    def unmount(image: object) -> None:
        if image == last and images.exists():
            images.rename(away)
            if left != "nothing":
                images.mkdir()

    with pytest.raises(DataError, match=r"images: is gone, or holds nothing any more.*give the same command again"):
        run(tmp_path / "scan", images, part_rows=40, load=partial(tiny_detector, before=unmount))
    kept = rows_of(tmp_path / "scan")
    assert 60 <= len(kept) < 200
    assert all(row["logit"] is not None for row in kept)
    assert json.loads((tmp_path / "scan" / "scan.json").read_text())["finished"] is False
    if images.exists():
        images.rmdir()
    away.rename(images)
    rows = run(tmp_path / "scan", images, part_rows=40)
    assert len(rows) == 200
    assert [row for row in rows if row["source"] <= kept[-1]["source"]] == kept
    assert all(row["logit"] is not None for row in rows)


def test_single_images_that_go_are_rows_that_say_so(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 150)

    def delete(_image: object) -> None:
        for path in paths[2:]:
            path.unlink(missing_ok=True)

    rows = run(tmp_path / "scan", tmp_path / "images", load=partial(tiny_detector, before=delete))
    assert len(rows) == 150
    assert {row["error_code"] for row in rows} == {None, "not_found"}
    assert json.loads((tmp_path / "scan" / "scan.json").read_text())["finished"] is True


def test_a_request_to_stop_keeps_what_is_scored(tmp_path: Path, folder: Path, images: dict[str, bytes]) -> None:
    shard = write_tar(tmp_path / "x.tar", images)  # copies of the files, and more of them than one part holds
    sources = [str(folder), str(shard)]
    alone = run(tmp_path / "alone", *sources, part_rows=3)
    out, passed = tmp_path / "scan", 0

    def stop_after(count: int) -> Any:
        def track(items: Iterable[Any], _description: str, _total: int | None) -> Iterator[Any]:
            nonlocal passed
            iterator = iter(items)
            for _ in range(count):
                passed += 1
                yield next(iterator)
            raise Stopped("stopped")

        return track

    for count in (2, 5, 4):
        before = passed
        with pytest.raises(
            Stopped, match=r"^stopped; \d+ rows are kept in .*scan: give the same command again to go on$"
        ):
            run(out, *sources, part_rows=3, track=stop_after(count))
        assert passed == before + count
        assert len(rows_of(out)) == passed
        assert json.loads((out / "scan.json").read_text())["finished"] is False
    rows = run(out, *sources, part_rows=3)
    assert len(rows) == len(alone) == 16
    for row, other in zip(rows, alone, strict=True):
        same = ("source", "sha256", "verdict", "duplicate_of", "error_code")
        assert [row[key] for key in same] == [other[key] for key in same]
        assert row["logit"] == pytest.approx(other["logit"], abs=TOLERANCE)


def test_a_request_to_stop_while_images_are_listed_leaves_nothing(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(Stopped, match="stopped while the images were listed; give the same command again to go on"):
        run(tmp_path / "scan", folder, stopping=lambda: True)
    assert not list((tmp_path / "scan").glob("*listing*"))
    assert len(run(tmp_path / "scan", folder)) == 8


def slowly() -> None:
    """In a process of its own: ten images a second."""
    finish = Detector.finish

    def slow(self: Detector, *arguments: Any) -> Iterator[Any]:
        for result in finish(self, *arguments):
            time.sleep(0.1)
            yield result

    Detector.finish = slow  # type: ignore[method-assign]


def test_sigterm_on_the_command_keeps_what_is_scored(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 40)
    adapter, backbone = write_adapter(tmp_path)
    command = ["scan", "images", "--out", "scan", "--detector", str(adapter), "--backbone", str(backbone)]
    process = start_clipmole(*command, streams=tmp_path / "streams", cwd=tmp_path, prepare=slowly)
    limit = time.monotonic() + 90
    while not list((tmp_path / "scan").glob("listing-*")) and process.is_alive() and time.monotonic() < limit:
        time.sleep(0.01)
    time.sleep(0.5)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    said = (tmp_path / "streams" / "stderr").read_text()
    assert process.exitcode == 143, said
    assert "Traceback" not in said
    kept = len(rows_of(tmp_path / "scan"))
    assert f"clipmole: stopped; {kept} rows are kept in scan: give the same command again to go on" in said
    assert 0 <= kept < 40
    done = clipmole(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(rows_of(tmp_path / "scan")) == 40


@pytest.mark.parametrize("what", ["parts/part-0000001-000-end.parquet", "listing-0000.parquet"])
@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "other columns", "a folder"])
def test_a_damaged_file_of_a_scan_is_one_line_that_names_it(
    what: str, damage: str, tmp_path: Path, folder: Path
) -> None:
    out = tmp_path / "scan"
    run(out, folder, part_rows=4)
    file, command = out / what, ["scan", "report", str(out)]
    data = file.read_bytes()
    file.unlink()
    if damage == "a folder":
        file.mkdir()
    elif damage == "other columns":
        parquet.write_table(pa.table({"place": ["x"], "source": [3]}), file)
    else:
        file.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "noise": bytes(range(256)) * 8}[damage])
    (folder / "new.png").write_bytes(encoded(picture(50)))
    with pytest.raises(DataError, match=rf"{file}: cannot be read, or is damaged: .*; (delete all|name another)"):
        run(out, folder, part_rows=4)
    if what.startswith("parts"):
        with pytest.raises(DataError, match=rf"{file}: cannot be read, or is damaged: .*; delete all part-0000001-\*"):
            CliRunner().invoke(app, command, catch_exceptions=False)
        file.rmdir() if file.is_dir() else file.unlink()  # the cure
        run(out, folder, part_rows=4)
        assert len(run(out, folder, part_rows=4)) == 9


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes that have names")
def test_a_part_that_is_missing_between_others_is_named(
    tmp_path: Path, images: dict[str, bytes], logits: dict[str, float]
) -> None:
    shard, parts = write_tar(tmp_path / "x.tar", images), tmp_path / "scan" / "parts"
    run(tmp_path / "scan", shard, part_rows=2)
    (parts / "part-0000000-001.parquet").unlink()  # else the rest would count as what comes after part 000
    reason = r"part-0000000-002\.parquet: the part before it is missing; delete all part-0000000-\*"
    with pytest.raises(DataError, match=reason):
        run(tmp_path / "scan", shard, part_rows=2)
    for part in parts.glob("part-0000000-*.parquet"):  # the cure
        part.unlink()
    assert_same(run(tmp_path / "scan", shard, part_rows=2), logits)


def test_few_large_files_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer, "HEAVY", 100)  # bytes; so each image counts as many
    data, taken = [encoded(picture(i, 40, 36)) for i in range(60)], []

    def entries() -> Iterator[tuple[int, Entry]]:
        for i, each in enumerate(data):
            taken.append(i)
            yield 0, Entry(str(i), "x.tar", str(i), len(each), each)

    detector = tiny_detector()
    detector.workers = 2
    with closing(scorer.EntryScorer(detector, LocalClaims(), readers=2).rows(entries())) as rows:
        next(rows)
        assert len(taken) <= 20  # the two images of a batch, and what waits for each of four threads
        assert len(list(rows)) == len(data) - 1


def test_pipes_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(DataError, match=r"x\.tar: is a pipe or a device; save its content to a file first"):
        run(tmp_path / "scan", tmp_path / "x.tar")
    with pytest.raises(DataError, match=r"x\.tar: is a pipe or a device; a scan reads its list several times"):
        run(tmp_path / "scan", list_file=str(tmp_path / "x.tar"))


def test_leftovers_of_programs_are_not_scanned_and_are_said_once(tmp_path: Path, folder: Path) -> None:
    (folder / "._000.png").write_bytes(b"x")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "a.png").write_bytes(b"x")
    said: list[str] = []
    assert len(run(tmp_path / "scan", folder, say=said.append)) == 8
    (line,) = said
    assert line.startswith("passed over, since programs leave them beside images: 1 ._*, 1 __MACOSX")
    memory = fsspec.filesystem("memory")
    for name in ("a.png", "._a.png", "__MACOSX/a.png"):
        memory.pipe(f"/leftovers/{name}", encoded(picture(3)))
    said.clear()
    (row,) = run(tmp_path / "far", "memory://leftovers", say=said.append)
    assert row["source"] == "memory://leftovers/a.png"
    assert said == [line]


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_leftovers_of_programs_in_a_tar_are_not_scanned_and_are_said_once(tmp_path: Path, name: str) -> None:
    data = encoded(picture(3))
    members = {"a.png": data, "._a.png": b"x", "__MACOSX/._b.png": b"x", "@eaDir/a.png/S.jpg": data, "b/c.png": data}
    shard, said = write_tar(tmp_path / name, members, "w:gz" if name.endswith("gz") else "w"), list[str]()
    rows = run(tmp_path / "scan", shard, say=said.append)
    assert [row["member"] for row in rows] == ["a.png", "b/c.png"]
    assert said == ["passed over, since programs leave them beside images: 1 ._*, 1 @eaDir, 1 __MACOSX"]
    assert len(run(tmp_path / "limited", shard, limit=1)) == 1
    assert Listings(tmp_path / "scan").images == (2 if name == "x.tar" else None)  # what progress is told


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_list_of_sources_is_read_in_its_encoding(tmp_path: Path, folder: Path, encoding: str) -> None:
    listed = tmp_path / "list.txt"
    listed.write_bytes(f"{folder / '000.png'}\r\n{folder / '002.png'}\r\n".encode(encoding))
    rows = run(tmp_path / "scan", list_file=str(listed))
    assert [(Path(row["source"]).name, row["error"]) for row in rows] == [("000.png", None), ("002.png", None)]


def test_two_scans_do_not_write_into_one_folder(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 40)
    process = start(tmp_path / "scan", [str(tmp_path / "images")], 0.2, 10)
    limit = time.monotonic() + 60
    while not (tmp_path / "scan.scoring").exists() and time.monotonic() < limit:
        time.sleep(0.01)
    with pytest.raises(DataError, match="another scan is writing here"):
        run(tmp_path / "scan", tmp_path / "images", part_rows=10)
    process.kill()
    process.join(60)
    assert len(run(tmp_path / "scan", tmp_path / "images", part_rows=10)) == 40


def test_a_full_disk_stops_with_one_line_and_leaves_whole_parts(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 60)
    # of a file: the listing is smaller, the only part is larger
    process = start(tmp_path / "large", [str(tmp_path / "images")], 0.0, 60, file_size=9000)
    process.join(60)
    assert process.exitcode == 3
    line = (tmp_path / "large.log").read_text()
    assert line.startswith(f"DataError: {tmp_path}/large")
    assert "cannot be written: File too large; what is there is complete: free space and give the same command" in line
    assert line.count("\n") == 1
    assert list((tmp_path / "large" / "parts").iterdir()) == []
    assert len(run(tmp_path / "large", tmp_path / "images", part_rows=60)) == len(images)


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        command = ["mount", "-t", "tmpfs", "-o", "size=80k", "tmpfs", str(disk)]
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("may not mount a small tmpfs here; a limit on the size of files stands in for it")
    try:
        write_images(tmp_path / "images", 120)
        with pytest.raises(DataError, match=r"cannot be written: No space left on device.*give the same command again"):
            run(disk / "scan", tmp_path / "images", part_rows=5)
        rows = rows_of(disk / "scan")
        assert 0 < len(rows) < 120
        assert len(rows) % 5 == 0
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        assert len(run(disk / "scan", tmp_path / "images", part_rows=5)) == 120
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=False)


def test_images_that_look_the_same_are_grouped(tmp_path: Path) -> None:
    place = tmp_path / "images"
    place.mkdir()
    for i in range(3):
        picture(i, 300, 200).save(place / f"{i}.png")
    picture(1, 300, 200).save(place / "1-again.jpg", quality=70)
    picture(2, 300, 200).resize((150, 100)).save(place / "2-small.png")
    run(tmp_path / "scan", place, look_alikes=True)
    result = CliRunner().invoke(app, ["scan", "groups", str(tmp_path / "scan")])
    assert result.exit_code == 0, result.output
    rows = parquet.read_table(tmp_path / "scan" / "groups.parquet").to_pylist()
    groups = {number: sorted(Path(r["source"]).name for r in rows if r["group"] == number) for number in (0, 1)}
    assert len(rows) == 4
    assert sorted(groups.values()) == [["1-again.jpg", "1.png"], ["2-small.png", "2.png"]]
    run(tmp_path / "without", place)
    with pytest.raises(DataError, match="--look-alikes"):
        CliRunner().invoke(app, ["scan", "groups", str(tmp_path / "without")], catch_exceptions=False)


def test_the_command_line(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 3)
    (tmp_path / "images" / "text.png").write_text("no image")
    adapter, backbone = write_adapter(tmp_path)
    detector = ["--detector", str(adapter), "--backbone", str(backbone)]
    done = clipmole("scan", "images", "--out", "scan", *detector, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stdout == b"scan\n"
    assert b"1 of 4 could not be scored" in done.stderr
    assert b"\r" not in done.stderr  # no bar where nobody looks
    said = clipmole("detect", "--json", "images/00001.png", *detector, cwd=tmp_path)
    row = next(row for row in rows_of(tmp_path / "scan") if row["source"].endswith("00001.png"))
    assert abs(row["logit"] - json.loads(said.stdout)["logit"]) <= TOLERANCE


def test_another_runtime_gives_the_same_logits_and_another_precision_is_refused(tmp_path: Path, folder: Path) -> None:
    pytest.importorskip("openvino")
    adapter, backbone = write_adapter(tmp_path, depth=2)

    def scan(out: str, *options: str) -> list[dict[str, Any]]:
        command = ["scan", str(folder), "--out", str(tmp_path / out), "-d", str(adapter), "--backbone", str(backbone)]
        result = CliRunner().invoke(app, [*command, *options], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return rows_of(tmp_path / out)

    plain = scan("torch")
    rows = scan("openvino", "--runtime", "openvino")
    for row, other in zip(rows, plain, strict=True):
        assert row["source"] == other["source"]
        assert row["logit"] == pytest.approx(other["logit"], abs=5 * TOLERANCE)  # other kernels
        assert row["detector"] == other["detector"]
    assert any(row["logit"] != other["logit"] for row, other in zip(rows, plain, strict=True))
    (folder / "new.png").write_bytes(encoded(picture(50)))  # float32 is float32: it goes on with another runtime
    assert scan("openvino", "--runtime", "torch")[:-1] == rows
    with pytest.raises(ConfigError, match=r"begun with detector=adapter@.*now it is adapter@.*openvino bfloat16"):
        scan("openvino", "--runtime", "openvino", "--precision", "bfloat16")


def test_an_exported_directory_is_scanned_as_it_is(tmp_path: Path, folder: Path) -> None:
    pytest.importorskip("openvino")
    adapter, backbone = write_adapter(tmp_path, depth=2)
    images = [picture(i) for i in range(8)]
    export_detector(adapter, tmp_path / "graph", "openvino", lambda: images, precision="bfloat16", backbone=backbone)
    said = Detector.from_pretrained(tmp_path / "graph")
    command = ["scan", str(folder), "--out", str(tmp_path / "scan"), "-d", str(tmp_path / "graph")]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    rows = rows_of(tmp_path / "scan")
    assert {row["detector"] for row in rows} == {said.name}
    assert [row["logit"] for row in rows] == pytest.approx(said.score([row["source"] for row in rows]), abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--out", "x"], "no images"),
        (["images"], "--out DIR"),
        (["images", "--out", "x", "--address", "auto"], "--engine ray"),
        (["images", "--out", "x", "--engine", "ray", "--workers", "3:2"], "fewest and most"),
    ],
)
def test_wrong_usage(arguments: list[str], reason: str) -> None:
    result = CliRunner().invoke(app, ["scan", *arguments])
    assert result.exit_code == 2
    assert reason in result.stderr


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    for source in ("absent", "absent/*.png", "memory://absent", "hf:absent/absent-clipmole"):
        if source.startswith("hf:"):
            continue
        with pytest.raises(DataError, match="absent"):
            run(tmp_path / "scan", source if "://" in source else tmp_path / source)
        assert not list((tmp_path / "scan").glob("listing*"))
    with pytest.raises(DataError, match="cannot be listed: Protocol not known"):
        run(tmp_path / "other", "nosuchprotocol://x")


def without_pyarrow() -> None:
    """In a process of its own: as if it were not installed."""
    sys.modules["pyarrow"] = None  # type: ignore[assignment]


@pytest.mark.parametrize("arguments", [["scan", "images", "--out", "out"], ["scan", "report", "out"]])
def test_without_pyarrow_one_line_names_the_extra_and_nothing_is_begun(arguments: list[str], tmp_path: Path) -> None:
    write_images(tmp_path / "images", 1)
    done = clipmole(*arguments, cwd=tmp_path, prepare=without_pyarrow)
    assert done.returncode == 2
    assert done.stderr == b"clipmole: pyarrow is not installed; in clipmole's folder, run: pip install -e '.[scan]'\n"
    assert not (tmp_path / "out").exists()
