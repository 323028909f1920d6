"""Manifests that are wrong say where; equalised windows do not depend on company, place or label."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import picture

from clipmole.data import (
    VARIANTS,
    data_digest,
    file_sha256,
    labels_of,
    limit_samples,
    load_window,
    read_data,
    read_folder,
    read_manifest,
    take_split,
    windows,
)
from clipmole.data.sample import Sample
from clipmole.errors import ConfigError, DataError, ImageNotFound
from clipmole.images.conditions import load_conditions
from clipmole.images.transforms import RGB, jpeg
from clipmole.plumbing.seeding import sample_rng

HEADER = "path,label,generator,split"
EQUALISE_QUALITY = (65, 90)


def manifest(folder: Path, *lines: str, name: str = "m.csv") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def sample(path: Path, label: int = 0, **fields: object) -> Sample:
    generator = "some-model" if label else "camera"
    return Sample.model_validate({"path": path, "label": label, "generator": generator, "split": "test", **fields})


@pytest.fixture
def pictures(tmp_path: Path) -> list[Sample]:
    """Six images, of both classes."""
    samples = []
    for i in range(6):
        path = tmp_path / f"image-{i}.png"
        picture(i).save(path)
        samples.append(sample(path, i % 2))
    return samples


# -- manifests ------------------------------------------------------------------------------------------------


def test_a_manifest_becomes_samples_in_its_order(tmp_path: Path) -> None:
    path = manifest(
        tmp_path,
        "split,extra,label,path,generator,ignore_bottom_px,sha256,group",
        "train,x,1,b/one.png,sd-2.1,16,00, scene 7 ",
        "",
        'val,y,0,"a, with a comma.jpg",camera,,,',
        "val,,1,/elsewhere/c.d.png,ünïcode,0,",
    )
    one = {"label": 1, "generator": "sd-2.1", "split": "train", "ignore_bottom_px": 16, "group": "scene 7"}
    assert read_manifest(path) == [
        Sample.model_validate({"path": tmp_path / "b/one.png", **one}),
        Sample(path=tmp_path / "a, with a comma.jpg", label=0, generator="camera", split="val"),
        Sample(path=Path("/elsewhere/c.d.png"), label=1, generator="ünïcode", split="val"),
    ]


def test_spaces_around_fields_do_not_count_but_in_paths(tmp_path: Path) -> None:
    only = read_manifest(manifest(tmp_path, HEADER, "a b.png , 1 , sd ,test "))
    assert only == [Sample(path=tmp_path / "a b.png ", label=1, generator="sd", split="test")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_spreadsheets_may_write_a_byte_order_mark_and_their_line_ends(tmp_path: Path, encoding: str, end: str) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(end.join([HEADER, "ä.png,1,sd,test"]).encode(encoding))
    assert [s.path.name for s in read_manifest(path)] == ["ä.png"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("b.png,2,sd,test", "label '2': must be 1 (AI-generated) or 0 (photograph)"),
        ("b.png,1.0,sd,test", "label '1.0': must be 1"),
        ("b.png,fake,sd,test", "label 'fake': must be 1"),
        ("b.png,True,sd,test", "label 'True': must be 1"),
        ("b.png,-1,sd,test", "label '-1': must be 1"),
        ("b.png,,sd,test", "label is empty"),
        (",1,sd,test", "path is empty"),
        ("b.png,1,,test", "generator is empty; fill it in"),
        ("b.png,1,sd, ", "split is empty"),
        ("b.png,1,sd", "split is empty"),
        ("b.png", "label is empty"),
        ("b.png,1,sd,test,-3", "ignore_bottom_px '-3': must be a number of pixels, 0 or more"),
        ("b.png,1,sd,test,few", "ignore_bottom_px 'few': must be"),
        ("b,c.png,1,sd,test,0", "more fields than the first line"),
        ("a.png,0,camera,test", "path a.png is in line 2 too"),
        ("./x/../a.png,0,camera,train", "path ./x/../a.png is in line 2 too"),
    ],
)
def test_an_error_names_the_file_the_line_and_the_value(tmp_path: Path, line: str, reason: str) -> None:
    path = manifest(tmp_path, f"{HEADER},ignore_bottom_px", "a.png,0,camera,test,", line, "c.png,1,sd,test,")
    with pytest.raises(DataError) as error:
        read_manifest(path)
    message = str(error.value)
    assert message.startswith(f"{path}, line 3: {reason}")
    assert "\n" not in message


def test_the_line_of_an_error_is_that_of_the_file(tmp_path: Path) -> None:
    path = manifest(tmp_path, HEADER, "", '"two\nlines.png",0,camera,test', "", "b.png,7,sd,test")
    with pytest.raises(DataError, match="line 6: label '7'"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lacks the columns path, label of path,label; generator,split"),
        (b"\n\n", "lacks the columns"),
        (HEADER.encode(), "holds no samples"),
        (f"{HEADER}\n\n".encode(), "holds no samples"),
        (b"path,generator,split\n", "lacks the columns label of"),
        (b"path,label,label\na.png,1,0\n", "has the column label twice"),
        (b"path;label;generator;split\na.png;1;sd;test\n", "lacks the columns"),
        (b"path,label,generator,split\n\xff\xfe.png,1,sd,test\n", "not a CSV file in UTF-8"),
        (HEADER.encode("utf-16"), "not a CSV file in UTF-8"),
        (b'path,label,generator,split\n"a.png"b,1,sd,test\n', "not a CSV file in UTF-8"),
        (b'path,label,generator,split\n"a.png,1,sd,test\n', "not a CSV file in UTF-8"),
    ],
    ids=[
        "empty",
        "blank",
        "header",
        "header and blank",
        "no label",
        "twice",
        "semicolons",
        "latin",
        "utf-16",
        "quote",
        "open",
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_manifest(path)
    assert str(error.value).startswith(f"{path}: ")


def test_an_absent_manifest_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(DataError, match="cannot be read") as error:
            read_manifest(path)
        assert str(path) in str(error.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes that have names")
@pytest.mark.parametrize("name", ["m.csv", "m.parquet", "m.tar"])
def test_a_pipe_is_refused_and_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=f"{name}: is a pipe or a device; save its content to a file first"):
        read_data(tmp_path / name)


def test_a_split_needs_both_classes_and_says_which_splits_there_are(tmp_path: Path) -> None:
    rows = ["a,0,camera,train", "b,1,sd,train", "c,1,sd,val", "d,0,camera,test"]
    samples = read_manifest(manifest(tmp_path, HEADER, *rows))
    assert [s.path.name for s in take_split(samples, "train")] == ["a", "b"]
    with pytest.raises(DataError, match=r"'val' holds 0 photographs .* and 1 generated images"):
        take_split(samples, "val")
    with pytest.raises(DataError, match=r"'test' holds 1 photographs .* and 0 generated"):
        take_split(samples, "test")
    with pytest.raises(DataError, match=r"'tset' holds 0 .* The splits there are: test, train, val"):
        take_split(samples, "tset")
    assert labels_of(samples).tolist() == [0, 1, 1, 0]
    assert labels_of([]).shape == (0,)


# -- windows --------------------------------------------------------------------------------------------------


def test_rows_with_a_mark_are_dropped_and_the_others_kept(tmp_path: Path) -> None:
    picture(0, 48, 40).save(tmp_path / "a.png")
    whole = load_window(sample(tmp_path / "a.png"))
    assert whole.shape == (40, 48, 3)
    assert whole.dtype == np.uint8
    assert np.array_equal(whole, np.asarray(picture(0, 48, 40)))
    assert np.array_equal(load_window(sample(tmp_path / "a.png", ignore_bottom_px=16)), whole[:24])
    assert load_window(sample(tmp_path / "a.png", ignore_bottom_px=39)).shape == (1, 48, 3)
    with pytest.raises(DataError, match="ignore_bottom_px 40 leaves nothing of 40 rows"):
        load_window(sample(tmp_path / "a.png", ignore_bottom_px=40))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes that have names")
def test_a_pipe_or_a_device_in_the_place_of_an_image_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "endless.png"):
        with pytest.raises(DataError, match=f"{name}: is not a regular file"):
            file_sha256(Sample(path=tmp_path / name, label=0, generator="camera", split="test"))


def test_an_absent_image_is_named(tmp_path: Path) -> None:
    absent = sample(tmp_path / "none.png")
    for variant in VARIANTS:
        with pytest.raises(ImageNotFound, match=r"none\.png"):
            list(windows([absent], variant))
    with pytest.raises(DataError, match=r"none\.png: cannot be read"):
        data_digest([absent])


def test_windows_as_stored_are_the_files_pixels(pictures: list[Sample]) -> None:
    for i, window in enumerate(windows(pictures, "as stored")):
        assert np.array_equal(window, np.asarray(picture(i)))


def test_equalised_windows_are_jpegs_of_a_quality_of_the_range(pictures: list[Sample]) -> None:
    for i, window in enumerate(windows(pictures, "equalised")):
        pixels = np.asarray(picture(i))
        low, high = EQUALISE_QUALITY
        assert sum(np.array_equal(window, jpeg(pixels, q)) for q in range(low, high + 1)) >= 1
        assert not np.array_equal(window, pixels)


def test_an_equalised_window_depends_on_its_file_and_the_seed_alone(pictures: list[Sample], tmp_path: Path) -> None:
    together = list(windows(pictures, "equalised", seed=3))
    backwards = list(windows(pictures[::-1], "equalised", seed=3))[::-1]
    alone = [next(windows([s], "equalised", seed=3)) for s in pictures]
    moved = []
    for i, s in enumerate(pictures):  # another place, name, label, generator and split
        (tmp_path / f"{i}").mkdir()
        place = shutil.copy(s.path, tmp_path / f"{i}" / "out.png")
        other = sample(Path(place), 1 - s.label, generator="other", split="train")
        moved.append(next(windows([other], "equalised", seed=3)))
    for same in (backwards, alone, moved):
        assert all(np.array_equal(a, b) for a, b in zip(together, same, strict=True))
    reseeded = list(windows(pictures, "equalised", seed=4))
    assert not all(np.array_equal(a, b) for a, b in zip(together, reseeded, strict=True))


def test_names_that_give_the_class_away_do_not_choose_the_quality(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Photographs are all called photo.png, generated images out.png, as in many data sets.
    samples = []
    for i in range(600):
        label = i % 2
        path = tmp_path / str(i) / ("out.png" if label else "photo.png")
        path.parent.mkdir()
        Image.fromarray(np.frombuffer(hashlib.sha256(b"%d" % i).digest()[:12], np.uint8).reshape(2, 2, 3)).save(path)
        samples.append(sample(path, label))
    drawn: list[int] = []

    def note_quality(rgb: RGB, quality: int) -> RGB:
        drawn.append(quality)
        return rgb

    monkeypatch.setattr("clipmole.images.transforms.jpeg", note_quality)
    list(windows(samples, "equalised"))
    quality, y = np.array(drawn), labels_of(samples)
    low, high = EQUALISE_QUALITY
    assert (quality.min(), quality.max()) == (low, high)
    # Uniform on 65..90: mean 77.5, standard deviation 7.5, so 0.43 of the mean of 300.
    assert quality[y == 0].mean() == pytest.approx(77.5, abs=1.3)
    assert quality[y == 1].mean() == pytest.approx(77.5, abs=1.3)
    counts = np.array([[np.sum(quality[y == label] == q) for q in range(low, high + 1)] for label in (0, 1)])
    chi_squared = float(((counts[0] - counts[1]) ** 2 / counts.sum(axis=0)).sum())
    assert chi_squared < 45  # 25 degrees of freedom: 0.99 below 44.3


def test_an_equalised_window_is_the_jpeg_of_the_quality_that_its_content_draws(pictures: list[Sample]) -> None:
    for s, window in zip(pictures, windows(pictures, "equalised", seed=11), strict=True):
        content = s.path.read_bytes()
        words = struct.unpack("<8I", hashlib.sha256(hashlib.sha256(content).hexdigest().encode()).digest())
        quality = int(np.random.default_rng([11, *words]).integers(65, 91))
        assert np.array_equal(window, jpeg(np.asarray(Image.open(s.path)), quality))


def test_windows_under_any_condition_do_not_depend_on_company(pictures: list[Sample]) -> None:
    condition = next(c for c in load_conditions("robustness") if c.name == "noise 5")
    together = list(windows(pictures, condition, seed=3))
    alone = [next(windows([s], condition, seed=3)) for s in pictures]
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))
    assert not np.array_equal(together[0], next(windows(pictures, condition, seed=4)))
    change = together[0].astype(int) - np.asarray(picture(0))
    assert 3 < change.std() < 5.2


def test_an_unknown_condition_is_refused(pictures: list[Sample]) -> None:
    with pytest.raises(ConfigError, match="'equalized': must be one of as stored, equalised"):
        list(windows(pictures, "equalized"))  # type: ignore[arg-type]


def test_draws_depend_on_seed_and_keys_alone() -> None:
    def first(seed: int, *keys: int | str) -> int:
        return int(sample_rng(seed, *keys).integers(2**62))

    assert first(0, "view", 3, 7) == first(0, "view", 3, 7)
    assert len({first(0, "a"), first(1, "a"), first(0, "b"), first(0, "a", ""), first(0, "a", 0), first(0)}) == 6
    assert first(0, "a", "bc") != first(0, "ab", "c")
    words = struct.unpack("<8I", hashlib.sha256(b"view\x003").digest())  # little-endian on every platform
    assert first(7, "view", 3) == int(np.random.default_rng([7, *words]).integers(2**62))


# -- folders --------------------------------------------------------------------------------------------------


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def listed(folder: Path, samples: list[Sample]) -> list[tuple[str, int, str, str]]:
    return [(s.path.relative_to(folder).as_posix(), s.label, s.generator, s.split) for s in samples]


def test_a_folder_as_cnnspot_lays_it_out(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        "stargan/1_fake/b.v2.PNG",
        "stargan/1_fake/a.jpg",
        "stargan/0_real/x.JPEG",
        "progan/train/0_real/0.png",  # a class of the objects, not a split
        "progan/train/1_fake/0.png",
        "progan/notes.txt",
        "progan/train/0_real/.hidden.png",
        "__MACOSX/progan/0.png",
        ".cache/1_fake/0.png",
    )
    assert listed(root, read_folder(root)) == [
        ("progan/train/0_real/0.png", 0, "camera", "test"),
        ("progan/train/1_fake/0.png", 1, "progan", "test"),
        ("stargan/0_real/x.JPEG", 0, "camera", "test"),
        ("stargan/1_fake/a.jpg", 1, "stargan", "test"),
        ("stargan/1_fake/b.v2.PNG", 1, "stargan", "test"),
    ]
    own = read_data(root / "stargan")
    assert [s.generator for s in own] == ["camera", "stargan", "stargan"]


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_links_to_one_folder_count_as_often_as_they_stand_and_circles_end(tmp_path: Path) -> None:
    root = touch(tmp_path, "photos/x.png", "data/adm/1_fake/1.png", "data/glide/1_fake/2.png") / "data"
    for name in ("adm", "glide"):
        (root / name / "0_real").symlink_to(tmp_path / "photos")
    (root / "adm" / "1_fake" / "other").symlink_to(root / "glide")
    (root / "glide" / "1_fake" / "other").symlink_to(root / "adm")
    found = [path for path, *_ in listed(root, read_folder(root))]
    assert [path for path in found if "other" not in path] == [
        "adm/0_real/x.png", "adm/1_fake/1.png", "glide/0_real/x.png", "glide/1_fake/2.png",
    ]  # fmt: skip
    assert max(path.count("other") for path in found) == 1


def test_a_folder_that_cannot_be_searched_is_refused_and_leftovers_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = touch(tmp_path, "a/0_real/1.png", "a/0_real/._1.png", "a/1_fake/2.png", "__MACOSX/a/1.png")
    said: list[str] = []
    assert len(read_folder(root, say=said.append)) == 2
    assert said == ["passed over, since programs leave them beside images: 1 ._*, 1 __MACOSX"]
    scandir = os.scandir

    def failing(path: str) -> object:
        if str(path).endswith("1_fake"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(DataError, match="1_fake: cannot be searched: Permission denied"):
        read_folder(root)


def test_a_folder_as_genimage_lays_it_out(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        "ADM/imagenet_adm/val/ai/1.PNG",
        "ADM/imagenet_adm/val/nature/n.JPEG",
        "Wukong/train/ai/2.png",
        "Wukong/val/nature/m.JPEG",
    )
    assert listed(root, read_data(root)) == [
        ("ADM/imagenet_adm/val/ai/1.PNG", 1, "ADM", "val"),
        ("ADM/imagenet_adm/val/nature/n.JPEG", 0, "camera", "val"),
        ("Wukong/train/ai/2.png", 1, "Wukong", "train"),
        ("Wukong/val/nature/m.JPEG", 0, "camera", "val"),
    ]
    assert [s.path.name for s in read_data(root, "train")] == ["2.png"]
    assert [s.generator for s in read_data(root / "Wukong")] == ["Wukong", "camera"]
    with pytest.raises(DataError, match="split 'test' holds no images; the splits there are: train, val"):
        read_data(root, "test")


def test_linked_folders_count_and_loops_end(tmp_path: Path) -> None:
    data = touch(tmp_path / "data", "dalle/1_fake/a.png")
    real = touch(tmp_path / "laion", "0_real/r.png")
    (data / "dalle" / "0_real").symlink_to(real / "0_real")
    (data / "glide").mkdir()
    (data / "glide" / "0_real").symlink_to(real / "0_real")  # the same photographs once more
    (data / "dalle" / "up").symlink_to(data)
    assert listed(data, read_folder(data)) == [
        ("dalle/0_real/r.png", 0, "camera", "test"),
        ("dalle/1_fake/a.png", 1, "dalle", "test"),
        ("glide/0_real/r.png", 0, "camera", "test"),
    ]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("progan/real/0.png", "progan/real/0.png: is in no known layout"),
        ("0.png", "0.png: is in no known layout"),
        ("ADM/ai/0.png", "ADM/ai/0.png: is in no known layout"),
        ("0_real.png", "0_real.png: is in no known layout"),
        ("progan/0_real/readme.txt", "holds no images"),
    ],
)
def test_another_layout_is_refused_and_the_known_ones_are_named(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(DataError) as error:
        read_data(touch(tmp_path, name))
    message = str(error.value)
    assert reason in message
    assert "0_real|1_fake" in message
    assert "train|val/nature|ai" in message
    assert "\n" not in message


def test_nothing_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none: there is no such file or folder; expected a manifest"):
        read_data(tmp_path / "none")


def test_a_manifest_is_data_too(tmp_path: Path) -> None:
    path = manifest(tmp_path, HEADER, "a.png,0,camera,train", "b.png,1,sd,test")
    assert read_data(path) == read_manifest(path)
    assert [s.path.name for s in read_data(str(path), "test")] == ["b.png"]
    with pytest.raises(DataError, match="split 'val' holds no images; the splits there are: test, train"):
        read_data(path, "val")


def test_a_limit_is_a_draw_by_name_for_each_class_and_generator() -> None:
    samples = [sample(Path(f"/{i % 3}/{i}.png"), 0 if i % 3 == 0 else 1, generator=f"g{i % 3}") for i in range(90)]
    chosen = limit_samples(samples, 10, seed=1)
    assert [s.generator for s in chosen].count("g0") == 10
    assert len(chosen) == 30
    assert chosen == [s for s in samples if s in chosen]  # the order stays
    assert limit_samples(samples[::-1], 10, seed=1) == chosen[::-1]
    own = sorted(range(0, 90, 3), key=lambda i: hashlib.sha256(f"1\0{i}.png".encode()).digest())[:10]
    assert {s.path.name for s in chosen if s.generator == "g0"} == {f"{i}.png" for i in own}
    moved = [s.model_copy(update={"path": Path("/elsewhere") / s.path.relative_to("/")}) for s in samples]
    assert [s.path.name for s in limit_samples(moved, 10, seed=1)] == [s.path.name for s in chosen]
    more = limit_samples(samples, 20, seed=1)
    assert all(s in more for s in chosen)
    assert limit_samples(samples, 10, seed=2) != chosen
    assert limit_samples(samples, None) == limit_samples(samples, 99) == samples


# -- digest ---------------------------------------------------------------------------------------------------


def test_the_digest_sees_contents_and_fields_but_neither_order_nor_place(
    pictures: list[Sample], tmp_path: Path
) -> None:
    digest = data_digest(pictures)
    assert len(digest) == 64
    assert data_digest(pictures[::-1]) == digest
    (tmp_path / "moved").mkdir()
    moved = [
        s.model_copy(update={"path": Path(shutil.copy(s.path, tmp_path / "moved" / f"{i}.bin"))})
        for i, s in enumerate(pictures)
    ]
    assert data_digest(moved) == digest
    others = [data_digest(pictures[1:]), data_digest([*pictures, pictures[0]]), data_digest([])]
    assert data_digest([pictures[0].model_copy(update={"group": "scene"}), *pictures[1:]]) == digest
    for change in ({"label": 1}, {"generator": "phone"}, {"split": "train"}, {"ignore_bottom_px": 1}):
        others.append(data_digest([pictures[0].model_copy(update=change), *pictures[1:]]))
    content = bytearray(pictures[0].path.read_bytes())
    content[-1] ^= 1
    pictures[0].path.write_bytes(content)
    others.append(data_digest(pictures))
    assert len({digest, *others}) == 1 + len(others)


def test_a_files_sha256_is_that_of_its_bytes(pictures: list[Sample]) -> None:
    assert file_sha256(pictures[0]) == hashlib.sha256(pictures[0].path.read_bytes()).hexdigest()


def test_the_digest_stays_what_training_records_hold(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    samples = [sample(tmp_path / "a", 0), sample(tmp_path / "b", 1, ignore_bottom_px=16)]
    lines = [
        f"{hashlib.sha256(b'b').hexdigest()} 1 some-model test 16",  # 3e23..., sorts before ca97...
        f"{hashlib.sha256(b'a').hexdigest()} 0 camera test 0",
    ]
    assert data_digest(samples) == hashlib.sha256("\n".join(lines).encode()).hexdigest()
