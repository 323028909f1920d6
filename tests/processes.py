"""Processes of their own: the command line, and training runs to be killed or to train together."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from clipmole.config import TrainConfig

# A server that has imported everything once and forks a process in a moment.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "clipmole.cli",
        "clipmole.inference.detector",
        "clipmole.training.train",
        "torch.utils.tensorboard",
        "accelerate",
        "cv2",
        "sklearn.metrics",
        "pyarrow.parquet",
        "pyarrow.dataset",
    ]
)


def clipmole(
    *arguments: str,
    stdin: bytes = b"",
    stdout: str | None = None,
    cwd: Path | None = None,
    environment: Mapping[str, str] = os.environ,
    prepare: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """What the command line does, in a process that need not import everything first.

    Args:
        stdout: a file to write to in place of what is returned.
        environment: all variables of the process.
        prepare: called in it before the command line.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "stdin").write_bytes(stdin)
        process = start_clipmole(
            *arguments, streams=Path(folder), stdout=stdout, cwd=cwd, environment=environment, prepare=prepare
        )
        process.join()
        assert process.exitcode is not None
        said = [b"" if stdout else (Path(folder) / "stdout").read_bytes(), (Path(folder) / "stderr").read_bytes()]
    return subprocess.CompletedProcess(["clipmole", *arguments], process.exitcode, *said)


def start_clipmole(
    *arguments: str,
    streams: Path,
    stdout: str | None = None,
    cwd: Path | None = None,
    environment: Mapping[str, str] = os.environ,
    prepare: Callable[[], None] | None = None,
) -> BaseProcess:
    """As `clipmole`, while it runs; `streams` is the folder of its files stdin, stdout and stderr."""
    streams.mkdir(exist_ok=True)
    files = [str(streams / "stdin"), stdout or str(streams / "stdout"), str(streams / "stderr")]
    process = FORKS.Process(target=_clipmole, args=(arguments, files, cwd, dict(environment), prepare))
    process.start()
    return process


def _clipmole(
    arguments: tuple[str, ...],
    files: list[str],
    cwd: Path | None,
    environment: dict[str, str],
    prepare: Callable[[], None] | None,
) -> None:
    for number, path in enumerate(files):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    sys.stdin, sys.stdout, sys.stderr = (open(number, mode) for number, mode in enumerate("rww"))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    if cwd is not None:
        os.chdir(cwd)
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = environment.get("HF_HUB_OFFLINE") == "1"  # it is read when the library is imported
    from clipmole.cli import main

    if prepare is not None:
        prepare()
    sys.argv = ["clipmole", *arguments]
    main()


def start(config: TrainConfig, out: Path, manifest: Path, **options: Any) -> BaseProcess:
    """A process that trains the tiny tower.

    Args:
        options: `environment` to set, `die_at` step (of views or training, counted in this process) to be killed at,
            `file_size` that no file may exceed (from the start, or from the work that `full_in` names on), and
            `save_seconds`. What the run says goes to `<out>.log`.
    """
    options.setdefault("environment", {"CLIPMOLE_CACHE": os.environ["CLIPMOLE_CACHE"]})
    process = FORKS.Process(target=run, args=(config.model_dump(mode="json"), out, manifest, options), daemon=True)
    process.start()
    return process


def run(config: dict[str, Any], out: Path, manifest: Path, options: dict[str, Any]) -> None:
    os.environ.update({"OMP_NUM_THREADS": "1", **options["environment"]})
    import torch
    from tiny import tiny_backbone

    from clipmole.plumbing.progress import ProgressReporter
    from clipmole.training.train import train

    torch.set_num_threads(1)
    torch.distributed.is_mpi_available = lambda: True  # as in Debian's build; processes talk through gloo all the same
    left = options.get("die_at")

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options["file_size"], resource.RLIM_INFINITY))

    def track(items: Iterable[Any], description: str, _total: int) -> Iterator[Any]:
        nonlocal left
        if "full_in" in options and description.startswith(options["full_in"]):
            limit_files()
        for item in items:
            if left is not None and description != "reading images":
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            yield item

    if "file_size" in options and "full_in" not in options:
        limit_files()
    with out.with_name(out.name + ".log").open("a", buffering=1) as log:

        def say(line: str) -> None:
            log.write(line + "\n")

        try:
            train(
                TrainConfig.model_validate(config),
                out,
                data=manifest,
                backbone=tiny_backbone(),
                progress=ProgressReporter(track, say),
                save_seconds=options.get("save_seconds", 0.0),
            )
        except Exception as error:
            say(f"{type(error).__name__}: {error}")
            raise SystemExit(3) from None


def together(config: TrainConfig, out: Path, manifest: Path, size: int = 2) -> None:
    """Train in `size` processes that talk through gloo, as `accelerate launch` would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    common |= {"USE_LIBUV": "0"}  # Debian's PyTorch is built without
    common |= {"MASTER_PORT": str(port), "CLIPMOLE_CACHE": os.environ["CLIPMOLE_CACHE"]}
    processes = [
        start(config, out, manifest, environment=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(size)
    ]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0, out.with_name(out.name + ".log").read_text()
