"""`clipmole detect`: images in, verdicts out."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from clipmole.cli.inputs import sources
from clipmole.cli.options import (
    BackboneName,
    BatchSize,
    DetectorName,
    DeviceName,
    PrecisionOption,
    RuntimeOption,
    TrustAnchors,
    app,
    detector_loader,
    remark,
)
from clipmole.cli.render import CSVRows, DetectionTable, JSONLines, long_work, with_progress
from clipmole.errors import ImageError, Stopped
from clipmole.plumbing.path_lists import listed_paths

if TYPE_CHECKING:
    from clipmole.images.crops import Box
    from clipmole.images.loading import ImageSource
    from clipmole.provenance import Provenance
    from clipmole.records import Detection

NO_IMAGES = "no images: give files, folders, patterns, - or --list"


class _Metadata:
    """Keeps each image that goes into the detector until its result comes out, and then reads its metadata.

    Args:
        trust_anchors: a file of certificates of signers to trust; None: the list in the cache, if there is one.
    """

    def __init__(self, images: Iterable[ImageSource | ImageError], trust_anchors: str | None) -> None:
        from clipmole.provenance.trust_list import chosen_trust_list

        self.images = images
        self.trust_list = chosen_trust_list(trust_anchors)
        self.waiting: deque[ImageSource | ImageError] = deque()

    def passed(self) -> Iterator[ImageSource | ImageError]:
        for image in self.images:
            self.waiting.append(image)
            yield image

    def next(self, result: Detection | ImageError) -> Provenance | None:
        """The metadata of the next result's image; None if it was not scored, or is neither a file nor its bytes."""
        from clipmole.provenance import read_provenance

        image = self.waiting.popleft()
        if isinstance(result, ImageError) or not isinstance(image, str | bytes):
            return None
        try:
            return read_provenance(image, trust_list=self.trust_list)
        except ImageError as error:  # gone or replaced since
            remark(f"metadata not read: {error}")
            return None


def _box(region: str) -> Box:
    from clipmole.images.crops import region_box

    try:
        return region_box(region)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--region") from error


def _check_output(json: bool, as_csv: bool, tiles: bool, labels_only: bool) -> None:
    if json and as_csv:
        raise typer.BadParameter("--json and --csv exclude each other")
    if labels_only and (json or as_csv):
        raise typer.BadParameter("--labels-only is for the table; --json and --csv always have the numbers")
    if tiles and not json:
        raise typer.BadParameter("--tiles needs --json")


@app.command()
def detect(
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Images, folders, quoted patterns, or - for one image on stdin."),
    ] = None,
    detector: DetectorName = "default",
    backbone: BackboneName = None,
    list_file: Annotated[
        str | None, typer.Option("--list", help="A file with one path per line; - reads stdin.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a header.")] = False,
    tiles: Annotated[
        bool, typer.Option("--tiles", help="With --json: also the score and the box of each crop.")
    ] = False,
    labels_only: Annotated[bool, typer.Option("--labels-only", help="Leave the percentages out of the table.")] = False,
    provenance: Annotated[
        bool, typer.Option("--provenance", help="Also show what the metadata say, apart from the score.")
    ] = False,
    trust_anchors: TrustAnchors = None,
    max_tiles: Annotated[
        int | None,
        typer.Option(
            min=1, help="Crops of one image, at most. Default: the detector's setting, more in a large image."
        ),
    ] = None,
    region: Annotated[
        str | None, typer.Option(metavar="X,Y,W,H", help="Look at this part only; pixels of the upright image.")
    ] = None,
    batch_size: BatchSize = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, max=256, help="Threads that decode ahead of the network. Default: one per core, up to 8."),
    ] = None,
    device: DeviceName = "cpu",
    precision: PrecisionOption = None,
    runtime: RuntimeOption = None,
    timings: Annotated[bool, typer.Option("--timings", help="Print on stderr where the time went.")] = False,
) -> None:
    """Say of each image whether it is likely a photograph, likely AI-generated, or uncertain."""
    _check_output(json, as_csv, tiles, labels_only)
    if trust_anchors is not None and not provenance:
        raise typer.BadParameter("--trust-anchors needs --provenance")
    box = None if region is None else _box(region)
    inputs = [*(paths or []), *(listed_paths(list_file) if list_file not in (None, "-") else [])]
    if not inputs and list_file != "-":
        raise typer.BadParameter(NO_IMAGES)
    if inputs.count("-") + (list_file == "-") > 1:
        raise typer.BadParameter("stdin can be read only once")

    began = time.perf_counter()
    load = detector_loader(detector, backbone, device, precision, batch_size, runtime, workers)
    imported = time.perf_counter()
    loaded = load()
    ready = time.perf_counter()
    writer = JSONLines() if json else CSVRows(provenance) if as_csv else DetectionTable(labels_only)
    if isinstance(writer, DetectionTable) and loaded.calibration is not None:
        writer.alarms = loaded.calibration.false_alarms
    found = sources(inputs, list_file)
    findings = _Metadata(found, trust_anchors) if provenance else None
    results: Iterable[Detection | ImageError] = loaded.stream(
        findings.passed() if findings else found, tiles=tiles, max_tiles=max_tiles, region=box
    )
    if not sys.stdout.isatty():
        results = with_progress(results, "scoring")
    done = failed = 0
    reads_stdin = list_file == "-" or "-" in inputs  # where a signal must end the wait for a line at once
    with nullcontext() if reads_stdin else long_work() as progress:
        for result in results:
            done += 1
            if isinstance(result, ImageError):
                failed += 1
                if not isinstance(writer, DetectionTable):
                    remark(f"not scored: {result}")
            writer.write(result, findings.next(result) if findings else None)
            if progress is not None and progress.stopping():
                writer.close()
                raise Stopped(f"stopped on request; the rows of the first {done:,} inputs are printed")
    writer.close()
    if timings:
        spent, scoring = loaded.timings, time.perf_counter() - ready
        remark(
            f"Seconds: {imported - began:.2f} imports, {ready - imported:.2f} loading the detector, {scoring:.2f} for "
            f"{done} inputs, of which {spent.network:.2f} in the network; {spent.decode:.2f} of decoding in "
            f"{loaded.workers or 'no'} threads beside it."
        )
    if not done:
        raise typer.BadParameter(NO_IMAGES)
    if failed:
        remark(f"{failed} of {done} inputs could not be scored.")
        raise typer.Exit(1)
