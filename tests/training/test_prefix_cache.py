"""The prefix cache: right tokens, shared by the runs that may share them, bounded, and never half-written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import PREPROCESS, tiny_backbone, write_corpus

from clipmole.config import AugmentConfig, MoLEConfig, TrainConfig
from clipmole.data import read_manifest, sample_lines, take_split, windows
from clipmole.data.sample import Sample
from clipmole.errors import ConfigError, DataError
from clipmole.inference.detector import Detector
from clipmole.models.network import MoLENetwork
from clipmole.plumbing.progress import ProgressReporter, Track, untracked
from clipmole.training import prefix_cache as cache_module
from clipmole.training.augmented_views import views
from clipmole.training.distributed import Distributed
from clipmole.training.loop import kept_logits
from clipmole.training.prefix_cache import GIB, PrefixCache, fixed_cache, prefix_digest, record_type

CONFIG = TrainConfig(backbone="given", preprocess=PREPROCESS, cached_views=2, precision="float32")
ITEMS = [(3, 0), (0, 1), (11, 1), (3, 1)]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return take_split(read_manifest(write_corpus(tmp_path_factory.mktemp("corpus"), {"train": 6})), "train")


def build(
    folder: Path, samples: list[Sample], config: TrainConfig = CONFIG, track: Track = untracked
) -> tuple[torch.Tensor, list[str]]:
    """The tokens of `ITEMS` from a cache in `folder`, and what was said."""
    backbone, said = tiny_backbone(), []
    network = MoLENetwork(backbone.tower, config.mole)
    digest = prefix_digest(network, backbone.sha256, sample_lines(samples), config)
    progress = ProgressReporter(track, said.append)
    with ThreadPoolExecutor(2) as pool:
        cache = PrefixCache(
            network, samples, config, folder, digest, distributed=Distributed(), pool=pool, progress=progress
        )
        return torch.cat(list(cache.read([ITEMS[:1], ITEMS[1:]]))), said


def test_it_holds_the_networks_own_tokens_of_each_view_rounded_to_bfloat16(
    tmp_path: Path, samples: list[Sample]
) -> None:
    tokens, said = build(tmp_path, samples)
    network = MoLENetwork(tiny_backbone().tower, CONFIG.mole)
    with ThreadPoolExecutor(2) as pool, torch.inference_mode():
        fresh = network.prefix(torch.cat(list(views(samples, [ITEMS], CONFIG, pool))))
    assert tokens.dtype == torch.bfloat16
    assert tokens.shape == (4, 5, 24)
    # bfloat16 keeps 8 bits: half a unit in the last place is 2^-9 of the value.
    assert ((tokens.float() - fresh).abs() <= fresh.abs() * 2**-8).all()
    assert said == [
        f"prefix cache: 2 views of 12 images, {2 * 12 * ((5 + 6) * 24 * 2 + 4) / GIB:.3g} GiB in {tmp_path} "
        "(at most 20): 2 to be computed"
    ]


def test_what_is_there_is_used_and_only_what_is_missing_computed(tmp_path: Path, samples: list[Sample]) -> None:
    first, _ = build(tmp_path, samples)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again, said = build(tmp_path, samples)
    assert torch.equal(first, again)
    assert said[-1].endswith("is there and is used")
    passes: list[str] = []

    def track(items: Iterable[Any], description: str, _total: int) -> Iterator[Any]:
        passes.append(description)
        return iter(list(items))

    build(tmp_path, samples, CONFIG.model_copy(update={"cached_views": 3}), track)
    assert passes == ["view 3/3"]
    assert {name: (tmp_path / name).read_bytes() for name in files} == files


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"seed": 0, "views_from": 1},
        {"whole_share": 0.5},
        {"cache_runtime": "openvino"},
        {"cached_blocks": 3},
        {"augment": AugmentConfig(blur_probability=0.1)},
        {"mole": MoLEConfig(blocks=3)},
        {"precision": "bfloat16"},
        {"preprocess": PREPROCESS.model_copy(update={"crop_size": 16})},
    ],
    ids=lambda change: list(change)[-1],
)
def test_what_changes_the_tokens_changes_the_digest(samples: list[Sample], change: dict[str, Any]) -> None:
    def digest(config: TrainConfig, lines: list[str], sha256: str = "0") -> str:
        return prefix_digest(MoLENetwork(tiny_backbone().tower, config.mole), sha256, lines, config)

    lines = sample_lines(samples)
    own = digest(CONFIG, lines)
    assert own != digest(CONFIG.model_copy(update=change), lines)
    assert own != digest(CONFIG, lines[::-1])
    assert own != digest(CONFIG, lines, "1")
    same = {"learning_rate": 1.0, "epochs": 3, "batch_size": 7, "mole": MoLEConfig(shared_rank=1), "cached_views": 9}
    same |= {"seed": 5, "views_from": 0, "head_start": 1.0, "patch_dropout": 0.5}
    assert own == digest(CONFIG.model_copy(update=same), lines)


def test_a_damaged_file_is_computed_again_with_a_line(tmp_path: Path, samples: list[Sample]) -> None:
    first, _ = build(tmp_path, samples)
    whole = {path: path.read_bytes() for path in sorted(tmp_path.iterdir())}
    flipped, cut = whole
    flipped.write_bytes(whole[flipped][:-9] + b"\x55" + whole[flipped][-8:])
    cut.write_bytes(whole[cut][:700])
    again, said = build(tmp_path, samples)
    assert torch.equal(first, again)
    assert said[:2] == [f"{path}: is damaged; it is computed again" for path in (flipped, cut)]
    assert {path: path.read_bytes() for path in sorted(tmp_path.iterdir())} == whole


def test_a_first_pass_that_was_stopped_goes_on_where_it_was(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "ROWS", 5)
    whole, _ = build(tmp_path / "whole", samples)
    done: list[int] = []

    def stopped(items: Iterable[Any], _description: str, _total: int) -> Iterator[Any]:
        for item in items:
            if len(done) == 2:
                raise KeyboardInterrupt
            done.append(0)
            yield item

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "stopped", samples, track=stopped)
    (only,) = (tmp_path / "stopped").iterdir()
    assert only.suffix == ".partial"
    totals: list[int] = []

    def track(items: Iterable[Any], _description: str, total: int) -> Iterator[Any]:
        totals.append(total)
        return iter(items)

    again, _ = build(tmp_path / "stopped", samples, track=track)
    assert totals == [1, 3]  # of 12 images in passes of 5, two passes were done
    assert torch.equal(whole, again)
    assert [path.suffix for path in (tmp_path / "stopped").iterdir()] == [".npy", ".npy"]


def test_it_is_refused_before_anything_is_written_where_it_would_be_too_large(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"more than cache_gib=1e-06; raise it, lower cached_views=2"):
        build(tmp_path / "cache", samples, CONFIG.model_copy(update={"cache_gib": 1e-6}))
    full = type("Usage", (), {"free": 100})
    monkeypatch.setattr("clipmole.training.prefix_cache.shutil.disk_usage", lambda _path: full)
    with pytest.raises(DataError, match=r"only 9\.31e-08 GiB are free there; free space"):
        build(tmp_path / "cache", samples)
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_least_lately_used_files_make_room(tmp_path: Path, samples: list[Sample]) -> None:
    size = 12 * record_type(MoLENetwork(tiny_backbone().tower, CONFIG.mole), CONFIG).itemsize
    limited = {"cache_gib": 4.5 * (size + 128) / GIB}
    build(tmp_path, samples, CONFIG.model_copy(update=limited))
    old = sorted(tmp_path.iterdir())
    for age, path in zip((200, 100), old, strict=True):
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    build(tmp_path, samples, CONFIG.model_copy(update={**limited, "seed": 1}))
    assert set(old) < set(tmp_path.iterdir())
    _, said = build(tmp_path, samples, CONFIG.model_copy(update={**limited, "seed": 2}))
    assert said[:2] == [f"prefix cache: {p.name}, the least recently used, is deleted to make room" for p in old]
    assert len(list(tmp_path.iterdir())) == 4


def test_of_two_runs_that_write_the_same_the_slower_one_is_served_as_well(
    tmp_path: Path, samples: list[Sample]
) -> None:
    alone, _ = build(tmp_path / "alone", samples)
    inner: list[torch.Tensor] = []

    def track(items: Iterable[Any], _description: str, _total: int) -> Iterator[Any]:
        for item in items:
            if not inner:  # another run begins, and ends, while this one computes its first view
                inner.append(build(tmp_path / "shared", samples)[0])
            yield item

    outer, _ = build(tmp_path / "shared", samples, track=track)
    assert torch.equal(alone, inner[0])
    assert torch.equal(alone, outer)
    assert [path.suffix for path in (tmp_path / "shared").iterdir()] == [".npy", ".npy"]


def test_a_record_that_was_reserved_and_not_written_does_not_fit() -> None:
    record = np.zeros(1, dtype=np.dtype([("crc32", "<u4"), ("tokens", "<u2", (5, 24))]))[0]
    assert not cache_module.fits(record)


def test_fewer_blocks_may_be_kept_but_no_adapted_one(tmp_path: Path, samples: list[Sample]) -> None:
    config = CONFIG.model_copy(update={"cached_blocks": 2})
    tokens, _ = build(tmp_path, samples, config)
    network = MoLENetwork(tiny_backbone().tower, CONFIG.mole).eval()
    whole, _ = build(tmp_path, samples)
    with torch.inference_mode():
        ours, theirs = network.logits(tokens.float(), 2), network.suffix(whole.float())
    torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=0)  # but for the rounding to bfloat16
    assert not torch.equal(tokens, whole)
    with pytest.raises(ConfigError, match=r"cached_blocks=7: only the first 6 blocks are frozen"):
        build(tmp_path, samples, CONFIG.model_copy(update={"cached_blocks": 7}))


@pytest.mark.slow
def test_openvino_computes_the_same_tokens(tmp_path: Path, samples: list[Sample]) -> None:
    pytest.importorskip("openvino")
    mole = MoLEConfig(head_blocks=(1, 4))
    ours, _ = build(tmp_path, samples, CONFIG.model_copy(update={"mole": mole}))
    theirs, _ = build(tmp_path, samples, CONFIG.model_copy(update={"mole": mole, "cache_runtime": "openvino"}))
    assert ours.shape == (4, 5 + 2, 24)
    torch.testing.assert_close(ours.float(), theirs.float(), atol=1e-4, rtol=2**-7)  # either may round up


def test_fixed_views_are_the_equalised_centre_crop_and_the_whole(tmp_path: Path, samples: list[Sample]) -> None:
    preprocess = PREPROCESS.model_copy(update={"whole_weight": 0.25})
    config = CONFIG.model_copy(update={"preprocess": preprocess})
    network = MoLENetwork(tiny_backbone().tower, config.mole).eval()
    torch.nn.init.normal_(network.head.weight, generator=torch.Generator().manual_seed(0))
    detector = Detector(network, preprocess.model_copy(update={"mode": "center_crop"}))
    with ThreadPoolExecutor(2) as pool:
        workers: Any = {"distributed": Distributed(), "pool": pool, "progress": ProgressReporter()}
        cache = fixed_cache(network, "0", samples, config, tmp_path, "equalised", **workers)
        found = kept_logits(network, cache, range(len(samples)), config, torch.device("cpu"))
    expected = detector.score(windows(samples, "equalised", config.seed))
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert np.ptp(expected) > 0.1
