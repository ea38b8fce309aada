"""report.json as tables of text: what every model measured, and the artifact matrix."""

from __future__ import annotations

from pathlib import Path

from attar.files import read_json
from distill.evaluation.job import Measured
from distill.report.columns import Columns, cells
from distill.report.task_report import TaskReport

Table = list[list[str]]


def table(report: Measured, of: TaskReport) -> Table:
    """Teacher and arms as text, header first; `of`: the report of the run's task."""
    columns = of.columns
    lines = [["", *columns], ["teacher", *cells(report["teacher"], columns)]]
    arms = report["arms"].items()
    return [*lines, *([f"arm {name}", *cells(found, columns)] for name, found in arms)]


def matrix(report: Measured, of: TaskReport) -> Table:
    """The artifact matrix as text, header first: every artifact by every measure."""
    artifacts = report["artifacts"]
    tasks = sorted({task for found in artifacts.values() for task in found.get("tasks", {})})
    columns = of.matrix
    lines = [["artifact", *columns, *tasks]]
    for name, found in artifacts.items():
        scores = [found.get("tasks", {}).get(task, {}).get("accuracy") for task in tasks]
        shown = ["" if score is None else f"{score:.3f}" for score in scores]
        lines.append([name, *cells(found, columns), *shown])
    return lines


def measured_table(found: Measured, of: TaskReport) -> Table:
    """Models measured without a recipe as text, header first; the teacher on top."""
    columns = {**of.columns, **of.more_columns}
    lines = [["", *columns]]
    if "teacher" in found:
        lines.append(["teacher", *cells(found["teacher"], columns)])
    return [*lines, *([name, *cells(one, columns)] for name, one in found["models"].items())]


def measured_lines(numbers: Measured, columns: Columns) -> str:
    """A model's numbers as a Markdown table, for its card."""
    lines = ["| measure | value |", "|---|---|"]
    for name, (key, show) in columns.items():
        if numbers.get(key) is not None:
            lines.append(f"| {name} | {show(numbers)} |")
    return "\n".join(lines)


def read_report(folder: Path) -> Measured:
    """report.json of a finished run."""
    found: Measured = read_json(folder / "report.json")
    return found
