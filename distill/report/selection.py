"""Which artifacts are fit to ship, which lie on the front, and which one to take.

An artifact is fit where it loses no more than the recipe's tolerance against the same student
unquantised. The front (Pareto) holds those that no other beats in both of two measures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import Field

from attar.config import Section
from distill.evaluation.job import Measured

if TYPE_CHECKING:
    pass


def judge(artifact: Measured, reference: Measured, name: str, tolerance: Tolerance) -> Measured:
    """`ships`, what was lost against the reference called `name`, and the reason in words."""
    lost = artifact["perplexity"] / reference["perplexity"] - 1
    found: Measured = {"reference": name, "perplexity_lost": lost, "accuracy_lost": {}}
    reasons = []
    if lost > tolerance.perplexity:
        reasons.append(f"its perplexity is {lost:.1%} higher than {name}'s")
    for task, numbers in artifact.get("tasks", {}).items():
        before = reference.get("tasks", {}).get(task, numbers)["accuracy"]
        if before is None or numbers["accuracy"] is None:
            continue  # a runtime that cannot be asked
        fall = before - numbers["accuracy"]
        found["accuracy_lost"][task] = fall
        if fall > tolerance.accuracy:
            reasons.append(f"it loses {100 * fall:.1f} points of accuracy on {task}")
    found["ships"] = not reasons
    found["reason"] = "; ".join(reasons) or "within the tolerance"
    return found


def front(points: dict[str, tuple[float, float]]) -> set[str]:
    """Names of the points (less is better in both) that no other point beats."""
    return {
        name
        for name, mine in points.items()
        if not any(
            other[0] <= mine[0] and other[1] <= mine[1] and other != mine
            for other in points.values()
        )
    }


def mark_fronts(artifacts: dict[str, Measured]) -> None:
    """Set `pareto` of every artifact: is it on the front of quality against bytes, and speed?"""
    sizes = {
        name: (float(found["bytes"]), found["perplexity"]) for name, found in artifacts.items()
    }
    speeds = {
        name: (-_speed(found), found["perplexity"])
        for name, found in artifacts.items()
        if _speed(found)
    }
    on_bytes, on_speed = front(sizes), front(speeds)
    for name, found in artifacts.items():
        found["pareto"] = {"bytes": name in on_bytes, "speed": name in on_speed}


def _speed(found: Measured) -> float:
    return float(found["tokens_per_second"]["generate"] or 0.0)


def advise(artifacts: dict[str, Measured]) -> list[Measured]:
    """Which artifact to ship for a GPU server, a laptop's CPU, the smallest size; in words.

    Only what is fit is advised; where nothing is, it says so.
    """
    fit = {name: found for name, found in artifacts.items() if found["fit"]["ships"]}
    if not fit:
        best = min(artifacts, key=lambda name: float(artifacts[name]["perplexity"]))
        sentence = (
            f"No artifact stays within the tolerance; the best is {best}, but "
            f"{artifacts[best]['fit']['reason']}. Keep more bits, or teach the quantised student "
            "(`specialize: {method: qlora}` with `forward_kl`)."
        )
        return [{"for": "any", "artifact": None, "sentence": sentence}]
    served = {name: found for name, found in fit.items() if found["runtime"] == "transformers"}
    spoken = {name: found for name, found in fit.items() if _speed(found)}
    wanted: list[tuple[str, dict[str, Measured], Callable[[Measured], Any]]] = [
        ("a GPU server", served, lambda found: (round(found["perplexity"], 2), found["bytes"])),
        ("a laptop's CPU", spoken, lambda found: -_speed(found)),
        ("the smallest size", fit, lambda found: found["bytes"]),
    ]
    advice = []
    for place, choices, key in wanted:
        if choices:
            name = min(choices, key=lambda one: key(choices[one]))
            advice.append(
                {"for": place, "artifact": name, "sentence": _sentence(place, name, choices[name])}
            )
    return advice


def _sentence(place: str, name: str, found: Measured) -> str:
    speed = f", {_speed(found):,.0f} tokens/s here" if _speed(found) else ""
    return (
        f"For {place}: {name} ({found['bytes'] / 1e6:,.0f} MB, perplexity "
        f"{found['perplexity']:.2f}{speed})."
    )


def unfit(report: Measured) -> list[str]:
    """One line for each artifact of a report that is not fit to ship."""
    return [
        f"{name} is not fit to ship: {found['fit']['reason']}."
        for name, found in report["artifacts"].items()
        if not found["fit"]["ships"]
    ]


class Tolerance(Section):
    """How much an artifact may lose against the same student unquantised before it is unfit."""

    perplexity: float = Field(0.02, ge=0, description="share of the perplexity")
    accuracy: float = Field(0.005, ge=0, description="of any of `evaluate.tasks`, as a share")
