"""Seconds from the shell to the answer: `clipmole --help`, and `clipmole detect` on one image, embedded detector.

    python benchmarks/start_up.py [--repeats 7] [--out DIR]

The image is a 12-megapixel JPEG made on the spot. The first run of each warms the file cache and is left out; medians
and ranges of the others. What `--timings` says shows where the time of detect goes; the rest is Python itself, the
command line and the end of the process. Prints JSON last.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline import make_file

from clipmole.plumbing.environment import environment

PARTS = {"imports": r"(\S+) imports", "loading": r"(\S+) loading", "network": r"(\S+) in the network"}
PARTS |= {"decoding": r"(\S+) of decoding"}
TARGETS = {"help": 0.3, "detect": 3.0}


def measure(command: list[str], repeats: int) -> tuple[dict[str, float], list[str]]:
    """Wall seconds of a command, and what it said on stderr each time."""
    seconds, said = [], []
    for turn in range(repeats + 1):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-P", "-m", "clipmole.cli", *command], check=True, capture_output=True)
        if turn:
            seconds.append(time.perf_counter() - began)
            said.append(done.stderr.decode())
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="folder for start-up.json and .md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        image = Path(name) / "one.jpg"
        image.write_bytes(make_file("12-megapixel JPEG", 0))
        shown, _ = measure(["--help"], arguments.repeats)
        detected, said = measure(["detect", str(image), "--timings"], arguments.repeats)
    parts = {
        part: statistics.median(float(found[1]) for text in said if (found := re.search(pattern, text)))
        for part, pattern in PARTS.items()
    }
    given = [word for word in sys.argv[1:] if word not in ("--out", str(arguments.out))]
    result: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/start_up.py", *given]),
        "repeats": arguments.repeats,
        "targets": TARGETS,
        "environment": environment(),
        "help": shown,
        "detect": detected,
        "detect_parts": parts,
    }
    if arguments.out:
        env = result["environment"]
        lines = [
            "| command | seconds, median [range] | of which |",
            "|---|--:|---|",
            f"| `clipmole --help` | {shown['median']:.2f} [{shown['min']:.2f}, {shown['max']:.2f}] | |",
            f"| `clipmole detect one.jpg` | {detected['median']:.2f} [{detected['min']:.2f}, {detected['max']:.2f}] | "
            + ", ".join(f"{part} {seconds:.2f}" for part, seconds in parts.items())
            + " |",
            "",
            f"`{result['command']}`: {arguments.repeats} runs each after one that warms up. {env['cpu']}, "
            f"{env['threads']} threads, Python {env['python']}, torch {env['torch']}, {env['date']}.",
        ]
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "start-up.json").write_text(json.dumps(result, indent=1) + "\n")
        (arguments.out / "start-up.md").write_text("\n".join(lines) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
