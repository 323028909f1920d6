"""`clipmole report-miss`. In: one image whose origin is known. Out: a small record to pass on."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from clipmole.cli.options import BackboneName, DetectorName, DeviceName, app, detector_loader, remark


class TruthChoice(StrEnum):
    """What an image is."""

    GENERATED = "generated"
    PHOTOGRAPH = "photograph"


@app.command("report-miss")
def report_miss(
    file: Annotated[str, typer.Argument(help="The image.")],
    truth: Annotated[TruthChoice, typer.Option(help="What it is.")],
    known_by: Annotated[
        str, typer.Option(help="How you know: your own camera, the generator and its version, the source.")
    ] = "",
    with_file: Annotated[
        bool, typer.Option("--with-file", help="Put the file itself into the record. Only if you may pass it on.")
    ] = False,
    detector: DetectorName = "default",
    backbone: BackboneName = None,
    device: DeviceName = "cpu",
) -> None:
    """Print a record, for an issue, of the scores of an image whose origin you know; without its pixels."""
    from clipmole.evaluation.misses import miss_report as report

    loaded = detector_loader(detector, backbone, device, None, None, None)()
    record = report(loaded, file, truth.value, known_by, with_file=with_file)
    typer.echo(record.model_dump_json(indent=1, exclude_none=True))
    if record.missed is False and record.detection.verdict is not None:
        remark(f"The verdict is {record.detection.verdict.description!r}: no miss, and still worth knowing.")
    held = "the file itself" if with_file else "no pixels"
    remark(f"It holds {held}, and neither the file's name nor its metadata. Paste it into the form for wrong verdicts.")
