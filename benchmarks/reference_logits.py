"""The logits that `clipmole selftest` compares with: PyTorch, float32, of the packaged detectors.

    python benchmarks/reference_logits.py

Out: `src/clipmole/inference/reference_logits.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from clipmole import Detector
from clipmole.inference.runtime import logits_of
from clipmole.inference.selftest import IMAGES, REFERENCES, made_crops
from clipmole.models.adapter import PACKAGED, adapter_digest, find_adapter


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    kept = {}
    for name in PACKAGED:
        detector = Detector.from_pretrained(name, runtime="torch")
        logits = logits_of(detector.runtime.outputs(made_crops(detector.preprocess.crop_size), IMAGES))
        kept[adapter_digest(find_adapter(name)[1])] = [round(float(logit), 6) for logit in logits]
    target = Path(__file__).parent.parent / "src" / "clipmole" / REFERENCES
    target.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
