"""Signals that ask to stop, and handlers that are put back."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from clipmole.plumbing.stopping import stop_signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_asks_and_the_second_interrupts(
    number: signal.Signals, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    # The shell's background jobs ignore SIGINT, and an ignored signal stays ignored: see below.
    before = signal.default_int_handler
    started_with = signal.signal(number, before)
    with stop_signals() as request:
        assert not request
        os.kill(os.getpid(), number)
        assert request
        assert (request.signal, request.exit_code) == (number, code)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.signal(number, started_with) is before
    assert capfd.readouterr().err.count("what is at hand is finished first") == 1


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
