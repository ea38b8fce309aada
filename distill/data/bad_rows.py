"""Rows that cannot be read: left out, counted by what is wrong with them, and named once.

A few bad rows stop no run. More than a tenth of the rows are a mistake in the data or in the
recipe, which is told instead of learning from what is left.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from attar.errors import DataError

log = logging.getLogger(__name__)

MOST_BAD = 0.1  # share of the rows
NAMED_ROWS = 3  # of each fault
OF_ONE = {"have": "has", "are": "is", "hold": "holds"}
Read = TypeVar("Read")


class RowError(DataError):
    """A row cannot be used.

    reason: what is wrong, said of several rows ("have ..."), and the same for the same fault.
    """

    def __init__(self, reason: str, place: str = "a row") -> None:
        super().__init__(f"{place[0].upper()}{place[1:]} cannot be used; such rows {reason}.")
        self.reason = reason


def place_of(table: Any, source: str, i: int) -> str:
    """Where row `i` of a table stands, as an editor counts: from 1."""
    place = getattr(table, "place", None)
    return str(place(i)) if place is not None else f"row {i + 1} of {source}"


class BadRows:
    """The rows of some sources that could not be read."""

    def __init__(self) -> None:
        self._rows = Counter[str]()  # by source: that there are, that were tried, that are bad
        self._tried = Counter[str]()
        self._bad = Counter[str]()
        self._counts = Counter[str]()
        self._first: dict[str, list[tuple[str, int, str]]] = {}  # (source, row, place) by reason

    def expect(self, source: str, rows: int) -> None:
        """A source has so many rows more, all of which may be tried."""
        self._rows[source] += rows

    def try_row(
        self, table: Any, source: str, i: int, read: Callable[[Mapping[str, Any]], Read]
    ) -> Read | None:
        """What `read` makes of row `i`; None, and counted, where it cannot be used.

        Raises `DataError` as soon as more than a tenth of the source's rows are known to be bad.
        """
        return self.attempt(lambda: read(table[i]), table, source, i)

    def attempt(self, read: Callable[[], Read], table: Any, source: str, i: int) -> Read | None:
        """The same for a function that has the row, or what it needs of it."""
        self._tried[source] += 1
        try:
            return read()
        except RowError as error:
            self._bad[source] += 1
            self._counts[error.reason] += 1
            first = self._first.setdefault(error.reason, [])
            first.append((source, i, place_of(table, source, i)))
            first[:] = sorted(first)[:NAMED_ROWS]
        bad, rows = self._bad[source], self._rows[source]
        if bad > MOST_BAD * rows:
            known = "" if self._tried[source] == rows else "at least "
            self._refuse(f"{known}{bad} of {rows}", source)
        return None

    def finish(self, section: str) -> None:
        """Log what was left out, with the first row of each fault.

        Raises `DataError` where it is more than a tenth of the rows of a source that were tried;
        where only some rows were tried, a few bad ones of them may be chance.
        """
        for source, bad in self._bad.items():
            tried = self._tried[source]
            few = tried < self._rows[source] and bad <= NAMED_ROWS
            if bad > MOST_BAD * tried and not few:
                self._refuse(f"{bad} of {tried}", source)
        if total := self._bad.total():
            rows = "1 row is" if total == 1 else f"{total} rows are"
            log.warning("%s: %s left out: %s", section, rows, self.describe())

    def describe(self) -> str:
        """How many rows have each fault, and the first of them."""
        return "; ".join(self.sentences())

    def sentences(self) -> list[str]:
        """The same, one a fault."""
        return [
            f"{count} {_of(count, reason)} (first: "
            f"{', '.join(place for *_, place in self._first[reason])})"
            for reason, count in self._counts.most_common()
        ]

    def _refuse(self, share: str, source: str) -> None:
        raise DataError(
            f"{share[0].upper()}{share[1:]} rows of {source} cannot be used, which is more than a "
            f"tenth: {self.describe()}."
        )


def _of(count: int, reason: str) -> str:
    """The reason with its verb in the number of the rows: '1 has', '2 have'."""
    verb, _, rest = reason.partition(" ")
    return f"{OF_ONE.get(verb, verb) if count == 1 else verb} {rest}"


def column_values(table: Any, name: str) -> Iterator[tuple[int, Any]]:
    """(number of the row, value) of a column, without rows that cannot be parsed."""
    values: Sequence[Any] | None = None if hasattr(table, "place") else table[name]
    for i in range(len(table)):
        if values is not None:
            yield i, values[i]
            continue
        try:
            yield i, table[i][name]
        except RowError:
            continue
