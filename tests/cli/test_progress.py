"""Long work on the command line: a line every half minute where stderr is no terminal, and stop signals."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import start_clipmole
from tiny import picture, write_adapter, write_corpus
from typer.testing import CliRunner

from clipmole.cli import app, render


def test_off_a_terminal_a_line_comes_at_intervals_however_long_one_item_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "LINE_SECONDS", 0.1)
    passed = []
    for item in render.with_progress(range(3), "scoring", 3):
        passed.append(item)
        time.sleep(0.35 if item == 1 else 0)
    lines = capsys.readouterr().err.splitlines()
    assert passed == [0, 1, 2]
    assert len(lines) >= 4
    assert all(line.startswith("scoring: 1 of 3 done, ") and line.endswith(" left") for line in lines[:-1])
    assert lines[-1] == "scoring: 3 done in 0 s"


def test_short_work_says_nothing_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(render.with_progress("ab", "scoring", 2)) == ["a", "b"]
    assert capsys.readouterr().err == ""


def test_a_line_says_what_is_done_how_fast_and_what_remains() -> None:
    assert render.progress_line("scoring", 1200, 5000, 100) == "scoring: 1,200 of 5,000 done, 12.0/s, 5 min left"
    assert render.progress_line("scoring", 30, None, 60) == "scoring: 30 done, 2.0 s each"
    assert render.progress_line("epoch 1/5", 0, 40, 31) == "epoch 1/5: 0 of 40 done after 31 s"


ASKED = """
import os, signal, sys
from clipmole.cli import render
import typer
number, done = int(sys.argv[1]), []
signal.signal(number, signal.default_int_handler)  # a process in the background ignores SIGINT
try:
    with render.long_work() as progress:
        for item in progress.track(range(5), "scoring", 5):
            done.append(item)
            if item == 1:
                os.kill(os.getpid(), number)
                assert progress.stopping()
except typer.Exit as error:
    print(error.exit_code, done)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_long_work_ends_before_the_next_item_with_the_signals_exit_code(number: int, code: int) -> None:
    """In a process of its own: a signal to the one that runs the tests may reach what other tests have left in it."""
    command = [sys.executable, "-P", "-c", ASKED, str(int(number))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, f"{code} [0, 1]\n"), result.stderr
    said = result.stderr.splitlines()
    assert said[0].startswith("clipmole: stopping after the current step")
    assert said[-1] == "clipmole: stopped on request; nothing was written"


def heed() -> None:
    """What a shell starts in the background ignores SIGINT, and so does what that starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path.insert(0, "")


def heed_and_tell() -> None:
    heed()
    render.LINE_SECONDS = 0.05


def stopped(
    arguments: list[str],
    begun: Path,
    number: signal.Signals,
    streams: Path,
    ending: str = "give the same command again to go on",
    prepare: Callable[[], None] = heed,
) -> list[str]:
    """What a command says that is sent a signal soon after `begun` is there and not empty."""
    process = start_clipmole(*arguments, streams=streams, cwd=streams.parent, prepare=prepare)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.is_alive() and not (begun.exists() and begun.stat().st_size):
        time.sleep(0.01)
    time.sleep(0.2)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(60)
    errors = (streams / "stderr").read_text()
    assert process.exitcode == 128 + number, errors
    assert "clipmole: stopping after the current step" in errors
    assert "Traceback" not in errors
    last = errors.splitlines()[-1]
    assert last.startswith("clipmole: stopped")
    assert last.endswith(ending)
    return errors.splitlines()


def test_train_keeps_the_run_at_a_signal(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "corpus", {"train": 8, "val": 4})
    _, backbone = write_adapter(tmp_path)
    (tmp_path / "config.toml").write_text(
        f'backbone = "{backbone}"\nepochs = 2000\nbatch_size = 4\n[preprocess]\ncrop_size = 32\n'
    )
    arguments = ["train", "--config", str(tmp_path / "config.toml"), "--out", "new", "--data", str(manifest)]
    said = stopped(arguments, tmp_path / "new.run" / "state.safetensors", signal.SIGINT, tmp_path / "streams")
    assert "the run is kept in" in said[-1]


def test_evaluate_keeps_what_is_scored_at_a_signal(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "corpus", {"test": 60})
    (tmp_path / "slow.py").write_text(
        "import time\n\ndef score(images):\n    time.sleep(0.1)\n    return [0.0] * len(images)\n"
    )
    arguments = ["evaluate", "--data", str(manifest), "--detector", "python:slow:score", "--out", "scores"]
    said = stopped(arguments, tmp_path / "scores" / "scores.jsonl", signal.SIGTERM, tmp_path / "streams")
    assert "of 120 images are kept in" in said[-1]
    rows = (tmp_path / "scores" / "scores.jsonl").read_text().splitlines()[1:]
    assert 1 <= len(rows) < 120
    assert all(json.loads(row)["logits"] for row in rows)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_detect_says_at_a_signal_how_many_rows_it_printed(number: signal.Signals, tmp_path: Path) -> None:
    adapter, backbone = write_adapter(tmp_path)
    large_pictures(tmp_path / "many", 80)
    arguments = ["detect", "many", "--json", "--detector", str(adapter), "--backbone", str(backbone)]
    streams = tmp_path / "streams"
    said = stopped(arguments, streams / "stdout", number, streams, "inputs are printed")
    rows = [json.loads(row) for row in (streams / "stdout").read_text().splitlines()]
    assert 1 <= len(rows) < 80
    assert said[-1] == f"clipmole: stopped on request; the rows of the first {len(rows)} inputs are printed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_check_of_data_says_at_a_signal_that_it_wrote_nothing(number: signal.Signals, tmp_path: Path) -> None:
    for name in ("real", "fake"):
        large_pictures(tmp_path / name, 40)
    streams = tmp_path / "streams"
    arguments = ["data", "check", "--real", "real", "--fake", "fake"]
    stopped(arguments, streams / "stderr", number, streams, "nothing was written", heed_and_tell)
    assert (streams / "stdout").read_text() == ""


def large_pictures(folder: Path, number: int) -> None:
    folder.mkdir()
    picture(0, 2500, 2000).save(folder / "0.png")
    for i in range(1, number):
        shutil.copy(folder / "0.png", folder / f"{i}.png")


@pytest.mark.parametrize("command", ["detect", "scan", "evaluate", "train", "data check"])
def test_each_long_command_prints_its_lines_off_a_terminal(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "LINE_SECONDS", 0.001)
    manifest = write_corpus(tmp_path / "corpus", {"train": 4, "val": 4})
    adapter, backbone = write_adapter(tmp_path)
    (tmp_path / "train.toml").write_text(
        f'backbone = "{backbone}"\nepochs = 1\nbatch_size = 4\n[preprocess]\ncrop_size = 32\n'
    )
    detector = ["--detector", str(adapter), "--backbone", str(backbone)]
    out = ["--out", str(tmp_path / "out")]
    arguments = {
        "detect": ["detect", str(manifest.parent), *detector],
        "scan": ["scan", str(manifest.parent), *out, *detector],
        "evaluate": ["evaluate", "--data", str(manifest), "--split", "val", "--resamples", "10", *out, *detector],
        "train": ["train", "--config", str(tmp_path / "train.toml"), "--data", str(manifest), *out],
        "data check": ["data", "check", str(manifest)],
    }[command]
    said = CliRunner().invoke(app, arguments).stderr.splitlines()
    # e.g. "scoring: 8 of 16 done, 20.0/s, 0 s left", "scoring: 16 done in 1 s"
    assert [line for line in said if re.search(r": [\d,]+ (of [\d,]+ )?done( in |, )", line)], said
