"""`clipmole data check`: what there is to know of labelled images before they are used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipmole.cli.options import FakeFolders, RealFolders, data_app, data_source, remark
from clipmole.cli.render import with_progress


@data_app.command()
def check(
    source: Annotated[
        str | None, typer.Argument(help="A manifest (CSV, Parquet), a folder, shards (.tar), hf:owner/name.")
    ] = None,
    real: RealFolders = None,
    fake: FakeFolders = None,
    split: Annotated[str | None, typer.Option(help="Look at one split. Default: all.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object that names every file.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed for the folds of the shortcut audit.")] = 0,
    unpack_to: Annotated[
        Path | None, typer.Option(help="Folder to unpack images to that cannot be read in place.")
    ] = None,
    unpack_gib: Annotated[float, typer.Option(min=0.001, help="Unpack at most so many GiB.")] = 20.0,
) -> None:
    """Count, find unreadable and duplicate files, and see whether metadata alone give the classes away."""
    named = data_source(source, real, fake)

    from clipmole.data import Unpacking, read_data
    from clipmole.data.audit import check_data
    from clipmole.data.audit.text import report_lines

    samples = read_data(named, split, unsplit="", how=Unpacking(unpack_to, unpack_gib, remark))
    report = check_data(samples, seed, with_progress)
    for line in [report.model_dump_json()] if json else report_lines(report):
        typer.echo(line)
    if report.problems:
        raise typer.Exit(1)
