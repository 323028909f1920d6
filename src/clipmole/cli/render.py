"""How results are written to stdout, and progress to stderr."""

from __future__ import annotations

import contextlib
import csv
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import typer

from clipmole.cli.options import remark
from clipmole.errors import ImageError, Stopped
from clipmole.plumbing.progress import ProgressReporter, duration
from clipmole.plumbing.stopping import StopRequest, stop_signals
from clipmole.plumbing.text import csv_cell, printable

LINE_SECONDS = 30.0  # between two lines of progress if stderr is not a terminal

if TYPE_CHECKING:  # pydantic takes a third of the time of --help
    from clipmole.calibration import FalseAlarms
    from clipmole.provenance import Provenance
    from clipmole.records import Detection, Family, Thresholds


UNCERTAIN = (
    "Uncertain: the detector cannot tell. Find the original file and who published it first, read its metadata "
    "(--provenance), and do not count the verdict for either side."
)
SEEN = "Seen: share of the image's pixels that were looked at in full size."


def percent(probability: float) -> str:
    """A probability for people, never rounded to certainty."""
    return f"{min(99, max(1, round(100 * probability)))} %"


def share(part: float) -> str:
    """A share in [0, 1] for people; a small one is not rounded to 0."""
    return f"{100 * part:.0f} %" if part >= 0.01 else f"{100 * part:.1f} %"


def provenance_lines(provenance: Provenance) -> Iterator[str]:
    """What the metadata say, one line for each finding, and what could not be checked."""
    for finding in provenance.findings:
        toward = "" if finding.points_to == "neither" else f" ({finding.strength}: {finding.points_to})"
        yield f"metadata: {finding.title}{toward}" + (f": {finding.detail}" if finding.detail else "")
    if not provenance.findings:
        yield "metadata: nothing says where the image comes from, which proves nothing"
    for line in provenance.not_checked:
        yield f"metadata not checked: {line}"


def family_line(family: Family, shares: bool = True) -> str:
    """The likely family of generators as one careful sentence, with or without its share."""
    share = f" ({percent(family.share)} among the families that it knows)" if shares else ""
    return (
        f"likely family of generators, if it is AI-generated: {printable(family.name)}{share}; on validation images "
        f"{family.right} of {family.answers} such answers were right. Never a proof."
    )


def of_ai(probability: float) -> str:
    """The probability with its meaning: "18 % AI" cannot be read as "18 % photograph"."""
    return f"{percent(probability)} AI"


class DetectionTable:
    """Aligned rows for people, written as results come: verdict, probability, share of the image seen, image.

    Args:
        labels_only: leave out the probability, and the thresholds below the table.
    """

    def __init__(self, labels_only: bool = False) -> None:
        self.labels_only = labels_only
        self.uncertain = self.generated = False  # whether a verdict says so
        self.alarms: Sequence[FalseAlarms] = ()  # of the detector, measured on sources it had never seen
        self.thresholds: Thresholds | None = None
        self.detector = ""
        self.caution = ""  # about the metadata, if they were asked for

    def write(self, result: Detection | ImageError, provenance: Provenance | None = None) -> None:
        if isinstance(result, ImageError):
            blank = "" if self.labels_only else f"{'':>7}  "
            typer.echo(f"{'not scored':<20}  {blank}{printable(str(result))}")
            return
        self.thresholds, self.detector = result.thresholds, result.detector
        seen = f"seen {share(result.coverage or 1):>5}"
        if result.verdict is None or result.probability is None:
            score = "" if self.labels_only else f"score {result.logit:+.3f}  "
            typer.echo(f"{'not calibrated':<20}  {score}{seen}  {result.source}")
        else:
            styled = typer.style(
                f"{result.verdict.description:<20}",
                fg={"ai_generated": "red", "real": "green"}.get(result.verdict.value, "yellow"),
            )
            said = "" if result.reason else of_ai(result.probability)  # which then means nothing
            number = "" if self.labels_only else f"{said:>7}  "
            typer.echo(f"{styled}  {number}{seen}  {result.source}")
            self.uncertain = self.uncertain or result.verdict.value == "uncertain"
            self.generated = self.generated or result.verdict.value == "ai_generated"
        if result.reason is not None:
            typer.echo(f"{'':<4}no verdict: {result.reason}")
        if result.family is not None:
            typer.echo(f"{'':<4}{family_line(result.family, not self.labels_only)}")
        if provenance is not None:
            self.caution = provenance.caution
            for line in provenance_lines(provenance):
                typer.echo(f"{'':<4}{printable(line)}")

    def close(self) -> None:
        if not self.detector:
            return
        remark("")
        if self.thresholds is None:
            remark(
                f"{self.detector} is not calibrated: a higher score means more likely AI-generated, and nothing else."
            )
            remark(SEEN)
        else:
            if self.labels_only:
                remark(f"Verdicts of {self.detector}. {SEEN}")
            else:
                remark(
                    f"AI: probability of being AI-generated, by {self.detector}. Above "
                    f"{percent(self.thresholds.generated)} it is called AI-generated, below "
                    f"{percent(self.thresholds.real)} a photograph, between them uncertain. {SEEN}"
                )
            if self.uncertain:
                remark(UNCERTAIN)
            if self.alarms:
                counts = "; ".join(f"{a.called_generated} of {a.photographs} {a.kind}" for a in self.alarms)
                remark(
                    "Images made by people that the detector wrongly called AI-generated, from sources it had never "
                    f"seen: {counts}."
                )
            if self.generated and (kinds := [each.kind for each in self.alarms if each.often]):
                remark(
                    f"Ignore the verdict on {', '.join(kinds)}: the detector often calls them AI-generated although "
                    "people made them."
                )
            remark(
                "A likelihood, not a proof: new generators, edits and heavy compression mislead it. See docs/limits.md."
            )
        if self.caution:
            remark(self.caution)


class JSONLines:
    """One JSON object per line; for a failed input {"source": ..., "error": {"code": ..., "message": ...}}."""

    def write(self, result: Detection | ImageError, provenance: Provenance | None = None) -> None:
        import json

        if isinstance(result, ImageError):
            failure = {"source": result.source, "error": {"code": result.code, "message": result.reason}}
            typer.echo(json.dumps(failure))
        elif provenance is None:
            typer.echo(result.model_dump_json())
        else:
            typer.echo(f'{result.model_dump_json()[:-1]},"provenance":{provenance.model_dump_json()}}}')

    def close(self) -> None:
        pass


class CSVRows:
    """A header and one row for each input; that of a failed input has `error_code` and `error`."""

    COLUMNS = (
        "source", "verdict", "probability", "logit", "tiles", "width", "height", "detector", "error_code", "error",
        "coverage", "reason",
    )  # fmt: skip

    def __init__(self, provenance: bool = False) -> None:
        columns = (*self.COLUMNS, *(["provenance"] if provenance else []))
        self.rows = csv.DictWriter(sys.stdout, columns, extrasaction="ignore", lineterminator="\n")
        self.rows.writeheader()

    def write(self, result: Detection | ImageError, provenance: Provenance | None = None) -> None:
        if isinstance(result, ImageError):
            row = {"source": result.source, "error_code": result.code, "error": result.reason}
        else:
            said = "; ".join(f.title for f in provenance.findings) if provenance else ""
            row = result.model_dump(mode="json") | {"provenance": said}
        self.rows.writerow({k: csv_cell(printable(v)) if isinstance(v, str) else v for k, v in row.items()})

    def close(self) -> None:
        sys.stdout.flush()


def rate(per_second: float | None) -> str:
    """A rate for people: "12.3/s", or "4.1 s each" if it is slow; "" if it is not known."""
    if not per_second:
        return ""
    return f"{per_second:.1f}/s" if per_second >= 1 else f"{1 / per_second:.1f} s each"


def with_progress(results: Iterable[Any], description: str, total: int | None = None) -> Iterator[Any]:
    """Pass `results` on under a progress bar on stderr, which disappears at the end.

    It shows how many are done, how many a second, and the time spent and remaining. If stderr is not a terminal, a line
    every `LINE_SECONDS` says the same, so shorter work prints none.
    """
    if not sys.stderr.isatty():
        yield from _with_lines(results, description, total)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(rate(task.finished_speed or task.speed))

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(results, total=total, description=description)


def _with_lines(results: Iterable[Any], description: str, total: int | None) -> Iterator[Any]:
    """Pass `results` on; a thread prints a line every `LINE_SECONDS`, however long one result takes."""
    done, began, over = 0, time.monotonic(), threading.Event()

    def report() -> None:
        while not over.wait(LINE_SECONDS):
            with contextlib.suppress(OSError):  # nobody reads stderr any more
                remark(progress_line(description, done, total, time.monotonic() - began))

    thread = threading.Thread(target=report, name="clipmole-progress", daemon=True)
    thread.start()
    try:
        for result in results:
            yield result
            done += 1
    finally:
        over.set()
        thread.join()
    seconds = time.monotonic() - began
    if seconds >= LINE_SECONDS:
        remark(f"{description}: {done:,} done in {duration(seconds)}")


def progress_line(description: str, done: int, total: int | None, seconds: float) -> str:
    """How far the work has got: "scoring: 1,200 of 5,000 done, 12.3/s, 5 min left"."""
    parts = [f"{description}: {done:,} of {total:,} done" if total is not None else f"{description}: {done:,} done"]
    if not done:
        return f"{parts[0]} after {duration(seconds)}"
    parts.append(rate(done / seconds))
    if total is not None and total > done:
        parts.append(f"{duration((total - done) * seconds / done)} left")
    return ", ".join(parts)


TERMINAL = ProgressReporter(with_progress, remark)


@contextlib.contextmanager
def long_work() -> Iterator[ProgressReporter]:
    """Progress on stderr for long work, and Ctrl-C or SIGTERM as a request to stop.

    Work that stops on request ends the command with the exit code of the signal, after a line that says what is kept.
    """
    with stop_signals() as stop:

        def track(items: Iterable[Any], description: str, total: int | None) -> Iterator[Any]:
            return with_progress(_until(items, stop), description, total)

        try:
            yield ProgressReporter(track, remark, lambda: bool(stop))
        except Stopped as error:
            remark(f"clipmole: {error}")
            raise typer.Exit(stop.exit_code) from error


def _until(items: Iterable[Any], stop: StopRequest) -> Iterator[Any]:
    """Pass items on until somebody asks to stop; then raise `Stopped` before the next one."""
    iterator = iter(items)
    while True:
        if stop:
            raise Stopped("stopped on request; nothing was written")
        try:
            item = next(iterator)
        except StopIteration:
            return
        yield item
