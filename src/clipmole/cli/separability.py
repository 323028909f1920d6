"""`clipmole separability`. In: labelled images. Out: how many images of each generator it takes to tell it apart."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from clipmole.cli.options import (
    DataArgument,
    DeviceName,
    FakeFolders,
    PrecisionChoice,
    RealFolders,
    app,
    command_line,
    data_source,
    remark,
)
from clipmole.cli.render import long_work


@app.command()
def separability(
    context: typer.Context,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The folder for features and report; a run that was stopped continues.")
    ],
    data: DataArgument = None,
    real: RealFolders = None,
    fake: FakeFolders = None,
    split: Annotated[str | None, typer.Option(help="Use one split. Default: all.")] = None,
    backbone: Annotated[
        str, typer.Option(help="Frozen backbone whose features are read: a preset, a hub id or a directory.")
    ] = "clip-vit-b-16-int8",
    head_block: Annotated[
        list[int] | None, typer.Option(min=0, help="A block whose class token is read too; several may be given.")
    ] = None,
    generator: Annotated[
        list[str] | None, typer.Option(help="A generator; several may be given. Default: all with enough images.")
    ] = None,
    least: Annotated[int, typer.Option(min=6, help="Leave out generators with fewer images.")] = 30,
    per_generator: Annotated[int, typer.Option(min=6, help="Images of a generator to look at, at most.")] = 300,
    photographs: Annotated[int, typer.Option(min=6, help="Photographs to look at, at most.")] = 1500,
    controls: Annotated[
        int, typer.Option(min=0, help="Sources of photographs to treat like a generator, as controls.")
    ] = 3,
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="How many times to draw the images that a head is trained on.")
    ] = 10,
    max_tiles: Annotated[int, typer.Option(min=1, max=100, help="Crops of an image to look at.")] = 1,
    level: Annotated[float, typer.Option(help="AUROC from which a generator counts as told apart.")] = 0.9,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every draw.")] = 0,
    device: DeviceName = "cpu",
    precision: Annotated[
        PrecisionChoice, typer.Option(help="bfloat16 is faster and slightly less exact.")
    ] = PrecisionChoice.FLOAT32,
) -> None:
    """Say how many images of a generator it takes to tell it from photographs and from other generators."""
    source = data_source(data, real, fake)

    from clipmole.data import Unpacking, read_data
    from clipmole.evaluation.separability import SeparabilityConfig
    from clipmole.evaluation.separability import separability as run
    from clipmole.report.separability import check_out_folder, write_separability

    given: dict[str, Any] = {
        "seeds": seeds,
        "seed": seed,
        "least": least,
        "per_generator": per_generator,
        "photographs": photographs,
    }
    given |= {
        "controls": controls,
        "max_tiles": max_tiles,
        "head_blocks": tuple(head_block or ()),
        "generators": tuple(generator or ()),
    }
    config = SeparabilityConfig.parse(given | {"level": level}, "options")
    check_out_folder(out)
    with long_work() as progress:
        found = run(
            read_data(source, split, how=Unpacking(say=progress.say)),
            backbone,
            out,
            config,
            device=device,
            precision=precision.value,
            command=command_line(context),
            progress=progress,
        )
        page = write_separability(found, out)
    for path, reason in found.failed.items():
        remark(f"left out: {path}: {reason}")
    typer.echo(str(page))
    if found.failed:
        raise typer.Exit(1)
