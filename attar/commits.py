"""What is asked before a finished file takes its name: whether our locks are still ours."""

from __future__ import annotations

from collections.abc import Callable

CHECKS: list[Callable[[], None]] = []  # each raises an error where nothing more may be written


def check_may_write() -> None:
    """Raise the error of a lock that this process has lost, as after a long sleep."""
    for check in list(CHECKS):
        check()
