"""Images in all kinds of places, a detector that can be slow, and scans in processes of their own to be killed."""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from processes import FORKS
from tiny import CALIBRATION, PREPROCESS, encoded, picture, tiny_network

from clipmole.inference.detector import Detector
from clipmole.plumbing.progress import ProgressReporter
from clipmole.scan.driver import scan
from clipmole.scan.listing import read_rows
from clipmole.scan.settings import ScanSettings

TOLERANCE = 1e-5  # of a logit between batches of other sizes; float32 rounding


class Slow(Detector):
    """Takes some milliseconds an image, and does something before it looks at one."""

    seconds = 0.0
    before: Callable[[Any], None] | None = None

    def prepare(self, source: Any, **options: Any) -> Any:
        if self.before is not None:
            self.before(source)
        return super().prepare(source, **options)

    def finish(self, *arguments: Any) -> Iterator[Any]:
        for result in super().finish(*arguments):
            time.sleep(self.seconds)
            yield result


def tiny_detector(
    seconds: float = 0.0, name: str = "tiny@0", batch_size: int = 8, before: Callable[[Any], None] | None = None
) -> Detector:
    torch.set_num_threads(1)
    detector = Slow(tiny_network(), PREPROCESS, CALIBRATION, name, batch_size=batch_size)
    detector.seconds, detector.before = seconds, before
    return detector


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Return as soon as `condition` holds; fail if it does not in time."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"waited {seconds:g} s for {what}"
        time.sleep(0.01)


def run(out: Path, *sources: object, load: Any = tiny_detector, **options: Any) -> list[dict[str, Any]]:
    """Scan in this process; the rows, sorted by their source."""
    cluster = options.pop("cluster", None)
    progress = ProgressReporter(**{key: options.pop(key) for key in ("track", "say", "stopping") if key in options})
    scan(ScanSettings(sources=tuple(map(str, sources)), **options), out, load, cluster=cluster, progress=progress)
    return rows_of(out)


def rows_of(out: Path) -> list[dict[str, Any]]:
    return sorted(read_rows(out), key=lambda row: row["source"])


def start(out: Path, sources: list[str], seconds: float, part_rows: int, **options: Any) -> BaseProcess:
    """A process that scans; it makes the file `<out>.scoring` when it begins to score."""
    process = FORKS.Process(target=_scan, args=(out, sources, seconds, part_rows, options), daemon=True)
    process.start()
    return process


def _scan(out: Path, sources: list[str], seconds: float, part_rows: int, options: dict[str, Any]) -> None:
    if "file_size" in options:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (options["file_size"], resource.RLIM_INFINITY))

    def track(items: Iterable[Any], _description: str, _total: int | None) -> Iterator[Any]:
        out.with_name(out.name + ".scoring").touch()
        yield from items

    try:
        settings = ScanSettings(sources=tuple(sources), part_rows=part_rows)
        load = partial(tiny_detector, seconds)
        scan(settings, out, load, cluster=options.get("cluster"), progress=ProgressReporter(track))
    except Exception as error:
        out.with_name(out.name + ".log").write_text(f"{type(error).__name__}: {error}\n")
        os._exit(3)


def write_images(folder: Path, count: int, first: int = 0) -> list[Path]:
    """Small images that all differ."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:05d}.png" for i in range(first, first + count)]
    for i, path in enumerate(paths, first):
        path.write_bytes(encoded(picture(i, 40, 36)))
    return paths


def write_tar(path: Path, images: dict[str, bytes], mode: str = "w") -> Path:
    """A shard whose images have a .json beside them, as WebDataset has it."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in images.items():
            for member, content in ((name, data), (f"{name.partition('.')[0]}.json", b"{}")):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path
