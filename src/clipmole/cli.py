"""The command line: parse, call, render. Data go to stdout, progress and remarks to stderr.

Exit codes: 0 fine, 1 some inputs failed (the others are done), 2 wrong usage or nothing could start.
torch and everything that needs it is imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import csv
import glob
import os
import shlex
import sys
import warnings
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import clipmole
from clipmole.errors import ClipmoleError, ImageError, ImageNotFound
from clipmole.records import Detection, Thresholds, Verdict

if TYPE_CHECKING:
    from clipmole.images import ImageSource

app = typer.Typer(
    name="clipmole",
    help="Tell AI-generated images from photographs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class CalibrationMethod(StrEnum):
    """How a probability is fitted."""

    PLATT = "platt"
    TEMPERATURE = "temperature"


class Precision(StrEnum):
    """Arithmetic of the network."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


DetectorName = Annotated[
    str, typer.Option("--detector", "-d", help="'embedded', an adapter directory, or a hub id owner/name.")
]
BackboneName = Annotated[
    str | None,
    typer.Option(
        help="Where to take the backbone from: a preset, a hub id or a directory. Default: as the adapter says."
    ),
]


def remark(line: str) -> None:
    """A line for the person, on stderr."""
    typer.echo(line, err=True)


def find_images(paths: Iterable[str]) -> Iterator[str | ImageNotFound]:
    """Paths of single images: files as given, folders searched in depth, patterns expanded, in sorted order.

    In folders only files with a known image extension (any case) count; files given by name always do. What
    matches nothing comes out as an `ImageNotFound`. Folders that are links are not followed.
    """
    from clipmole.images import IMAGE_EXTENSIONS

    for path in paths:
        if os.path.isdir(path):
            found = False
            for folder, subfolders, names in os.walk(path):
                subfolders.sort()
                for name in sorted(names):
                    if os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS:
                        found = True
                        yield os.path.join(folder, name)
            if not found:
                yield ImageNotFound(path, "no images in this folder; name the files if their extensions are unusual")
        elif not os.path.lexists(path) and glob.has_magic(path):
            matches = sorted(glob.glob(path, recursive=True))
            yield from (find_images(matches) if matches else [ImageNotFound(path, "nothing matches this pattern")])
        else:
            yield path


def read_list(file: str) -> list[str]:
    """Paths of a list file ('-': stdin), one a line, or separated by NUL if there is one."""
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{file}: cannot be read: {error.strerror}", param_hint="--list") from error
    lines = data.split(b"\0") if b"\0" in data else data.splitlines()
    return [os.fsdecode(line) for line in lines if line.strip()]


def sources(paths: Iterable[str]) -> Iterator[ImageSource | ImageError]:
    """What `find_images` finds, '-' replaced by the bytes on stdin."""
    for path in find_images(paths):
        yield sys.stdin.buffer.read() if path == "-" else path


def percent(probability: float) -> str:
    """A probability as a person reads it, never rounded to certainty."""
    return f"{min(99, max(1, round(100 * probability)))} %"


class Table:
    """Aligned rows for people, written as they come: verdict, probability, tiles, image."""

    def __init__(self) -> None:
        self.thresholds: Thresholds | None = None
        self.detector = ""

    def write(self, result: Detection | ImageError) -> None:
        if isinstance(result, ImageError):
            typer.echo(f"{'not scored':<20}  {'':>5}  {result}")
            return
        self.thresholds, self.detector = result.thresholds, result.detector
        if result.verdict is None or result.probability is None:
            typer.echo(f"{'not calibrated':<20}  logit {result.logit:+.3f}  {result.source}")
            return
        words = typer.style(
            f"{result.verdict.words:<20}",
            fg={Verdict.AI_GENERATED: "red", Verdict.REAL: "green"}.get(result.verdict, "yellow"),
        )
        typer.echo(f"{words}  {percent(result.probability):>5}  {result.source}")

    def close(self) -> None:
        if not self.detector:
            return
        remark("")
        if self.thresholds is None:
            remark(f"{self.detector} is not calibrated: a higher logit means more likely AI-generated, no more.")
            return
        remark(
            f"Probability of being AI-generated, by {self.detector}: AI-generated above "
            f"{percent(self.thresholds.ai)}, photograph below {percent(self.thresholds.real)}, uncertain between."
        )
        remark("A likelihood, not a proof: new generators, edits and heavy compression mislead it. See MODEL_CARD.md.")


class JSONLines:
    """One JSON object a line; a failed input is {"source": ..., "error": {"code": ..., "message": ...}}."""

    def write(self, result: Detection | ImageError) -> None:
        import json

        if isinstance(result, ImageError):
            failure = {"source": result.source, "error": {"code": result.code, "message": result.reason}}
            typer.echo(json.dumps(failure))
        else:
            typer.echo(result.model_dump_json())

    def close(self) -> None:
        pass


class CSVRows:
    """A header and one row an input; a failed input fills `error_code` and `error`."""

    COLUMNS = (
        "source", "verdict", "probability", "logit", "tiles", "width", "height", "detector", "error_code", "error",
    )  # fmt: skip

    def __init__(self) -> None:
        self.rows = csv.DictWriter(sys.stdout, self.COLUMNS, extrasaction="ignore", lineterminator="\n")
        self.rows.writeheader()

    def write(self, result: Detection | ImageError) -> None:
        if isinstance(result, ImageError):
            self.rows.writerow({"source": result.source, "error_code": result.code, "error": result.reason})
        else:
            self.rows.writerow(result.model_dump(mode="json"))

    def close(self) -> None:
        sys.stdout.flush()


def with_progress(results: Iterable[Any], description: str, total: int | None = None) -> Iterator[Any]:
    """Pass `results` on under a progress bar on stderr, which is gone in the end; nothing if it is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(results, total=total, description=description)


@app.command()
def detect(
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Images, folders, quoted patterns, or - for one image on stdin."),
    ] = None,
    detector: DetectorName = "embedded",
    backbone: BackboneName = None,
    list_file: Annotated[str | None, typer.Option("--list", help="A file with a path a line; - reads stdin.")] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON lines.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV with a header.")] = False,
    tiles: Annotated[bool, typer.Option("--tiles", help="With --json: each crop's logit and place as well.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Most crops in one forward pass.")] = 32,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    precision: Annotated[
        Precision, typer.Option(help="bfloat16 is faster and slightly less exact.")
    ] = Precision.FLOAT32,
) -> None:
    """Say of each image whether it is likely a photograph, likely AI-generated, or uncertain."""
    if json and as_csv:
        raise typer.BadParameter("--json and --csv exclude each other")
    if tiles and not json:
        raise typer.BadParameter("--tiles needs --json")
    inputs = [*(paths or []), *(read_list(list_file) if list_file else [])]
    if not inputs:
        raise typer.BadParameter("no images: give files, folders, patterns, - or --list")
    if inputs.count("-") + (list_file == "-") > 1:
        raise typer.BadParameter("stdin can be read once only")

    from clipmole.detect import Detector

    loaded = Detector.from_pretrained(
        detector, backbone=backbone, device=device, precision=precision.value, batch_size=batch_size
    )
    writer = JSONLines() if json else CSVRows() if as_csv else Table()
    results: Iterable[Detection | ImageError] = loaded.stream(sources(inputs), tiles=tiles)
    if not sys.stdout.isatty():
        results = with_progress(results, "scoring")
    done = failed = 0
    for result in results:
        done += 1
        if isinstance(result, ImageError):
            failed += 1
            if not isinstance(writer, Table):
                remark(f"not scored: {result}")
        writer.write(result)
    writer.close()
    if failed:
        remark(f"{failed} of {done} inputs could not be scored.")
        raise typer.Exit(1)


@app.command()
def train(
    config: Annotated[str, typer.Option("--config", "-c", help="A preset (see clipmole presets) or a TOML file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The adapter directory to write.")],
    manifest: Annotated[
        Path | None, typer.Option(help="CSV: path,label,generator,split. Default: as the config says.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Instead of the backbone that the config names.")] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the seed that the config names.")] = None,
) -> None:
    """Train a detector from a manifest and write its adapter directory."""
    from clipmole.config import TrainConfig
    from clipmole.preset import load_train_config
    from clipmole.train import train as run

    settings = load_train_config(config)
    changes = {key: value for key, value in {"backbone": backbone, "seed": seed}.items() if value is not None}
    settings = TrainConfig.parse(settings.model_dump() | changes, "options")
    run(settings, out, manifest=manifest, track=with_progress, say=remark)
    remark(f"wrote {out}")
    typer.echo(str(out))


@app.command()
def presets(
    name: Annotated[str | None, typer.Argument(help="Print this one, to read it or to begin a file with.")] = None,
) -> None:
    """List the training presets, or print one."""
    from clipmole.preset import preset_names, preset_text

    if name is not None:
        typer.echo(preset_text(name), nl=False)
        return
    width = max(map(len, preset_names()))
    for each in preset_names():
        typer.echo(f"{each:{width}}  {preset_text(each).splitlines()[0].removeprefix('# ')}")


def without_place(word: str) -> str:
    """A word of a command as a report may show it: an absolute path, also after NAME=, is its last part."""
    name, equals, path = word.rpartition("=")
    return f"{name}{equals}{os.path.basename(path.rstrip('/'))}" if os.path.isabs(path) else word


@app.command()
def compare(
    data: Annotated[str, typer.Option(help="Labelled images with the splits train, val and, if there, calibration.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for the tables; a killed comparison goes on.")],
    plan: Annotated[Path | None, typer.Option(help="A TOML file that says what to compare.")] = None,
    config: Annotated[
        list[str] | None, typer.Option("--config", "-c", help="Or two or more presets or TOML files; NAME=FILE names.")
    ] = None,
    test_data: Annotated[
        Path | None, typer.Option(help="Labelled images to report on. Default: those of --data.")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Reported, instead of the plan's; with --config test.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many, instead of the plan's; with --config 3.")] = None,
    rate: Annotated[
        list[float] | None, typer.Option(help="Learning rates to choose from on val, instead of the plan's.")
    ] = None,
    runs: Annotated[
        Path | None,
        typer.Option(help="The folder of trained runs; several comparisons may share it. Default: OUT/runs."),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Instead of the backbones that the configurations name.")] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Of the bootstrap.")] = 1000,
) -> None:
    """Train several configurations over several seeds on the same data, and compare them."""
    if (plan is None) == (not config):
        raise typer.BadParameter("give --plan or two or more --config")

    from clipmole.plan import load_plan, plan_of

    given = {"splits": tuple(split or ()), "seeds": tuple(range(seeds or 0)), "rates": tuple(rate or ())}
    changes = {key: value for key, value in given.items() if value}
    if plan is not None:
        chosen = load_plan(plan)
        chosen = type(chosen).parse(chosen.model_dump() | changes, "options")
    else:
        chosen = plan_of(name_scorers(config or [], "--config"), **changes)
    from clipmole.compare import compare as run

    run(
        chosen,
        data,
        out,
        test_data=test_data,
        backbone=backbone,
        runs=runs,
        resamples=resamples,
        command=shlex.join(["clipmole", *map(without_place, sys.argv[1:])]),
        track=with_progress,
        say=remark,
    )
    typer.echo(str(out / f"{chosen.name}.md"))


@app.command()
def calibrate(
    detector: Annotated[str, typer.Argument(help="'embedded', an adapter directory, or a hub id owner/name.")],
    data: Annotated[
        str,
        typer.Option(help="Labelled images: a CSV path,label,generator,split. With --real-only also a folder."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The adapter directory to write.")],
    real_only: Annotated[
        bool, typer.Option("--real-only", help="All are photographs: move the threshold for AI-generated alone.")
    ] = False,
    split: Annotated[str | None, typer.Option(help="Rows of one split. Default: all rows.")] = None,
    false_alarm: Annotated[float, typer.Option(help="Highest share of photographs called AI-generated.")] = 0.05,
    miss: Annotated[
        float | None, typer.Option(help="Highest share of generated images called photographs. Default: 0.10.")
    ] = None,
    method: Annotated[
        CalibrationMethod | None, typer.Option(help="How the probability is fitted. Default: platt.")
    ] = None,
    backbone: BackboneName = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
) -> None:
    """Set a detector's thresholds on your own images, and write a copy of it that uses them."""
    if real_only and (miss is not None or method is not None):
        raise typer.BadParameter("--real-only keeps the probability and the misses as they are: no --miss, no --method")
    loose = real_only and os.path.isdir(data)
    if split is not None and loose:
        raise typer.BadParameter("--split needs a manifest; a folder of photographs has no splits")

    from clipmole.calibrate import describe, recalibrate, recalibrate_on_photographs
    from clipmole.data import read_data

    if real_only:
        photographs = list(find_images([data])) if loose else read_data(data, split)
        result = recalibrate_on_photographs(
            detector,
            photographs,
            out,
            max_false_alarm=false_alarm,
            backbone=backbone,
            device=device,
            track=with_progress,
        )
    else:
        result = recalibrate(
            detector,
            read_data(data, split),
            out,
            max_false_alarm=false_alarm,
            max_miss=0.10 if miss is None else miss,
            method="platt" if method is None else method.value,
            backbone=backbone,
            device=device,
            track=with_progress,
        )
    for failure in result.failed:
        remark(f"not scored: {failure}")
    for line in describe(result):
        remark(line)
    typer.echo(str(out))
    if result.failed:
        remark(f"{len(result.failed)} of {len(result.failed) + result.real} photographs could not be read.")
        raise typer.Exit(1)


def name_scorers(specs: Iterable[str], option: str = "--detector") -> dict[str, str]:
    """Short name -> specification: NAME=SPEC, or a name made of the specification's last part."""
    named: dict[str, str] = {}
    for spec in specs:
        name, equals, rest = spec.partition("=")
        if not equals:
            name, rest = spec.partition("#")[0].rstrip("/").rsplit("/", 1)[-1].removesuffix(".toml"), spec
        if not name or name in named:
            reason = f"{spec}: each needs another name; give NAME={rest}"
            raise typer.BadParameter(reason, param_hint=option)
        named[name] = rest
    return named


@app.command()
def evaluate(
    data: Annotated[Path, typer.Option(help="A manifest CSV, or the folder that holds the protocol's data sets.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for scores and report; a killed run goes on.")],
    detector: Annotated[
        list[str] | None,
        typer.Option("--detector", "-d", help="embedded, a directory, a hub id, univfd:HEAD, hf:ID#CLASS, python:M:F."),
    ] = None,
    protocol: Annotated[str, typer.Option(help="A preset or a TOML file.")] = "manifest",
    split: Annotated[list[str] | None, typer.Option(help="Of a manifest, instead of the protocol's.")] = None,
    conditions: Annotated[str | None, typer.Option(help="A preset or a TOML file; default: the protocol's.")] = None,
    backbone: BackboneName = None,
    resamples: Annotated[int, typer.Option(min=1, help="Of the bootstrap.")] = 1000,
    gallery: Annotated[bool, typer.Option(help="Show the worst mistakes in the report.")] = True,
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode and perturb.")] = 2,
    batch_size: Annotated[int, typer.Option(min=1, help="Most crops in one forward pass.")] = 32,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    precision: Annotated[
        Precision, typer.Option(help="bfloat16 is faster and slightly less exact.")
    ] = Precision.FLOAT32,
) -> None:
    """Measure detectors on labelled images, side by side, and write a report."""
    names = name_scorers(detector or ["embedded"])

    from clipmole.evaluate import run_protocol
    from clipmole.protocol import load_protocol

    result = run_protocol(
        load_protocol(protocol),
        names,
        data,
        out,
        splits=split or (),
        conditions=conditions,
        backbone=backbone,
        resamples=resamples,
        gallery=gallery,
        workers=workers,
        batch_size=batch_size,
        device=device,
        precision=precision.value,
        track=with_progress,
    )
    for line in result.missing:
        remark(f"missing: {line}")
    for path, reason in result.failed.items():
        remark(f"not scored: {path}: {reason}" if path not in reason else f"not scored: {reason}")
    typer.echo(str(out / "report.html"))
    if result.failed:
        raise typer.Exit(1)


@app.command()
def push(
    directory: Annotated[Path, typer.Argument(help="An adapter directory.")],
    repo_id: Annotated[str, typer.Argument(help="owner/name on the Hugging Face Hub.")],
    private: Annotated[bool, typer.Option(help="Create the repository as private.")] = False,
) -> None:
    """Upload an adapter directory to the Hugging Face Hub."""
    from clipmole.models.checkpoint import push_adapter

    typer.echo(push_adapter(directory, repo_id, private))


@app.command()
def import_univfd(
    head: Annotated[Path, typer.Argument(help="fc_weights.pth of WisconsinAIVision/UniversalFakeDetect.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The adapter directory to write.")],
    backbone: Annotated[str, typer.Option(help="Where CLIP ViT-L/14 comes from.")] = "vit-l-14",
) -> None:
    """Turn UnivFD's published linear head into an adapter directory for CLIP ViT-L/14."""
    from clipmole.models.checkpoint import import_univfd as convert

    convert(head, out, backbone)
    typer.echo(str(out))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"clipmole {clipmole.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; an error of clipmole's is one line on stderr and exit code 2."""
    # Pillow remarks on odd but readable files; what matters is an ImageError.
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
    try:
        app()
    except ClipmoleError as error:
        remark(f"clipmole: {error}")
        sys.exit(2)
    except BrokenPipeError:  # the reader of stdout has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
