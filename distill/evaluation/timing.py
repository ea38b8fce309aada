"""Timed calls of a model: several, spread over its evaluation, and what else ran meanwhile.

A model is timed in two passes, before and after its quality is measured, so that a burst of other
work shows as a difference between calls. A speed is the median of all calls, with the slowest and
the fastest. Models are measured one after another, each in its own process, not in turn: what lasts
longer than one model is seen only as other work on the machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from attar.machine import ProcessorTime, processor_name, processor_time, usable_cores
from attar.progress import tracked

FIRST_CALLS, LATER_CALLS = 3, 2  # timed in the first pass, and in each later one
BUSY_SHARE = 0.1  # of the cores: other work that takes more makes the machine busy
SHORTEST_WINDOW = 0.5  # seconds; the system counts in hundredths, too coarse for less


@dataclass(frozen=True)
class Spread:
    """The median of a number over all calls, the lowest and the highest."""

    median: float
    low: float
    high: float

    @property
    def range(self) -> list[float]:
        """[lowest, highest]."""
        return [self.low, self.high]

    def rate(self, amount: float) -> Spread:
        """Of seconds: how much is done a second where each call does this amount."""
        return Spread(amount / self.median, amount / self.high, amount / self.low)


@dataclass(frozen=True)
class _Moment:
    seconds: float
    taken: ProcessorTime | None


class Timer:
    """Times the calls of one model, in passes: `with timer: ...` is one.

    clock: seconds that pass. taken: processor time so far. cores: how many there are.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        taken: Callable[[], ProcessorTime | None] = processor_time,
        cores: int | None = None,
    ) -> None:
        self._clock, self._taken = clock, taken
        self._cores = cores or len(usable_cores())
        self._seconds: dict[str, list[float]] = {}
        self._passes = 0
        self._earlier = self._begun = self._now()
        self._others = self._window = 0.0  # processor seconds of others, in as many seconds
        self._is_known = True

    def _now(self) -> _Moment:
        return _Moment(self._clock(), self._taken())

    # A pass --------------------------------------------------------------------------------------

    def __enter__(self) -> None:
        self._passes += 1
        self._begun = self._now()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        """Count what others took in this pass; one too short to tell is taken from the end of the
        last one, or from when the timer was made.
        """
        now = self._now()
        is_short = now.seconds - self._begun.seconds < SHORTEST_WINDOW
        begin = self._earlier if is_short else self._begun
        self._earlier = now
        if begin.taken is None or now.taken is None:
            self._is_known = False
            return
        everyone = now.taken.everyone - begin.taken.everyone
        own = now.taken.own - begin.taken.own
        if everyone < own / 2:  # a system that counts nothing, as some sandboxes
            self._is_known = False
        self._others += max(0.0, everyone - own)
        self._window += now.seconds - begin.seconds

    def time(self, name: str, function: Callable[[], Any]) -> Spread:
        """Seconds of a call, over the calls of this pass and earlier ones; one call warms up."""
        return self.collect(name, lambda: self.seconds_of(function), warm_up=function)

    def collect(self, name: str, take: Callable[[], float], warm_up: Callable[[], Any]) -> Spread:
        """What `take` gives in seconds, over its calls of this pass and earlier ones."""
        found = self._seconds.setdefault(name, [])
        calls = LATER_CALLS if self._passes > 1 else FIRST_CALLS
        warm_up()
        found += [take() for _ in tracked(range(calls), name, "calls")]
        return Spread(statistics.median(found), min(found), max(found))

    def seconds_of(self, function: Callable[[], Any]) -> float:
        """Seconds that one call takes."""
        start = self._clock()
        function()
        return self._clock() - start

    # Results -------------------------------------------------------------------------------------

    @property
    def others(self) -> float | None:
        """The share of the cores that other work took in the passes; None where unknown."""
        if not self._is_known or self._window < SHORTEST_WINDOW:
            return None
        return min(1.0, self._others / (self._window * self._cores))

    def numbers(self) -> dict[str, Any]:
        """`timing`: `calls` of each kind, share of the cores of `others`, `busy`; unknown: None."""
        others = self.others
        calls = max(map(len, self._seconds.values()), default=0)
        busy = None if others is None else others > BUSY_SHARE
        return {"timing": {"calls": calls, "others": others, "busy": busy}}


def machine_of(device: torch.device) -> dict[str, Any]:
    """The machine on which a model was timed: `device`, its `name`, `cores`, `threads`.

    cores: that the process may use. threads: of them that one call uses.
    """
    is_gpu = device.type == "cuda"
    return {
        "device": device.type,
        "name": torch.cuda.get_device_name(device) if is_gpu else processor_name(),
        "cores": len(usable_cores()),
        "threads": torch.get_num_threads(),
    }
