"""How much a step, or a set of examples, counts: the units that a term's mean can be over."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Literal

# Whose tokens are counted.
Texts = Literal["chosen", "rejected", "all", "data", "rollouts"]
Unit = Texts | Literal["judged", "answers", "written"]
UNITS: tuple[Unit, ...] = (
    "chosen", "rejected", "all", "data", "rollouts", "judged", "answers", "written",
)  # fmt: skip


@dataclass(frozen=True)
class Counted:
    """Counted tokens of some examples, and their judgements.

    tokens: of all texts. rejected: of rejected answers among them. judged: pairs and rated answers,
    each of which counts once. good, bad: how many answers are chosen or rated good, and how many
    are rejected or rated bad; a pair has one of each. rollouts: tokens of answers that the student
    wrote. written: how many such answers there are.
    """

    tokens: int
    rejected: int = 0
    judged: int = 0
    good: int = 0
    bad: int = 0
    rollouts: int = 0
    written: int = 0

    def __add__(self, other: Counted) -> Counted:
        """Return what both count together."""
        mine, others = astuple(self), astuple(other)
        return Counted(*(one + more for one, more in zip(mine, others, strict=True)))

    def of(self, unit: Unit) -> int:
        """Return the number of a unit.

        `chosen` are tokens of all texts but rejected answers, `data` those of them that the student
        did not write itself, `rollouts` those that it did; `answers` are the judged texts: two of a
        pair, one of a rated answer. Raises `ValueError` for an unknown unit.
        """
        numbers: dict[Unit, int] = {
            "chosen": self.tokens - self.rejected,
            "rejected": self.rejected,
            "all": self.tokens,
            "data": self.tokens - self.rejected - self.rollouts,
            "rollouts": self.rollouts,
            "judged": self.judged,
            "answers": self.good + self.bad,
            "written": self.written,
        }
        if unit not in numbers:
            raise ValueError(f"unknown unit {unit!r}; units are {', '.join(UNITS)}")
        return numbers[unit]

    def scales(self, factor: float) -> dict[Unit, float]:
        """Return what a sum over each unit is multiplied by; where a unit counts nothing, `factor`.

        factor: 1 for a mean; the number of processes where their gradients are averaged after.
        """
        return {unit: factor / max(1, self.of(unit)) for unit in UNITS}


def every_unit(scale: float) -> dict[Unit, float]:
    """The same scale for every unit."""
    return dict.fromkeys(UNITS, scale)
