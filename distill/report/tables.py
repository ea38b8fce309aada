"""report.json as tables of text: what every model measured, and the artifacts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from attar.files import read_json_object
from distill.evaluation.job import Numbers
from distill.report.columns import TableColumns, cells, shown_columns
from distill.report.speeds import WITHHELD, is_busy, machine_words

Table = list[list[str]]  # rows of cells, header first


def model_table(report: Numbers, columns: TableColumns, *, intervals: bool = False) -> Table:
    """Teacher, baselines and arms, one a row, with a column more for each downstream task.

    intervals: as in `cells`.
    """
    tasks = downstream_tasks([report["teacher"], *report["arms"].values()])

    def row(name: str, numbers: Numbers) -> list[str]:
        shown = _accuracies(numbers, tasks, intervals)
        return [name, *cells(numbers, columns, intervals=intervals), *shown]

    baselines = report.get("baselines", {})  # reports before schema 6 have none
    models = [report["teacher"], *baselines.values(), *report["arms"].values()]
    columns = shown_columns(columns, models)
    lines = [["", *columns, *tasks], row("teacher", report["teacher"])]
    for kind, models in (("baseline", baselines), ("arm", report["arms"])):
        lines += [row(f"{kind} {name}", one) for name, one in models.items()]
    return lines


def artifact_table(report: Numbers, columns: TableColumns, *, intervals: bool = False) -> Table:
    """Artifacts, one a row, with a column more for each downstream task.

    intervals: as in `cells`.
    """
    artifacts = report["artifacts"]
    tasks = downstream_tasks(artifacts.values())
    lines = [["artifact", *columns, *tasks]]
    for name, numbers in artifacts.items():
        shown = _accuracies(numbers, tasks, intervals)
        lines.append([name, *cells(numbers, columns, intervals=intervals), *shown])
    return lines


def downstream_tasks(models: Iterable[Numbers]) -> list[str]:
    """Names of the downstream tasks that any of the models was asked, as columns are ordered."""
    return sorted({task for numbers in models for task in numbers.get("tasks", {})})


def _accuracies(numbers: Numbers, tasks: Sequence[str], intervals: bool) -> list[str]:
    """A model's accuracy on each task."""
    return [_accuracy(numbers.get("tasks", {}).get(task, {}), intervals) for task in tasks]


def _accuracy(found: Numbers, interval: bool) -> str:
    if found.get("accuracy") is None:
        return ""
    bounds = found.get("accuracy_interval") if interval else None
    between = "" if bounds is None else f" ({' to '.join(f'{bound:.3f}' for bound in bounds)})"
    return f"{found['accuracy']:.3f}{between}"


def evaluation_table(found: Numbers, columns: TableColumns) -> Table:
    """Models measured without a recipe, one a row; the teacher, if any, comes first. There is a
    column more for each downstream task.
    """
    models = [("teacher", found["teacher"])] if "teacher" in found else []
    models += found["models"].items()
    columns = shown_columns(columns, [numbers for _, numbers in models])
    tasks = downstream_tasks(numbers for _, numbers in models)
    lines = [["", *columns, *tasks]]
    for name, numbers in models:
        lines.append([name, *cells(numbers, columns), *_accuracies(numbers, tasks, False)])
    return lines


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
