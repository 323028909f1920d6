"""Train the embedded detector's MoLE adapter, and a linear probe beside it, on the frozen trunk.

In: the originals that `originals.py` wrote, the corpus (manifest.csv with windows of val and calibration) and the
trunk. Out: two adapter directories, `adapter` (the preset `embedded`) and `linear-probe` (the same with nothing but a
head). Training sees the originals of split train, the corpus' val windows pick the epoch, its calibration windows
set the thresholds; test and test_unseen are not read.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from pathlib import Path

from clipmole.cli.render import TERMINAL
from clipmole.config import MoLEConfig
from clipmole.data import read_manifest
from clipmole.data.sample import Sample
from clipmole.models.backbone import load_backbone
from clipmole.training.presets import load_train_config
from clipmole.training.train import train

EMBEDDED = load_train_config("embedded")
NOTHING = MoLEConfig(shared_rank=0, expert_ranks=())
RUNS = {"adapter": EMBEDDED, "linear-probe": EMBEDDED.model_copy(update={"mole": NOTHING})}


def merge(originals: Path, corpus: Path, out: Path) -> None:
    """Write a manifest of the originals' train split and the corpus' val and calibration splits."""
    rows: list[Sample] = [s for s in read_manifest(originals / "manifest.csv") if s.split == "train"]
    rows += [s for s in read_manifest(corpus / "manifest.csv") if s.split in {"val", "calibration"}]
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "label", "generator", "split", "source", "ignore_bottom_px"])
        for s in rows:
            writer.writerow([s.path.resolve(), s.label, s.generator, s.split, s.source, s.ignore_bottom_px])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--originals", type=Path, required=True, help="directory that originals.py wrote")
    parser.add_argument("--corpus", type=Path, required=True, help="directory of the corpus")
    parser.add_argument("--trunk", type=Path, required=True, help="directory that trunk.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="directory to write both adapters into")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    manifest = args.out / "manifest.csv"
    merge(args.originals, args.corpus, manifest)
    for name, config in RUNS.items():
        # The same weights as the package's own backbone, under the id that they have there.
        backbone = replace(load_backbone(args.trunk), id="embedded")
        train(config, args.out / name, data=manifest, backbone=backbone, progress=TERMINAL)


if __name__ == "__main__":
    main()
