"""What comparison.json says of each number of training rows."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from distill.comparison.outcome import Outcome
from distill.comparison.race import Race
from distill.comparison.standing import Standing
from distill.evaluation.job import Numbers
from distill.report.paired_difference import direction

CHOOSES, REPORTS = "selection", "test"


def summary_of(race: Race, labels: int) -> Numbers:
    """Every arm at a number of rows, the leader, and what is recommended there."""
    standing = race.standing(labels)
    leader, chosen = standing.leader(), standing.recommended()
    found: Numbers = {
        "arms": {name: _arm(race, standing, name, leader) for name in race.arms},
        "leader": leader,
        "recommended": chosen,
    }
    if leader is not None and chosen is not None:
        best = standing.leader(REPORTS)
        assert best is not None, "the leader is one that can be"
        difference = standing.difference(chosen, best, REPORTS)
        found |= {
            "best_on_test": best,
            "recommended_against_best": difference,
            "within_interval": direction(difference) != "lower",
        }
        found["front"] = front_of(standing)
    return found


def _arm(race: Race, standing: Standing, name: str, leader: str | None) -> Numbers:
    """What is known of one arm at a point, or why it was not run there."""
    labels = standing.labels
    outcomes = race.outcomes[labels].get(name, [])
    if name in race.not_run[labels]:
        return {"not_run": race.not_run[labels][name]}
    if name not in standing.outcomes:
        drop = race.dropped[name]
        return {"dropped": drop}
    if failed := next((one.failed for one in outcomes if one.failed), None):
        return {"failed": failed}
    numbers: Numbers = {
        CHOOSES: standing.quality(name, CHOOSES),
        REPORTS: standing.quality(name, REPORTS),
        "more": more_numbers(outcomes),
        "cost": cost_of(outcomes),
        "serving": _medians([one.serving for one in outcomes]),
        "task_bytes": _median([one.task_bytes for one in outcomes]),
        "query_tokens": _median([one.query_tokens for one in outcomes]),
        "shares_base": outcomes[0].shares_base,
        "mixes": outcomes[0].mixes,
        "model": outcomes[0].model,
        "adapter": outcomes[0].adapter,
        "details": outcomes[0].details,
    }
    if outcomes[0].forgets:
        numbers["forgets"] = outcomes[0].forgets
    if leader is not None and name != leader:
        numbers["against_leader"] = {
            part: standing.difference(name, leader, part) for part in (CHOOSES, REPORTS)
        }
    return numbers


def more_numbers(outcomes: Sequence[Outcome]) -> Numbers:
    """Other numbers of the test part, and quality elsewhere, averaged over seeds."""
    found: Numbers = {}
    for part in (REPORTS, "elsewhere"):
        parts = [one.parts.get(part, {}) for one in outcomes]
        for key in parts[0]:
            values = [one.get(key) for one in parts]
            if all(isinstance(value, (int, float)) and value is not None for value in values):
                numbers = [float(value) for value in values if value is not None]
                found.setdefault(part, {})[key] = sum(numbers) / len(numbers)
    return found


def cost_of(outcomes: Sequence[Outcome]) -> Numbers:
    """What learning took, the mean over seeds."""
    number = len(outcomes)
    return {
        "seconds": sum(one.seconds for one in outcomes) / number,
        "measuring_seconds": sum(one.measuring_seconds for one in outcomes) / number,
        "tokens": round(sum(one.tokens for one in outcomes) / number),
        "peak_memory_bytes": max(one.peak_memory_bytes for one in outcomes),
        "trained": outcomes[0].trained,
    }


def _median(values: Sequence[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return median(known) if known else None


def _medians(found: Sequence[Numbers]) -> Numbers:
    keys = [key for key, value in found[0].items() if isinstance(value, (int, float))]
    return {key: _median([one.get(key) for one in found]) for key in keys}


# Fronts ------------------------------------------------------------------------------------------


def front_of(standing: Standing) -> dict[str, list[str]]:
    """By what is paid, the arms than which no cheaper one is as good: from the cheapest on, an arm
    is on the front where it is distinguishably better than each arm on it before.
    """
    costs = {
        "learning": standing.cost,
        "serving": lambda name: _price(standing, name, "seconds_a_text"),
        "bytes": lambda name: _price(standing, name, "bytes"),
        "task": lambda name: _of(standing, name, "task_bytes"),
        "query": lambda name: _of(standing, name, "query_tokens"),
    }
    return {kind: _front(standing, cost) for kind, cost in costs.items()}


def _of(standing: Standing, name: str, key: str) -> float | None:
    return _median([getattr(one, key) for one in standing.whole[name]])


def _price(standing: Standing, name: str, key: str) -> float | None:
    return _median([one.serving.get(key) for one in standing.whole[name]])


def _front(standing: Standing, cost: Any) -> list[str]:
    priced = {name: cost(name) for name in standing.candidates}
    names = sorted(
        (name for name, price in priced.items() if price is not None),
        key=lambda name: (priced[name], -standing.quality(name, CHOOSES)["value"]),
    )
    front: list[str] = []
    for name in names:
        others = (standing.difference(name, other, CHOOSES) for other in front)
        if all(direction(one) == "higher" for one in others):
            front.append(name)
    return front
