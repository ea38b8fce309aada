"""report.json as tables of text: what every model measured, and the artifacts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from attar.files import read_json_object
from distill.evaluation.job import Numbers
from distill.report.columns import (
    OF_OTHER_TOKENS,
    STUDENTS,
    TableColumns,
    cells,
    have_one_tokenizer,
    shown_columns,
    tokenizer_note,
)
from distill.report.speeds import WITHHELD, is_busy, machine_words

Table = list[list[str]]  # rows of cells, header first


def model_table(report: Numbers, columns: TableColumns, *, intervals: bool = False) -> Table:
    """Teacher, baselines and arms, one a row, with a column more for each downstream task.

    intervals: as in `cells`.
    """
    tasks = downstream_tasks([report["teacher"], *report["arms"].values()])

    def row(name: str, numbers: Numbers) -> list[str]:
        shown = _accuracies(numbers, tasks, intervals)
        found = cells(numbers, columns, intervals=intervals, teacher=report["teacher"])
        return [name, *found, *shown]

    baselines = report.get("baselines", {})  # reports before schema 6 have none
    models = [report["teacher"], *baselines.values(), *report["arms"].values()]
    columns = shown_columns(columns, models, report["teacher"])
    lines = [["", *columns, *tasks], row("teacher", report["teacher"])]
    for kind, models in (("baseline", baselines), ("arm", report["arms"])):
        lines += [row(f"{kind} {name}", one) for name, one in models.items()]
    return lines


def tokenizer_notes(report: Numbers) -> list[str]:
    """What is to be said below that table: why it lacks numbers where the students have another
    tokenizer than the teacher.
    """
    if have_one_tokenizer([report["teacher"], *report["arms"].values()]):
        return []
    return [tokenizer_note("the teacher", [STUDENTS], "are left out")]


def artifact_table(report: Numbers, columns: TableColumns, *, intervals: bool = False) -> Table:
    """Artifacts, one a row, with a column more for each downstream task.

    intervals: as in `cells`.
    """
    artifacts = report["artifacts"]
    tasks = downstream_tasks(artifacts.values())
    columns = shown_columns(columns, artifacts.values(), report.get("teacher"))
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
    models = _by_name(found)
    teacher = found.get("teacher")
    columns = shown_columns(columns, [numbers for _, numbers in models], teacher)
    tasks = downstream_tasks(numbers for _, numbers in models)
    lines = [["", *columns, *tasks]]
    for name, numbers in models:
        shown = _accuracies(numbers, tasks, False)
        lines.append([name, *cells(numbers, columns, teacher=teacher), *shown])
    return lines


def evaluation_notes(found: Numbers) -> list[str]:
    """What is to be said below that table: why models of several tokenizers lack numbers."""
    models = _by_name(found)
    first, numbers = models[0]
    others = [name for name, one in models if not have_one_tokenizer([one, numbers])]
    if not others:
        return []
    if "teacher" not in found:
        return [tokenizer_note(first, others, "")]
    marked = any("kl_to_teacher" in one for _, one in models)
    kl = f"are marked `{OF_OTHER_TOKENS}`" if marked else "are left out"
    return [tokenizer_note("the teacher", others, kl)]


def _by_name(found: Numbers) -> list[tuple[str, Numbers]]:
    teacher = [("teacher", found["teacher"])] if "teacher" in found else []
    return [*teacher, *found["models"].items()]


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
