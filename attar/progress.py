"""Progress of long work: whoever does it reports, whoever listens shows it, and else all is silent.

    with progress("rounding", len(blocks), "blocks") as work:
        for block in blocks:
            ...
            work.advance()

A listener is set by the command line (`set_listener`), or for a block (`listening`). It belongs to
the thread that set it: work in other threads is not reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from itertools import count
from typing import Any, Literal, Protocol, TypeVar

from attar.process_memory import memory_in_use

T = TypeVar("T")
Event = Literal["begin", "change", "end"]
RELAY_SECONDS = 0.25  # at least, between two changes that a process sends to another
_numbers = count()


@dataclass
class Work:
    """A piece of work under way, perhaps inside another one.

    what: its name. unit: what is counted, in the plural. total: how much there is to do, which may
    be an estimate; None: unknown. done: how much is done, with `skipped`, that was done before.
    note: words on how it goes. memory: bytes in use, where another process does the work.
    finished: whether it came to its end, and not to an error.
    """

    what: str
    unit: str
    total: float | None
    done: float = 0
    skipped: float = 0
    note: str = ""
    memory: int | None = None
    finished: bool = False
    number: int = field(default_factory=lambda: next(_numbers))
    listener: Listener | None = None

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        """Count what was done; `note` replaces the words on how it goes."""
        self.done += amount
        self.report(note)

    def skip(self, amount: float) -> None:
        """Count what was done before, which says nothing of the speed."""
        self.skipped += amount
        self.advance(amount)

    def report(self, note: str | None = None, total: float | None = None) -> None:
        """Replace the words on how it goes, or the total where it was an estimate."""
        self.note = self.note if note is None else note
        self.total = self.total if total is None else total
        if self.listener is not None:
            self.listener.hear("change", self)


class Listener(Protocol):
    """Whoever is to know of progress. Work ends in the reverse order of its beginning."""

    def hear(self, event: Event, work: Work) -> None:
        """Take note of work that begins, has changed, or ends."""


_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


def set_listener(listener: Listener | None) -> None:
    """Report all progress of this thread to a listener from now on; None: to nobody."""
    _LISTENER.set(listener)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Report progress to a listener while the block runs."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


@contextmanager
def progress(what: str, total: float | None, unit: str) -> Iterator[Work]:
    """Report work while the block does it, by the yielded object's methods."""
    work = Work(what, unit, total, listener=_LISTENER.get())
    if work.listener is not None:
        work.listener.hear("begin", work)
    try:
        yield work
        work.finished = True
    finally:
        if work.listener is not None:
            work.listener.hear("end", work)


def tracked(
    items: Sequence[T], what: str, unit: str, amount: Callable[[T], float] = lambda item: 1
) -> Iterator[T]:
    """Yield the items and report how many are done; amount: how much one item counts."""
    with progress(what, sum(map(amount, items)), unit) as work:
        for item in items:
            yield item
            work.advance(amount(item))


# Between processes -------------------------------------------------------------------------------

Message = tuple[Event, dict[str, Any]]  # the fields of a work, without its listener


class Relay:
    """A listener that sends what it hears to another process, changes not too often.

    send: gives a message to the other process, where a `Replay` takes it.
    """

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send, self._sent = send, 0.0

    def hear(self, event: Event, work: Work) -> None:
        """Send the work; where the other process is gone, nobody is left to know."""
        now = time.monotonic()
        if event == "change" and now - self._sent < RELAY_SECONDS:
            return
        self._sent, work.memory = now, memory_in_use()
        values = {one.name: getattr(work, one.name) for one in fields(work)}
        with suppress(OSError):
            self._send((event, {**values, "listener": None}))


class Replay:
    """Repeats the progress of another process to this thread's listener."""

    def __init__(self) -> None:
        self._listener = _LISTENER.get()
        self._works: dict[int, Work] = {}

    def take(self, message: Message) -> None:
        """Repeat one message of a `Relay`."""
        event, values = message
        work = self._works.setdefault(values["number"], Work(**values))
        for name, value in values.items():
            setattr(work, name, value)
        if self._listener is not None:
            self._listener.hear(event, work)
        if event == "end":
            del self._works[work.number]

    def close(self) -> None:
        """End what the other process left open: it died."""
        for work in reversed(self._works.values()):
            if self._listener is not None:
                self._listener.hear("end", work)
        self._works.clear()
