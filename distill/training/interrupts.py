"""Requests to stop: a training ends after the step that is under way."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from attar.stop_signals import POLITE, is_ignored

log = logging.getLogger(__name__)


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Yield a list that gets the number of the first Ctrl-C, SIGTERM or SIGHUP.

    A second Ctrl-C stops at once. Other signals after the first do not: torchrun sends SIGTERM to
    processes that a terminal has asked to stop already.
    """
    seen: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if not seen:
            seen.append(number)
            log.warning("Stopping after this step (Ctrl-C to stop at once) ...")
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    wanted = [number for number in (signal.SIGINT, *POLITE) if not is_ignored(number)]
    try:
        before = {number: signal.signal(number, note) for number in wanted}
    except ValueError:  # not the main thread, which alone may handle signals
        yield seen
        return
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
