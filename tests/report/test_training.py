"""The page of a training run: it stands alone, and its numbers are the record's."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tiny import PREPROCESS, tiny_backbone, write_corpus

from clipmole.config import MoLEConfig, TrainConfig
from clipmole.training.train import train


class Page(HTMLParser):
    """Texts, labels of drawings, and what the page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.labels: list[str] = []
        self.sources: list[str] = []
        self.headings: list[str] = []
        self.words: list[str] = []
        self._tag = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self._tag = tag
        self.labels += [found["aria-label"] or ""] if tag == "svg" and "aria-label" in found else []
        self.sources += [value or "" for key, value in attrs if key == "src"]

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._tag == "h2" and data.strip():
            self.headings.append(data)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), {"train": 6, "val": 5, "calibration": 20})


def run(manifest: Path, out: Path, mole: MoLEConfig) -> tuple[dict[str, object], Page, str]:
    config = TrainConfig(backbone="given", preprocess=PREPROCESS, epochs=2, batch_size=6, mole=mole)
    train(config, out, data=manifest, backbone=tiny_backbone())
    text = (out / "train.html").read_text()
    return json.loads((out / "train.json").read_text()), Page(text), text


def test_the_page_shows_curves_gates_generators_and_mistakes(manifest: Path, tmp_path: Path) -> None:
    record, page, text = run(manifest, tmp_path / "mole", MoLEConfig())
    assert [h for h in page.headings if h != "Scores by class"] == [
        "Curves",
        "Use of the experts",
        "Validation by generator",
        "Validation results",
        "Worst mistakes in validation",
        "Recipe",
    ]
    curve, best = record["curve"], record["best_epoch"]
    assert f"Over the epochs: training loss {curve[-1]['loss']:.4g} at the end" in page.labels
    for block, row in zip((6, 7), curve[best]["gates"], strict=True):
        gates = "; ".join(f"expert {i + 1} {100 * g:.1f} %" for i, g in enumerate(row))
        assert f"Block {block}, in the epoch kept: {gates}" in page.labels
        assert sum(row) == pytest.approx(1)
    assert f"{curve[0]['loss']:.4f}" in page.words
    assert record["data"]["digest"] in page.words
    assert sum(source.startswith("data:image/jpeg") for source in page.sources) == 10  # all five of each class
    assert not [source for source in page.sources if not source.startswith("data:")]
    assert not re.search(r"<script|<link|url\(", text)


def test_a_linear_probe_has_no_experts_to_show(manifest: Path, tmp_path: Path) -> None:
    record, page, _ = run(manifest, tmp_path / "probe", MoLEConfig(shared_rank=0, expert_ranks=()))
    assert "Use of the experts" not in page.headings
    assert record["curve"][0]["gates"] == []
    assert record["curve"][0]["balance_loss"] == 0
