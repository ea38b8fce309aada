"""A machine whose clock goes on only when a test says so."""

from __future__ import annotations

from attar.machine import ProcessorTime


class FakeMachine:
    """Its clock, and the processor time that was taken of its cores; `cores` is given to a timer.

    own: share of a core that the timed process takes. others: cores that other work takes.
    """

    def __init__(self, own: float = 1.0, others: float = 0.0, cores: int = 2) -> None:
        self.own, self.others, self.cores = own, others, cores
        self.seconds = self._mine = self._all = 0.0

    def work(self, seconds: float) -> None:
        """Let time pass."""
        self.seconds += seconds
        self._mine += self.own * seconds
        self._all += (self.own + self.others) * seconds

    def clock(self) -> float:
        """Seconds so far."""
        return self.seconds

    def taken(self) -> ProcessorTime:
        """Processor time so far."""
        return ProcessorTime(self._all, self._mine)
