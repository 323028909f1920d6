"""Pairs of photographs and twins: mixing and alignment against plain formulas, and a folder that training reads."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin
from safetensors import SafetensorError
from tiny import picture
from typer.testing import CliRunner

from clipmole.cli import app
from clipmole.config import TrainConfig
from clipmole.data import read_data
from clipmole.data.sample import Sample
from clipmole.data.training_set import training_data
from clipmole.errors import ConfigError, DataError, Stopped
from clipmole.images.loading import load_image
from clipmole.models.autoencoder import UPSAMPLERS
from clipmole.plumbing.progress import ProgressReporter
from clipmole.plumbing.seeding import sample_rng
from clipmole.training.pairs import (
    PairConfig,
    Pairs,
    cut_window,
    jpeg_own,
    make_pair,
    make_pairs,
    mix_dct,
    mix_pixels,
    mixed,
    reconstruct,
    train_autoencoder,
)

SMALL = PairConfig(window=64, steps=3, batch_size=4, crop=32, width=4)


def photo(seed: int, width: int = 96, height: int = 80) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(picture(seed, width, height))


def write_photos(folder: Path, count: int) -> list[Sample]:
    """JPEG photographs of qualities 60 to 95."""
    folder.mkdir()
    samples = []
    for i in range(count):
        path = folder / f"photo-{i}.jpg"
        picture(i, 96, 80).save(path, quality=60 + 5 * (i % 8))
        samples.append(Sample(path=path, label=0, generator="camera", split="", source=f"source {i % 3}"))
    return samples


def test_an_autoencoder_learns_to_give_back_what_it_is_shown() -> None:
    crops = np.stack([photo(i, 32, 32) for i in range(8)])
    config = SMALL.model_copy(update={"steps": 150, "width": 8, "rate": 1e-2})
    few = train_autoencoder("nearest", crops, config.model_copy(update={"steps": 1}))
    trained = train_autoencoder("nearest", crops, config)
    errors = [np.square(reconstruct(n, crops[0]).astype(float) - crops[0]).mean() for n in (few, trained)]
    assert errors[1] < 0.1 * errors[0]


def test_mixing_all_or_nothing_gives_either() -> None:
    one, other = photo(1), photo(2)
    assert np.array_equal(mix_dct(one, other, np.ones((8, 8), dtype=bool)), other)
    assert np.array_equal(mix_dct(one, other, np.zeros((8, 8), dtype=bool)), one)
    mask = np.zeros((8, 8), dtype=bool)
    mask[0, 0] = True  # the means of blocks are the twin's, all else is the photograph's
    block = (slice(8, 16), slice(24, 32))
    expected = one[block] + (other[block].mean(axis=(0, 1)) - one[block].mean(axis=(0, 1)))
    assert mix_dct(one, other, mask)[block] == pytest.approx(np.clip(expected, 0, 255), abs=0.51)


def test_mixing_in_pixels_is_a_weighted_mean_and_a_twin_stays_one() -> None:
    one, other = photo(1), photo(2)
    assert np.array_equal(mix_pixels(one, other, 1.0), other)
    half = mix_pixels(one, other, 0.5).astype(float)
    assert half == pytest.approx((one.astype(float) + other) / 2, abs=0.51)
    config = SMALL.model_copy(update={"mix": ("pixel", "dct")})
    drawn = [mixed(one, other, config, sample_rng(0, i)) for i in range(30)]
    kept = sum(np.array_equal(each, other) for each in drawn)
    assert 4 < kept < 20  # a third of them
    assert not any(np.array_equal(each, one) for each in drawn)
    assert np.array_equal(mixed(one, other, SMALL, sample_rng(0, 1)), other)


def test_a_twin_gets_the_tables_and_the_subsampling_of_its_photographs_file() -> None:
    buffer = io.BytesIO()
    picture(3, 64, 64).save(buffer, "JPEG", quality=42, subsampling=0)
    with Image.open(io.BytesIO(buffer.getvalue())) as stored:
        assert isinstance(stored, JpegImagePlugin.JpegImageFile)
        tables = stored.quantization
    twin = photo(4, 64, 64)
    expected = io.BytesIO()
    Image.fromarray(twin).save(expected, "JPEG", qtables=tables, subsampling=0)
    with Image.open(expected) as decoded:
        assert np.array_equal(jpeg_own(twin, buffer.getvalue()), np.asarray(decoded))
    assert not np.array_equal(jpeg_own(twin, buffer.getvalue()), twin)
    png = io.BytesIO()
    picture(3, 64, 64).save(png, "PNG")
    assert np.array_equal(jpeg_own(twin, png.getvalue()), twin)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_twin_has_its_blocks_where_the_photograph_has_them(orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A perfect autoencoder's twin is nearly the photograph: encoding on the same grid again changes little."""
    noise = np.random.default_rng(0).integers(-30, 30, (136, 168, 3))
    pixels = np.clip(photo(1, 168, 136).astype(int) + noise, 0, 255).astype(np.uint8)
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(buffer, "JPEG", quality=40, subsampling=2, exif=exif)
    upright = np.asarray(load_image(buffer.getvalue()))
    monkeypatch.setattr("clipmole.training.pairs.reconstruct", lambda _network, rgb: rgb)
    config = SMALL.model_copy(update={"resize_probability": 1.0, "resize_scale": (1.0, 1.0), "quality": (100, 100)})
    for seed in range(5):
        files = make_pair(upright, buffer.getvalue(), None, config, sample_rng(0, seed))[:2]  # type: ignore[arg-type]
        one, twin = (np.asarray(Image.open(io.BytesIO(file)).convert("YCbCr")).astype(float) for file in files)
        change = np.abs(twin - one).mean(axis=(0, 1))
        assert change.max() < 0.3  # off the grid, or with tables turned on their side: 1.5 to 2.5


def test_a_window_begins_on_the_grid_of_16() -> None:
    rows, columns = np.indices((100, 150))
    rgb = np.stack([rows, columns, rows * 0], axis=-1).astype(np.uint8)
    corners = [cut_window(rgb, SMALL, sample_rng(0, i))[0, 0].tolist() for i in range(40)]
    assert {y for y, _, _ in corners} == {0, 16, 32}
    assert {x for _, x, _ in corners} == {0, 16, 32, 48, 64, 80}
    assert cut_window(rgb, SMALL, sample_rng(0)).shape == (64, 64, 3)
    assert cut_window(rgb[:45, :60], SMALL, sample_rng(0)).shape == (40, 56, 3)
    with pytest.raises(DataError, match="20 x 60 pixels, too few: 32 a side"):
        cut_window(rgb[:60, :20], SMALL, sample_rng(0))


def test_photographs_become_pairs_that_differ_in_nothing_but_how_pixels_were_made(tmp_path: Path) -> None:
    samples = write_photos(tmp_path / "photos", 24)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no image")
    broken = samples[0].model_copy(update={"path": tmp_path / "photos" / "broken.jpg"})
    found = make_pairs([*samples, broken, samples[3]], tmp_path / "out", SMALL)
    assert found.photographs == 24
    assert list(found.failed) == [str(broken.path)]
    assert set(found.psnr) == set(UPSAMPLERS)
    pairs = read_data(tmp_path / "out" / "manifest.csv")
    assert len(pairs) == 48
    by_group: dict[str, list[Sample]] = {}
    for sample in pairs:
        by_group.setdefault(sample.group, []).append(sample)
    counted = dict.fromkeys(UPSAMPLERS, 0)
    for real, twin in by_group.values():
        assert (real.label, twin.label, real.generator, real.source) == (0, 1, "camera", twin.source)
        counted[twin.generator.removeprefix("twin-")] += 1
        with Image.open(real.path) as one, Image.open(twin.path) as other:
            assert one.format == other.format == "JPEG"
            assert one.size == other.size
            assert isinstance(one, JpegImagePlugin.JpegImageFile)
            assert isinstance(other, JpegImagePlugin.JpegImageFile)
            assert one.quantization == other.quantization
            assert not np.array_equal(np.asarray(one), np.asarray(other))
    assert set(counted.values()) == {6}
    drawn = training_data(TrainConfig(backbone="embedded", data=str(tmp_path / "out" / "manifest.csv")))
    sides = [{sample.group for sample in part} for part in (drawn.train, drawn.val, drawn.calibration)]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 24


def test_the_same_seed_gives_the_same_files_and_a_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    samples = write_photos(tmp_path / "photos", 9)
    config = SMALL.model_copy(update={"upsamplers": ("nearest", "pixel-shuffle"), "mix": ("dct",)})
    whole = make_pairs(samples, tmp_path / "whole", config)
    stops = iter([False] * 9 + [True])  # in the second pair, after three steps of each autoencoder
    stopping = ProgressReporter(stopping=lambda: next(stops, True))
    with pytest.raises(Stopped, match="give the same command again"):
        make_pairs(samples, tmp_path / "out", config, progress=stopping)
    assert not (tmp_path / "out" / "manifest.csv").exists()
    begun = sorted(path.name for path in (tmp_path / "out" / "photographs").iterdir())
    assert 1 <= len(begun) < 9
    found = make_pairs(samples, tmp_path / "out", config)
    assert isinstance(found, Pairs)
    assert found.photographs == whole.photographs == 9
    files = {path.relative_to(tmp_path / "whole"): path.read_bytes() for path in (tmp_path / "whole").rglob("*.*")}
    assert files == {path.relative_to(tmp_path / "out"): path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    other = make_pairs(samples, tmp_path / "other", config.model_copy(update={"seed": 1}))
    assert other.psnr != whole.psnr


def test_splits_are_kept_and_autoencoders_see_the_training_photographs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = write_photos(tmp_path / "photos", 8)
    named = [s.model_copy(update={"split": "train" if i < 6 else "val"}) for i, s in enumerate(samples)]
    seen: list[int] = []

    def trained(kind: str, crops: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], *rest: object) -> object:
        seen.append(len(crops))
        return train_autoencoder(kind, crops, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("clipmole.training.pairs.train_autoencoder", trained)
    make_pairs(named, tmp_path / "out", SMALL)
    assert seen == [6 * 4] * 4
    splits = [sample.split for sample in read_data(tmp_path / "out" / "manifest.csv")]
    assert (splits.count("train"), splits.count("val")) == (12, 4)


def test_the_command_makes_pairs_of_a_folder(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 5)
    command = ["data", "pair", str(tmp_path / "photos"), "--out", str(tmp_path / "out"), "--window", "64"]
    result = CliRunner().invoke(app, [*command, "--steps", "2", "--limit", "3", "--mix", "pixel"])
    assert result.exit_code == 0, result.output
    assert "3 photographs and as many twins (likeness of twins, PSNR: nearest" in result.output
    assert len(read_data(tmp_path / "out" / "manifest.csv")) == 6
    again = CliRunner().invoke(app, [*command, "--steps", "3", "--limit", "3", "--mix", "pixel"])
    assert isinstance(again.exception, DataError)
    assert "was begun with other photographs or settings" in str(again.exception)


def test_what_cannot_be_paired_is_refused_in_one_line(tmp_path: Path) -> None:
    samples = write_photos(tmp_path / "photos", 2)
    with pytest.raises(DataError, match="no photographs"):
        make_pairs([s.model_copy(update={"label": 1}) for s in samples], tmp_path / "out", SMALL)
    with pytest.raises(DataError, match="was not made by clipmole data pair"):
        make_pairs(samples, tmp_path / "photos", SMALL)
    small = [samples[0].model_copy(update={"ignore_bottom_px": 70})]
    with pytest.raises(DataError, match="none of the 1 photographs can be used"):
        make_pairs(small, tmp_path / "out", SMALL)
    with pytest.raises(ConfigError, match="window"):
        PairConfig.parse({"window": 100}, "options")


def test_a_limit_counts_photographs_whatever_their_generator_is_called(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 4)
    rows = [f"photos/{p.name},0,camera {i}" for i, p in enumerate(sorted((tmp_path / "photos").iterdir()))]
    (tmp_path / "m.csv").write_text("\n".join(["path,label,generator", *rows]))
    command = ["data", "pair", str(tmp_path / "m.csv"), "--out", str(tmp_path / "out"), "--window", "64"]
    result = CliRunner().invoke(app, [*command, "--steps", "1", "--limit", "2"])
    assert "2 photographs and as many twins" in result.output


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("clipmole.training.pairs.save_file", full)
    with pytest.raises(DataError, match="cannot be written: No space left on device; free some space"):
        make_pairs(write_photos(tmp_path / "photos", 2), tmp_path / "out", SMALL)
