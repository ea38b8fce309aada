"""Successive halving: many candidates on few questions, few candidates on all.

Every candidate of a rung is asked the same questions, so that their differences are paired. A rung
asks three times as many questions as the one before and keeps a third of the candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

LEAST_QUESTIONS = 8  # of a rung: fewer say nothing
SHARES = (1 / 9, 1 / 3, 1.0)  # of the questions, by rung
KEPT = 3  # one of so many candidates goes on


@dataclass(frozen=True)
class Standing:
    """How a candidate did on the questions of a rung. tokens: mean ids of its prompts."""

    number: int
    accuracy: float
    nll: float
    tokens: float


@dataclass(frozen=True)
class Rung:
    """One step: how many questions were asked, and the candidates, the best first."""

    questions: int
    standings: list[Standing]


# Of a candidate's number and how many first questions: whether each is right, nll, ids of input.
Measure = Callable[[int, int], tuple[np.ndarray, np.ndarray, np.ndarray]]


def rung_sizes(questions: int, candidates: int) -> list[int]:
    """Numbers of questions of the rungs; one rung where there is little to leave out."""
    if candidates <= KEPT:
        return [questions]
    sizes = [min(questions, max(LEAST_QUESTIONS, math.ceil(share * questions))) for share in SHARES]
    return sorted(set(sizes))


def halve(
    candidates: int,
    questions: int,
    measure: Measure,
    groups: Sequence[int] | None = None,
    always: Sequence[int] = (),
    on_rung: Callable[[Rung, list[int]], None] | None = None,
) -> list[Rung]:
    """The rungs of a search; the winner is the first of the last.

    groups: of each candidate the number of its group; what is measured of one candidate costs
    nothing more of the others, so groups go on together. always: groups that no rung leaves out.
    on_rung: takes each rung, and the candidates that go on.
    Few questions make many ties, which the nll of the right answers breaks; in the last rung the
    candidate with fewer tokens wins a tie.
    """
    groups = list(range(candidates)) if groups is None else groups
    going, rungs = list(range(candidates)), []
    sizes = rung_sizes(questions, candidates)
    for step, size in enumerate(sizes):
        is_last = step == len(sizes) - 1
        standings = []
        for number in going:
            correct, nll, ids = measure(number, size)
            means = (float(one.mean()) for one in (correct, nll, ids))
            standings.append(Standing(number, *means))
        standings.sort(key=_last_order if is_last else _early_order)
        rungs.append(Rung(size, standings))
        ranked = list(dict.fromkeys(groups[one.number] for one in standings))
        kept = {*ranked[: max(2, math.ceil(len(ranked) / KEPT))], *always}
        going = [number for number in going if groups[number] in kept]
        if on_rung is not None:
            on_rung(rungs[-1], going)
    return rungs


def _early_order(one: Standing) -> tuple[float, ...]:
    return (-one.accuracy, one.nll, one.tokens, one.number)


def _last_order(one: Standing) -> tuple[float, ...]:
    return (-one.accuracy, one.tokens, one.nll, one.number)
