"""`clipmole detect`: images in, verdicts out."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from clipmole.cli.inputs import read_list, sources
from clipmole.cli.options import BackboneName, DetectorName, Precision, app, remark
from clipmole.cli.render import CSVRows, JSONLines, Table, with_progress
from clipmole.errors import ImageError

if TYPE_CHECKING:
    from clipmole.records import Detection


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
    workers: Annotated[
        int | None, typer.Option(min=0, help="Threads that decode ahead of the network. Default: one a core, up to 8.")
    ] = None,
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
        detector,
        backbone=backbone,
        device=device,
        precision=precision.value,
        batch_size=batch_size,
        workers=workers,
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
