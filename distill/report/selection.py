"""Which artifacts are fit to ship, which are Pareto-optimal, and which one to take for what.

An artifact is fit where it measured no more loss than the recipe's tolerance against the same
student unquantised; `certain` says whether the interval of that loss lies on one side of the
tolerance. It is Pareto-optimal in quality against bytes (against speed) where its quality is
distinguishably better than that of each optimal artifact that is no larger (no slower).
Speeds that cannot be told apart are equal, by the levels of `speed_levels`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from attar.config import Section
from attar.word_lists import listed
from distill.evaluation.job import Numbers
from distill.report.speeds import Speed, speed_levels


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


# Fit to ship -------------------------------------------------------------------------------------


def judge_by_accuracy(
    artifact: Numbers, reference: Numbers, name: str, tolerance: Tolerance, accuracy: str
) -> Numbers:
    """`ships`, what is lost against the reference called `name`, and the reason in words.

    accuracy: what the accuracy is called there.
    """
    lost = reference["accuracy"] - artifact["accuracy"]
    ships = bool(lost <= tolerance.accuracy)  # what is not a number never ships
    reason = "within the tolerance" if ships else f"it loses {100 * lost:.1f} points of {accuracy}"
    return {"reference": name, "accuracy_lost": lost, "ships": ships, "reason": reason}


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

    is_better: as in `pareto_front`. An artifact whose quality is not a number is never optimal, nor
    in speed one whose speed cannot be compared.
    """
    sizes, times = {}, {}
    levels = speed_levels(speed, artifacts)
    for name, numbers in artifacts.items():
        if not math.isfinite(quality.loss(numbers)):
            continue
        if numbers["bytes"] is not None:
            sizes[name] = float(numbers["bytes"]), quality.loss(numbers)
        if speed.compared(numbers) is not None:
            times[name] = float(levels[name]), quality.loss(numbers)
    smallest, fastest = pareto_front(sizes, is_better), pareto_front(times, is_better)
    for name, numbers in artifacts.items():
        numbers["pareto"] = {"bytes": name in smallest, "speed": name in fastest}


# Advice ------------------------------------------------------------------------------------------


DEVICES = {"cuda": "GPU", "cpu": "CPU"}  # in words


@dataclass(frozen=True)
class Purpose:
    """One use of an artifact that the report advises on.

    name: as in "For {name}: ...". rank: the artifact with the least value is advised; None: the
    fastest, of those equally fast an artifact before a baseline, then the best. suits: whether an
    artifact can serve it at all. device: the kind that it is about, of which speeds measured on
    another say nothing.
    """

    name: str
    rank: Callable[[Numbers], Any] | None
    suits: Callable[[Numbers], bool] = lambda _: True
    device: str | None = None


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
    remedy. Where no speed of several can be compared, none is named the fastest. Without artifacts
    there is nothing to advise.
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
        if len(choices) > 1 and _is_unknown(choices, purpose, speed):
            sentence = (
                f"For {purpose.name}: none can be named, since the machine was busy while speeds "
                "were measured; measure again on a quiet machine."
            )
            advice.append(_entry(purpose.name, sentence))
        elif choices:
            name = _first(choices, also, purpose, quality, speed)
            kind, shown = ("artifact", name) if name in fit else ("baseline", f"baseline {name}")
            words = _words(choices[name], quality, speed, purpose.device)
            sentence = f"For {purpose.name}: {shown} ({words}).{_doubt(choices, purpose, speed)}"
            advice.append(_entry(purpose.name, sentence, **{kind: name}))
    return advice


def _first(
    choices: dict[str, Numbers],
    baselines: Collection[str],
    purpose: Purpose,
    quality: Quality,
    speed: Speed,
) -> str:
    """The name of what serves a purpose best."""
    rank = purpose.rank
    if rank is not None:
        return min(choices, key=lambda name: rank(choices[name]))
    levels = speed_levels(speed, choices)

    def order(name: str) -> tuple[float, ...]:
        size, lost = choices[name]["bytes"], quality.loss(choices[name])
        return levels[name], name in baselines, lost, math.inf if size is None else size

    return min(choices, key=order)


def _is_unknown(choices: dict[str, Numbers], purpose: Purpose, speed: Speed) -> bool:
    """Whether what is fastest is asked, and no speed can be compared."""
    return purpose.rank is None and all(speed.compared(one) is None for one in choices.values())


def _doubt(choices: dict[str, Numbers], purpose: Purpose, speed: Speed) -> str:
    """What advice on the fastest has to add, with a space before it: whose speed did not count."""
    left_out = [name for name, one in choices.items() if speed.compared(one) is None]
    if purpose.rank is not None or not left_out:
        return ""
    what = "Speed" if len(left_out) == len(choices) else f"The speed of {listed(left_out)}"
    return f" {what} did not count: the machine was busy while it was measured."


def _entry(
    purpose: str, sentence: str, artifact: str | None = None, baseline: str | None = None
) -> Numbers:
    return {"for": purpose, "artifact": artifact, "baseline": baseline, "sentence": sentence}


def advise_best(
    best: Numbers, words: str, numbers: Numbers, quality: Quality, speed: Speed, how: str
) -> Numbers:
    """Advice on the best of teacher, students and baselines: as `advise`, and `model`, its name.

    best: as of `best_way`. words: what it is. how: a sentence on where it is, or how it is made.
    """
    model, by = best["model"], best["by"]
    purpose = f"the best {quality.key} of all that was measured"
    if by != quality.key:
        purpose += f", and of equals the best {by}"
    sentence = f"For {purpose}: {words} ({_words(numbers, quality, speed)}). {how}"
    return {**_entry(purpose, sentence), "model": model}


def _words(numbers: Numbers, quality: Quality, speed: Speed, device: str | None = None) -> str:
    parts = [_size_words(numbers), quality.words(numbers), _speed_words(numbers, speed, device)]
    if numbers.get("fit", {}).get("certain") is False:
        parts.append("within the tolerance as measured, which is not certain")
    return ", ".join(part for part in parts if part)


def _speed_words(numbers: Numbers, speed: Speed, device: str | None) -> str:
    """The speed, unless the purpose is about another kind of device than it was measured on."""
    measured = numbers.get("machine", {}).get("device", device)
    if device is not None and measured != device:
        return f"its speed on a {DEVICES[device]} was not measured"
    return speed.words(numbers)


def _size_words(numbers: Numbers) -> str:
    if numbers["bytes"] is None:
        return ""
    megabytes = numbers["bytes"] / 1e6
    if megabytes < 0.1:
        return f"{1000 * megabytes:,.0f} kB"
    return f"{megabytes:,.0f} MB" if megabytes >= 10 else f"{megabytes:,.1f} MB"
