"""report.json as tables of text: what every model measured, and the artifacts."""

from __future__ import annotations

from pathlib import Path

from attar.files import read_json_object
from distill.evaluation.job import Numbers
from distill.report.columns import TableColumns, cells
from distill.report.speeds import WITHHELD, is_busy, machine_words

Table = list[list[str]]  # rows of cells, header first


def model_table(report: Numbers, columns: TableColumns) -> Table:
    """Teacher, baselines and arms, one a row."""
    lines = [["", *columns], ["teacher", *cells(report["teacher"], columns)]]
    baselines = report.get("baselines", {})  # reports before schema 6 have none
    for kind, models in (("baseline", baselines), ("arm", report["arms"])):
        lines += [[f"{kind} {name}", *cells(one, columns)] for name, one in models.items()]
    return lines


def artifact_table(report: Numbers, columns: TableColumns) -> Table:
    """Artifacts, one a row, with a column more for each downstream task."""
    artifacts = report["artifacts"]
    tasks = sorted({task for numbers in artifacts.values() for task in numbers.get("tasks", {})})
    lines = [["artifact", *columns, *tasks]]
    for name, numbers in artifacts.items():
        scores = [numbers.get("tasks", {}).get(task, {}).get("accuracy") for task in tasks]
        shown = ["" if score is None else f"{score:.3f}" for score in scores]
        lines.append([name, *cells(numbers, columns), *shown])
    return lines


def evaluation_table(found: Numbers, columns: TableColumns) -> Table:
    """Models measured without a recipe, one a row; the teacher, if any, comes first."""
    lines = [["", *columns]]
    if "teacher" in found:
        lines.append(["teacher", *cells(found["teacher"], columns)])
    return [*lines, *([name, *cells(one, columns)] for name, one in found["models"].items())]


def markdown_table(numbers: Numbers, columns: TableColumns) -> str:
    """A model's numbers as a Markdown table, for its card."""
    lines = ["| measure | value |", "|---|---|"]
    for title, column in columns.items():
        shown = column.show(numbers) if numbers.get(column.key) is not None else WITHHELD
        if shown != WITHHELD:
            lines.append(f"| {title} | {shown} |")
    if machine := machine_words(numbers):
        busy = ", while it was busy with other work" if is_busy(numbers) else ""
        lines.append(f"| timed on | {machine}{busy} |")
    return "\n".join(lines)


def read_report(folder: Path) -> Numbers:
    """report.json of a finished run."""
    return read_json_object(folder / "report.json", "arms", "artifacts", "recipe", "verdict")
