"""`clipmole watch` as a process: lines as images come, and a clean end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tiny import PREPROCESS, encoded, picture, tiny_network, write_adapter
from typer.testing import CliRunner

from clipmole.cli import app
from clipmole.inference.detector import Detector


def test_new_images_are_json_lines_and_a_signal_ends_it(tmp_path: Path) -> None:
    adapter, backbone = write_adapter(tmp_path)
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "before.png").write_bytes(encoded(picture(9)))
    command = [sys.executable, "-P", "-m", "clipmole.cli", "watch", str(inbox), "--interval", "0.02", "--settle", "0.1"]
    command += ["--detector", str(adapter), "--backbone", str(backbone)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        late = threading.Timer(300, process.kill)  # else a line that never comes is waited for
        late.start()
        try:
            assert process.stderr.readline() == f"watching {inbox}; Ctrl-C ends it\n".encode()
            data = encoded(picture(0))
            with (inbox / "a\x1b[31m.png").open("wb") as file:  # a copy that takes a moment
                file.write(data[:200])
                file.flush()
                file.write(data[200:])
            first = json.loads(process.stdout.readline())
            (inbox / "broken.png").write_bytes(b"no image")
            second = json.loads(process.stdout.readline())
            process.send_signal(signal.SIGTERM)
            rest, said = process.communicate(timeout=60)
        finally:
            late.cancel()
            process.kill()
    assert process.returncode == 0
    assert first["source"] == os.path.join(str(inbox), "a\\u001b[31m.png")
    assert first["logit"] == pytest.approx(float(Detector(tiny_network(), PREPROCESS).score([picture(0)])[0]), abs=2e-5)
    assert second["error"]["code"] == "unreadable"
    assert rest == b""
    assert said.splitlines()[-1] == b"2 new images, 1 of them could not be scored."


def test_a_folder_that_is_not_there_is_said_before_a_detector_is_loaded(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["watch", str(tmp_path / "none"), "--detector", "nothing/there"])
    assert str(result.exception) == f"{tmp_path / 'none'}: there is no such folder to watch"
