"""Signals that ask a process to stop -> a flag that long-running work checks between two steps.

In: SIGINT (Ctrl-C) and SIGTERM (a job scheduler). Out: whether one has come. After the first, the work finishes its
current step; the second interrupts at once. The host's handlers are restored. It knows nothing of the work.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether somebody asked to stop.

    Attributes:
        signal: the number of the signal that came; None: none has.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """The exit code that a shell shows after the signal: 130 for Ctrl-C, 143 for SIGTERM; 0: none has come."""
        return 0 if self.signal is None else 128 + self.signal


@contextlib.contextmanager
def stop_signals(
    remark: str = "stopping after the current step; a second signal stops at once",
) -> Iterator[StopRequest]:
    """A `StopRequest` that SIGINT and SIGTERM set while the block runs.

    Args:
        remark: written to stderr at the first signal; "": no remark.

    A second signal raises `KeyboardInterrupt` in the main thread. Outside the main thread, where Python allows no
    handlers, and for a signal that the host ignores (after `nohup`, or `&` in a shell), nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handler(number: int, _frame: FrameType | None) -> None:
        if request.signal is not None:
            raise KeyboardInterrupt
        request.signal = number
        if remark:
            with contextlib.suppress(OSError):
                os.write(2, f"clipmole: {remark}\n".encode())

    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number, old in before.items():
            if old is not signal.SIG_IGN and old is not None:
                signal.signal(number, handler)
        yield request
    finally:
        for number, old in before.items():
            if old is not None:
                signal.signal(number, old)
