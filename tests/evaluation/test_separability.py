"""Separability: heads against scikit-learn, figures against plain loops, and made images whose answer is known."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import Ridge
from tiny import picture, tiny_backbone
from typer.testing import CliRunner

from clipmole import metrics
from clipmole.cli import app
from clipmole.data import file_sha256, read_data
from clipmole.data.sample import Sample
from clipmole.errors import ConfigError, DataError, Stopped
from clipmole.evaluation.bootstrap import bootstrap_indices
from clipmole.evaluation.features import FeatureExtractor, FeatureNetwork, KeptRows
from clipmole.evaluation.records import Separability
from clipmole.evaluation.separability import (
    OTHERS,
    PHOTOGRAPHS,
    Heads,
    SeparabilityConfig,
    choose,
    divide,
    estimate_auroc,
    separability,
)
from clipmole.images.conditions import Condition
from clipmole.models.backbone import save_tower
from clipmole.plumbing.progress import ProgressReporter

AS_STORED = Condition(name="as stored")
CONFIG = SeparabilityConfig(counts=(1, 2, 4, 8, 16), seeds=4, least=12, resamples=200, controls=1)


def digests_of(samples: list[Sample]) -> list[str]:
    return [file_sha256(sample) for sample in samples]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A manifest and a backbone: 60 photographs of 10 sources; "stripes" that differ, "same" that do not."""
    folder = tmp_path_factory.mktemp("made")
    save_tower(tiny_backbone().tower, folder / "tiny", torch.float32)
    stripes = (np.arange(32) % 8 < 4)[None, :, None] * 110
    lines = ["path,label,generator,split,source,group"]
    for i in range(60):
        picture(i, 32, 32).save(folder / f"photo-{i}.png")
        lines.append(f"photo-{i}.png,0,camera,test,source {i // 15 if i < 30 else i % 10},")
    for i in range(30):
        pixels = np.asarray(picture(1000 + i, 32, 32)) * 0.5
        Image.fromarray((pixels + stripes).astype(np.uint8)).save(folder / f"stripes-{i}.png")
        picture(2000 + i, 32, 32).save(folder / f"same-{i}.png")
        lines += [f"{name}-{i}.png,1,{name},test,,{name} {i // 2}" for name in ("stripes", "same")]
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv", folder / "tiny"


def test_a_generator_that_differs_is_told_apart_and_one_that_does_not_is_not(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    manifest, backbone = made
    found = separability(read_data(manifest), str(backbone), tmp_path, CONFIG)
    curves = {(curve.name, curve.against): curve for curve in found.curves}
    stripes, same = curves["stripes", PHOTOGRAPHS], curves["same", PHOTOGRAPHS]
    assert stripes.separable == 1
    assert stripes.better_than_chance == 1
    assert stripes.points[-1].auroc.value > 0.99
    assert same.separable is None
    assert same.better_than_chance is None
    assert same.points[-1].auroc.low < 0.5 < same.points[-1].auroc.high
    assert curves["stripes", OTHERS].separable is not None
    assert found.transfer_n == 16
    assert found.transfer["stripes"]["stripes"].value > 0.99
    assert 0.2 < found.transfer["stripes"]["same"].value < 0.8
    assert [each.name for each in found.sets][:3] == [PHOTOGRAPHS, "same", "stripes"]
    assert [(each.images, each.held_by, each.groups) for each in found.sets][:2] == [
        (60, "source", 10),
        (30, "group", 15),
    ]
    (control,) = (each for each in found.sets if each.control)
    assert (control.name, control.images) == ("source 0", 18)


def test_no_source_and_no_group_is_trained_on_and_tested_on(made: tuple[Path, Path]) -> None:
    samples, names = choose(read_data(made[0]), CONFIG)
    sets, controls = divide(samples, names, digests_of(samples), CONFIG)
    for each in [*sets, *controls]:
        assert set(each.train) | set(each.test) == set(each.without(np.array([-1])).train) | set(each.test)
        assert 0 < len(each.test) <= len(each.train)
        groups = [{samples[i].group for i in part} - {""} for part in (each.train, each.test)]
        assert groups[0].isdisjoint(groups[1])
        if each.held_by == "source":
            sources = [{samples[i].source for i in part} for part in (each.train, each.test)]
            assert sources[0].isdisjoint(sources[1])
    assert [each.held_by for each in sets] == ["source", "group", "group"]


def test_images_of_one_group_stay_together_over_generators_and_sources(tmp_path: Path) -> None:
    samples = []
    for i in range(48):
        for name, label in (("camera", 0), ("a", 1), ("b", 1)):
            path = tmp_path / f"{name}-{i}.bin"
            path.write_bytes(f"{name} {i}".encode())
            source = f"{i % 12}" if label == 0 else ""
            group = f"scene {i}" if i < 24 else ""
            samples.append(Sample(path=path, label=label, generator=name, split="", source=source, group=group))
    names = [s.generator if s.label else PHOTOGRAPHS for s in samples]
    sets, _ = divide(samples, names, digests_of(samples), CONFIG)
    train, test = (
        {samples[i].group for each in sets for i in getattr(each, part)} - {""} for part in ("train", "test")
    )
    assert train.isdisjoint(test)
    assert len(train | test) == 24


def test_heads_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 7)).astype(np.float32) * 3 + 5
    positive, negative, origin = np.arange(5), np.arange(5, 25), np.arange(25)
    weights = rng.uniform(0.5, 2, size=20)
    scaled = (x - x[:25].mean(axis=0)) / np.sqrt(np.square(x[:25] - x[:25].mean(axis=0)).sum(axis=1).mean())
    share = np.concatenate([np.full(5, 0.1), 0.5 * weights / weights.sum()])
    expected = Ridge(alpha=0.02).fit(scaled[:25], np.repeat([1.0, -1.0], [5, 20]), sample_weight=share).predict(scaled)
    assert Heads(x, origin, 0.02).scores(positive, negative, weights) == pytest.approx(expected, abs=1e-5)


def test_auroc_and_its_interval_against_plain_loops() -> None:
    rng = np.random.default_rng(1)
    scores = [rng.integers(0, 6, size=30).astype(float) for _ in range(3)]
    positive, negative = np.arange(10), np.arange(10, 30)
    groups = np.arange(30) // 2
    found, seeds = estimate_auroc(scores, positive, negative, groups, CONFIG)
    labels = np.repeat([1, 0], [10, 20])
    assert seeds == pytest.approx([metrics.auroc(labels, each) for each in scores])
    assert found.value == pytest.approx(np.mean(seeds))
    indices = bootstrap_indices(labels, CONFIG.resamples, CONFIG.seed, groups=[str(group) for group in groups])
    expected = [np.mean([metrics.auroc(labels[i], each[i]) for each in scores]) for i in indices]
    assert found.draws == pytest.approx(expected)


def test_features_are_what_the_head_reads() -> None:
    backbone = tiny_backbone()
    extractor = FeatureExtractor(backbone, head_blocks=(1, 3), max_tiles=4, condition=AS_STORED)
    image = np.asarray(picture(0, 64, 64))
    network = extractor.runtime.network
    assert isinstance(network, FeatureNetwork)
    assert extractor.width == 3 * 24
    crops = torch.from_numpy(np.stack([image[y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32)]))
    with torch.inference_mode():
        tokens = network.embed(crops.permute(0, 3, 1, 2))
        parts = {}
        for block in range(8):
            tokens = network.tower.run_blocks(tokens, block, block + 1)
            parts[block] = torch.nn.functional.layer_norm(tokens[:, 0], (24,))
        expected = torch.cat([network.tower.feature(tokens), parts[1], parts[3]], dim=1).mean(dim=0)
    assert extractor.rows([image])[0] == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_run_that_was_stopped_goes_on_and_leaves_out_what_cannot_be_read(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    broken = Sample(path=tmp_path / "broken.png", label=0, generator="camera", split="")
    samples = [*read_data(made[0])[:40], broken]
    digests = digests_of(samples)
    extractor = FeatureExtractor(tiny_backbone(), condition=AS_STORED)
    with pytest.raises(Stopped, match="give the same command to continue"):
        extractor.extract(samples, digests, tmp_path, ProgressReporter(stopping=lambda: True))
    looked, rows = [], FeatureExtractor.rows
    monkeypatch.setattr(
        FeatureExtractor, "rows", lambda self, images: (looked.append(len(images)), rows(self, images))[1]
    )
    features, failed = extractor.extract(samples, digests, tmp_path)
    assert sum(looked) == 8  # of the 40 that can be read, 32 were kept
    assert np.isnan(features).any(axis=1).tolist() == [False] * 40 + [True]
    assert list(failed) == [str(broken.path)]
    more = [*read_data(made[0])[40:42], *samples[:5]]
    again, _ = extractor.extract(more, digests_of(more), tmp_path)
    assert sum(looked) == 10
    assert np.array_equal(again[2:], features[:5])


def test_rows_that_were_half_written_are_written_again(tmp_path: Path) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    KeptRows(tmp_path / "rows.f16", 4).add(["a", "b", "c"], rows)
    assert KeptRows(tmp_path / "rows.f16", 4).read(["c", "x", "a"])[[0, 2]].tolist() == rows[[2, 0]].tolist()
    for name, cut in (("rows.f16", 3), ("rows.txt", 1)):  # the last row, then the last key, is not whole
        size = (tmp_path / name).stat().st_size
        os.truncate(tmp_path / name, size - cut)
        kept = KeptRows(tmp_path / "rows.f16", 4)
        assert list(kept.row_of) == ["a", "b"]
        kept.add(["c"], rows[2:])
        assert KeptRows(tmp_path / "rows.f16", 4).read(["a", "b", "c"]).tolist() == rows.tolist()


def test_a_row_with_a_flipped_bit_is_computed_again(tmp_path: Path) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    KeptRows(tmp_path / "rows.f16", 4).add(["a", "b", "c"], rows)
    data = bytearray((tmp_path / "rows.f16").read_bytes())
    data[9] ^= 1  # of b
    (tmp_path / "rows.f16").write_bytes(data)
    kept = KeptRows(tmp_path / "rows.f16", 4)
    assert list(kept.row_of) == ["a"]
    kept.add(["b", "c"], rows[1:])
    assert KeptRows(tmp_path / "rows.f16", 4).read(["a", "b", "c"]).tolist() == rows.tolist()


def test_the_command_writes_page_record_and_pictures(made: tuple[Path, Path], tmp_path: Path) -> None:
    manifest, backbone = made
    command = ["separability", "--data", str(manifest), "--backbone", str(backbone), "--out", str(tmp_path / "out")]
    options = ["--least", "12", "--seeds", "2", "--head-block", "2", "--head-block", "5"]
    result = CliRunner().invoke(app, [*command, *options])
    assert result.exit_code == 0, result.output
    found = Separability.model_validate_json((tmp_path / "out" / "separability.json").read_text())
    assert found.recipe["settings"]["head_blocks"] == [2, 5]
    assert found.recipe["command"].startswith("clipmole separability --out out --data manifest.csv")
    page = (tmp_path / "out" / "separability.html").read_text()
    assert "stripes" in page
    assert "<script" not in page
    text = (tmp_path / "out" / "separability.md").read_text()
    assert "A head reaches an AUROC of 0.9 against photographs with 1 image of stripes." in text
    assert "same is not told apart so well" in text
    for name in ("curves", "transfer"):
        drawing = (tmp_path / "out" / f"separability-{name}.svg").read_text()
        assert drawing.startswith("<svg")
        assert ">stripes</text>" in drawing
    again = CliRunner().invoke(app, [*command, *options])
    assert again.exit_code == 0, again.output
    assert (
        json.loads((tmp_path / "out" / "separability.json").read_text())["curves"]
        == json.loads(found.model_dump_json())["curves"]
    )


def test_what_cannot_be_measured_is_refused_in_one_line(made: tuple[Path, Path], tmp_path: Path) -> None:
    samples = read_data(made[0])
    with pytest.raises(DataError, match=r"generator 'midjourney': at least 12.*same \(30\), stripes \(30\)"):
        choose(samples, CONFIG.model_copy(update={"generators": ("midjourney",)}))
    with pytest.raises(DataError, match="0 photographs, and generators same"):
        choose([sample for sample in samples if sample.label], CONFIG)
    one = [s.model_copy(update={"group": "one"}) if s.generator == "same" else s for s in samples]
    names = [s.generator if s.label else PHOTOGRAPHS for s in one]
    with pytest.raises(DataError, match=r"same: its 30 images cannot be divided.*they are 1 groups"):
        divide(one, names, digests_of(one), CONFIG)
    with pytest.raises(ConfigError, match=r"counts=\(4, 2\)"):
        SeparabilityConfig.parse({"counts": (4, 2)}, "options")
    (tmp_path / "separability.json").write_text("{}")
    command = ["separability", "--data", str(made[0]), "--backbone", str(made[1]), "--out", str(tmp_path)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code != 0
    assert "was not written by clipmole separability" in str(result.exception)


def test_controls_have_photographs_beyond_the_even_draw(made: tuple[Path, Path]) -> None:
    few = CONFIG.model_copy(update={"photographs": 20, "controls": 2})
    samples, names = choose(read_data(made[0]), few)
    sets, controls = divide(samples, names, digests_of(samples), few)
    assert (len(sets[0].train) + len(sets[0].test), names.count("")) == (20, 20)
    assert [(each.name, len(each.train) + len(each.test)) for each in controls] == [("source 0", 12), ("source 1", 12)]
    even = [samples[i].source for i in [*sets[0].train, *sets[0].test]]
    assert {even.count(source) for source in set(even)} == {2}
