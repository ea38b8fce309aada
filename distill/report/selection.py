"""Which artifacts are fit to ship, which are Pareto-optimal, and which one to take for what.

An artifact is fit where it measured no more loss than the recipe's tolerance against the same
student unquantised; `certain` says whether the interval of that loss lies on one side of the
tolerance. It is Pareto-optimal in quality against bytes (against speed) where its quality is
distinguishably better than that of each optimal artifact that is no larger (no slower).
"""

from __future__ import annotations

import math
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
    if not change <= tolerance.perplexity:  # so that what is not a number never ships
        reasons.append(f"its perplexity is {change:.1%} higher than {name}'s")
    for task, numbers in artifact.get("tasks", {}).items():
        before = reference.get("tasks", {}).get(task, numbers)["accuracy"]
        if before is None or numbers["accuracy"] is None:
            continue  # a runtime that cannot be asked
        fall = before - numbers["accuracy"]
        fit["accuracy_lost"][task] = fall
        if not fall <= tolerance.accuracy:
            reasons.append(f"it loses {100 * fall:.1f} points of accuracy on {task}")
    fit["ships"] = not reasons
    fit["reason"] = "; ".join(reasons) or "within the tolerance"
    return fit


def unfit_lines(report: Numbers) -> list[str]:
    """One line for each artifact of a report that is not fit to ship."""
    return [
        f"{name} is not fit to ship: {numbers['fit']['reason'].rstrip('.')}."
        for name, numbers in report["artifacts"].items()
        if not numbers["fit"]["ships"]
    ]


def failed_lines(report: Numbers) -> list[str]:
    """One line for each artifact or baseline of a report that could not be made or run."""
    baselines = report.get("baselines", {})  # reports before schema 6 have none
    named = {f"baseline {name}": numbers for name, numbers in baselines.items()}
    return [
        f"{name} failed: {numbers['failed']}"
        for name, numbers in {**report["artifacts"], **named}.items()
        if "failed" in numbers
    ]


def is_certain(interval: list[float] | None, tolerance: float) -> bool:
    """Whether an interval of what is lost lies on one side of what is tolerated."""
    return interval is not None and (interval[1] <= tolerance or interval[0] > tolerance)


# Pareto ------------------------------------------------------------------------------------------


IsBetter = Callable[[str, str], bool]  # whether the first artifact's quality is the better


def pareto_front(
    points: dict[str, tuple[float, float]], is_better: IsBetter | None = None
) -> set[str]:
    """Names of the points (less is better in both) that no other point beats.

    is_better: whether a point's second number is really less than another's; absent: compare the
    numbers. From the least first number on, a point is on the front where its second one is better
    than that of each point that is on it already.
    """

    def is_less(one: str, other: str) -> bool:
        return points[one][1] < points[other][1] and (is_better is None or is_better(one, other))

    front: list[str] = []
    for name in sorted(points, key=lambda one: points[one]):
        if all(is_less(name, other) or points[name] == points[other] for other in front):
            front.append(name)
    return set(front)


def mark_pareto(
    artifacts: dict[str, Numbers],
    quality: Quality,
    speed: Speed,
    is_better: IsBetter | None = None,
) -> None:
    """Set `pareto` of every artifact: whether it is optimal in quality against `bytes`, `speed`.

    is_better: as in `pareto_front`. An artifact whose quality is not a number is never optimal.
    """
    sizes, times = {}, {}
    for name, numbers in artifacts.items():
        if not math.isfinite(quality.loss(numbers)):
            continue
        if numbers["bytes"] is not None:
            sizes[name] = float(numbers["bytes"]), quality.loss(numbers)
        if rate := speed.rate(numbers):
            times[name] = -float(rate), quality.loss(numbers)
    smallest, fastest = pareto_front(sizes, is_better), pareto_front(times, is_better)
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


SMALLEST = Purpose(
    "the smallest size", lambda numbers: numbers["bytes"], lambda numbers: numbers["bytes"]
)


def advise(
    artifacts: dict[str, Numbers],
    quality: Quality,
    speed: Speed,
    purposes: Sequence[Purpose],
    remedy: str,
    baselines: dict[str, Numbers] | None = None,
) -> list[Numbers]:
    """Which artifact to ship for each purpose: `for`, `artifact`, `baseline` and a `sentence`.

    Only what is fit is advised: an artifact, or a baseline that serves the purpose better than all
    of them. Where no artifact is, the first entry has none, names the best one and ends with the
    remedy. Without artifacts there is nothing to advise.
    """
    if not artifacts:
        return []
    made = {name: numbers for name, numbers in artifacts.items() if "failed" not in numbers}
    fit = {name: numbers for name, numbers in made.items() if numbers["fit"]["ships"]}
    advice = []
    if not made:
        sentence = "No artifact could be made and run; the reasons are with the artifacts."
        advice.append(_entry("any", sentence))
    elif not fit:
        best = min(made, key=lambda name: quality.loss(made[name]))
        sentence = (
            f"No artifact stays within the tolerance; the best is {best}, but "
            f"{made[best]['fit']['reason']}. {remedy}"
        )
        advice.append(_entry("any", sentence))
    also = {name: one for name, one in (baselines or {}).items() if one["fit"]["ships"]}
    for purpose in purposes:  # of equals, an artifact comes before a baseline
        choices = {name: one for name, one in {**fit, **also}.items() if purpose.suits(one)}
        if choices:
            name = min(choices, key=lambda one: purpose.rank(choices[one]))
            kind, shown = ("artifact", name) if name in fit else ("baseline", f"baseline {name}")
            sentence = f"For {purpose.name}: {shown} ({_words(choices[name], quality, speed)})."
            advice.append(_entry(purpose.name, sentence, **{kind: name}))
    return advice


def _entry(
    purpose: str, sentence: str, artifact: str | None = None, baseline: str | None = None
) -> Numbers:
    return {"for": purpose, "artifact": artifact, "baseline": baseline, "sentence": sentence}


def advise_best(
    model: str, words: str, numbers: Numbers, quality: Quality, speed: Speed, how: str
) -> Numbers:
    """Advice on the best of teacher, students and baselines: as `advise`, and `model`, its name.

    words: what it is. how: a sentence on where it is, or how it is made.
    """
    purpose = f"the best {quality.key} of all that was measured"
    sentence = f"For {purpose}: {words} ({_words(numbers, quality, speed)}). {how}"
    return {**_entry(purpose, sentence), "model": model}


def _words(numbers: Numbers, quality: Quality, speed: Speed) -> str:
    parts = [_size_words(numbers), quality.words(numbers), speed.words(numbers)]
    if numbers.get("fit", {}).get("certain") is False:
        parts.append("within the tolerance as measured, which is not certain")
    return ", ".join(part for part in parts if part)


def _size_words(numbers: Numbers) -> str:
    if numbers["bytes"] is None:
        return ""
    megabytes = numbers["bytes"] / 1e6
    if megabytes < 0.1:
        return f"{1000 * megabytes:,.0f} kB"
    return f"{megabytes:,.0f} MB" if megabytes >= 10 else f"{megabytes:,.1f} MB"
