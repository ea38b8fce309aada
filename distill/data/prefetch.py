"""The next step's examples and signals, read and decoded while this step computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Calls `load(step)` one step ahead in a thread; `get` raises an error of that step's load.

    A load depends on its step alone, so a resumed run reads the same.
    """

    def __init__(self, load: Callable[[int], T], steps: int) -> None:
        self._load, self._steps = load, steps
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: dict[int, Future[T]] = {}

    def get(self, step: int) -> T:
        """The result of `load(step)`; starts to load the step after it."""
        ready = self._ahead.pop(step, None) or self._thread.submit(self._load, step)
        result = ready.result()
        if step + 1 < self._steps and step + 1 not in self._ahead:
            self._ahead[step + 1] = self._thread.submit(self._load, step + 1)
        return result

    def close(self) -> None:
        """Stop reading ahead."""
        self._thread.shutdown(wait=True, cancel_futures=True)
