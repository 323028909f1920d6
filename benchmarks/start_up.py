"""From the shell to the answer: seconds and memory of `clipmole --help`, and of `clipmole detect` on one image.

    python benchmarks/start_up.py [--repeats 7] [--out DIR]

The image is a 12-megapixel JPEG made on the spot. The first run of each warms the file cache (and converts a graph
where one is run), and is left out; medians and ranges of the others. What `--timings` says shows where the time of
detect goes; the rest is Python itself, the command line and the end of the process. Memory is the peak of the process;
Linux counts what this script itself holds when it starts one, so less than that cannot be told. Prints JSON last.
"""

from __future__ import annotations

import argparse
import json
import os
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
IMAGE = "one.jpg"
COMMANDS = (
    ("--help",),
    ("detect", IMAGE),
    ("detect", IMAGE, "--runtime", "openvino"),
    ("detect", IMAGE, "--detector", "embedded"),
    ("detect", IMAGE, "--detector", "embedded", "--runtime", "openvino"),
)


def measure(command: tuple[str, ...], repeats: int, folder: str) -> dict[str, Any]:
    """Wall seconds and peak MiB of a command, and the parts of its time."""
    seconds, peaks, said = [], [], []
    timings = () if command == ("--help",) else ("--timings",)
    for turn in range(repeats + 1):
        began = time.perf_counter()
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "clipmole.cli", *command, *timings],
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
            _, status, usage = os.wait4(process.pid, 0)
            taken = time.perf_counter() - began
            errors.seek(0)
            text = errors.read().decode()
        if status:
            sys.exit(f"{shlex.join(command)}: {text}")
        if turn:
            seconds.append(taken)
            peaks.append(usage.ru_maxrss / 1024)
            said.append(text)
    parts = {
        part: statistics.median(float(found[1]) for text in said if (found := re.search(pattern, text)))
        for part, pattern in PARTS.items()
        if timings
    }
    return {
        "command": shlex.join(["clipmole", *command]),
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "peak_mib": statistics.median(peaks),
        "parts": parts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="folder for start-up.json and .md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / IMAGE).write_bytes(make_file("12-megapixel JPEG", 0))
        rows = [measure(command, arguments.repeats, folder) for command in COMMANDS]
    given = [word for word in sys.argv[1:] if word not in ("--out", str(arguments.out))]
    result: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/start_up.py", *given]),
        "repeats": arguments.repeats,
        "environment": environment(),
        "rows": rows,
    }
    if arguments.out:
        env = result["environment"]
        lines = ["| command | seconds, median [range] | of which | peak memory |", "|---|--:|---|--:|"]
        for row in rows:
            parts = ", ".join(f"{part} {seconds:.2f}" for part, seconds in row["parts"].items())
            span = f"{row['median']:.2f} [{row['min']:.2f}, {row['max']:.2f}]"
            below = "at most " * (row["peak_mib"] <= 1.02 * rows[0]["peak_mib"])
            lines.append(f"| `{row['command']}` | {span} | {parts} | {below}{row['peak_mib']:,.0f} MiB |")
        lines += [
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
