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
    """The rows of some tables that could not be read.

    rows: how many the tables have. read: how many were tried.
    """

    def __init__(self) -> None:
        self.rows = self.read = self.number = 0
        self._counts = Counter[str]()
        self._first: dict[str, list[tuple[str, int, str]]] = {}  # (source, row, place) by reason

    def try_row(
        self, table: Any, source: str, i: int, read: Callable[[Mapping[str, Any]], Read]
    ) -> Read | None:
        """What `read` makes of row `i`; None, and counted, where it cannot be used.

        Raises `DataError` as soon as more than a tenth of all rows are known to be bad.
        """
        return self.attempt(lambda: read(table[i]), table, source, i)

    def attempt(self, read: Callable[[], Read], table: Any, source: str, i: int) -> Read | None:
        """The same for a function that has the row, or what it needs of it."""
        self.read += 1
        try:
            return read()
        except RowError as error:
            self.number += 1
            self._counts[error.reason] += 1
            first = self._first.setdefault(error.reason, [])
            first.append((source, i, place_of(table, source, i)))
            first[:] = sorted(first)[:NAMED_ROWS]
        if self.number > MOST_BAD * self.rows:
            known = "" if self.read == self.rows else "at least "
            self._refuse(f"{known}{self.number} of {self.rows}")
        return None

    def finish(self, section: str) -> None:
        """Log what was left out, with the first row of each fault.

        Raises `DataError` where it is more than a tenth of the rows that were read; where only
        some rows were read, a few bad ones of them may be chance.
        """
        few = self.read < self.rows and self.number <= NAMED_ROWS
        if self.number > MOST_BAD * self.read and not few:
            self._refuse(f"{self.number} of {self.read}")
        if self.number:
            log.warning("%s: %d rows are left out: %s", section, self.number, self.describe())

    def describe(self) -> str:
        """How many rows have each fault, and the first of them."""
        return "; ".join(
            f"{count} {reason} (first: {', '.join(place for *_, place in self._first[reason])})"
            for reason, count in self._counts.most_common()
        )

    def _refuse(self, share: str) -> None:
        raise DataError(
            f"{share[0].upper()}{share[1:]} rows cannot be used, which is more than a tenth: "
            f"{self.describe()}."
        )


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
