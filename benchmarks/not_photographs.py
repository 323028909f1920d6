"""What the default detector says of images that are no photographs and that no generator made.

    python benchmarks/not_photographs.py score KIND=FOLDER ... --note TEXT
    python benchmarks/not_photographs.py tables

`score` looks at every image of the folders and writes `results/mole-vit-b-16/not_photographs.parquet` (sha256, kind,
probability, verdict, whether there was nothing to see; no image). `tables` makes `not_photographs.md` of it, and enters
the counts among the false alarms of the packaged calibration, which the command line and the page show.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import beta  # type: ignore[import-untyped]

from clipmole import Detection, Detector
from clipmole.calibration import Calibration, FalseAlarms
from clipmole.images.discovery import find_images
from clipmole.inference.detector import LOOKS_DRAWN
from clipmole.models.adapter import find_adapter, read_calibration
from clipmole.plumbing.environment import environment

NAME = "mole-vit-b-16"
FILE = Path(__file__).parent / "results" / NAME / "not_photographs.parquet"


def score(folders: list[str], note: str) -> None:
    """One row an image."""
    detector = Detector.from_pretrained(NAME, runtime="openvino", precision="bfloat16")
    rows = []
    for given in folders:
        kind, _, folder = given.partition("=")
        paths = list(find_images([folder]))
        for path, found in zip(paths, detector.stream(paths), strict=True):
            if not isinstance(found, Detection) or found.verdict is None:
                print(f"left out: {path}: {found}")
                continue
            digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            rows.append(
                {
                    "sha256": digest,
                    "kind": kind,
                    "probability": found.probability,
                    "verdict": found.verdict.value,
                    "looks_drawn": found.reason == LOOKS_DRAWN,
                    "nothing_to_see": found.reason not in (None, LOOKS_DRAWN),
                }
            )
    about = {"note": note, **environment()}
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata({"about": json.dumps(about)}), FILE)


def tables() -> None:
    """Write `not_photographs.md`."""
    table = pq.read_table(FILE)
    about = json.loads(table.schema.metadata[b"about"])
    rows = table.to_pylist()
    calibration = read_calibration(find_adapter(NAME)[1])
    assert calibration is not None
    threshold = calibration.thresholds.generated
    lines = [
        f"{about['note']} OpenVINO in bfloat16, {about['cpu']}, torch {about['torch']}, {about['date']}. "
        "`python benchmarks/not_photographs.py tables`",
        "",
        "| made by people | number | called AI-generated | uncertain | looks drawn | nothing to tell from "
        "| called a photograph | probability alone above the threshold |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        said = Counter(row["verdict"] for row in own)
        n, k = len(own), said["ai_generated"]
        low, high = beta.ppf(0.025, k, n - k + 1) if k else 0, beta.ppf(0.975, k + 1, n - k) if k < n else 1
        drawn, nothing = (sum(row[key] for row in own) for key in ("looks_drawn", "nothing_to_see"))
        alone = sum(row["probability"] > threshold for row in own)
        lines.append(
            f"| {kind} | {n} | {100 * k / n:.0f} % [{100 * low:.0f}, {100 * high:.0f}] "
            f"| {100 * said['uncertain'] / n:.0f} % | {drawn} | {nothing} | {100 * said['real'] / n:.0f} % | {alone} |"
        )
    enter(rows)
    text = "\n".join(lines) + "\n"
    FILE.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def enter(rows: list[dict[str, Any]]) -> None:
    """Put the counts into the packaged calibration, in the place of older ones of the same kinds."""
    file = find_adapter(NAME)[1] / "calibration.json"
    calibration = Calibration.model_validate_json(file.read_text(encoding="utf-8"))
    number = Counter(row["kind"] for row in rows)
    called = Counter(row["kind"] for row in rows if row["verdict"] == "ai_generated")
    alarms = [each for each in calibration.false_alarms if each.kind not in number]
    alarms += [FalseAlarms(kind=k, photographs=n, called_generated=called[k]) for k, n in number.items()]
    changed = calibration.model_copy(update={"false_alarms": tuple(alarms)})
    file.write_text(changed.model_dump_json(indent=2, by_alias=True) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    scoring = commands.add_parser("score")
    scoring.add_argument("folders", nargs="+", metavar="KIND=FOLDER")
    scoring.add_argument("--note", default="", help="where the images come from")
    commands.add_parser("tables")
    arguments = parser.parse_args()
    if arguments.command == "score":
        score(arguments.folders, arguments.note)
    tables()


if __name__ == "__main__":
    main()
