"""`clipmole watch`: a JSON line for each new image of a folder, until it is stopped."""

from __future__ import annotations

from typing import Annotated

import typer

from clipmole.cli.options import (
    DAY,
    BackboneName,
    BatchSize,
    DetectorName,
    DeviceName,
    PrecisionOption,
    RuntimeOption,
    app,
    detector_loader,
    remark,
)
from clipmole.cli.render import JSONLines
from clipmole.errors import ImageError
from clipmole.plumbing.stopping import stop_signals


@app.command()
def watch(
    folder: Annotated[str, typer.Argument(help="The folder; those below it are watched too.")],
    detector: DetectorName = "default",
    backbone: BackboneName = None,
    existing: Annotated[bool, typer.Option("--existing", help="Also score the images that are there now.")] = False,
    interval: Annotated[float, typer.Option(min=0.01, max=DAY, help="Seconds between two looks.")] = 1.0,
    settle: Annotated[
        float, typer.Option(min=0, max=DAY, help="Read a file when it has not changed for this many seconds.")
    ] = 2.0,
    batch_size: BatchSize = None,
    device: DeviceName = "cpu",
    precision: PrecisionOption = None,
    runtime: RuntimeOption = None,
) -> None:
    """Score each new image of a folder once it is complete, and print a JSON line, until Ctrl-C or SIGTERM."""
    from clipmole.images.watching import new_images

    writer, done, failed = JSONLines(), 0, 0
    with stop_signals() as stop:
        # Before the detector is loaded: files that come meanwhile are new, and a missing folder is reported at once.
        paths = new_images(folder, interval=interval, settle=settle, existing=existing, stopping=lambda: bool(stop))
        loaded = detector_loader(detector, backbone, device, precision, batch_size, runtime)()
        remark(f"watching {folder}; Ctrl-C ends it")
        for result in loaded.stream(paths):
            writer.write(result)
            done += 1
            failed += isinstance(result, ImageError)
    remark(f"{done} new image{'s' * (done != 1)}, {failed} of them could not be scored.")
