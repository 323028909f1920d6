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
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import clipmole
from clipmole.errors import ClipmoleError, ImageError, ImageNotFound
from clipmole.records import Detection, Thresholds, Verdict

if TYPE_CHECKING:
    from clipmole.data import DataSource
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


data_app = typer.Typer(help="Look at labelled images before training or measuring on them.", no_args_is_help=True)
app.add_typer(data_app, name="data")


DetectorName = Annotated[
    str, typer.Option("--detector", "-d", help="'embedded', an adapter directory, or a hub id owner/name.")
]
BackboneName = Annotated[
    str | None,
    typer.Option(
        help="Where to take the backbone from: a preset, a hub id or a directory. Default: as the adapter says."
    ),
]


DataArgument = Annotated[
    str | None,
    typer.Option("--data", help="Labelled images: a manifest (CSV, Parquet), a folder, shards (.tar), hf:owner/name."),
]
RealFolders = Annotated[
    list[Path] | None, typer.Option("--real", help="A folder of photographs, with --fake in place of --data.")
]
FakeFolders = Annotated[list[Path] | None, typer.Option("--fake", help="A folder of generated images.")]


def data_source(data: str | None, real: list[Path] | None, fake: list[Path] | None) -> DataSource:
    """What --data, or --real and --fake, name."""
    if data is not None and (real or fake):
        raise typer.BadParameter("--data excludes --real and --fake")
    if data is not None:
        return data
    if not real or not fake:
        raise typer.BadParameter("no images: give --data, or --real and --fake, which need each other")

    from clipmole.data import Folders

    return Folders(real=tuple(real), fake=tuple(fake))


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


def rate(per_second: float | None) -> str:
    """How fast it goes, as a person reads it: "12.3/s", or "4.1 s each" where it is slow; "" if it is not known."""
    if not per_second:
        return ""
    return f"{per_second:.1f}/s" if per_second >= 1 else f"{1 / per_second:.1f} s each"


def with_progress(results: Iterable[Any], description: str, total: int | None = None) -> Iterator[Any]:
    """Pass `results` on under a progress bar on stderr, which is gone in the end; nothing if it is no terminal.

    It shows how many are done, how many a second, and the time spent and remaining.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(rate(task.finished_speed or task.speed))

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
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
    data: DataArgument = None,
    real: RealFolders = None,
    fake: FakeFolders = None,
    per_class: Annotated[
        int | None, typer.Option(min=2, help="Training images of each class of the layout, drawn by the seed.")
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out images that cannot be read, and list them.")
    ] = False,
    unpack_to: Annotated[str | None, typer.Option(help="Folder for images that cannot be read in place.")] = None,
    unpack_gib: Annotated[float | None, typer.Option(min=0.001, help="Most GiB to unpack. Default: 20.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Instead of the backbone that the config names.")] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the seed that the config names.")] = None,
    cache_dir: Annotated[
        Path | None, typer.Option(help="Of the prefix cache. Default: $CLIPMOLE_CACHE or ~/.cache/clipmole.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew where an unfinished run would go on.")] = False,
) -> None:
    """Train a detector on labelled images and write its adapter directory; a run that was killed goes on.

    `accelerate launch -m clipmole.cli train ...` trains in several processes.
    """
    source = data_source(data, real, fake) if data is not None or real or fake else None
    from clipmole.config import TrainConfig
    from clipmole.preset import load_train_config
    from clipmole.train import train as run

    settings = load_train_config(config)
    options = {
        "backbone": backbone,
        "seed": seed,
        "per_class": per_class,
        "skip_unreadable": skip_unreadable or None,
        "unpack_to": unpack_to,
        "unpack_gib": unpack_gib,
    }
    changes = {key: value for key, value in options.items() if value is not None}
    settings = TrainConfig.parse(settings.model_dump() | changes, "options")
    run(settings, out, data=source, track=with_progress, say=remark, cache_dir=cache_dir, fresh=fresh)
    if int(os.environ.get("RANK", "0")) == 0:  # the first of several processes writes
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


def command_line(context: typer.Context) -> str:
    """The command that was given, without what was left at its default.

    An absolute path is its last part: a report is shown to others.
    """
    parts = ["clipmole", context.info_name or ""]
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if value is None or value == parameter.default:
            continue
        if isinstance(value, bool):
            parts.append(next(name for name in (parameter.opts if value else parameter.secondary_opts)))
            continue
        for each in value if isinstance(value, list | tuple) else [value]:
            parts += [parameter.opts[0], str(getattr(each, "value", each))]
    return shlex.join(map(without_place, parts))


@app.command()
def compare(
    context: typer.Context,
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
        command=command_line(context),
        track=with_progress,
        say=remark,
    )
    typer.echo(str(out / f"{chosen.name}.md"))


@app.command()
def calibrate(
    detector: Annotated[str, typer.Argument(help="'embedded', an adapter directory, or a hub id owner/name.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The adapter directory to write.")],
    data: DataArgument = None,
    real: RealFolders = None,
    fake: FakeFolders = None,
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
    source = data_source(data, real, fake)
    loose = real_only and data is not None and os.path.isdir(data)
    if split is not None and loose:
        raise typer.BadParameter("--split needs a manifest; a folder of photographs has no splits")

    from clipmole.calibrate import describe, recalibrate, recalibrate_on_photographs
    from clipmole.data import Unpacking, read_data

    how = Unpacking(say=remark)
    if real_only:
        photographs = list(find_images([str(data)])) if loose else read_data(source, split, how=how)
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
            read_data(source, split, how=how),
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


def name_backbones(given: Iterable[str], specs: Mapping[str, str]) -> dict[str, str]:
    """Detector's name -> backbone: of NAME=BACKBONE, or of one without a name, which is for all but "embedded"."""
    own: dict[str, str] = {}
    for text in given:
        name, equals, backbone = text.partition("=")
        if equals and name in specs:
            own[name] = backbone
        elif "" in own:
            names = ", ".join(specs)
            raise typer.BadParameter(f"{text}: give NAME=BACKBONE for detectors {names}", param_hint="--backbone")
        else:
            own[""] = text
    rest = {name: own[""] for name, spec in specs.items() if "" in own and spec != "embedded"}
    return rest | {name: backbone for name, backbone in own.items() if name}


@app.command()
def evaluate(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for scores and report; a killed run goes on.")],
    data: Annotated[
        str | None,
        typer.Option(help="A manifest, folder, shards, hf:owner/name; or the folder of the protocol's data sets."),
    ] = None,
    real: RealFolders = None,
    fake: FakeFolders = None,
    detector: Annotated[
        list[str] | None,
        typer.Option("--detector", "-d", help="embedded, a directory, a hub id, univfd:HEAD, hf:ID#CLASS, python:M:F."),
    ] = None,
    protocol: Annotated[str, typer.Option(help="A preset or a TOML file.")] = "manifest",
    split: Annotated[list[str] | None, typer.Option(help="Of a manifest, instead of the protocol's.")] = None,
    conditions: Annotated[str | None, typer.Option(help="A preset or a TOML file; default: the protocol's.")] = None,
    backbone: Annotated[
        list[str] | None, typer.Option(help="Instead of the one that a detector names; NAME=BACKBONE for one of many.")
    ] = None,
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
    source = data_source(data, real, fake)

    from clipmole.data import Unpacking
    from clipmole.evaluate import run_protocol
    from clipmole.protocol import load_protocol

    result = run_protocol(
        load_protocol(protocol),
        names,
        source,
        out,
        splits=split or (),
        how=Unpacking(say=remark),
        conditions=conditions,
        backbones=name_backbones(backbone or [], names),
        resamples=resamples,
        gallery=gallery,
        workers=workers,
        batch_size=batch_size,
        device=device,
        precision=precision.value,
        command=command_line(context),
        track=with_progress,
    )
    for line in result.missing:
        remark(f"missing: {line}")
    for path, reason in result.failed.items():
        remark(f"not scored: {path}: {reason}" if path not in reason else f"not scored: {reason}")
    typer.echo(str(out / "report.html"))
    if result.failed:
        raise typer.Exit(1)


@data_app.command()
def check(
    source: Annotated[
        str | None, typer.Argument(help="A manifest (CSV, Parquet), a folder, shards (.tar), hf:owner/name.")
    ] = None,
    real: RealFolders = None,
    fake: FakeFolders = None,
    split: Annotated[str | None, typer.Option(help="Images of one split. Default: all.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object, with every file named.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the folds of the shortcut audit.")] = 0,
    unpack_to: Annotated[Path | None, typer.Option(help="Folder for images that cannot be read in place.")] = None,
    unpack_gib: Annotated[float, typer.Option(min=0.001, help="Most GiB to unpack.")] = 20.0,
) -> None:
    """Count, find unreadable and duplicate files, and see whether metadata alone give the classes away."""
    named = data_source(source, real, fake)

    from clipmole.audit import check_data
    from clipmole.audit.text import report_lines
    from clipmole.data import Unpacking, read_data

    samples = read_data(named, split, unsplit="", how=Unpacking(unpack_to, unpack_gib, remark))
    report = check_data(samples, seed, with_progress)
    for line in [report.model_dump_json()] if json else report_lines(report):
        typer.echo(line)
    if report.problems:
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
