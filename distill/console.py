"""What a command writes on the terminal: messages, progress, tables."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

from attar.distributed import is_first_process
from attar.printable import printable
from attar.progress import set_listener
from distill.progress_display import ProgressDisplay

console = Console(stderr=True, highlight=False, soft_wrap=True)
log = logging.getLogger("distill")
PACKAGES = ("distill", "teachers", "students", "attar")
_displays: list[ProgressDisplay] = []  # the command's, once it has set up its messages


class PrintableFormatter(logging.Formatter):
    """Lines in which text of models, data and files cannot command the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, control characters as visible codes."""
        return printable(super().format(record))


def set_up_logging(verbose: bool = False, quiet: bool = False) -> None:
    """Send messages and progress to the terminal: all with `verbose`, warnings only with `quiet`.

    Of several processes the first one alone shows progress.
    """
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
    # FORCE_COLOR makes rich take any file for a terminal, and TERM=dumb names one without a cursor.
    redraws = console.is_terminal and not console.is_dumb_terminal and sys.stderr.isatty()
    _displays[:] = [ProgressDisplay(console, redraws and not quiet)] if is_first_process() else []
    set_listener(_displays[0] if _displays else None)


def show_stage(name: str, number: int, of: int) -> AbstractContextManager[None]:
    """Show that a stage is under way while a block runs: the number-th of those to be run."""
    return _displays[0].stage(name, number, of) if _displays else nullcontext()


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


def print_table(lines: list[list[str]], left: Collection[int] = (0,)) -> None:
    """Print a table, header first, as wide as its content; `left`: columns aligned to the left."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for i, head in enumerate(lines[0]):
        table.add_column(printable(head), justify="left" if i in left else "right", no_wrap=True)
    for line in lines[1:]:
        table.add_row(*map(printable, line))
    width = None if Console().is_terminal else 400  # a file has no edge
    Console(width=width, highlight=False, markup=False, emoji=False).print(table)


def aligned(lines: list[list[str]]) -> list[str]:
    """A table as lines of text for a log; the first column is aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    ]
