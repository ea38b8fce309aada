"""`distill advise`: what to try on a recipe's rows, said before anything runs.

From the rows, the models' configurations and the machine; nothing is trained, and no weights are
loaded. After a comparison its sentences come first, since they were measured on these very rows.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attar.errors import RunError
from attar.files import read_json_object
from distill.advise.arm_costs import ArmCost, arm_costs
from distill.advise.guide import Answer, Known, answers_of, shown_bytes
from distill.advise.measured import Measured, nearest_measured
from distill.advise.subject import Subject
from distill.recipe.schema import Recipe

COMPARISON_FILE = "comparison.json"
COMPARISON_KEYS = ("advice", "points", "sizes")
Table = list[list[str]]


class Advice:
    """What is advised for a recipe."""

    def __init__(
        self, costs: list[ArmCost], measured: list[Measured], answers: list[Answer],
        limit: float | None, labels: int, parameters: int, comparison: dict[str, Any] | None,
    ) -> None:  # fmt: skip
        self.costs, self.measured, self.answers = costs, measured, answers
        self.limit, self.labels, self.parameters = limit, labels, parameters
        self.comparison = comparison

    def numbers(self) -> dict[str, Any]:
        """All of it, as `--json` writes it."""
        return {
            "memory_bytes": self.limit,
            "labels": self.labels,
            "parameters": self.parameters,
            "arms": [asdict(one) for one in self.costs],
            "questions": [asdict(one) for one in self.answers],
            "measured": [asdict(one) for one in self.measured],
            "comparison": self.sentences(),
        }

    def sentences(self) -> list[str]:
        """One sentence a constraint, of a comparison of these rows; none without one."""
        if self.comparison is None:
            return []
        return [str(one["sentence"]) for one in self.comparison["advice"]]


def advise(recipe: Recipe, limit: float | None, comparison: Path | None) -> Advice:
    """Advice for a recipe.

    limit: bytes of memory while learning; None where none is known. comparison: folder that
    `distill compare` left. Raises a `UserError` for data, models, or a folder without comparison.
    """
    compared = None if comparison is None else read_comparison(comparison)
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(recipe, Path(folder))
        costs = arm_costs(subject, limit)
        known = Known(subject, {one.arm: one for one in costs}, limit, compared)
        parameters = subject.student.total
        return Advice(
            costs,
            nearest_measured(subject.kind, parameters, subject.labels),
            answers_of(known),
            limit,
            subject.labels,
            parameters,
            compared,
        )


def read_comparison(folder: Path) -> dict[str, Any]:
    """The comparison.json of a folder. Raises `RunError` where there is none."""
    file = folder / COMPARISON_FILE
    if not file.is_file():
        raise RunError(
            f"There is no {COMPARISON_FILE} in {folder}; `distill compare RECIPE --dir {folder}` "
            "leaves one."
        )
    return read_json_object(file, *COMPARISON_KEYS)


# Tables ------------------------------------------------------------------------------------------


def arm_rows(advice: Advice) -> Table:
    """What each arm takes, as a table of text, header first."""
    fits = "fits" if advice.limit is None else f"fits {shown_bytes(advice.limit)}"
    table = [["arm", "trained", "memory", fits, "time", "one more task", "query", "one base"]]
    for one in advice.costs:
        if one.refused is None:
            query = "-" if one.query_tokens is None else f"{one.query_tokens:,.0f} tokens"
            table.append([
                one.arm, _number(one.trained), _bytes(one.memory), _yes(one.fits),
                _time(one.seconds), _bytes(one.task_bytes), query,
                "mixed" if one.mixes else "yes" if one.shares else "no",
            ])  # fmt: skip
    return table


def refusals(advice: Advice) -> list[str]:
    """The arms that do not fit the recipe, a sentence each."""
    return [f"{one.arm} does not fit: {one.refused}." for one in advice.costs if one.refused]


def measured_rows(advice: Advice) -> Table:
    """What was measured on similar shapes, as a table of text, header first."""
    table = [["measured", "arm", "model", "", "quality", "interval", "time", "source"]]
    for group in advice.measured:
        for row in group.rows:
            bounds = row["interval"]
            table.append([
                group.data, row["arm"], row["model"], row["measure"], f"{row['quality']:.3f}",
                "-" if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}",
                _time(row["seconds"]), row["source"],
            ])  # fmt: skip
    return table


def distances(advice: Advice) -> list[str]:
    """How far what was measured is from the recipe, a sentence a group."""
    return [one.describe(advice.parameters, advice.labels) + "." for one in advice.measured]


def question_rows(advice: Advice) -> Table:
    """The questions with their answers, as a table of text, header first."""
    table = [["question", "here", "try", "how sure"]]
    for one in advice.answers:
        table.append([one.question, one.answer, ", ".join(one.arms) or "-", one.sure])
    return table


def reasons(advice: Advice) -> list[str]:
    """Why, a line a question."""
    return [f"{one.question} {one.why}." for one in advice.answers]


def _bytes(size: float | None) -> str:
    return "-" if size is None else shown_bytes(size)


def _number(count: int | None) -> str:
    if count is None:
        return "-"
    return f"{count / 1e6:,.2f} M" if count >= 1e5 else f"{count:,}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def _yes(fits: bool | None) -> str:
    return "-" if fits is None else "yes" if fits else "no"
