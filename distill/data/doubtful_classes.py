"""Classes that may be mistakes of writing: of a single row, or named almost as another is."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

NEAR = 0.75  # likeness of two names, by difflib, from which one may be the other misspelt
RARE = 0.05  # of the other's rows: more often, a name is no slip
LONGEST_CHECKED = 500  # classes: names are compared in pairs


def doubtful_classes(rows: Mapping[str, int]) -> list[str]:
    """A sentence on each class that one row alone has, or whose name is almost another's.

    rows: of each class. Names that differ in case, spaces and punctuation alone are always pointed
    at; others where the class has few rows beside the one that it is named like.
    """
    found = []
    for name, number in rows.items():
        near = _nearest(name, rows) if len(rows) <= LONGEST_CHECKED else None
        few = "one row alone has" if number == 1 else f"{number} rows have"
        if near is not None:
            found.append(
                f"{few} the class `{name}`, and {rows[near]} have `{near}`: is it misspelt?"
            )
        elif number == 1:
            found.append(f"{few} the class `{name}`: it cannot be learned and measured both")
        elif number == 0:
            found.append(f"no row has the class `{name}`")
    return found


def _nearest(name: str, rows: Mapping[str, int]) -> str | None:
    """The more frequent class that a class may be a misspelling of; None where there is none."""
    if not rows[name] or not any(letter.isalpha() for letter in name):
        return None
    others = [other for other in rows if other != name and rows[other] >= rows[name]]
    plain = [o for o in others if _plain(o) == _plain(name) and (rows[o], o) > (rows[name], name)]
    if plain:
        return plain[0]
    frequent = [o for o in others if rows[name] == 1 < rows[o] or rows[name] <= RARE * rows[o]]
    close = difflib.get_close_matches(name.casefold(), [o.casefold() for o in frequent], 1, NEAR)
    return next((o for o in frequent if close and o.casefold() == close[0]), None)


def _plain(name: str) -> str:
    """A name without case, spaces and punctuation."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())
