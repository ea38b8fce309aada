"""How progress is shown: one live display at the bottom of a terminal, elsewhere plain lines.

The display has the stage with its time and memory, and a row for each piece of work under way, the
outermost first, with its rate over the last seconds and the time left at that rate.
"""

from __future__ import annotations

import atexit
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from attar.printable import printable
from attar.process_memory import memory_in_use
from attar.progress import Event, Work

log = logging.getLogger("distill")
LINE_SECONDS = 15.0  # between two plain lines; work that takes less says nothing at its end
WINDOW_SECONDS = 15.0  # over which a rate is taken
BAR_COLUMNS = 24  # width of a bar; a terminal too narrow for it and the words has none
NARROW_COLUMNS = 80
REFRESHES_A_SECOND = 4


class RateWindow:
    """How fast work goes, over the last seconds: a slow start does not count for ever.

    It always spans at least the last amount, however long that took.
    """

    def __init__(self, start: float, seconds: float = WINDOW_SECONDS) -> None:
        self.seconds = seconds
        self._points: deque[tuple[float, float]] = deque([(start, 0.0)])  # (time, done by then)

    def add(self, now: float, done: float) -> None:
        """Note how much is done by now."""
        if done == self._points[-1][1]:
            return
        self._points.append((now, done))
        while len(self._points) > 2 and self._points[1][0] < now - self.seconds:
            self._points.popleft()

    def rate(self, now: float) -> float | None:
        """Amount a second; None before anything is done."""
        (start, before), (last, done) = self._points[0], self._points[-1]
        if done == before:
            return None
        usual_gap = max(self.seconds, last - self._points[-2][0])
        end = now if now - last > usual_gap else last  # nothing came where something was due
        return (done - before) / max(end - start, 1e-9)


class _Row:
    """Work that is shown, with when it began and how fast it goes."""

    def __init__(self, work: Work, now: float) -> None:
        self.work, self.began, self.window = work, now, RateWindow(now)

    def rate(self, now: float) -> float | None:
        return self.window.rate(now)

    def seconds_left(self, now: float) -> float | None:
        rate, total = self.rate(now), self.work.total
        if not rate or total is None:
            return None
        return max(total - self.work.done, 0.0) / rate

    def counted(self) -> str:
        work = self.work
        total = "" if work.total is None else f" of {_number(work.total)}"
        return f"{_number(work.done)}{total} {work.unit}"

    def line(self, now: float) -> str:
        """The row in words."""
        rate, left = self.rate(now), self.seconds_left(now)
        parts = [
            self.counted(),
            "" if rate is None else f"{_speed(rate)} {self.work.unit}/s",
            "" if left is None else f"{_time(left)} left",
            self.work.note,
        ]
        return f"{self.work.what}: {', '.join(filter(None, parts))}"


def _number(amount: float) -> str:
    return f"{amount:,.0f}"


def _speed(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _size(held: int) -> str:
    return f"{held / 1e9:.1f} GB"


class ProgressDisplay:
    """The listener of the command line. live: whether the console can redraw its last lines."""

    def __init__(
        self,
        console: Console,
        live: bool,
        *,
        line_seconds: float = LINE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.live, self._console, self._clock = live, console, clock
        self._line_seconds, self._last_line = line_seconds, clock()
        self._rows: list[_Row] = []
        self._stage, self._stage_began = "", clock()
        self._prefix = ""  # of plain lines: the stage's name
        self._shown: Live | None = None

    @contextmanager
    def stage(self, name: str, number: int, of: int) -> Iterator[None]:
        """Show that a stage is under way while the block runs: the number-th of those to be run."""
        self._stage, self._stage_began = f"stage {number} of {of}: {name}", self._clock()
        self._prefix, self._last_line = f"{name}: ", self._clock()
        self._show()
        try:
            yield
        finally:
            self._rows, self._stage, self._prefix = [], "", ""
            self._hide()

    def hear(self, event: Event, work: Work) -> None:
        """Show work that begins, has changed, or ends."""
        now = self._clock()
        if event == "begin":
            if not self._rows and not self._stage:
                self._last_line = now
            self._rows = [*self._rows, _Row(work, now)]
            self._show()
            return
        row = next((row for row in self._rows if row.work is work), None)
        if row is None:
            return
        row.window.add(now, work.done - work.skipped)
        if event == "change":
            if not self.live and now - self._last_line >= self._line_seconds:
                self._last_line = now
                log.info("%s%s, memory %s", self._prefix, self._under_way(now), self._memory())
            return
        self._rows = self._rows[: self._rows.index(row)]  # and work inside it that an error left
        if work.finished and now - row.began >= self._line_seconds:
            taken = now - row.began
            speed = f"{_speed((work.done - work.skipped) / taken)} {work.unit}/s"
            done = f"{_number(work.done)} {work.unit} in {_time(taken)}, {speed}"
            log.info("%s%s: %s", self._prefix, work.what, done)
            self._last_line = now
        if not self._rows and not self._stage:
            self._hide()

    def _under_way(self, now: float) -> str:
        """All work under way in one line: the outer work's counts, and the innermost in full."""
        *outer, last = self._rows
        about = [
            " ".join(filter(None, (row.work.what, row.counted(), f"({note})" if note else "")))
            for row in outer
            for note in [row.work.note]
        ]
        return "; ".join([*about, last.line(now)])

    def _memory(self) -> str:
        """Memory in use, of the process that does the innermost work."""
        elsewhere = self._rows[-1].work.memory if self._rows else None
        return _size(memory_in_use() if elsewhere is None else elsewhere)

    # On a terminal -------------------------------------------------------------------------------

    def _show(self) -> None:
        if not self.live or self._shown is not None:
            return
        atexit.register(self._hide)  # however the program ends, the cursor comes back
        self._shown = Live(
            self,
            console=self._console,
            refresh_per_second=REFRESHES_A_SECOND,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # what goes to a file must go on to go there
        )
        self._shown.start()

    def _hide(self) -> None:
        if self._shown is not None:
            shown, self._shown = self._shown, None
            shown.stop()
            atexit.unregister(self._hide)

    def __rich__(self) -> Group:
        """The lines of the live display as they are now; asked by its own thread."""
        now, rows = self._clock(), self._rows
        head = f"memory {self._memory()}"
        if self._stage:
            head = f"{self._stage}, {_time(now - self._stage_began)}, {head}"
        table = Table.grid(padding=(0, 1), expand=True)
        bars = self._console.width >= NARROW_COLUMNS
        for _ in range(4 + bars):
            table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)  # words give way to numbers
        for row in rows:
            rate, left = row.rate(now), row.seconds_left(now)
            cells: list[Text | ProgressBar] = [
                Text(printable(f"  {row.work.what}")),
                Text(row.counted()),
                Text("" if rate is None else f"{_speed(rate)} {row.work.unit}/s", style="cyan"),
                Text("" if left is None else f"{_time(left)} left"),
                Text(printable(row.work.note)),
            ]
            if bars:
                bar = ProgressBar(row.work.total, row.work.done, width=BAR_COLUMNS)
                cells.insert(1, bar)
            table.add_row(*cells)
        return Group(Text(head, style="bold", no_wrap=True, overflow="ellipsis"), table)
