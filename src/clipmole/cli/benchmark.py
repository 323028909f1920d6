"""`clipmole benchmark` and `selftest`: how fast each path computes logits here, and whether they are right."""

from __future__ import annotations

from typing import Annotated

import typer

from clipmole.cli.options import Commands, app, remark

benchmark_app = typer.Typer(cls=Commands, help="Measure clipmole on this machine.", no_args_is_help=True)
app.add_typer(benchmark_app, name="benchmark")


@benchmark_app.callback()
def _benchmark() -> None:
    pass


@benchmark_app.command()
def speed(
    shapes: Annotated[
        str, typer.Option(help="Towers, separated by commas: vit-b-32, vit-b-16, vit-l-14, embedded, or TOML files.")
    ] = "vit-b-32,vit-b-16,vit-l-14,embedded",
    batches: Annotated[str, typer.Option(help="Sizes of a forward pass, in crops, separated by commas.")] = "1,8,32",
    paths: Annotated[
        str | None,
        typer.Option(help="Execution paths, separated by commas. Default: all whose libraries are installed."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, max=3600, help="Seconds of one turn of a path.")] = 2.0,
    repeats: Annotated[int, typer.Option(min=1, help="How many turns each path takes.")] = 3,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of every path. Default: PyTorch's number.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda for the paths of PyTorch.")] = "cpu",
    bare: Annotated[bool, typer.Option("--bare", help="Measure each path without the MoLE adapter as well.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Take one short turn for each, at batches 1 and 8.")] = False,
) -> None:
    """Measure every execution path against transformers in float32; prints a table, and JSON as the last line.

    The weights are random, except those of the embedded detector, because only speed is measured. Each path runs in a
    process of its own, and all take turns. Let nothing else run on the machine meanwhile.
    """
    try:
        sizes = [int(text) for text in (["1", "8"] if quick else batches.split(","))]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise typer.BadParameter(f"{batches!r}: give whole numbers from 1, separated by commas", param_hint="--batches")

    from clipmole.speed import measure_speed, speed_table
    from clipmole.speed.paths import PATHS

    report = measure_speed(
        shapes.split(","),
        sorted(sizes),
        paths.split(",") if paths else PATHS,
        seconds=0.5 if quick else seconds,
        repeats=1 if quick else repeats,
        threads=threads,
        device=device,
        bare=bare,
        say=remark,
    )
    for line in speed_table(report):
        typer.echo(line)
    for name, why in report.left_out.items():
        remark(f"left out: {name}: {why}")
    peaks = ", ".join(f"{name} {value:.0f}" for name, value in sorted(report.peaks.items()))
    typer.echo(f"\nFastest matrix product here, GFLOP/s: {peaks}.")
    typer.echo(report.model_dump_json())


@app.command()
def selftest(
    detector: Annotated[str, typer.Argument(metavar="{detector}", help="As for clipmole detect.")] = "default",
) -> None:
    """Check that this machine computes the detector's scores as others do, by every runtime that is installed.

    The exit code is 1 if one differs.
    """
    from clipmole.inference.selftest import self_test

    failed = False
    typer.echo(f"{'runtime':<10}{'precision':<11}{'largest difference of a score':<31}{'allowed':<9}")
    for check in self_test(detector):
        found = "" if check.difference is None else f"{check.difference:.4f}"
        said = "agrees" if check.agrees else check.problem or "DIFFERS"
        typer.echo(f"{check.runtime:<10}{check.precision:<11}{found:<31}{check.tolerance:<9g}{said}")
        failed |= not check.agrees
    if failed:
        remark("runtimes that differ may give other verdicts than another machine; use one that agrees (--runtime)")
        raise typer.Exit(1)
