"""`clipmole reproduce`. In: the paper's data sets. Out: its table beside your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipmole.cli.options import app, command_line, remark
from clipmole.cli.render import long_work


@app.command()
def reproduce(
    context: typer.Context,
    preset: Annotated[str, typer.Argument(help="paper-vit-l-14, paper-vit-b-16 or paper-vit-b-32.")],
    data: Annotated[Path, typer.Option(help="The folder that holds progan, univfd and genimage.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The folder to write. Default: reproduce-PRESET.")
    ] = None,
    few: Annotated[bool, typer.Option("--few", help="Train on 100 images of each class, the paper's 0.28 %.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the data, print steps, disk space and time, and stop.")
    ] = False,
    incomplete: Annotated[
        bool, typer.Option("--incomplete", help="Go on even if data sets are missing or not as published.")
    ] = False,
    backbone: Annotated[str | None, typer.Option(help="Backbone, instead of the one that the preset names.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting of the training, as in clipmole train."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where to score: cpu, cuda, ... Default: a GPU if there is one, as in training.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=1, help="How many bootstrap resamples give the intervals.")] = 1000,
) -> None:
    """Train as the paper did, evaluate on UnivFD's 19 sets and GenImage, and compare the results with the paper's."""
    import torch

    from clipmole.reproduction import plan as planning
    from clipmole.reproduction.run import reproduce as run_experiment

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    config = planning.paper_config(preset, few, backbone, setting or ())
    plan = planning.plan(preset, data, out or Path(f"reproduce-{preset}{'-few' * few}"), config)
    if dry_run:
        for line in planning.plan_lines(plan, planning.measure_rates(config, device)):
            typer.echo(line)
        raise typer.Exit(1 if plan.problems else 0)
    with long_work() as progress:
        table = run_experiment(
            plan,
            device=device,
            incomplete=incomplete,
            resamples=resamples,
            command=command_line(context),
            progress=progress,
        )
    for note in table.notes:
        remark(note)
    typer.echo(str(plan.out / f"{planning.TABLE}.md"))
