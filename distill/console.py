"""What the user sees while a stage runs: a bar with tokens/s and time left, or plain lines."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from attar.distributed import is_first_process
from attar.printable import printable

console = Console(stderr=True, highlight=False, soft_wrap=True)
log = logging.getLogger("distill")
PACKAGES = ("distill", "teachers", "students", "attar")
LINE_SECONDS = 15.0  # between two plain lines, where there is no terminal


class PrintableFormatter(logging.Formatter):
    """Lines in which text of models, data and files cannot command the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, control characters as visible codes."""
        return printable(super().format(record))


def set_up_logging(verbose: bool = False, quiet: bool = False) -> None:
    """Send messages to the terminal: all with `verbose`, warnings only with `quiet`."""
    quiet = quiet or not is_first_process()
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    handler: logging.Handler = logging.StreamHandler(sys.stderr)  # plain lines in files and pipes
    if console.is_terminal:
        handler = RichHandler(console=console, show_time=False, show_path=False, show_level=False)
    handler.setLevel(level)
    handler.setFormatter(PrintableFormatter())
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.DEBUG)
        logger.propagate = False


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Write every message, with its time, into a file too while the block runs.

    Where the disk is full, the file lacks the lines that have no room; that is said once.
    """
    handler = _LogFile(path, encoding="utf8")
    handler.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in PACKAGES]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


class _LogFile(logging.FileHandler):
    """A log that does not end hours of work because a line of it cannot be written."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Say why, once."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            console.print(f"{self.baseFilename} cannot be written ({error.strerror}).")

    def close(self) -> None:
        """Close the file; what it has no room for is lost."""
        with suppress(OSError):
            super().close()


class _Rate(ProgressColumn):
    """Tokens a second since the task began."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} tokens/s" if speed else "", style="cyan")


class Meter:
    """Counts tokens of one stage; knows the rate and the time left."""

    def __init__(self, what: str, total: int, bar: Progress | None) -> None:
        self.what, self.total, self.done = what, total, 0
        self._start = self._last_line = time.monotonic()
        self._bar = bar
        self._task = bar.add_task(what, total=total, note="") if bar else None

    def advance(self, tokens: int, note: str = "") -> None:
        """Count tokens that are done; `note` is a number worth watching."""
        self.done += tokens
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=tokens, note=note)
        elif time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            self._line(note)

    def skip(self, tokens: int) -> None:
        """Leave out tokens that were done before, so that they do not count for the rate."""
        self.total -= tokens
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=self.total)

    def _line(self, note: str) -> None:
        rate = self.done / max(time.monotonic() - self._start, 1e-9)
        left = (self.total - self.done) / rate if rate else 0.0
        log.info(
            "%s: %s of %s tokens, %.0f tokens/s, %.0f s left%s",
            self.what,
            f"{self.done:,}",
            f"{self.total:,}",
            rate,
            left,
            f", {note}" if note else "",
        )


@contextmanager
def progress(what: str, total: int) -> Iterator[Meter]:
    """A `Meter` for one stage: a bar on a terminal, elsewhere a line every few seconds."""
    handlers = logging.getLogger("distill").handlers
    quiet = any(isinstance(h, RichHandler) and h.level >= logging.WARNING for h in handlers)
    if not console.is_terminal or quiet:
        yield Meter(what, total, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield Meter(what, total, bar)


def print_table(lines: list[list[str]]) -> None:
    """Print a table, header first, as wide as its content."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for i, head in enumerate(lines[0]):
        table.add_column(printable(head), justify="left" if i in (0,) else "right", no_wrap=True)
    for line in lines[1:]:
        table.add_row(*map(printable, line))
    width = None if Console().is_terminal else 160
    Console(width=width, highlight=False, markup=False, emoji=False).print(table)


def aligned(lines: list[list[str]]) -> list[str]:
    """A table as lines of text for a log; the first column is aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    ]
