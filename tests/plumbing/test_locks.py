"""A lock by a file: one process at a time, and no error where there are no locks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from clipmole.plumbing.locks import locked_by

HOLDER = """
import sys
from pathlib import Path
from clipmole.plumbing.locks import locked_by
with locked_by(Path(sys.argv[1]), wait=True):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(TimeoutError), locked_by(path, wait=False):
            pass
        process.kill()
    with locked_by(path, wait=False), pytest.raises(TimeoutError), locked_by(path, wait=False):
        pass


def test_where_there_can_be_no_lock_the_block_runs(tmp_path: Path) -> None:
    ran = []
    with locked_by(tmp_path / "absent" / "lock", wait=True):
        ran.append(1)
    (tmp_path / "folder").mkdir()
    with locked_by(tmp_path / "folder", wait=True):
        ran.append(2)
    assert ran == [1, 2]
