"""The next step's examples and signals, read and decoded while this step computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """`load(step)` one step ahead, in one thread. An error in it is raised where it is asked for.

    What is loaded depends on the step alone, so starting anywhere (a resumed run) is the same.
    """

    def __init__(self, load: Callable[[int], T], steps: int) -> None:
        self._load, self._steps = load, steps
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: dict[int, Future[T]] = {}

    def get(self, step: int) -> T:
        """What `load(step)` gives; starts on the step after it."""
        ready = self._ahead.pop(step, None) or self._thread.submit(self._load, step)
        result = ready.result()
        if step + 1 < self._steps and step + 1 not in self._ahead:
            self._ahead[step + 1] = self._thread.submit(self._load, step + 1)
        return result

    def close(self) -> None:
        """Stop reading ahead."""
        self._thread.shutdown(wait=True, cancel_futures=True)
