"""`clipmole export`: a detector as a graph for OpenVINO or ONNX Runtime."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipmole.cli.inputs import existing_images
from clipmole.cli.options import BackboneName, PrecisionChoice, app, remark
from clipmole.cli.render import long_work

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clipmole.images.loading import ImageSource


class GraphTarget(StrEnum):
    """The runtime of the graph."""

    OPENVINO = "openvino"
    ONNX = "onnx"


@app.command()
def export(
    detector: Annotated[
        str, typer.Argument(help="'default', 'embedded', an adapter directory, or a hub id owner/name.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory to write.")],
    to: Annotated[GraphTarget, typer.Option(help="The runtime that the graph is for.")] = GraphTarget.OPENVINO,
    precision: Annotated[
        PrecisionChoice, typer.Option(help="Arithmetic of the graph; bfloat16 with OpenVINO only.")
    ] = PrecisionChoice.FLOAT32,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise the weights to int8.")] = False,
    calibrate_on: Annotated[
        list[str] | None,
        typer.Option(
            help="Sample images (files, folders, patterns) that fix the ranges of OpenVINO's int8; it is then faster."
        ),
    ] = None,
    check_on: Annotated[
        list[str] | None, typer.Option(help="Images, folders or patterns without labels to check on.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Labelled images to check on: a manifest, a folder, ...")] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Split of --data; several may be given. Default: all.")
    ] = None,
    backbone: BackboneName = None,
) -> None:
    """Write a detector as a graph with the adapter inside, if it passes a check against float32.

    `clipmole detect --detector DIR` and Detector.from_pretrained(DIR) then run the graph.
    """
    if bool(check_on) == bool(data):
        raise typer.BadParameter("give images to check the graph on: either --data (labelled) or --check-on")

    from clipmole.data import labels_of, read_data, windows
    from clipmole.inference.export import export_detector, summary_lines

    labels: list[int] | None = None
    if data:
        parts: list[str | None] = [*split] if split else [None]
        samples = [sample for part in parts for sample in read_data(data, part)]
        labels = labels_of(samples).tolist()

    def images() -> Iterable[ImageSource]:
        return windows(samples, "as stored") if data else existing_images(check_on or ())

    with long_work() as progress:
        record = export_detector(
            detector,
            out,
            "openvino" if to == GraphTarget.OPENVINO else "onnx",
            images,
            labels=labels,
            precision="int8" if int8 else precision.value,
            calibrate_on=existing_images(calibrate_on or ()),
            backbone=backbone,
            progress=progress,
        )
    for line in summary_lines(record):
        remark(line)
    typer.echo(str(out))
