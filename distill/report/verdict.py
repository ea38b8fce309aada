"""The rule of verdicts: distilling helped only where nothing that was measured got worse.

A task lists what it compares as `Measure`s, the first being what counts most. Each is compared
between the distilled student and a control on the same texts, with a 95% interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from attar.word_lists import listed
from distill.evaluation.bootstrap import proportions_difference_interval
from distill.evaluation.job import Numbers
from distill.report.measurements import Measurements
from distill.report.paired_difference import (
    UNTOLD,
    direction,
    in_words,
    paired_difference,
)
from distill.report.tables import Table

Difference = Callable[[Measurements, str, str], Numbers]  # of model a minus model b


@dataclass(frozen=True)
class Measure:
    """A number by which two models are compared.

    key: of the number in a model's numbers, of the difference in the verdict. name: in sentences.
    difference: as `paired_difference` gives it. higher: whether higher is better. show: the number
    in sentences. digits, scale, unit: of its differences there. counts: whether distilling did not
    help where the number is worse.
    """

    key: str
    name: str
    difference: Difference
    higher: bool
    show: Callable[[float], str] = "{:.3f}".format
    digits: int = 3
    scale: float = 1.0
    unit: str = ""
    counts: bool = True

    @property
    def better(self) -> str:
        """The direction of a difference that is good."""
        return "higher" if self.higher else "lower"

    def is_worse(self, difference: Numbers) -> bool:
        """Whether a difference is distinguishable, and in the direction that is bad."""
        return direction(difference) not in (self.better, UNTOLD, "not distinguishable")

    def said(self, difference: Numbers) -> str:
        """Whether a model is better or worse than another, by its difference from that."""
        found = direction(difference)
        if found in (UNTOLD, "not distinguishable"):
            return found
        return "better" if found == self.better else "worse"

    def in_words(self, difference: Numbers) -> str:
        """A difference of this number and its interval."""
        return in_words(difference, self.digits, self.scale, self.unit)


def mean_of(array: str, *, by_token: bool = False) -> Difference:
    """Differences of the mean of an array by text; of what is right or wrong `by_token`."""
    return lambda measured, a, b: paired_difference(measured, array, a, b, by_token=by_token)


def percent(value: float) -> str:
    """A share as sentences show it."""
    return f"{value:.1%}"


NLL = Measure("nll", "nll", mean_of("nll"), higher=False)
KL = Measure("kl_to_teacher", "KL to the teacher", mean_of("kl"), higher=False)
ACCURACY = Measure(
    "accuracy", "accuracy", mean_of("correct"), higher=True, show=percent, digits=2, scale=100,
    unit=" points",
)  # fmt: skip
TOKEN_ACCURACY = replace(ACCURACY, difference=mean_of("correct", by_token=True))
TOKEN_AGREEMENT = replace(
    TOKEN_ACCURACY, key="top1_agreement", name="agreement with the teacher",
    difference=mean_of("agree", by_token=True),
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Two models compared by every measure, the first of which counts most.

    models: numbers by name. a: the distilled student. b: the control, called `control` in
    sentences. found: differences by key of the measure. tasks: differences of accuracy by
    downstream task. deciding: keys of what decides where the first is not distinguishable: one of
    them must be better.
    """

    measures: Sequence[Measure]
    models: dict[str, Numbers]
    found: dict[str, Numbers]
    tasks: dict[str, Numbers]
    a: str
    b: str
    control: str
    deciding: Sequence[str] = ()

    @property
    def worse(self) -> list[Measure]:
        """What counts and got significantly worse."""
        return [one for one in self.measures if one.counts and one.is_worse(self.found[one.key])]

    @property
    def worse_tasks(self) -> list[str]:
        """Downstream tasks on which the accuracy got significantly lower."""
        return [name for name, one in self.tasks.items() if direction(one) == "lower"]

    def is_better(self, measure: Measure) -> bool:
        """Whether a number got significantly better."""
        return measure.said(self.found[measure.key]) == "better"

    def helped(self) -> bool | None:
        """Whether the first is better, or not distinguishable with another one better that decides
        then, and nothing that counts is worse. None: cannot be told.
        """
        if self.worse or self.worse_tasks:
            return False
        first = self.measures[0].said(self.found[self.measures[0].key])
        if first == UNTOLD:
            return None
        deciding = [one for one in self.measures if one.key in self.deciding]
        return first == "better" or any(map(self.is_better, deciding))

    def entry(self) -> Numbers:
        """The keys of the verdict in report.json."""
        worse = [one.key for one in self.worse] + [f"tasks.{name}" for name in self.worse_tasks]
        tasks = {"tasks": self.tasks} if self.tasks else {}
        return {"helped": self.helped(), "worse": worse, **self.found, **tasks}

    def worse_sentence(self) -> str:
        """What got worse beside the first measure, with its numbers and a space behind it; empty
        where nothing did.
        """
        first, models = self.measures[0], self.models
        clauses = [
            self._change(one, models[self.b][one.key], models[self.a][one.key])
            for one in self.worse
            if one is not first
        ]
        clauses += [self._task_change(name) for name in self.worse_tasks]
        if not clauses:
            return ""
        return f"Distilling did not help: {self._standing()} {listed(clauses)}. "

    def numbers(self, measure: Measure) -> str:
        """A number of the student and of the control, with the difference and its interval."""
        shown = (measure.show(self.models[name][measure.key]) for name in (self.a, self.b))
        found = measure.in_words(self.found[measure.key])
        return f"{measure.name} {' against '.join(shown)} ({found})"

    def _standing(self) -> str:
        """How the first measure compares, up to the conjunction of what got worse."""
        first = self.measures[0]
        found = direction(self.found[first.key])
        if found == UNTOLD:
            return (
                f"its {first.name} cannot be told better or worse than that of {self.control}, but"
            )
        if found == "not distinguishable":
            return f"tied with {self.control} in {first.name}, but"
        if found == first.better:
            return f"better than {self.control} in {first.name}, but"
        return f"worse than {self.control} in {first.name}, and"

    def _change(self, measure: Measure, before: float, after: float) -> str:
        moved = "fell" if measure.higher else "rose"
        return (
            f"{measure.name} {moved} from {measure.show(before)} to {measure.show(after)} "
            f"({measure.in_words(self.found[measure.key])})"
        )

    def _task_change(self, name: str) -> str:
        before, after = (self.models[one]["tasks"][name]["accuracy"] for one in (self.b, self.a))
        found = ACCURACY.in_words(self.tasks[name])
        return f"accuracy on {name} fell from {before:.1%} to {after:.1%} ({found})"


def compare(
    measured: Measurements,
    measures: Sequence[Measure],
    b: str,
    control: str,
    deciding: Sequence[str] = (),
) -> Comparison:
    """The distilled student against the control `b`, by measures that both have."""
    models = measured.models
    found = {one.key: one.difference(measured, "distill", b) for one in measures}
    tasks = task_differences(models["distill"], models[b])
    return Comparison(measures, models, found, tasks, "distill", b, control, deciding)


def task_differences(one: Numbers, other: Numbers) -> dict[str, Numbers]:
    """Differences of accuracy on each downstream task that both models could be asked.

    The answers to each question are not kept, so intervals are those of unpaired shares.
    """
    found = {}
    for name, mine in one.get("tasks", {}).items():
        its = other.get("tasks", {}).get(name, {"accuracy": None})
        if mine["accuracy"] is None or its["accuracy"] is None:
            continue
        shares = [(numbers["accuracy"], *numbers["accuracy_interval"]) for numbers in (mine, its)]
        found[name] = {
            "difference": mine["accuracy"] - its["accuracy"],
            "interval": proportions_difference_interval(*shares),
            "examples": mine["examples"],
            **({"seeds": mine["seeds"]} if "seeds" in mine else {}),
        }
    return found


def comparison_table(report: Numbers, measures: Sequence[Measure], b: str) -> Table:
    """Each measure of the control `b` and of the distilled student, with the paired difference;
    [] where the verdict has none.
    """
    verdict, arms = report["verdict"], report["arms"]
    lines = [["", f"arm {b}", "arm distill", "difference", "distilling is"]]
    for one in measures:
        if one.key in verdict:
            before, after = (one.show(arms[name][one.key]) for name in (b, "distill"))
            found = verdict[one.key]
            lines.append([one.name, before, after, one.in_words(found), one.said(found)])
    return lines if len(lines) > 1 else []


def comparison_terms(measures: Sequence[Measure]) -> dict[str, str]:
    """What the words of tables of differences mean, where these measures are compared."""
    higher = [one.name for one in measures if one.higher]
    lower = [one.name for one in measures if not one.higher]
    said = {"higher is better": listed(higher), "lower is better": listed(lower)}
    return {
        "difference": "the distilled student's number minus the other model's, on the same texts",
        "95% interval": "with other texts of the same kind the difference would be within it",
        "better, worse": "the interval lies on one side of 0",
        "not distinguishable": "the interval holds 0, so chance may have made the difference",
        "cannot be told": "there are too few texts for an interval",
        **{key: names for key, names in said.items() if names},
    }
