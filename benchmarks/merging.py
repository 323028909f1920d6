"""Detectors of different generators, merged: against their parts, and against training on all images together.

In: images as for `arrivals.py`. Two families of generators with photographs of sources of their own train the first
detector, two others with other photographs the second, and all of them the joint one. The first two are merged in
every way of `clipmole merge`; camex learns on the calibration images of both. All score the same test images, as in
`arrivals.py`: average precision of each family against photographs of sources that were trained on (old), and of
sources that were not (new), and its difference from the joint detector with paired bootstrap intervals over images.
Test images are reported, and choose nothing. The table is printed; the last line is JSON.

    python benchmarks/merging.py --table originals.csv --images DIR --work DIR [--seeds 3] [--per-step 150]
"""

from __future__ import annotations

from typing import Any

import numpy as np
from arrivals import FAMILIES, Run, ap_rows, arguments, closing_line, read_table

from clipmole.training.merge import merge
from clipmole.training.presets import load_train_config, with_settings

METHODS = ("stack", "average", "ties", "camex")


def main() -> None:
    args = arguments(__doc__, seeds=3)
    config = with_settings(load_train_config("own-images"), args.set)
    steps, tested = read_table(args.table, args.images, args.per_step, args.test)
    names = list(FAMILIES)
    halves = {"first": names[:2], "second": names[2:]}
    scores: dict[str, list[np.ndarray]] = {}
    lost: dict[str, list[float]] = {}
    tokens = None
    for seed in range(args.seeds):
        run = Run(args.work / f"seed-{seed}", config.model_copy(update={"seed": seed}), args.backbone, tested)
        run.tokens = tokens
        images = {half: [sample for name in own for sample in steps[name]] for half, own in halves.items()}
        made = {half: run.make(half, own) for half, own in images.items()}
        together = images["first"] + images["second"]
        made["joint"] = run.make("joint", together)
        parts = [made["first"], made["second"]]
        learnt_on = [sample for sample in together if sample.split == "calibration"]
        for method in METHODS:
            out = run.folder / method
            samples: Any = {"samples": learnt_on} if method == "camex" else {}
            found = merge(parts, out, method, backbone=args.backbone, **samples)  # type: ignore[arg-type]
            lost.setdefault(method, []).append(found.lost)
            made[method] = out
        for way, detector in made.items():
            scores.setdefault(way, []).append(run.scores(detector))
        tokens = run.tokens
        print({name: f"{seconds:.0f} s" for name, seconds in run.seconds.items()}, flush=True)
    rows = ap_rows(tested, {way: np.mean(own, axis=0) for way, own in scores.items()}, "joint", args.resamples)
    for row in rows:
        half = next(name for name, own in halves.items() if row["family"] in own)
        print(
            f"{row['way']:8} {row['family']:14} of the {half:6} {row['photographs']} photographs: AP {row['ap']:.3f}, "
            f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        )
    print({method: f"{100 * np.mean(own):.0f} % of the updates lost" for method, own in lost.items()})
    print(closing_line({"rows": rows, "lost": lost}, args))


if __name__ == "__main__":
    main()
