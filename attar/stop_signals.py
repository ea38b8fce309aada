"""SIGTERM and SIGHUP, which clouds and closed terminals send, stop a command as Ctrl-C does."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

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


@contextmanager
def stopped_as_by_ctrl_c() -> Iterator[None]:
    """Raise `StopSignal` in the block at SIGTERM or SIGHUP, unless it is ignored or handled.

    A second one soon after is passed over: a session that ends sends both. One that comes where no
    exception gets out (while an object is deleted, in a callback) is sent again, Ctrl-C too.
    """
    last: list[float] = []

    def stop(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if last and now - last[-1] < CLEANING_SECONDS:
            return
        last.append(now)
        raise StopSignal(number)

    def send_again(unraisable: Any) -> None:
        stopped = unraisable.exc_value
        if not isinstance(stopped, KeyboardInterrupt):
            shown(unraisable)
            return
        last.clear()
        number = stopped.number if isinstance(stopped, StopSignal) else signal.SIGINT
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()

    mine = [number for number in POLITE if signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in mine:
            signal.signal(number, stop)
    except ValueError:  # not the main thread, which alone may handle signals
        yield
        return
    shown, sys.unraisablehook = sys.unraisablehook, send_again
    try:
        yield
    finally:
        sys.unraisablehook = shown
        for number in mine:
            signal.signal(number, signal.SIG_DFL)
