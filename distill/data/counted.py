"""How much a step, or a set of examples, counts: the units that a term's mean can be over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Texts = Literal["chosen", "rejected", "all"]  # whose tokens are counted
Unit = Texts | Literal["judged", "answers"]
UNITS: tuple[Unit, ...] = ("chosen", "rejected", "all", "judged", "answers")


@dataclass(frozen=True)
class Counted:
    """Counted tokens of some examples, and their judgements.

    tokens: of all texts. rejected: of rejected answers among them. judged: pairs and rated answers,
    each of which counts once. good, bad: how many answers are chosen or rated good, and how many
    are rejected or rated bad; a pair has one of each.
    """

    tokens: int
    rejected: int = 0
    judged: int = 0
    good: int = 0
    bad: int = 0

    def __add__(self, other: Counted) -> Counted:
        """Return what both count together."""
        return Counted(
            self.tokens + other.tokens,
            self.rejected + other.rejected,
            self.judged + other.judged,
            self.good + other.good,
            self.bad + other.bad,
        )

    def of(self, unit: Unit) -> int:
        """Return the number of a unit; `chosen` are texts without a judgement and chosen answers,
        `answers` the judged texts: two of a pair, one of a rated answer.

        Raises `ValueError` for an unknown unit.
        """
        if unit == "judged":
            return self.judged
        if unit == "answers":
            return self.good + self.bad
        if unit == "rejected":
            return self.rejected
        if unit not in UNITS:
            raise ValueError(f"unknown unit {unit!r}; units are {', '.join(UNITS)}")
        return self.tokens - (self.rejected if unit == "chosen" else 0)

    def scales(self, factor: float) -> dict[Unit, float]:
        """Return what a sum over each unit is multiplied by; where a unit counts nothing, `factor`.

        factor: 1 for a mean; the number of processes where their gradients are averaged after.
        """
        return {unit: factor / max(1, self.of(unit)) for unit in UNITS}


def every_unit(scale: float) -> dict[Unit, float]:
    """The same scale for every unit."""
    return dict.fromkeys(UNITS, scale)
