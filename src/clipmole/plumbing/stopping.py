"""Signals that ask a process to stop -> a question that long work asks between two pieces of it.

In: SIGINT (Ctrl-C) and SIGTERM (a job scheduler). Out: whether one has come. The first lets the work finish what is at
hand; the second interrupts at once. The host's handlers are put back. It knows nothing of the work.
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
        """What a shell shows of a process that the signal ended: 130 for Ctrl-C, 143 for SIGTERM; 0: none has come."""
        return 0 if self.signal is None else 128 + self.signal


@contextlib.contextmanager
def stop_signals(
    remark: str = "stopping: what is at hand is finished first; once more stops at once",
) -> Iterator[StopRequest]:
    """A `StopRequest` that SIGINT and SIGTERM set while the block runs.

    Args:
        remark: written to stderr at the first signal; "": nothing is.

    A second signal raises `KeyboardInterrupt` in the main thread. Outside the main thread, where Python allows no
    handlers, and for a signal that the host ignores (as `nohup` and `&` of a shell make it) nothing is changed.
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
