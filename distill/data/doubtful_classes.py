"""Classes that may be mistakes of writing: of a single row, or named almost as another is."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

NEAR = 0.75  # likeness of two names, by difflib, from which one may be the other misspelt
RARE = 0.2  # of the other's rows: more often, a name is no slip
LONGEST_CHECKED = 500  # classes: names are compared in pairs
NAMED = 8  # classes that a sentence on several names


def doubtful_classes(rows: Mapping[str, int], places: Mapping[str, str]) -> list[str]:
    """A sentence on each class whose name is almost another's; one on all others of a single row,
    and one on all that have none.

    rows: of each class, that can be learned from. places: where the first row of a class stands.
    Names that differ in case, spaces and punctuation alone are always pointed at; others where the
    class has few rows beside the one that it is named like.
    """
    found, alone = [], []
    for name, number in rows.items():
        near = _nearest(name, rows) if len(rows) <= LONGEST_CHECKED else None
        if near is not None:
            few = "one row alone has" if number == 1 else f"{number} rows have"
            found.append(
                f"{few} the class `{name}` (the first: {places[name]}), and {rows[near]} have "
                f"`{near}`: is it misspelt?"
            )
        elif number == 1:
            alone.append(name)
    none = [name for name, number in rows.items() if number == 0]
    if len(alone) == 1:
        found.append(f"one row alone has the class `{alone[0]}`: too few to learn it from")
    elif alone:
        found.append(
            f"{len(alone)} of {len(rows)} classes have one row each: too few to learn them from "
            f"({_some(alone)})"
        )
    if len(none) == 1:
        found.append(f"no row has the class `{none[0]}`")
    elif none:
        found.append(f"{len(none)} of {len(rows)} classes have no row ({_some(none)})")
    return found


def _some(names: Sequence[str]) -> str:
    more = [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
    return ", ".join([*(f"`{name}`" for name in names[:NAMED]), *more])


def _nearest(name: str, rows: Mapping[str, int]) -> str | None:
    """The more frequent class that a class may be a misspelling of; None where there is none."""
    if not rows[name] or not any(letter.isalpha() for letter in name):
        return None
    others = [other for other in rows if other != name and rows[other] >= rows[name]]
    plain = [o for o in others if _plain(o) == _plain(name) and (rows[o], o) > (rows[name], name)]
    if plain:
        return plain[0]
    frequent = {
        other.casefold(): other
        for other in others
        if rows[name] <= RARE * rows[other] and _undigited(other) != _undigited(name)
    }
    close = difflib.get_close_matches(name.casefold(), list(frequent), 1, NEAR)
    return frequent[close[0]] if close else None


def _plain(name: str) -> str:
    """A name without case, spaces and punctuation."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _undigited(name: str) -> str:
    """A name without its digits: `grade 1` and `grade 2` are two classes, and neither a slip."""
    return "".join(letter for letter in name.casefold() if not letter.isdigit())
