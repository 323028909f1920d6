"""Every way to name labelled images gives the same images, byte for byte, with the labels that their source means."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import encoded, picture

from clipmole.data import Folders, Unpacking, expand, file_sha256, load_window, read_data, sample_bytes
from clipmole.data.labels import read_label
from clipmole.data.sample import Sample
from clipmole.errors import ConfigError, DataError

FORMATS = ("PNG", "JPEG", "WEBP")
IMAGES = [encoded(picture(i), FORMATS[i % 3]) for i in range(12)]  # six photographs, six generated
LABELS = [i % 2 for i in range(12)]
SHA = [hashlib.sha256(data).hexdigest() for data in IMAGES]


def check_whole(samples: list[Sample], folder: Path | None = None) -> None:
    """The samples are the twelve images in order, with bytes, pixels, labels and unpacked files as they should be."""
    assert [s.label for s in samples] == LABELS
    assert [file_sha256(s) for s in samples] == SHA
    for i, sample in enumerate(samples):
        assert sample_bytes(sample) == IMAGES[i]
        if i % 3 == 0:  # lossless
            assert np.array_equal(load_window(sample), np.asarray(picture(i)))
    assert len({str(s.path) for s in samples}) == 12
    assert Sample.model_validate_json(samples[0].model_dump_json()) == samples[0]
    if folder is not None:
        assert all(s.path.is_relative_to(folder) and s.inside is None for s in samples)


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def facts(folder: Path, samples: list[Sample]) -> list[tuple[str, int, str, str, str]]:
    return [(s.path.relative_to(folder).as_posix(), s.label, s.generator, s.split, s.category) for s in samples]


# -- folders --------------------------------------------------------------------------------------------------


def test_cnnspots_training_set_as_it_is_unpacked(tmp_path: Path) -> None:
    root = touch(
        tmp_path / "progan",
        "train/airplane/0_real/0.png",
        "train/airplane/1_fake/0.png",
        "train/train/1_fake/1.png",  # a class of the objects inside the split
        "val/airplane/1_fake/9.png",
    )
    assert facts(root, read_data(root)) == [
        ("train/airplane/0_real/0.png", 0, "camera", "train", "airplane"),
        ("train/airplane/1_fake/0.png", 1, "progan", "train", "airplane"),
        ("train/train/1_fake/1.png", 1, "progan", "train", "train"),
        ("val/airplane/1_fake/9.png", 1, "progan", "val", "airplane"),
    ]


def test_univfds_training_set_keeps_generator_and_class_apart(tmp_path: Path) -> None:
    root = touch(tmp_path, "train/progan/cat/0_real/0.png", "validation/progan/cat/1_fake/0.png")
    assert facts(root, read_data(root)) == [
        ("train/progan/cat/0_real/0.png", 0, "camera", "train", "progan/cat"),
        ("validation/progan/cat/1_fake/0.png", 1, "progan", "val", "progan/cat"),
    ]


def test_genimage_splits_stay_with_their_generator(tmp_path: Path) -> None:
    root = touch(tmp_path / "ADM", "train/ai/0.png", "val/nature/0.png")
    assert facts(root, read_data(root)) == [
        ("train/ai/0.png", 1, "ADM", "train", ""),
        ("val/nature/0.png", 0, "camera", "val", ""),
    ]
    above = read_data(tmp_path)
    assert [(s.generator, s.category) for s in above] == [("ADM", "ADM"), ("camera", "ADM")]


def test_a_layout_without_splits_has_the_split_that_is_asked_for(tmp_path: Path) -> None:
    root = touch(tmp_path, "dalle/0_real/0.png", "dalle/1_fake/0.png")
    assert {s.split for s in read_data(root)} == {"test"}
    assert {s.split for s in read_data(root, unsplit="")} == {""}


def test_two_folders(tmp_path: Path) -> None:
    touch(tmp_path, "mine/a.jpg", "mine/2024/b.jpg", "sdxl/x.png", "more/flux/y.png", "more/sd3/deep/z.png")
    folders = Folders(real=(tmp_path / "mine",), fake=(tmp_path / "sdxl", tmp_path / "more"))
    assert facts(tmp_path, read_data(folders)) == [
        ("mine/2024/b.jpg", 0, "camera", "test", ""),
        ("mine/a.jpg", 0, "camera", "test", ""),
        ("sdxl/x.png", 1, "sdxl", "test", ""),
        ("more/flux/y.png", 1, "flux", "test", ""),
        ("more/sd3/deep/z.png", 1, "sd3", "test", ""),
    ]
    touch(tmp_path, "r/train/a.jpg", "r/val/b.jpg", "f/train/sd/c.jpg", "f/val/d.jpg")
    split = read_data(Folders(real=(tmp_path / "r",), fake=(tmp_path / "f",)))
    assert [(s.split, s.generator) for s in split] == [
        ("train", "camera"), ("val", "camera"), ("train", "sd"), ("val", "f"),
    ]  # fmt: skip


def test_two_folders_that_hold_each_other_or_nothing_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "all/fake/x.png", "all/y.png")
    (tmp_path / "empty").mkdir()
    for real, fake, reason in (
        ("all", "all/fake", "lies in"),
        ("all/fake", "all", "or holds it"),
        ("all", "empty", "holds no images"),
        ("all", "none", "there is no such folder"),
    ):
        with pytest.raises(DataError, match=reason):
            read_data(Folders(real=(tmp_path / real,), fake=(tmp_path / fake,)))


# -- manifests ------------------------------------------------------------------------------------------------


def write_images(folder: Path) -> list[str]:
    names = [f"{i}.{FORMATS[i % 3].lower()}" for i in range(12)]
    folder.mkdir(exist_ok=True)
    for name, data in zip(names, IMAGES, strict=True):
        (folder / name).write_bytes(data)
    return names


def test_a_manifest_needs_paths_and_labels_only(tmp_path: Path) -> None:
    rows = zip(write_images(tmp_path), LABELS, strict=True)
    with (tmp_path / "m.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    samples = read_data(tmp_path / "m.csv", unsplit="")
    check_whole(samples)
    assert {(s.generator, s.split) for s in samples} == {("camera", ""), ("unnamed", "")}


def parquet(path: Path, columns: dict[str, Any]) -> Path:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as pq

    pq.write_table(pa.table(columns), path, row_group_size=5)
    return path


def test_a_parquet_manifest_is_a_csv_manifest(tmp_path: Path) -> None:
    names = write_images(tmp_path)
    path = parquet(
        tmp_path / "m.parquet",
        {"path": names, "label": LABELS, "generator": ["g"] * 12, "split": ["val"] * 12, "ignore_bottom_px": [3] * 12},
    )
    samples = read_data(path)
    assert [file_sha256(s) for s in samples] == SHA
    assert {(s.generator, s.split, s.ignore_bottom_px) for s in samples} == {("g", "val", 3)}
    for columns, reason in (
        ({"path": names, "label": [2] * 12}, r"m\.parquet, row 1: label '2'"),
        ({"path": ["a", "./a"], "label": [0, 1]}, r"row 2: path \./a is in row 1 too"),
        ({"path": names}, "lacks the columns label"),
        ({"path": ["a", None], "label": [0, 1]}, "row 2: path is empty"),
    ):
        with pytest.raises(DataError, match=reason):
            read_data(parquet(tmp_path / "m.parquet", columns))


def test_a_damaged_page_of_parquet_is_one_line(tmp_path: Path) -> None:
    path = parquet(tmp_path / "m.parquet", {"path": [f"{i}.png" for i in range(12)], "label": LABELS})
    data = bytearray(path.read_bytes())
    data[10:60] = b"\xff" * 50
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"m\.parquet: .*damaged"):
        read_data(path)


def test_what_is_no_number_of_pixels_is_named(tmp_path: Path) -> None:
    columns = {"image": IMAGES[:2], "label": LABELS[:2], "ignore_bottom_px": ["0", "x"]}
    path = parquet(tmp_path / "m.parquet", columns)
    with pytest.raises(
        DataError, match=r"m\.parquet, row 2: ignore_bottom_px 'x': must be a number of pixels, 0 or mo"
    ):
        read_data(path, how=Unpacking(tmp_path / "out"))


@pytest.mark.parametrize("nested", [True, False])
def test_images_inside_parquet_are_unpacked_as_they_are_and_only_once(tmp_path: Path, nested: bool) -> None:
    (tmp_path / "d").mkdir()
    for part, file in ((range(6), "train-0-of-2.parquet"), (range(6, 12), "validation-0.parquet")):
        images = [{"bytes": IMAGES[i], "path": None} if nested else IMAGES[i] for i in part]
        parquet(tmp_path / "d" / file, {"image": images, "label": [LABELS[i] for i in part]})
    said: list[str] = []
    how = Unpacking(tmp_path / "out", 1, said.append)
    samples = read_data(tmp_path / "d", how=how)
    check_whole(samples, tmp_path / "out")
    assert [s.split for s in samples] == ["train"] * 6 + ["val"] * 6
    assert "at most 1 GiB" in said[0]
    assert {s.path.suffix for s in samples} == {".png", ".jpg", ".webp"}
    assert read_data(str(tmp_path / "d" / "*.parquet"), how=how) == samples
    assert "taken from" in said[-1]


def test_what_is_all_of_split_train_has_no_splits(tmp_path: Path) -> None:
    names = write_images(tmp_path)
    path = parquet(tmp_path / "train-00000-of-00001.parquet", {"path": names, "label": LABELS})
    assert {s.split for s in read_data(path, unsplit="")} == {""}


# -- unpacking ------------------------------------------------------------------------------------------------


def test_a_limit_is_kept_and_what_is_there_is_not_written_again(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", {"image": IMAGES, "label": LABELS})
    half = sum(map(len, IMAGES[:6])) / 2**30
    with pytest.raises(DataError, match=r"more than .* GiB after 6 images; allow more with --unpack-gib"):
        read_data(path, how=Unpacking(tmp_path / "out", half))
    kept = sorted((tmp_path / "out").rglob("*.*"))
    assert len(kept) == 6  # and no list: it is not whole
    before = {file: file.stat().st_mtime_ns for file in kept}
    check_whole(read_data(path, how=Unpacking(tmp_path / "out")), tmp_path / "out")
    assert {file: file.stat().st_mtime_ns for file in kept} == before


def test_a_table_that_changed_is_unpacked_anew(tmp_path: Path) -> None:
    how = Unpacking(tmp_path / "out")
    path = parquet(tmp_path / "t.parquet", {"image": IMAGES[:4], "label": LABELS[:4]})
    assert len(read_data(path, how=how)) == 4
    parquet(path, {"image": IMAGES, "label": LABELS})
    check_whole(read_data(path, how=how))


# -- shards ---------------------------------------------------------------------------------------------------


def shard(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def members(which: range, facts: str = "json") -> list[tuple[str, bytes]]:
    found = []
    for i in which:
        value: dict[str, Any] = {"label": ["real", "fake"][LABELS[i]], "group": f"g{i // 2}"}
        if LABELS[i]:
            value["generator"] = "sd"
        found.append((f"dir.x/{i:04d}.{FORMATS[i % 3].lower()}", IMAGES[i]))
        found.append((f"dir.x/{i:04d}.{facts}", json.dumps(value).encode() if facts == "json" else b"%d\n" % LABELS[i]))
    return found


def test_shards_are_read_in_place(tmp_path: Path) -> None:
    shard(tmp_path / "train-000.tar", members(range(8)))
    shard(tmp_path / "val-001.tar", members(range(8, 12)))
    samples = read_data(tmp_path, how=Unpacking(tmp_path / "none"))
    check_whole(samples)
    assert not (tmp_path / "none").exists()
    assert [s.split for s in samples] == ["train"] * 8 + ["val"] * 4
    assert [s.group for s in samples] == [f"g{i // 2}" for i in range(12)]
    assert {s.generator for s in samples if s.label} == {"sd"}
    assert samples[0].path == tmp_path / "train-000.tar" / "dir.x" / "0000.png"
    assert read_data(f"{tmp_path}/{{train-000,val-001}}.tar") == samples
    assert read_data(f"{tmp_path}/*.tar?take=9") == samples[:9]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_leftovers_of_programs_in_shards_and_beside_them_are_passed_over(tmp_path: Path, mode: str) -> None:
    leftovers = [("dir.x/._0000.png", b"x"), ("__MACOSX/0000.png", b"x"), ("@eaDir/0001.png/S.jpg", b"x")]
    name = "a.tar" if mode == "w" else "a.tar.gz"
    shard(tmp_path / name, [*leftovers, *members(range(12))], mode)
    (tmp_path / f"._{name}").write_bytes(b"x")
    said: list[str] = []
    check_whole(read_data(tmp_path, how=Unpacking(tmp_path / "out", say=said.append)))
    assert [line for line in said if "passed over" in line] == [
        "passed over, since programs leave them beside images: 1 ._*, 1 @eaDir, 1 __MACOSX"
    ]


def test_an_index_of_a_shard_finds_what_webdataset_reads(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    path = shard(tmp_path / "a.tar", members(range(12), "cls"))
    own = {s.path.relative_to(path).with_suffix("").as_posix(): (sample_bytes(s), s.label) for s in read_data(path)}
    theirs = {}
    for item in wds.WebDataset(str(path), shardshuffle=False):
        image = next(item[ending] for ending in ("png", "jpeg", "webp") if ending in item)
        theirs[item["__key__"]] = (image, int(item["cls"]))
    assert own == theirs


def test_a_compressed_shard_is_unpacked(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar.gz", members(range(12)), "w:gz")
    check_whole(read_data(path, how=Unpacking(tmp_path / "out")), tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([("a.png", b"x")], r"a\.tar, a: no label"),
        ([("a.cls", b"1")], r"a\.tar, a: 0 images of one key"),
        ([("a.png", b"x"), ("a.jpg", b"x"), ("a.cls", b"1")], "2 images of one key"),
        ([("a.png", b"x"), ("a.cls", b"cat")], "label 'cat': not a word"),
        ([("a.png", b"x"), ("a.json", b"{}")], "the label is empty"),
        ([("a.png", b"x"), ("a.json", b"[1]")], "is not text with a label"),
        ([("a.png", b"x"), ("a.png", b"x"), ("a.cls", b"1")], r"\.png is there twice"),
        ([(f"{key}.{end}", b"1") for key in "aba" for end in ("png", "cls")], r"a\.tar, a: is there twice, and apart"),
        ([], "holds no samples"),
    ],
)
def test_a_wrong_shard_is_refused_by_name(tmp_path: Path, content: list[tuple[str, bytes]], reason: str) -> None:
    with pytest.raises(DataError, match=reason) as error:
        read_data(shard(tmp_path / "a.tar", content))
    assert "\n" not in str(error.value)


def test_a_shard_that_was_cut_is_refused_or_its_image_is(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", members(range(12)))
    whole = read_data(path)
    path.write_bytes(path.read_bytes()[: whole[-1].inside.offset + 20])  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"a\.tar"):
        read_data(path)
    with pytest.raises(DataError, match="ends before it"):
        sample_bytes(whole[-1])


# -- datasets -------------------------------------------------------------------------------------------------


def dataset(names: list[str], label: list[object], **columns: list[object]) -> Any:
    datasets = pytest.importorskip("datasets")
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=names) if names else datasets.Value("string"),
    }
    features |= {column: datasets.Value("string") for column in columns}
    rows = {"image": [{"bytes": data, "path": None} for data in IMAGES], "label": label, **columns}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def test_a_saved_data_set_is_read_in_place(tmp_path: Path) -> None:
    made = dataset(["fake", "real"], [1 - label for label in LABELS], generator=["sd"] * 12, group=["g"] * 12)
    made.save_to_disk(tmp_path / "saved", num_shards=2)
    samples = read_data(tmp_path / "saved", unsplit="", how=Unpacking(tmp_path / "none"))
    check_whole(samples)  # by the names of the classes, though 0 is fake
    assert not (tmp_path / "none").exists()
    assert all(s.inside is not None for s in samples)
    assert {(s.generator, s.split, s.group) for s in samples} == {("camera", "", "g"), ("sd", "", "g")}


def test_a_shuffled_data_set_keeps_labels_with_their_images(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.DatasetDict({"train": dataset([], ["x", "y"] * 6), "validation": dataset([], ["x", "y"] * 6)})
    made["train"] = made["train"].shuffle(seed=1)
    made.save_to_disk(tmp_path / "saved")
    samples = read_data(f"hf:{tmp_path / 'saved'}?ai=y")
    assert {s.split for s in samples} == {"train", "val"}
    assert {(file_sha256(s), s.label) for s in samples[:12]} == set(zip(SHA, LABELS, strict=True))
    check_whole([s for s in samples if s.split == "val"])


@pytest.mark.parametrize("streaming", [0, 1])
def test_local_files_by_load_dataset(tmp_path: Path, streaming: int, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "d").mkdir()
    dataset([], LABELS).rename_column("label", "y").to_parquet(tmp_path / "d" / "train.parquet")
    samples = read_data(f"hf:{tmp_path / 'd'}?label=y&streaming={streaming}", how=Unpacking(tmp_path / "out"))
    check_whole(samples, tmp_path / "out" if streaming else None)
    assert (samples[0].inside is None) == bool(streaming)
    first = read_data(f"hf:{tmp_path / 'd'}?label=y&streaming={streaming}&take=2", how=Unpacking(tmp_path / "out"))
    assert [file_sha256(s) for s in first] == SHA[:2]


def test_a_wrong_query_names_what_there_is(tmp_path: Path) -> None:
    dataset(["real", "fake"], LABELS).save_to_disk(tmp_path / "saved")
    for query, error, reason in (
        ("?label=target", DataError, "has no column 'target', only image, label"),
        ("?image=label_", DataError, "which holds them"),
        ("?split=test", DataError, "has no split 'test'; there are train"),
        ("?colour=red", ConfigError, "colour: unknown key"),
        ("?take=0", ConfigError, "take"),
    ):
        with pytest.raises(error, match=reason):
            read_data(f"hf:{tmp_path / 'saved'}{query}")


def test_a_data_set_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="datasets cannot load it") as error:
        read_data(f"hf:{tmp_path / 'none'}")
    assert "\n" not in str(error.value)


# -- words ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "label"), [(0, 0), ("1", 1), ("Real", 0), (" FAKE ", 1), ("0_real", 0), ("nature", 0), ("ai", 1)]
)
def test_usual_words_are_labels(value: object, label: int) -> None:
    assert read_label(value, "x") == label


@pytest.mark.parametrize("value", [None, "", "cat", 2, True, False, "true"])
def test_a_label_is_not_guessed(value: object) -> None:
    with pytest.raises(DataError, match="x: "):
        read_label(value, "x")
    assert read_label("Midjourney", "x", ("sd", "midjourney")) == 1
    assert read_label("laion", "x", ("sd", "midjourney")) == 0


def test_a_pattern_counts_lists_and_names_what_is_not_there(tmp_path: Path) -> None:
    touch(tmp_path, "a-08.tar", "a-09.tar", "a-10.tar", "b.tar")
    names = [Path(p).name for p in expand(f"{tmp_path}/a-{{08..10}}.tar")]
    assert names == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert [Path(p).name for p in expand(f"{tmp_path}/{{b,a-0*}}.tar")] == ["b.tar", "a-08.tar", "a-09.tar"]
    with pytest.raises(DataError, match=r"there is no .*a-11\.tar"):
        expand(f"{tmp_path}/a-{{10..11}}.tar")
    assert expand(f"{tmp_path}/none.tar") == []
