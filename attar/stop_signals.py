"""SIGTERM and SIGHUP, which clouds and closed terminals send, stop a command as Ctrl-C does."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

POLITE = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
CLEANING_SECONDS = 10.0  # in which further stop signals do not disturb what the first one began


class StopSignal(KeyboardInterrupt):
    """A signal that asks to stop; whoever handles Ctrl-C handles it too."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def exit_status(stop: KeyboardInterrupt) -> int:
    """The exit status of a command that was stopped: 128 and the signal's number."""
    return 128 + (stop.number if isinstance(stop, StopSignal) else signal.SIGINT)


def is_ignored(number: int) -> bool:
    """Whether the process was started to ignore a signal, as by `nohup`."""
    return signal.getsignal(number) is signal.SIG_IGN


def _in_finalizer(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


@contextmanager
def stopped_as_by_ctrl_c() -> Iterator[None]:
    """Raise `StopSignal` in the block at SIGTERM or SIGHUP, unless it is ignored or handled.

    A second one soon after is passed over: a session that ends sends both.
    """
    last: list[float] = []

    def stop(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if last and now - last[-1] < CLEANING_SECONDS:
            return
        if _in_finalizer(frame):  # from which no exception comes out
            threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
            return
        last.append(now)
        raise StopSignal(number)

    mine = [number for number in POLITE if signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in mine:
            signal.signal(number, stop)
    except ValueError:  # not the main thread, which alone may handle signals
        yield
        return
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)
