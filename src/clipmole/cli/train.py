"""`clipmole train`, `merge`, `presets` and `compare`. In: labelled images. Out: adapters and tables."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from clipmole.cli.options import (
    BackboneName,
    DataArgument,
    FakeFolders,
    RealFolders,
    app,
    command_line,
    data_source,
    name_scorers,
    remark,
)
from clipmole.cli.render import long_work
from clipmole.plumbing.allocator import keep_freed_memory


@app.command()
def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="The adapter directory to write.")],
    extend: Annotated[
        str | None,
        typer.Option(help="A detector to add an expert to, for a new generator; what it has learnt stays as it is."),
    ] = None,
    config: Annotated[
        str, typer.Option("--config", "-c", help="A preset (see clipmole presets) or a TOML file.")
    ] = "own-images",
    data: DataArgument = None,
    real: RealFolders = None,
    fake: FakeFolders = None,
    per_class: Annotated[
        int | None, typer.Option(min=2, help="How many training images to draw from each class folder.")
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out images that cannot be read, and list them.")
    ] = False,
    unpack_to: Annotated[
        str | None, typer.Option(help="Folder for unpacking images that cannot be read in place.")
    ] = None,
    unpack_gib: Annotated[
        float | None, typer.Option(min=0.001, max=10**9, help="Unpack at most this many GiB. Default: 20.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Backbone, instead of the one that the config or --extend names.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs, instead of the number that the config names.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any setting, such as learning_rate=1e-3; KEY=none for no value."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed, instead of the one that the config names.")] = None,
    cache_dir: Annotated[
        Path | None, typer.Option(help="Folder of the prefix cache. Default: $CLIPMOLE_CACHE or ~/.cache/clipmole.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start again even if an unfinished run is there.")] = False,
) -> None:
    """Train a detector on labelled images and write its adapter directory; a run that was stopped continues.

    `accelerate launch -m clipmole.cli train ...` trains in several processes.
    """
    source = data_source(data, real, fake) if data is not None or real or fake else None
    from clipmole.config import TrainConfig
    from clipmole.training.presets import load_train_config, with_settings
    from clipmole.training.train import train as run

    settings = with_settings(load_train_config(config), setting or ())
    options = {
        "backbone": None if extend else backbone,
        "seed": seed,
        "epochs": epochs,
        "per_class": per_class,
        "skip_unreadable": skip_unreadable or None,
        "unpack_to": unpack_to,
        "unpack_gib": unpack_gib,
    }
    changes = {key: value for key, value in options.items() if value is not None}
    settings = TrainConfig.parse(settings.model_dump() | changes, "options")
    keep_freed_memory()
    with long_work() as progress:
        run(
            settings,
            out,
            extend=extend,
            backbone=backbone if extend else None,
            data=source,
            progress=progress,
            cache_dir=cache_dir,
            fresh=fresh,
        )
    if int(os.environ.get("RANK", "0")) == 0:  # the first of several processes writes
        remark(f"wrote {out}")
        typer.echo(str(out))


class MergeMethodChoice(StrEnum):
    """How adapters are merged."""

    STACK = "stack"
    AVERAGE = "average"
    TIES = "ties"
    CAMEX = "camex"


@app.command()
def merge(
    detectors: Annotated[list[str], typer.Argument(help="Two or more detectors with adapters on one backbone.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The adapter directory to write.")],
    method: Annotated[
        MergeMethodChoice,
        typer.Option(
            help="stack keeps everything, with the sum of the ranks; the others keep the ranks; camex learns on --data."
        ),
    ] = MergeMethodChoice.STACK,
    weight: Annotated[
        list[float] | None,
        typer.Option(help="Weight of each detector, in their order. Default: all the same, which gives the mean."),
    ] = None,
    density: Annotated[float, typer.Option(help="For ties: share of the entries to keep.")] = 0.2,
    data: Annotated[str | None, typer.Option(help="For camex: labelled images to learn on, as for train.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of --data. Default: calibration.")] = None,
    backbone: BackboneName = None,
) -> None:
    """Merge adapters into one; the result has no thresholds until it is calibrated."""
    if (data is None) == (method is MergeMethodChoice.CAMEX) or (split is not None and data is None):
        raise typer.BadParameter("--data and --split are for --method camex, which needs --data")

    from clipmole.data import Unpacking, read_data
    from clipmole.training.merge import merge as run

    with long_work() as progress:
        samples = read_data(data, split or "calibration", how=Unpacking(say=progress.say)) if data is not None else ()
        found = run(
            detectors,
            out,
            method.value,
            weights=weight or (),
            density=density,
            backbone=backbone,
            samples=samples,
            progress=progress,
        )
    remark(found.summary)
    remark(f"set its thresholds with: clipmole calibrate {out} ...")
    typer.echo(str(out))


@app.command()
def presets(
    name: Annotated[
        str | None, typer.Argument(help="Print this preset, to read it or to start a file with it.")
    ] = None,
) -> None:
    """List the training presets, or print one."""
    from clipmole.training.presets import preset_names, preset_text

    if name is not None:
        typer.echo(preset_text(name), nl=False)
        return
    width = max(map(len, preset_names()))
    for each in preset_names():
        typer.echo(f"{each:{width}}  {preset_text(each).splitlines()[0].removeprefix('# ')}")


@app.command()
def compare(
    context: typer.Context,
    data: Annotated[str, typer.Option(help="Labelled images with the splits train, val and, if there, calibration.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The folder for the tables; a comparison that was stopped continues.")
    ],
    plan: Annotated[Path | None, typer.Option(help="A TOML file that says what to compare.")] = None,
    config: Annotated[
        list[str] | None,
        typer.Option(
            "--config",
            "-c",
            help="Two or more presets or TOML files, instead of --plan; NAME=FILE gives one a name.",
        ),
    ] = None,
    test_data: Annotated[
        Path | None, typer.Option(help="Labelled images to report on. Default: those of --data.")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Split to report on, instead of the plan's. Default with --config: test.")
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="How many seeds, instead of the plan's. Default with --config: 3."),
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(
            help="Learning rate to try, instead of the plan's; several may be given, and val chooses among them."
        ),
    ] = None,
    runs: Annotated[
        Path | None,
        typer.Option(help="The folder of trained runs; several comparisons may share it. Default: OUT/runs."),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Backbone, instead of those that the configurations name.")
    ] = None,
    resamples: Annotated[
        int, typer.Option(min=1, max=10**6, help="How many bootstrap resamples give the intervals.")
    ] = 1000,
) -> None:
    """Train several configurations over several seeds on the same data, and compare them."""
    if (plan is None) == (not config):
        raise typer.BadParameter("give either --plan or two or more --config")

    from clipmole.training.comparison_plan import load_plan, plan_of

    given = {"splits": tuple(split or ()), "seeds": tuple(range(seeds or 0)), "rates": tuple(rate or ())}
    changes = {key: value for key, value in given.items() if value}
    if plan is not None:
        chosen = load_plan(plan)
        chosen = type(chosen).parse(chosen.model_dump() | changes, "options")
    else:
        chosen = plan_of(name_scorers(config or [], "--config"), **changes)
    from clipmole.training.compare import compare as run

    keep_freed_memory()
    with long_work() as progress:
        run(
            chosen,
            data,
            out,
            test_data=test_data,
            backbone=backbone,
            runs=runs,
            resamples=resamples,
            command=command_line(context),
            progress=progress,
        )
    typer.echo(str(out / f"{chosen.name}.md"))
