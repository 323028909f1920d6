"""`clipmole evaluate` and `calibrate`. In: detectors and labelled images. Out: reports and thresholds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from clipmole import api
from clipmole.cli.options import (
    BackboneName,
    BatchSize,
    CalibrationMethodChoice,
    DataArgument,
    DeviceName,
    FakeFolders,
    PrecisionChoice,
    RealFolders,
    RuntimeOption,
    app,
    command_line,
    data_source,
    name_backbones,
    name_scorers,
    remark,
)
from clipmole.cli.render import long_work


@app.command()
def evaluate(
    context: typer.Context,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The folder for scores and report; a run that was stopped continues.")
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="A manifest, a folder, shards, hf:owner/name; or the folder that holds the protocol's data sets."
        ),
    ] = None,
    real: RealFolders = None,
    fake: FakeFolders = None,
    detector: Annotated[
        list[str] | None,
        typer.Option(
            "--detector", "-d", help="default, embedded, a directory, a hub id, univfd:HEAD, hf:ID#CLASS, python:M:F."
        ),
    ] = None,
    protocol: Annotated[str, typer.Option(help="What to measure: a preset or a TOML file.")] = "manifest",
    split: Annotated[
        list[str] | None,
        typer.Option(help="Split of a manifest to measure on, instead of the protocol's; several may be given."),
    ] = None,
    conditions: Annotated[
        str | None, typer.Option(help="How to change the images: a preset or a TOML file. Default: the protocol's.")
    ] = None,
    backbone: Annotated[
        list[str] | None,
        typer.Option(
            help="Backbone, instead of the one that a detector names; NAME=BACKBONE for one of several detectors."
        ),
    ] = None,
    resamples: Annotated[
        int, typer.Option(min=1, max=10**6, help="How many bootstrap resamples give the intervals.")
    ] = 1000,
    gallery: Annotated[bool, typer.Option(help="Show the worst mistakes in the report.")] = True,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Threads that decode and change images.")] = 2,
    batch_size: BatchSize = None,
    device: DeviceName = "cpu",
    precision: Annotated[
        PrecisionChoice, typer.Option(help="bfloat16 is faster and slightly less exact.")
    ] = PrecisionChoice.FLOAT32,
    runtime: RuntimeOption = None,
) -> None:
    """Measure detectors on labelled images, side by side, and write a report."""
    names = name_scorers(detector or ["default"])
    source = data_source(data, real, fake)

    with long_work() as progress:
        report = api.evaluate(
            names,
            source,
            out,
            protocol=protocol,
            splits=split or (),
            conditions=conditions,
            backbones=name_backbones(backbone or [], names),
            resamples=resamples,
            gallery=gallery,
            workers=workers,
            batch_size=batch_size,
            device=device,
            precision=precision.value,
            runtime=runtime.value if runtime else None,
            command=command_line(context),
            progress=progress,
        )
    for line in report.missing:
        remark(f"missing: {line}")
    for path, reason in report.failed.items():
        remark(f"not scored: {path}: {reason}" if path not in reason else f"not scored: {reason}")
    typer.echo(str(out / "report.html"))
    if report.failed:
        raise typer.Exit(1)


@app.command()
def calibrate(
    detector: Annotated[
        str, typer.Argument(help="'default', 'embedded', an adapter directory, or a hub id owner/name.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The adapter directory to write.")],
    data: DataArgument = None,
    real: RealFolders = None,
    fake: FakeFolders = None,
    real_only: Annotated[
        bool, typer.Option("--real-only", help="All images are photographs; only the threshold for AI-generated moves.")
    ] = False,
    split: Annotated[str | None, typer.Option(help="Use one split. Default: all.")] = None,
    false_alarm: Annotated[float, typer.Option(help="Highest share of photographs called AI-generated.")] = 0.05,
    miss: Annotated[
        float | None, typer.Option(help="Highest share of generated images called photographs. Default: 0.10.")
    ] = None,
    method: Annotated[
        CalibrationMethodChoice | None, typer.Option(help="How the probability is fitted. Default: platt.")
    ] = None,
    by_source: Annotated[
        bool | None,
        typer.Option(
            "--by-source/--by-image",
            help="Thresholds that hold for a new source of photographs. Default: if the data name enough sources.",
        ),
    ] = None,
    backbone: BackboneName = None,
    device: DeviceName = "cpu",
) -> None:
    """Set a detector's thresholds on your own images, and write a copy of it that uses them."""
    if real_only and (miss is not None or method is not None):
        raise typer.BadParameter(
            "--real-only keeps the probability and the misses as they are; leave out --miss and --method"
        )
    source = data_source(data, real, fake)
    if split is not None and real_only and data is not None and os.path.isdir(data):
        raise typer.BadParameter("--split needs a manifest; a folder of photographs has no splits")

    from clipmole.evaluation.recalibrate import recalibration_summary

    with long_work() as progress:
        result = api.calibrate(
            detector,
            source,
            out,
            real_only=real_only,
            split=split,
            max_false_alarm=false_alarm,
            max_miss=0.10 if miss is None else miss,
            method="platt" if method is None else method.value,
            by_source=by_source,
            backbone=backbone,
            device=device,
            progress=progress,
        )
    for failure in result.failed:
        remark(f"not scored: {failure}")
    for line in recalibration_summary(result):
        remark(line)
    typer.echo(str(out))
    if result.failed:
        remark(f"{len(result.failed)} of {len(result.failed) + result.n_real} photographs could not be read.")
        raise typer.Exit(1)
