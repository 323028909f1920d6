"""The check of a data set finds what was put there, and nothing where nothing is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn
from tiny import encoded, picture, write_corpus
from typer.testing import CliRunner

from clipmole.cli import app
from clipmole.data import Folders, read_data
from clipmole.data.audit import check_data
from clipmole.data.audit.duplicates import look_alikes
from clipmole.data.audit.files import FileFacts, file_facts, jpeg_quality, perceptual_hash
from clipmole.data.audit.shortcuts import find_shortcuts, find_source_accuracy
from clipmole.data.audit.text import report_lines
from clipmole.data.sample import Sample


def write(path: Path, image: Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def sample(path: Path, label: int = 0, split: str = "train", group: str = "") -> Sample:
    return Sample.model_validate({"path": path, "label": label, "generator": "g", "split": split, "group": group})


@pytest.fixture
def even(tmp_path: Path) -> Folders:
    """Thirty images of each class, in the same formats, qualities and sizes."""
    for label, name in enumerate(("real", "fake")):
        for i in range(30):
            size = (40 + 8 * (i % 3), 40)
            image = picture(1000 * label + i, *size)
            if i % 2:
                write(tmp_path / name / f"{i}.jpg", image, quality=70 + 5 * (i % 4))
            else:
                write(tmp_path / name / f"{i}.png", image)
    return Folders(real=(tmp_path / "real",), fake=(tmp_path / "fake",))


# -- one file -------------------------------------------------------------------------------------------------


def test_the_quality_of_a_jpeg_is_the_one_that_it_was_written_with(tmp_path: Path) -> None:
    for quality in range(1, 101):
        facts = file_facts(sample(write(tmp_path / "a.jpg", picture(0), quality=quality)))
        assert facts.quality == quality, quality
    assert jpeg_quality(tuple([1] * 64)) == 100


def test_facts_are_those_of_the_file(tmp_path: Path) -> None:
    facts = file_facts(sample(write(tmp_path / "a.jpg", picture(0, 48, 40), quality=90, subsampling=2)))
    assert (facts.format, facts.width, facts.height, facts.subsampling, len(facts.tables)) == ("JPEG", 48, 40, 2, 2)
    lossless = file_facts(sample(write(tmp_path / "a.webp", picture(0), lossless=True)))
    lossy = file_facts(sample(write(tmp_path / "b.webp", picture(0))))
    assert (lossless.format, lossy.format) == ("WebP lossless", "WebP")
    assert lossless.quality is None
    (tmp_path / "empty.png").write_bytes(b"")
    assert "is empty" in file_facts(sample(tmp_path / "empty.png")).problem
    assert "No such file" in file_facts(sample(tmp_path / "none.png")).problem


def test_the_perceptual_hash_is_the_sign_of_the_dct() -> None:
    grey = np.asarray(picture(3, 32, 32).convert("L"), dtype=np.float64)
    low = dctn(grey)[:8, :8].ravel()  # scipy's own, to a positive factor of each coefficient
    low = low / 4  # of the unnormalised DCT-II, which has 2 a dimension
    expected = int("".join("1" if bit else "0" for bit in low > np.median(low[1:])), 2)
    assert perceptual_hash(grey) == expected
    assert perceptual_hash(np.full((32, 32), 7.0)) is None


# -- duplicates -----------------------------------------------------------------------------------------------


def test_copies_resized_or_encoded_again_look_the_same_and_others_do_not(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.png", picture(i, 96, 80)) for i in range(60)]
    copies = [
        write(tmp_path / "again.jpg", picture(0, 96, 80), quality=60),
        write(tmp_path / "small.png", picture(1, 96, 80).resize((48, 40), Image.Resampling.LANCZOS)),
    ]
    facts = [file_facts(sample(path)) for path in [*paths, *copies]]
    assert look_alikes(facts) == [[0, 60], [1, 61]]


def test_look_alikes_are_those_of_a_comparison_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**63, 200, dtype=np.uint64)
    flips = [
        int(sum(1 << int(bit) for bit in rng.choice(64, count, replace=False))) for count in range(9) for _ in "ab"
    ]
    hashes = [int(value) for value in base] + [int(base[i]) ^ flip for i, flip in enumerate(flips)]
    pixels = rng.integers(0, 256, 256, dtype=np.uint8).tobytes()
    facts = [FileFacts(f"{i}", 1, phash=value, thumbnail=pixels) for i, value in enumerate(hashes)]
    pairs = {(i, j) for i in range(len(hashes)) for j in range(i) if (hashes[i] ^ hashes[j]).bit_count() <= 4}
    assert len(pairs) == 10  # 0 to 4 bits, twice each
    assert {(max(found), min(found)) for found in look_alikes(facts)} == pairs


def test_duplicates_across_splits_and_labels_are_problems(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.png", picture(i)) for i in range(4)]
    for name in ("copy.png", "false.png"):
        (tmp_path / name).write_bytes(paths[0].read_bytes())
    near = write(tmp_path / "near.jpg", picture(1), quality=95)
    samples = [
        sample(paths[0]), sample(paths[1]), sample(paths[2], 1, group="s"), sample(paths[3], 1, "val", "s"),
        sample(tmp_path / "copy.png", 0, "val"), sample(tmp_path / "false.png", 1), sample(near, 0, "val"),
    ]  # fmt: skip
    report = check_data(samples)
    (same,) = report.same
    assert [Path(file).name for file in same.files] == ["0.png", "copy.png", "false.png"]
    assert (same.splits, same.labels) == (("train", "val"), (0, 1))
    assert [[Path(file).name for file in each.files] for each in report.alike] == [["1.png", "near.jpg"]]
    assert report.groups_across_splits == ("s",)
    text = "\n".join(report.problems)
    assert "files that are the same are in several splits (1 set)" in text
    assert "files that look the same are in several splits (1 set)" in text
    assert "1 file with both labels" in text
    assert "train shares 1 group with another split, such as s" in text


# -- shortcuts ------------------------------------------------------------------------------------------------


def facts_of(n: int, quality: np.ndarray, width: np.ndarray | None = None) -> list[FileFacts]:
    tables = {}
    for q in np.unique(quality).tolist():
        import io

        with Image.open(io.BytesIO(jpeg_bytes(q))) as image:
            tables[q] = tuple(tuple(table) for table in image.quantization.values())
    widths = np.full(n, 256) if width is None else width
    return [FileFacts(str(i), 1, "", "JPEG", int(widths[i]), 256, tables[int(quality[i])], 2) for i in range(n)]


def jpeg_bytes(quality: int) -> bytes:
    import io

    file = io.BytesIO()
    picture(0).save(file, "JPEG", quality=quality)
    return file.getvalue()


def test_a_shortcut_that_separates_by_a_known_share_is_measured_as_that_share() -> None:
    rng = np.random.default_rng(1)
    y = np.arange(2000) % 2
    # 90 % of the generated have quality 75, 20 % of the photographs: the best rule gets (0.9 + 0.8) / 2 = 0.85.
    quality = np.where(rng.random(2000) < np.where(y == 1, 0.9, 0.2), 75, 90)
    found = {each.attribute: each for each in find_shortcuts(facts_of(2000, quality), y, list(range(2000)))}
    jpeg = found["JPEG quantisation"]
    truth = ((quality[y == 1] == 75).mean() + (quality[y == 0] == 90).mean()) / 2
    assert jpeg.balanced_accuracy == pytest.approx(float(truth), abs=1e-9)
    assert jpeg.low < 0.85 < jpeg.high
    assert 0.02 < jpeg.high - jpeg.low < 0.05  # 4 standard errors of 0.008
    assert jpeg.warns
    assert {name: each.warns for name, each in found.items()} == {
        "JPEG quantisation": True, "all together": True, "format": False, "size": False, "aspect": False,
    }  # fmt: skip
    assert found["format"].balanced_accuracy == pytest.approx(0.5)


def test_chance_is_no_shortcut_and_groups_are_not_learnt_by_heart() -> None:
    rng = np.random.default_rng(2)
    y = np.repeat(np.arange(60) % 2, 20)  # sixty series of twenty, each with a width of its own
    width = np.repeat(rng.permutation(np.arange(200, 260)), 20)
    facts, quality = list(np.repeat(np.arange(60), 20)), np.full(1200, 75)
    grouped = {s.attribute: s for s in find_shortcuts(facts_of(1200, quality, width), y, facts)}
    alone = {s.attribute: s for s in find_shortcuts(facts_of(1200, quality, width), y, list(range(1200)))}
    assert alone["size"].balanced_accuracy > 0.95
    assert grouped["size"].balanced_accuracy < 0.65
    assert not grouped["size"].warns


def test_few_images_are_not_judged() -> None:
    assert find_shortcuts(facts_of(18, np.full(18, 75)), np.arange(18) % 2, list(range(18))) == []


def test_sources_are_told_by_a_known_share() -> None:
    rng = np.random.default_rng(3)
    # "a" always has quality 75 and "b" 90; "c" has either by chance: (1 + 1 + 0) / 3.
    source = np.array(["a", "b", "c"])[np.arange(1500) % 3]
    quality = np.where(source == "a", 75, np.where(source == "b", 90, rng.choice([75, 90], 1500)))
    found = find_source_accuracy(facts_of(1500, quality), source.tolist(), list(range(1500)))
    assert found is not None
    assert (found.sources, found.images) == (3, 1500)
    assert found.balanced_accuracy == pytest.approx(2 / 3, abs=0.02)
    assert find_source_accuracy(facts_of(1500, quality), [""] * 1500, list(range(1500))) is None
    few = ["a"] * 1491 + ["b"] * 9  # too few groups of one
    assert find_source_accuracy(facts_of(1500, quality), few, list(range(1500))) is None


# -- the whole ------------------------------------------------------------------------------------------------


def test_data_without_fault_pass(even: Folders) -> None:
    report = check_data(read_data(even, unsplit=""))
    assert report.problems == ()
    assert report.counts["format"] == {"JPEG": (15, 15), "PNG": (15, 15)}
    assert report.counts["JPEG quality"] == {"75": (8, 8), "85": (7, 7)}
    assert report.counts["size"] == {"40 x 40": (10, 10), "48 x 40": (10, 10), "56 x 40": (10, 10)}
    assert report.counts["split"] == {"none": (30, 30)}
    assert report.counts["generator"] == {"camera": (30, 0), "fake": (0, 30)}
    assert "No problem was found in the files." in list(report_lines(report))


def test_sources_in_several_splits_are_a_problem(even: Folders) -> None:
    read = read_data(even, unsplit="")
    splits = ("train", "train", "test")
    marked = [each.model_copy(update={"split": splits[i % 3], "source": f"s{i % 2}"}) for i, each in enumerate(read)]
    report = check_data(marked)
    assert report.sources_across_splits == ("s0", "s1")
    assert any(line.startswith("train shares 2 sources with another split, such as s0") for line in report.problems)
    assert report.source_told is not None
    assert any("tell the source of an image correctly in" in line for line in report_lines(report))
    apart = [each.model_copy(update={"source": f"s{each.split}"}) for each in marked]
    assert check_data(apart).sources_across_splits == ()


def test_the_command_prints_a_table_or_json_and_says_by_its_exit_code(even: Folders, tmp_path: Path) -> None:
    arguments = ["data", "check", "--real", str(even.real[0]), "--fake", str(even.fake[0])]
    fine = CliRunner().invoke(app, arguments)
    assert fine.exit_code == 0, fine.output
    assert "60 images: 30 photographs, 30 generated" in fine.stdout
    (tmp_path / "fake" / "0.png").write_bytes(b"")
    (tmp_path / "real" / "1.jpg").write_bytes(encoded(picture(5))[:60])
    wrong = CliRunner().invoke(app, [*arguments, "--json"])
    assert wrong.exit_code == 1
    report = json.loads(wrong.stdout)
    assert len(report["unreadable"]) == 2
    assert [Path(file).name for file in report["empty"]] == ["0.png"]
    assert report["problems"][0].startswith("2 of 60 images cannot be read, 1 of them empty")
    table = CliRunner().invoke(app, arguments)
    assert "fake/0.png: is empty" in table.stdout
    assert CliRunner().invoke(app, ["data", "check"]).exit_code == 2


def test_the_corpus_has_its_jpeg_shortcut(shared_dir: Path) -> None:
    report = check_data(read_data(shared_dir / "corpus" / "manifest.csv"))
    assert report.images == 1466
    assert report.unreadable == report.empty == ()
    first = report.shortcuts[0]
    assert first.attribute == "JPEG quantisation"
    assert 0.80 < first.low < first.balanced_accuracy < first.high < 0.95
    assert all(not each.warns for each in report.shortcuts[1:-1])  # all windows are of one size
    assert any("JPEG quantisation" in line for line in report.problems)
    assert report.groups_across_splits == ()


def test_names_cannot_command_the_terminal(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, {"test": 1})
    manifest.write_text(manifest.read_text().replace("checks", "\x1b[2Jchecks"))
    result = CliRunner().invoke(app, ["data", "check", str(manifest)])
    assert "checks" in result.output
    assert "\x1b" not in result.output


def test_a_name_that_is_not_utf_8_is_shown_in_json_too(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff") / "1_fake"
    folder.mkdir(parents=True)
    (folder / "gone.png").symlink_to("nowhere")
    result = CliRunner().invoke(app, ["data", "check", str(folder.parent), "--json"])
    assert r"\\udcff/1_fake/gone.png" in result.output, (result.output, result.exception)
