"""`clipmole scan`: many images in, a Parquet data set out; `clipmole scan report` and `groups` read that data set."""

from __future__ import annotations

import os
import re
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from clipmole.cli.options import (
    INPUTS,
    BackboneName,
    BatchSize,
    CommandsOrInputs,
    DetectorName,
    DeviceName,
    OwnCommand,
    PrecisionOption,
    RuntimeOption,
    app,
    detector_loader,
    remark,
)
from clipmole.cli.render import long_work
from clipmole.errors import MissingDependency

scan_app = typer.Typer(
    cls=CommandsOrInputs, help="Score millions of images into a Parquet data set; continues where it stopped."
)
app.add_typer(scan_app, name="scan")


class Engine(StrEnum):
    """What runs the scan."""

    LOCAL = "local"
    RAY = "ray"


def _workers(text: str) -> tuple[int, int]:
    """The fewest and the most workers: (2, 2) for "2", (1, 8) for "1:8"."""
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= least <= most:
        raise typer.BadParameter(
            f"{text}: give a number such as 4, or fewest and most such as 1:8", param_hint="--workers"
        )
    return least, most


@scan_app.command(INPUTS, cls=OwnCommand)
def scan(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders, files, quoted patterns, shards (.tar), tables (.parquet), addresses (s3://, gs://, ...), "
            "hf:owner/name, or the folder of an earlier scan."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The folder to write; a scan that was stopped there continues.")
    ] = None,
    list_file: Annotated[Path | None, typer.Option("--list", help="A file with one source per line.")] = None,
    detector: DetectorName = "default",
    backbone: BackboneName = None,
    engine: Annotated[
        Engine, typer.Option(help="What runs the scan: this process, or the workers of Ray.")
    ] = Engine.LOCAL,
    address: Annotated[
        str | None,
        typer.Option(help="With ray: the address of a running cluster, or auto. Default: one is started here."),
    ] = None,
    workers: Annotated[
        str | None, typer.Option(help="With ray: how many workers, or fewest:most. Default: 1:CPUs.")
    ] = None,
    worker_cpus: Annotated[int, typer.Option(min=1, help="With ray: CPU cores per worker.")] = 1,
    since: Annotated[
        datetime | None,
        typer.Option(
            help="Only files that were changed at this time or later.", formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after this many images.")] = None,
    sample: Annotated[float | None, typer.Option(help="A share of the images, such as 0.01, drawn by --seed.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of --sample.")] = 0,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="Only rows of an earlier scan with COLUMN=VALUE[,VALUE], !=, <, <=, > or >=; several must all hold."
        ),
    ] = None,
    look_alikes: Annotated[
        bool,
        typer.Option("--look-alikes", help="Keep what `clipmole scan groups` needs. This decodes each image twice."),
    ] = False,
    part_rows: Annotated[
        int, typer.Option(min=1, help="Rows per part; a scan that is killed loses no more than these.")
    ] = 1000,
    batch_size: BatchSize = None,
    device: DeviceName = "cpu",
    precision: PrecisionOption = None,
    runtime: RuntimeOption = None,
) -> None:
    """Score millions of images into a Parquet data set; a scan that was stopped continues if you give it again.

    `clipmole scan report DIR` makes a page of the results, `clipmole scan groups DIR` finds look-alikes.
    """
    if not sources and list_file is None:
        raise typer.BadParameter("no images: give folders, files, shards, tables, addresses or --list")
    if out is None:
        raise typer.BadParameter("give the folder to write: --out DIR")
    if engine is Engine.LOCAL and (address or workers):
        raise typer.BadParameter("--address and --workers need --engine ray")

    _needs_tables()
    from clipmole.scan.driver import scan as run
    from clipmole.scan.ray_engine import Cluster
    from clipmole.scan.settings import ScanSettings

    values = {
        "sources": tuple(sources or ()),
        "list_file": None if list_file is None else str(list_file),
        "where": tuple(where or ()),
        "since": since,
        "limit": limit,
        "sample": sample,
        "seed": seed,
        "part_rows": part_rows,
        "look_alikes": look_alikes,
    }
    if os.path.isdir(detector):  # workers may be started elsewhere
        detector = os.path.abspath(detector)
    load = detector_loader(detector, backbone, device, precision, batch_size, runtime)
    cluster = None
    if engine is Engine.RAY:
        span = _workers(workers) if workers else (1, max(1, (os.cpu_count() or 1) // worker_cpus))
        cluster = Cluster(address, span, worker_cpus, float(device.startswith("cuda")))
    with long_work() as progress:
        counts = run(ScanSettings.parse(values, "options"), out, load, cluster=cluster, progress=progress)
    verdicts = ", ".join(f"{count:,} {name}" for name, count in sorted(counts.verdicts.items()))
    remark(f"{counts.rows:,} images: {verdicts or 'no verdicts'}; {counts.duplicates:,} copies of others")
    typer.echo(str(out))
    if counts.failed:
        remark(f"{counts.failed:,} of {counts.rows:,} could not be scored; their rows say why.")
        raise typer.Exit(1)


@scan_app.command("report")
def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a scan.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page to write. Default: FOLDER/report.html.")
    ] = None,
    gallery: Annotated[bool, typer.Option(help="Show images, which are read again from their sources.")] = True,
) -> None:
    """Make a page of a scan: counts, scores, folders, formats, sizes, errors and images."""
    _needs_tables()
    from clipmole.scan.report import write_page

    typer.echo(str(write_page(folder, out, gallery=gallery, say=remark)))


@scan_app.command("groups")
def groups(
    folder: Annotated[Path, typer.Argument(help="The folder of a scan that kept --look-alikes.")],
) -> None:
    """Find images that look the same, re-encoded, resized or retouched: FOLDER/groups.parquet."""
    _needs_tables()
    from clipmole.scan.look_alikes import write_groups

    path, count, images = write_groups(folder)
    remark(f"{images:,} images in {count:,} groups")
    typer.echo(str(path))


def _needs_tables() -> None:
    """Raise `MissingDependency` before the work begins, if the library that writes the data set is not installed."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise MissingDependency("pyarrow", "scan") from error
