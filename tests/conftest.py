"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from clipmole.plumbing.telemetry import switch_off

# Tiny towers gain nothing from threads, and threads collapse where a core is shared.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
switch_off()  # tests import OpenVINO and ONNX Runtime by themselves too
# A time limit for each example says how busy the machine is, not whether the code is right.
settings.register_profile("clipmole", deadline=None, derandomize=True)
settings.load_profile("clipmole")


def pytest_configure(config: pytest.Config) -> None:
    """Have pytest-xdist keep the order of `pytest_collection_modifyitems`, in place of that by number of tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that none of them is what one process still runs while the others wait."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test writes into the cache of the person who runs it."""
    os.environ["CLIPMOLE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of corpus, backbones and reference figures beside the checkout; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (corpus, backbones, reference), which is not beside this checkout")
    return SHARED
