"""Images -> logits of every image, and from them the adapter's calibration: the detector itself looks at each image.

    python recipes/mole-vit-b-16/score.py ADAPTER --lists MODERN OUTSIDE --images IMAGES --out SCORES

In: an adapter, the list (`originals.csv`), that of the outside set, and a folder with their files, named by sha256.
Out: `SCORES/scores.parquet` (a row an image and condition: sha256, label, split, generator, source, kind, group,
condition, logit, and whether it looks drawn; no image), and in ADAPTER its `calibration.json`: probability and
thresholds of the split `calibration`, over sources, and with them the false alarms on photographs of `test` by kind. A
split and condition that was scored is left alone by a later run.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from views import RGB, Listed, pixels, read_list

from clipmole import Detector, ImageError
from clipmole.calibration import Calibration, FalseAlarms, fit_calibration
from clipmole.images.transforms import equalise
from clipmole.inference.detector import LOOKS_DRAWN
from clipmole.plumbing.prefetch import started_ahead
from clipmole.plumbing.seeding import sample_rng
from clipmole.records import Detection, Verdict

# What sets the thresholds and what is reported.
RUNS = (
    ("calibration", "equalised"),
    ("test", "equalised"),
    ("calibration", "as stored"),
    ("test", "as stored"),
    ("outside", "equalised"),
)
# Share of the generated images of `calibration` that may be called photographs. The library's 10 % would call an image
# with a probability of 0.59 a likely photograph here.
MAX_MISS = 0.05
KINDS = {
    "camera-file": "camera files",
    "web-processed": "photographs processed for the web",
    "stock": "stock photographs",
    "scan": "scans",
    "dataset": "photographs of data sets",
}


def prepared(image: Listed, condition: str) -> RGB | ImageError:
    """What the detector is given of an image; an error for a file that cannot be read."""
    try:
        rgb = pixels(image)
    except ImageError as error:
        return error
    return equalise(rgb, (65, 90), sample_rng(0, image.sha256)) if condition == "equalised" else rgb


def detections(detector: Detector, images: list[Listed], condition: str) -> Iterator[tuple[Listed, Detection]]:
    """What the detector says of every image that can be read."""
    with ThreadPoolExecutor(2) as pool:
        futures = started_ahead(images, lambda image: pool.submit(prepared, image, condition), 8)
        found = detector.stream(future.result() for future in futures)
        for place, (image, result) in enumerate(zip(images, found, strict=True)):
            if isinstance(result, Detection):
                yield image, result
            else:
                print(f"left out: {image.path.name}: {result}")
            if place % 100 == 99:
                print(f"{image.split}, {condition}: {place + 1} of {len(images)}", flush=True)


def score(detector: Detector, images: list[Listed], split: str, condition: str) -> pa.Table:
    """One row an image of a split."""
    rows = [
        {
            "sha256": image.sha256,
            "label": image.label,
            "split": split,
            "generator": image.generator,
            "source": image.source,
            "kind": image.kind,
            "group": image.group,
            "condition": condition,
            "logit": found.logit,
            "drawn": found.reason == LOOKS_DRAWN,
        }
        for image, found in detections(detector, [each for each in images if each.split == split], condition)
    ]
    return pa.Table.from_pylist(rows)


def calibrated(scores: pa.Table) -> Calibration:
    """Probability and thresholds of `calibration`, and the false alarms on `test`, the more of the two conditions."""
    rows = scores.to_pylist()

    def column(split: str, condition: str, name: str) -> list[str]:
        return [row[name] for row in rows if (row["split"], row["condition"]) == (split, condition)]

    conditions = ("as stored", "equalised")
    found = fit_calibration(
        {each: np.array(column("calibration", each, "logit"), dtype=np.float64) for each in conditions},
        [int(label) for label in column("calibration", "equalised", "label")],
        max_miss=MAX_MISS,
        sources=column("calibration", "equalised", "source"),
    )
    alarms = []
    for kind, name in KINDS.items():
        called = {}
        for each in conditions:
            columns = (column("test", each, key) for key in ("label", "kind", "logit", "drawn"))
            own = [row for row in zip(*columns, strict=True) if (int(row[0]), row[1]) == (0, kind)]
            verdicts = [found.verdict(float(logit)) for _, _, logit, drawn in own if not drawn]
            called[each] = len(own), verdicts.count(Verdict.AI_GENERATED)
        photographs, most = max(called.values(), key=lambda each: each[1])
        if photographs:
            alarms.append(FalseAlarms(kind=name, photographs=photographs, called_generated=most))
    return found.model_copy(update={"false_alarms": tuple(alarms)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--lists", type=Path, nargs=2, required=True, metavar=("MODERN", "OUTSIDE"))
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    images = [image for path in arguments.lists for image in read_list(path, arguments.images)]
    detector = Detector.from_pretrained(arguments.adapter, runtime="openvino", precision="bfloat16")
    parts = []
    for split, condition in RUNS:
        part = arguments.out / f"{split}-{condition.replace(' ', '-')}.parquet"
        if not part.exists():
            pq.write_table(score(detector, images, split, condition), part)
        parts.append(pq.read_table(part))
    scores = pa.concat_tables(parts)
    pq.write_table(scores, arguments.out / "scores.parquet")
    text = calibrated(scores).model_dump_json(indent=2, by_alias=True)
    (arguments.adapter / "calibration.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
