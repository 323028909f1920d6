"""Does a training set of photographs and twins find generators that were never seen? A linear head on frozen features.

In: labelled images with splits and sources, pairs that `clipmole data pair --split train` made of photographs among
them, and a folder for features (that of `clipmole separability` with the same backbone and blocks will do). Three heads
are solved as `clipmole separability` does, all with the same photographs of the split train:

    pairs        their own pairs: photographs and twins, as they were written
    twins        the same twins against the photographs as they are stored
    generated    as many other images of these generators, of the split train: what a known generator is worth

All are tested on the same images: photographs of other splits, of sources that train has not, and images of each
generator. The same crop, equalised, is looked at everywhere. AUROC with bootstrap intervals over sources and groups.
JSON is printed.

    python benchmarks/pairs.py MANIFEST --pairs DIR/manifest.csv --features DIR [--generator NAME ...]
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipmole.data import file_sha256, read_data
from clipmole.data.sample import Sample
from clipmole.evaluation.features import FeatureExtractor
from clipmole.evaluation.separability import Heads, SeparabilityConfig, estimate_auroc
from clipmole.images.conditions import load_conditions
from clipmole.models.backbone import load_backbone
from clipmole.plumbing.environment import environment
from clipmole.plumbing.progress import ProgressReporter

CONFIG = SeparabilityConfig()


def by_hash(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most `count` samples, those with the smallest hash of their name."""
    return sorted(samples, key=lambda each: hashlib.sha256(f"0\0{each.path.name}".encode()).digest())[:count]


def parts_of(arguments: argparse.Namespace) -> dict[str, list[Sample]]:
    """Images by what they are for: "own" and "twin" of pairs, "photograph", "seen", "tested", "test GENERATOR"."""
    everything, pairs = read_data(arguments.manifest), read_data(arguments.pairs)
    stored = {file_sha256(each)[:16]: each for each in everything if each.split == "train" and each.label == 0}
    photographs = [stored[each.path.stem] for each in pairs if each.label == 0]
    known = {each.source for each in everything if each.split == "train"}
    tested = by_hash(
        [e for e in everything if e.label == 0 and e.split != "train" and e.source not in known], arguments.photographs
    )
    generated = {name: [e for e in everything if e.generator == name] for name in arguments.generator}
    tests = {name: by_hash(own, arguments.images) for name, own in generated.items()}
    taken = {(e.generator, e.group or str(e.path)) for own in tests.values() for e in own}
    others = [e for own in generated.values() for e in own if (e.generator, e.group or str(e.path)) not in taken]
    seen = by_hash([e for e in others if e.split == "train"], len(photographs))
    return {
        "own": [each for each in pairs if each.label == 0],
        "twin": [each for each in pairs if each.label == 1],
        "photograph": photographs,
        "seen": seen,
        "tested": tested,
        **{f"test {name}": own for name, own in tests.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest")
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--generator", action="append", default=[])
    parser.add_argument("--photographs", type=int, default=200, help="of other splits, that are tested on")
    parser.add_argument("--images", type=int, default=60, help="of each generator, that are tested on")
    parser.add_argument("--backbone", default="clip-vit-b-16-int8")
    parser.add_argument("--blocks", type=int, default=9, help="first blocks whose class tokens are read too")
    arguments = parser.parse_args()

    parts = parts_of(arguments)
    samples = [each for own in parts.values() for each in own]
    (equalised,) = (each for each in load_conditions("default") if each.name == "equalised")
    extractor = FeatureExtractor(
        load_backbone(arguments.backbone),
        head_blocks=range(arguments.blocks),
        condition=equalised,
        precision="bfloat16",
    )
    digests = [file_sha256(each) for each in samples]
    features, failed = extractor.extract(samples, digests, arguments.features, ProgressReporter(say=print))
    ends = np.cumsum([len(own) for own in parts.values()])
    readable = ~np.isnan(features).any(axis=1)
    rows: dict[str, NDArray[np.int64]] = {
        name: np.array([i for i in range(end - len(parts[name]), end) if readable[i]])
        for name, end in zip(parts, ends.tolist(), strict=True)
    }
    features[~readable] = 0
    groups = np.unique([each.source or each.group or str(each.path) for each in samples], return_inverse=True)[1]
    found = {}
    for head, positive, negative in (
        ("pairs", "twin", "own"),
        ("twins", "twin", "photograph"),
        ("generated", "seen", "photograph"),
    ):
        heads = Heads(features, rows[negative], CONFIG.ridge)
        scores = [heads.scores(rows[positive], rows[negative])]
        found[head] = {
            name: estimate_auroc(scores, rows[f"test {name}"], rows["tested"], groups, CONFIG)[0]
            .estimate()
            .model_dump()
            for name in arguments.generator
        }
        together = np.concatenate([rows[f"test {name}"] for name in arguments.generator])
        found[head]["all"] = estimate_auroc(scores, together, rows["tested"], groups, CONFIG)[0].estimate().model_dump()
    counts = {name: len(own) for name, own in rows.items()}
    shown = {"auroc": found, "images": counts, "failed": failed, **environment()}
    print(json.dumps(shown, indent=1))


if __name__ == "__main__":
    main()
