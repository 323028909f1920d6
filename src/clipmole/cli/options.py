"""The application that commands register with, and what several commands share: options and remarks."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from clipmole.plumbing.text import escaped, printable

if TYPE_CHECKING:
    from clipmole.data import DataSource
    from clipmole.inference.detector import Detector


class Commands(TyperGroup):
    """A group of commands; its help shows the whole first sentence of each, on as many lines as it takes."""

    def format_commands(self, _context: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        shown = [(name, command) for name, command in self.commands.items() if not command.hidden]
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(limit=1000)) for name, command in shown])


DAY = 86_400.0  # seconds
INPUTS = "INPUTS"  # name of a group's own command, which runs if the first word names no other


class CommandsOrInputs(Commands):
    """A group that is a command too: `scan SOURCE ...` scans, unless the first word is one of the other commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = [name for name in self.commands if name != INPUTS]
        return super().parse_args(ctx, args if args and args[0] in known else [INPUTS, *args])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return ("" if name == INPUTS else name), command, rest


class _GroupsContext(typer.Context):
    @property
    def command_path(self) -> str:  # a command without a name would end it with a space
        return super().command_path.rstrip()


class OwnCommand(TyperCommand):
    """The command that a group of `CommandsOrInputs` is."""

    context_class = _GroupsContext


app = typer.Typer(
    name="clipmole",
    cls=Commands,
    help="Tell AI-generated images from photographs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


data_app = typer.Typer(
    cls=Commands, help="Check labelled images before training, or make a training set.", no_args_is_help=True
)


app.add_typer(data_app, name="data")


class CalibrationMethodChoice(StrEnum):
    """How a probability is fitted."""

    PLATT = "platt"
    TEMPERATURE = "temperature"


class PrecisionChoice(StrEnum):
    """Arithmetic of the network."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class RuntimeChoice(StrEnum):
    """What computes the logits."""

    AUTO = "auto"
    TORCH = "torch"
    TORCH_COMPILE = "torch-compile"
    OPENVINO = "openvino"
    ONNX = "onnx"


RuntimeOption = Annotated[
    RuntimeChoice | None,
    typer.Option(
        help="What computes the scores; auto takes OpenVINO if it is installed. Default: torch, or as exported."
    ),
]


DetectorName = Annotated[
    str,
    typer.Option(
        "--detector", "-d", help="'default', 'embedded', an adapter or export directory, or a hub id owner/name."
    ),
]


BackboneName = Annotated[
    str | None,
    typer.Option(help="The backbone: a preset, a hub id or a directory. Default: the one that the adapter names."),
]


DeviceName = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, ...")]


BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Crops in one forward pass, at most. Default: 8 on a CPU, else 32.")
]


PrecisionOption = Annotated[
    PrecisionChoice | None, typer.Option(help="bfloat16 is faster and slightly less exact. Default: float32.")
]


TrustAnchors = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Certificates (PEM) of signers of content credentials to trust. Default: those that "
        "`clipmole provenance trust-list get` keeps.",
    ),
]


DataArgument = Annotated[
    str | None,
    typer.Option("--data", help="Labelled images: a manifest (CSV, Parquet), a folder, shards (.tar), hf:owner/name."),
]


RealFolders = Annotated[
    list[Path] | None, typer.Option("--real", help="A folder of photographs; with --fake, instead of --data.")
]


FakeFolders = Annotated[list[Path] | None, typer.Option("--fake", help="A folder of generated images.")]


def detector_loader(
    detector: str,
    backbone: str | None,
    device: str,
    precision: PrecisionChoice | None,
    batch_size: int | None,
    runtime: RuntimeChoice | None,
    workers: int | None = None,
) -> Callable[[], Detector]:
    """A function, which can be pickled, that loads the detector named by the options."""
    from clipmole.inference.detector import Detector
    from clipmole.inference.pytorch import bfloat16_is_slow
    from clipmole.models.adapter import DEFAULT, default_detector, fallback_remark

    if detector == DEFAULT:
        detector = default_detector()
        if line := fallback_remark():
            remark(line)
    reduced, by_torch = precision == PrecisionChoice.BFLOAT16, runtime in (None, RuntimeChoice.TORCH)
    if reduced and by_torch and device == "cpu" and bfloat16_is_slow(device):
        remark("this processor is slow in bfloat16; leave out --precision, and it computes in float32, faster")
    return partial(
        Detector.from_pretrained,
        detector,
        backbone=backbone,
        device=device,
        precision=precision.value if precision else None,
        batch_size=batch_size,
        workers=workers,
        runtime=runtime.value if runtime else None,
    )


def data_source(data: str | None, real: list[Path] | None, fake: list[Path] | None) -> DataSource:
    """The data that --data, or --real and --fake, name."""
    if data is not None and (real or fake):
        raise typer.BadParameter("--data excludes --real and --fake")
    if data is not None:
        return data
    if not real or not fake:
        raise typer.BadParameter("no images: give --data, or both --real and --fake")

    from clipmole.data import Folders

    return Folders(real=tuple(real), fake=tuple(fake))


def remark(line: str) -> None:
    """Print a line for the user on stderr; characters that a terminal would act on are replaced."""
    typer.echo(printable(line), err=True)


def name_scorers(specs: Iterable[str], option: str = "--detector") -> dict[str, str]:
    """Short name -> specification.

    A name is given as NAME=SPEC; otherwise, and if the whole is a file or folder, it is the last part of the
    specification.
    """
    named: dict[str, str] = {}
    for spec in specs:
        name, equals, rest = spec.partition("=")
        if not equals or os.path.exists(spec):
            name, rest = spec.partition("#")[0].rstrip("/").rsplit("/", 1)[-1].removesuffix(".toml"), spec
        name = escaped(name)
        if not name or name in named:
            reason = f"{spec}: each needs a name of its own; give NAME={rest}"
            raise typer.BadParameter(reason, param_hint=option)
        named[name] = rest
    return named


def name_backbones(given: Iterable[str], specs: Mapping[str, str]) -> dict[str, str]:
    """Detector's name -> backbone: from NAME=BACKBONE, or from one without a name, for all but the packaged ones."""
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
    rest = {
        name: own[""]
        for name, spec in specs.items()
        if "" in own and spec not in ("default", "mole-vit-b-16", "embedded")
    }
    return rest | {name: backbone for name, backbone in own.items() if name}


def without_folder(word: str) -> str:
    """A word of a command as a report may show it: of an absolute path, also after NAME=, only the last part."""
    name, equals, path = word.rpartition("=")
    return f"{name}{equals}{os.path.basename(path.rstrip('/'))}" if os.path.isabs(path) else word


def command_line(context: typer.Context) -> str:
    """The command that was given, without options that were left at their defaults.

    Only the last part of an absolute path is kept, because a report is shown to others.
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
    return printable(shlex.join(map(without_folder, parts)))
