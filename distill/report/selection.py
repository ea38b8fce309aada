"""Which artifacts are fit to ship, which are Pareto-optimal, and which one to take for what.

An artifact is fit where it loses no more than the recipe's tolerance against the same student
unquantised. It is Pareto-optimal in quality against bytes (against speed) where no other artifact
is at least as good in both and better in one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from attar.config import Section
from distill.evaluation.job import Numbers


class Tolerance(Section):
    """How much an artifact may lose against the same student unquantised before it is unfit."""

    perplexity: float = Field(0.02, ge=0, description="share of the perplexity")
    accuracy: float = Field(0.005, ge=0, description="of any of `evaluate.tasks`, as a share")


@dataclass(frozen=True)
class Quality:
    """The number by which models of a task are compared.

    key: of a model's numbers. axis: its title in plots, where it is `scale` times as large, on a
    logarithmic axis with `log`. words: the number as advice says it. higher: whether higher is
    better.
    """

    key: str
    axis: str
    words: Callable[[Numbers], str]
    higher: bool
    scale: float = 1.0
    log: bool = False

    def loss(self, numbers: Numbers) -> float:
        """The number with the sign by which less is better."""
        return -float(numbers[self.key]) if self.higher else float(numbers[self.key])


@dataclass(frozen=True)
class Speed:
    """How fast models of a task are; higher is better.

    rate: None or 0 where a runtime cannot do what is timed. axis: its title in plots. unit: as
    advice says it.
    """

    rate: Callable[[Numbers], float | None]
    axis: str
    unit: str

    def words(self, numbers: Numbers) -> str:
        """The speed as advice says it; empty where there is none."""
        rate = self.rate(numbers)
        return f"{rate:,.0f} {self.unit} here" if rate else ""


def _generation_rate(numbers: Numbers) -> float | None:
    rate: float | None = numbers["tokens_per_second"]["generate"]
    return rate


GENERATION_SPEED = Speed(_generation_rate, "generated tokens a second", "tokens/s")
READING_SPEED = Speed(lambda numbers: numbers["texts_per_second"], "texts a second", "texts/s")


# Fit to ship -------------------------------------------------------------------------------------


def judge_by_perplexity(
    artifact: Numbers, reference: Numbers, name: str, tolerance: Tolerance
) -> Numbers:
    """`ships`, the changes against the reference called `name`, and the reason in words.

    What counts is the perplexity, and the accuracy on each downstream task that both can be asked.
    """
    change = artifact["perplexity"] / reference["perplexity"] - 1
    fit: Numbers = {"reference": name, "perplexity_change": change, "accuracy_lost": {}}
    reasons = []
    if change > tolerance.perplexity:
        reasons.append(f"its perplexity is {change:.1%} higher than {name}'s")
    for task, numbers in artifact.get("tasks", {}).items():
        before = reference.get("tasks", {}).get(task, numbers)["accuracy"]
        if before is None or numbers["accuracy"] is None:
            continue  # a runtime that cannot be asked
        fall = before - numbers["accuracy"]
        fit["accuracy_lost"][task] = fall
        if fall > tolerance.accuracy:
            reasons.append(f"it loses {100 * fall:.1f} points of accuracy on {task}")
    fit["ships"] = not reasons
    fit["reason"] = "; ".join(reasons) or "within the tolerance"
    return fit


def unfit_lines(report: Numbers) -> list[str]:
    """One line for each artifact of a report that is not fit to ship."""
    return [
        f"{name} is not fit to ship: {numbers['fit']['reason']}."
        for name, numbers in report["artifacts"].items()
        if not numbers["fit"]["ships"]
    ]


# Pareto ------------------------------------------------------------------------------------------


def pareto_front(points: dict[str, tuple[float, float]]) -> set[str]:
    """Names of the points (less is better in both) that no other point beats."""
    return {
        name
        for name, mine in points.items()
        if not any(
            other[0] <= mine[0] and other[1] <= mine[1] and other != mine
            for other in points.values()
        )
    }


def mark_pareto(artifacts: dict[str, Numbers], quality: Quality, speed: Speed) -> None:
    """Set `pareto` of every artifact: whether it is optimal in quality against `bytes`, `speed`."""
    sizes, times = {}, {}
    for name, numbers in artifacts.items():
        sizes[name] = float(numbers["bytes"]), quality.loss(numbers)
        if rate := speed.rate(numbers):
            times[name] = -float(rate), quality.loss(numbers)
    smallest, fastest = pareto_front(sizes), pareto_front(times)
    for name, numbers in artifacts.items():
        numbers["pareto"] = {"bytes": name in smallest, "speed": name in fastest}


# Advice ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Purpose:
    """One use of an artifact that the report advises on.

    name: as in "For {name}: ...". rank: the artifact with the least value is advised. suits:
    whether an artifact can serve it at all.
    """

    name: str
    rank: Callable[[Numbers], Any]
    suits: Callable[[Numbers], bool] = lambda _: True


SMALLEST = Purpose("the smallest size", lambda numbers: numbers["bytes"])


def advise(
    artifacts: dict[str, Numbers],
    quality: Quality,
    speed: Speed,
    purposes: Sequence[Purpose],
    remedy: str,
) -> list[Numbers]:
    """Which artifact to ship for each purpose: `for`, `artifact` and a `sentence`.

    Only what is fit is advised. Where nothing is, the one entry has no artifact, names the best one
    and ends with the remedy; without artifacts there is nothing to advise.
    """
    if not artifacts:
        return []
    fit = {name: numbers for name, numbers in artifacts.items() if numbers["fit"]["ships"]}
    if not fit:
        best = min(artifacts, key=lambda name: quality.loss(artifacts[name]))
        sentence = (
            f"No artifact stays within the tolerance; the best is {best}, but "
            f"{artifacts[best]['fit']['reason']}. {remedy}"
        )
        return [{"for": "any", "artifact": None, "sentence": sentence}]
    advice = []
    for purpose in purposes:
        choices = {name: numbers for name, numbers in fit.items() if purpose.suits(numbers)}
        if choices:
            name = min(choices, key=lambda one: purpose.rank(choices[one]))
            numbers = choices[name]
            parts = [_size_words(numbers), quality.words(numbers), speed.words(numbers)]
            sentence = f"For {purpose.name}: {name} ({', '.join(part for part in parts if part)})."
            advice.append({"for": purpose.name, "artifact": name, "sentence": sentence})
    return advice


def _size_words(numbers: Numbers) -> str:
    megabytes = numbers["bytes"] / 1e6
    return f"{megabytes:,.0f} MB" if megabytes >= 10 else f"{megabytes:,.1f} MB"
