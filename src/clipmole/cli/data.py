"""`clipmole data check` and `pair`: audit labelled images; make a training set of photographs alone."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from clipmole.cli.inputs import existing_images
from clipmole.cli.options import FakeFolders, RealFolders, data_app, data_source, remark
from clipmole.cli.render import long_work
from clipmole.plumbing.text import plural, printable


@data_app.command()
def check(
    source: Annotated[
        str | None, typer.Argument(help="A manifest (CSV, Parquet), a folder, shards (.tar), hf:owner/name.")
    ] = None,
    real: RealFolders = None,
    fake: FakeFolders = None,
    split: Annotated[str | None, typer.Option(help="Look at one split. Default: all.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object that names every file.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed for the folds of the shortcut audit.")] = 0,
    unpack_to: Annotated[
        Path | None, typer.Option(help="Folder for unpacking images that cannot be read in place.")
    ] = None,
    unpack_gib: Annotated[float, typer.Option(min=0.001, max=10**9, help="Unpack at most this many GiB.")] = 20.0,
) -> None:
    """Count images, find unreadable and duplicate files, and test whether metadata alone give the classes away."""
    named = data_source(source, real, fake)

    from clipmole.data import Unpacking, read_data
    from clipmole.data.audit import check_data
    from clipmole.data.audit.text import report_lines

    samples = read_data(named, split, unsplit="", how=Unpacking(unpack_to, unpack_gib, remark))
    with long_work() as progress:
        report = check_data(samples, seed, progress.track)
    for line in [report.model_dump_json()] if json else report_lines(report):
        typer.echo(line if json else printable(line))
    if report.problems:
        raise typer.Exit(1)


class MixChoice(StrEnum):
    """How a twin and its photograph are mixed."""

    PIXEL = "pixel"
    DCT = "dct"


@data_app.command()
def pair(
    photographs: Annotated[
        str, typer.Argument(help="A folder of photographs, or labelled images, of which the photographs are used.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write; a run that was stopped continues.")],
    split: Annotated[str | None, typer.Option(help="Use one split. Default: all.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use at most this many photographs, drawn at random.")
    ] = None,
    mix: Annotated[
        list[MixChoice] | None, typer.Option(help="Keep a share of the photograph in some twins; both may be given.")
    ] = None,
    window: Annotated[int, typer.Option(help="Largest side of an image, pixels; a multiple of 8.")] = 512,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each of the four autoencoders.")] = 600,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every draw.")] = 0,
) -> None:
    """Make a training set of photographs alone: each gets a twin that a small autoencoder has decoded."""
    from clipmole.data import CAMERA, Unpacking, limit_samples, read_data
    from clipmole.data.sample import Sample
    from clipmole.training.pairs import MANIFEST, PairConfig, make_pairs

    given: dict[str, Any] = {"window": window, "steps": steps, "seed": seed, "mix": tuple(mix or ())}
    config = PairConfig.parse(given, "options")
    with long_work() as progress:
        if os.path.isdir(photographs) and split is None:
            found = existing_images([photographs], progress.say)
            samples = [Sample(path=Path(path), label=0, generator=CAMERA, split="") for path in found]
        else:
            samples = read_data(photographs, split, unsplit="", how=Unpacking(say=progress.say))
            samples = [s.model_copy(update={"generator": CAMERA}) for s in samples if s.label == 0]  # one kind to limit
        pairs = make_pairs(limit_samples(samples, limit, seed), out, config, progress=progress)
    for reason in pairs.failed.values():
        remark(f"left out: {reason}")
    shown = ", ".join(f"{kind} {value:.1f} dB" for kind, value in pairs.psnr.items())
    count = plural(pairs.photographs, "photograph")
    remark(f"{count} and as many twins" + (f" (likeness of twins, PSNR: {shown})" if shown else ""))
    typer.echo(str(out / MANIFEST))
    if pairs.failed:
        raise typer.Exit(1)
