"""Signals that ask to stop, and handlers that are put back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from clipmole.plumbing.stopping import stop_signals

ASKED_TWICE = """
import os, signal, sys
from clipmole.plumbing.stopping import stop_signals
number = int(sys.argv[1])
signal.signal(number, signal.default_int_handler)
with stop_signals() as request:
    assert not request
    os.kill(os.getpid(), number)
    assert request and request.signal == number
    try:
        os.kill(os.getpid(), number)
    except KeyboardInterrupt:
        print("interrupted", request.exit_code)
assert signal.getsignal(number) is signal.default_int_handler
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_asks_and_the_second_interrupts(number: signal.Signals, code: int) -> None:
    """In a process of its own: a signal to the one that runs the tests may reach what other tests have left in it."""
    command = [sys.executable, "-P", "-c", ASKED_TWICE, str(int(number))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, f"interrupted {code}\n"), result.stderr
    assert result.stderr.count("stopping after the current step") == 1


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with stop_signals() as request:
            os.kill(os.getpid(), signal.SIGTERM)
        assert not request
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_another_thread_nothing_is_changed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def work() -> None:
        with stop_signals() as request:
            seen.extend([signal.getsignal(signal.SIGTERM), bool(request)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, False]
