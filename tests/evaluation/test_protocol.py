"""Protocols: what lies in its owners' layout is found, what does not is named with its cure, facts stay facts."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from tiny import write_corpus

from clipmole.config import packaged_names
from clipmole.data import Folders
from clipmole.errors import ConfigError, DataError
from clipmole.evaluation.protocol import (
    find_sets,
    load_protocol,
    published_for,
    published_results,
)
from clipmole.images.conditions import load_conditions

UNIVFD = "progan cyclegan biggan stylegan gaugan stargan deepfakes sitd san crn imle guided ldm_200 ldm_200_cfg ldm_100"
UNIVFD_SETS = [*UNIVFD.split(), "glide_100_27", "glide_50_27", "glide_100_10", "dalle"]
GENIMAGE_SETS = ["Midjourney", "SD-1.4", "SD-1.5", "ADM", "GLIDE", "Wukong", "VQDM", "BigGAN"]


def touch(root: Path, folder: str, *names: str) -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / folder / name).touch()


def facts(samples: list, root: Path) -> list[tuple[str, int, str]]:
    return [(s.path.relative_to(root).as_posix(), s.label, s.generator) for s in samples]


# -- presets --------------------------------------------------------------------------------------------------


def test_the_presets_are_these_and_say_what_they_need_to() -> None:
    assert packaged_names("evaluation/protocols") == ("chameleon", "genimage-8", "manifest", "univfd-19")
    for name in packaged_names("evaluation/protocols"):
        protocol = load_protocol(name)
        assert load_conditions(protocol.conditions)[0].name == "as stored"
        for owner in protocol.owners.values():
            assert owner.publishes.startswith("https://")
            assert "{folder}" in owner.layout
    assert [s.name for s in load_protocol("univfd-19").sets] == UNIVFD_SETS
    assert [s.name for s in load_protocol("genimage-8").sets] == GENIMAGE_SETS
    assert {load_protocol(name).crop for name in packaged_names("evaluation/protocols")[:2]} == {"center_crop"}
    assert load_protocol("manifest").splits == ("test", "test_unseen")


def test_an_unknown_protocol_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="'univfd': neither a TOML file nor one of chameleon, genimage-8, manifest"):
        load_protocol("univfd")


OWNER = '[owners.us]\npublishes = "https://example.org"\nlayout = "{folder}/0_real|1_fake/<images>"\n'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            'splits = ["a"]\nsets = [{ name = "x", folders = ["x"], owner = "us" }]',
            "give either the sets or the splits",
        ),
        ("", "give either the sets or the splits"),
        ('splits = ["a", "b", "a"]', "name 'a' occurs twice"),
        ('sets = [{ name = "x", folders = ["x"], owner = "them" }]', "owner 'them' of set 'x': not one of us"),
        ('sets = [{ name = "x", folders = [], owner = "us" }]', "sets.0.folders"),
        ('splits = ["a"]\nlimit = 0', "limit: Input should be greater than 0 (given: 0)"),
        ('splits = ["a"]\ncrop = "resize"', "crop: "),
        ('splits = ["a"]\nshuffle = 1', "shuffle: unknown key (given: 1)"),
    ],
)
def test_a_wrong_protocol_is_refused_in_one_line(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'title = "mine"\n{text}\n{OWNER}')
    with pytest.raises(ConfigError) as error:
        load_protocol(path)
    assert str(error.value).startswith(f"{path}: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


# -- sets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gans", "diffusion"),
    [("", ""), ("test/", "test/diffusion_datasets/"), ("datasets/test/", "diffusion_datasets/")],
)
def test_univfd_in_the_layouts_of_its_users(tmp_path: Path, gans: str, diffusion: str) -> None:
    for kind in ("0_real", "1_fake"):
        touch(tmp_path, f"{gans}progan/airplane/{kind}", "1.png")
        touch(tmp_path, f"{gans}seeingdark/{kind}", "2.png")
    touch(tmp_path, f"{diffusion}dalle/1_fake", "d.png")
    touch(tmp_path, f"{diffusion}guided/1_fake", "g.png")
    touch(tmp_path, f"{diffusion}laion/0_real", "l.jpg")
    found, missing = find_sets(load_protocol("univfd-19"), tmp_path)
    assert list(found) == ["progan", "sitd", "dalle"]
    assert facts(found["progan"], tmp_path) == [
        (f"{gans}progan/airplane/0_real/1.png", 0, "camera"),
        (f"{gans}progan/airplane/1_fake/1.png", 1, "progan"),
    ]
    assert facts(found["sitd"], tmp_path)[1] == (f"{gans}seeingdark/1_fake/2.png", 1, "sitd")
    assert facts(found["dalle"], tmp_path) == [
        (f"{diffusion}laion/0_real/l.jpg", 0, "camera"),
        (f"{diffusion}dalle/1_fake/d.png", 1, "dalle"),
    ]
    assert len(missing) == 16
    guided = next(line for line in missing if line.startswith("guided: "))
    assert guided == (
        f"guided: no folder imagenet; expected guided/1_fake/<images> and imagenet/0_real/<images> below {tmp_path}; "
        "published at https://github.com/WisconsinAIVision/UniversalFakeDetect (README, Data)"
    )


@pytest.mark.parametrize("folder", ["Stable Diffusion V1.4", "stable_diffusion_v_1_4/imagenet_ai_0419_sdv4"])
def test_genimage_is_measured_on_its_validation_images(tmp_path: Path, folder: str) -> None:
    for split in ("train", "val"):
        for kind in ("nature", "ai"):
            touch(tmp_path, f"{folder}/{split}/{kind}", f"{split}.png")
    found, missing = find_sets(load_protocol("genimage-8"), tmp_path)
    assert facts(found["SD-1.4"], tmp_path) == [
        (f"{folder}/val/nature/val.png", 0, "camera"),
        (f"{folder}/val/ai/val.png", 1, "SD-1.4"),
    ]
    assert [line.split(":")[0] for line in missing] == [name for name in GENIMAGE_SETS if name != "SD-1.4"]


def test_what_lies_otherwise_or_lacks_a_class_is_named_and_the_rest_is_found(tmp_path: Path) -> None:
    for kind in ("0_real", "1_fake"):
        touch(tmp_path, f"crn/{kind}", "1.png")
        touch(tmp_path, f"imle/images/{kind[2:]}", "1.png")
    touch(tmp_path, "san/1_fake", "1.png")
    touch(tmp_path, "biggan/0_real", "1.png")
    touch(tmp_path, "stargan/0_real", "notes.txt")
    found, missing = find_sets(load_protocol("univfd-19"), tmp_path)
    assert list(found) == ["crn"]
    lines = {line.split(":")[0]: line for line in missing}
    assert lines["san"].startswith("san: no photographs; expected san/[<class>/]0_real|1_fake/<images> below")
    assert lines["biggan"].startswith("biggan: no generated images; expected")
    assert "imle/images/fake/1.png: is in no known layout" in lines["imle"]
    assert "holds no images" in lines["stargan"]
    assert all("\n" not in line and "published at https://" in line for line in missing)


def test_a_manifests_splits_are_its_sets(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, {"train": 2, "test": 3, "outside": 4})
    protocol = load_protocol("manifest")
    found, missing = find_sets(protocol, manifest)
    assert {name: len(samples) for name, samples in found.items()} == {"test": 6}
    assert missing == [
        f"test_unseen: no images of this split in {manifest}; the splits there are: outside, test, train"
    ]
    found, missing = find_sets(protocol, manifest, ["outside", "train"])
    assert {name: len(samples) for name, samples in found.items()} == {"outside": 8, "train": 4}
    assert not missing


def test_a_limit_is_of_each_class_of_a_set(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, {"test": 6, "test_unseen": 2})
    limited = load_protocol("manifest").model_copy(update={"limit": 4, "seed": 1})
    found, _ = find_sets(limited, manifest)
    assert [s.label for s in found["test"]] == [0] * 4 + [1] * 4
    assert len(found["test_unseen"]) == 4
    again, _ = find_sets(limited, manifest)
    assert again == found


def test_a_data_folder_that_is_not_there_or_splits_that_are_fixed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none: there is no such file or folder"):
        find_sets(load_protocol("univfd-19"), tmp_path / "none")
    with pytest.raises(ConfigError, match="splits val: GenImage, 8 generators fixes its own; leave them out"):
        find_sets(load_protocol("genimage-8"), tmp_path, ["val"])


# -- published figures ----------------------------------------------------------------------------------------


def test_published_figures_of_a_benchmark() -> None:
    everything = published_for(load_protocol("univfd-19"))
    univfd = {(f.method, f.metric): f for f in everything if not f.set and not f.condition}
    assert univfd["MoLE ViT-L/14", "mean_ap"].value == 97.45
    assert univfd["UnivFD", "mean_accuracy"].value == 81.38
    genimage = {f.method: f.value for f in published_for(load_protocol("genimage-8"))}
    assert genimage["AIDE"] == 86.88
    assert not published_for(load_protocol("manifest"))
    assert all(f.note and 40 < f.value <= 100 for f in published_results())
    assert {f.metric for f in published_results() if not f.set} == {"mean_ap", "mean_accuracy"}
    assert {f.metric for f in published_results() if f.set} == {"average_precision"}


def test_published_perturbations_stand_beside_the_condition_that_was_really_measured() -> None:
    perturbed = {f.condition: f for f in published_for(load_protocol("univfd-19")) if f.condition}
    assert {c: f.value for c, f in perturbed.items()} == {
        "RINE JPEG as run": 88.72,
        "RINE blur": 86.51,
        "RINE noise": 84.6,
        "RINE crop": 90.77,
    }
    assert set(perturbed) <= {condition.name for condition in load_conditions("rine")}
    assert "quality 95 and not at the 10-75 it states" in perturbed["RINE JPEG as run"].note


def test_published_sets_average_to_the_published_means() -> None:
    protocol = load_protocol("univfd-19")
    means = {f.method: f.value for f in published_for(protocol) if f.metric == "mean_ap"}
    values: dict[str, list[float]] = {}
    for figure in published_for(protocol):
        if figure.set:
            assert figure.set in UNIVFD_SETS
            values.setdefault(figure.method, []).append(figure.value)
    assert len(values) == 9
    for method, aps in values.items():
        assert len(aps) == 19
        assert sum(aps) / 19 == pytest.approx(means[method], abs=0.011), method  # two of them are rounded down


def test_the_package_holds_the_facts_of_the_reference_tables(shared_dir: Path) -> None:
    packaged = {(f.benchmark, f.method, f.metric): f.value for f in published_results() if not f.set}
    with (shared_dir / "reference" / "published.csv").open() as file:
        for row in csv.DictReader(file):
            assert packaged[row["benchmark"], row["method"], row["metric"]] == float(row["value"])
    protocol = load_protocol("univfd-19")
    with (shared_dir / "reference" / "univfd_ap.csv").open() as file:
        for row in csv.DictReader(file):
            own = {f.set: f.value for f in published_for(protocol) if f.set and f.method == row["method"]}
            assert own == {name: float(row[name]) for name in UNIVFD_SETS}


def test_two_folders_are_the_set_test_and_no_protocol_of_sets(tmp_path: Path) -> None:
    touch(tmp_path, "mine", "a.jpg", "b.jpg")
    touch(tmp_path, "sdxl", "x.png")
    folders = Folders(real=(tmp_path / "mine",), fake=(tmp_path / "sdxl",))
    found, _ = find_sets(load_protocol("manifest"), folders)
    assert {name: facts(samples, tmp_path) for name, samples in found.items()} == {
        "test": [("mine/a.jpg", 0, "camera"), ("mine/b.jpg", 0, "camera"), ("sdxl/x.png", 1, "sdxl")]
    }
    with pytest.raises(DataError, match="give the folder that holds the data sets"):
        find_sets(load_protocol("univfd-19"), folders)
