"""Questions of a task from the rows of a file, whose columns may have their usual names.

Everything that can be wrong with a file is found here, before any model is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attar.checksums import stamp_of_files
from attar.errors import DataError, RecipeError
from distill.data.row_formats import (
    check_column,
    choose_column,
    fill,
    first_of,
    template_columns,
    text_of,
    whole,
)
from distill.data.sources import load_rows, local_files
from distill.data.verifier import Verifier, final_answer, is_right
from distill.evaluation.downstream.config import (
    Cloze,
    ExactMatch,
    Harness,
    MultipleChoice,
    Questions,
    TaskConfig,
)
from distill.evaluation.lm_eval import open_tasks

QUESTION_SEPARATOR = "\n\n"
QUESTION_COLUMNS = (
    "query",
    "question",
    "prompt",
    "instruction",
    "context",
    "ctx",
    "sentence",
    "text",
)
CONTEXT_COLUMNS = ("context", "ctx", "text", "prompt", "query")
CHOICES_COLUMNS = ("choices", "options", "endings")
RIGHT_COLUMNS = ("gold", "label", "answer", "answerKey", "answer_index")
CONTINUATION_COLUMNS = ("continuation", "completion", "target", "answer")
ANSWER_COLUMNS = ("final", "answer", "target", "response", "completion", "output")
WORKED_ANSWER_COLUMNS = ("response", "answer", "completion", "output", "target", "final")


@dataclass(frozen=True)
class Question:
    """One question, its choices, and the right one.

    choices: the right answer among the wrong ones, at `right`; a single one has no rivals.
    shown: the answer as an example shows it, which may be worked out.
    """

    prompt: str
    choices: tuple[str, ...]
    right: int
    shown: str

    @property
    def target(self) -> str:
        """The right answer."""
        return self.choices[self.right]


def check_tasks(tasks: Iterable[TaskConfig], has_template: bool) -> None:
    """Raise `RecipeError` or `DataError` where a task's name, file, columns or package are wrong.

    has_template: whether the models' tokenizer has a chat template.
    """
    names: set[str] = set()
    for i, task in enumerate(tasks):
        where = f"`evaluate.tasks[{i}]`"
        if task.name in names:
            raise RecipeError(f"{where}: there are two tasks with the name `{task.name}`.")
        names.add(task.name)
        if task.chat and not has_template:
            raise RecipeError(
                f"{where}: `chat` needs a chat template, and the tokenizer has none; leave it out."
            )
        if isinstance(task, Harness):
            open_tasks(task)
        else:
            questions_of(task)


def task_stamp(tasks: Iterable[TaskConfig]) -> list[list[str]]:
    """`stamp_of_files` of the tasks' files."""
    files: list[Path] = []
    for task in tasks:
        if isinstance(task, Harness):
            folder = Path(task.include_path).expanduser() if task.include_path is not None else None
            files += sorted(p for p in folder.rglob("*") if p.is_file()) if folder else []
            continue
        files += [path for source in (task.data, task.shots_data) if source is not None
                  for path in local_files(source)]  # fmt: skip
    return stamp_of_files(files)


def questions_of(task: Questions) -> tuple[list[Question], list[Question]]:
    """(questions shown with their answers, questions asked), without a question in both.

    Shown are the first of `shots_data`, or of `data`; asked are all others, or `limit` of them
    spread evenly over the file, which may be sorted. Raises `DataError` where a column is missing
    or a row has no question or answer.
    """
    rows = _checked_rows(task, task.data, "data")
    shown: list[Mapping[str, Any]] = rows[: task.shots]
    numbers = range(len(rows))
    if task.shots_data is not None:
        shown = _checked_rows(task, task.shots_data, "shots_data")[: task.shots]
    else:
        rows, numbers = rows[task.shots :], numbers[task.shots :]
    if len(shown) < task.shots or not rows:
        raise DataError(
            f"Task `{task.name}`: `shots: {task.shots}` needs more rows than "
            f"`{task.shots_data or task.data}` has."
        )
    chosen = range(len(rows))
    if task.limit is not None and task.limit < len(rows):
        chosen = np.linspace(0, len(rows) - 1, task.limit).astype(int).tolist()
    asked = [_question(task, rows[i], task.data, numbers[i]) for i in chosen]
    source = task.shots_data or task.data
    return [_question(task, row, source, i) for i, row in enumerate(shown)], asked


def _checked_rows(task: Questions, source: str, key: str) -> list[Mapping[str, Any]]:
    """Rows of one file, whose columns have been checked."""
    if not local_files(source):
        raise DataError(f"Task `{task.name}`: there is no file {source} (`{key}`).")
    table = load_rows(source, "train", None)
    named = {"answer": task.answer}
    if isinstance(task, MultipleChoice) and isinstance(task.choices, str):
        named["choices"] = task.choices
    if isinstance(task, Cloze):
        named["alternatives"] = task.alternatives
    for name, column in named.items():
        if column is not None:
            check_column(column, table.column_names, source, f"{name} of task {task.name}")
    for column in template_columns(task.prompt) if task.prompt is not None else ():
        check_column(column, table.column_names, source, f"prompt of task {task.name}")
    return list(table)


def _question(task: Questions, row: Mapping[str, Any], source: str, number: int) -> Question:
    """The question of one row, whose number names it in errors."""
    where = f"row {number} of `{source}`"
    asked = CONTEXT_COLUMNS if isinstance(task, Cloze) else QUESTION_COLUMNS
    if task.prompt is not None:
        prompt = fill(task.prompt, row)
    else:
        prompt = text_of(row[_column(task, row, source, "prompt", asked, "question")])
    if not prompt.strip():
        raise DataError(f"The question of {where} is empty.")
    if isinstance(task, MultipleChoice):
        choices, labels = _choices(task, row, source, where)
        gold = row[_column(task, row, source, "answer", RIGHT_COLUMNS, "right answer")]
        right = _right_choice(gold, choices, labels, where)
        return Question(prompt, choices, right, choices[right])
    if isinstance(task, Cloze):
        column = _column(task, row, source, "answer", CONTINUATION_COLUMNS, "continuation")
        target = _answer_text(row[column], where)
        wrong = row.get(task.alternatives or "alternatives") or []
        return Question(prompt, (target, *(text_of(value) for value in wrong)), 0, target)
    column = _column(task, row, source, "answer", ANSWER_COLUMNS, "answer")
    target = _answer_text(row[column], where)
    worked = column if task.answer is not None else first_of(WORKED_ANSWER_COLUMNS, row) or column
    return Question(prompt, (final_answer(target),), 0, text_of(row[worked]))


def _column(
    task: Questions,
    row: Mapping[str, Any],
    source: str,
    key: str,
    usual: tuple[str, ...],
    holds: str,
) -> str:
    """The column that the task's key names, else the first with a usual name."""
    return choose_column(row, getattr(task, key), usual, source=source, key=key, holds=holds)


def _answer_text(value: Any, where: str) -> str:
    text = text_of(value)
    if not text.strip():
        raise DataError(f"The answer of {where} is empty.")
    return text


def _choices(
    task: MultipleChoice, row: Mapping[str, Any], source: str, where: str
) -> tuple[tuple[str, ...], list[str]]:
    """(the choices, the labels by which the right answer may name them)."""
    if isinstance(task.choices, list):
        return tuple(task.choices), []
    given = row[_column(task, row, source, "choices", CHOICES_COLUMNS, "choices")]
    labels: list[str] = []
    if isinstance(given, Mapping):  # ARC: {text: [...], label: [A, B, ...]}
        labels = [text_of(label) for label in given.get("label") or []]
        given = given.get("text")
    choices = tuple(text_of(choice) for choice in given or [])
    if len(choices) < 2 or not all(choice.strip() for choice in choices):
        raise DataError(f"The choices of {where} are not two or more texts: {str(given)[:120]}.")
    return choices, labels


def _right_choice(gold: Any, choices: tuple[str, ...], labels: list[str], where: str) -> int:
    """Which choice is right: a number from 0, a choice's label, its text, or a letter from A."""
    gold = whole(gold)
    named = text_of(gold).strip()
    place = -1
    if named in labels:
        place = labels.index(named)
    elif isinstance(gold, int):
        place = int(gold)
    elif named in (known := [choice.strip() for choice in choices]):
        place = known.index(named)
    elif re.fullmatch(r"\d+", named):
        place = int(named)
    elif re.fullmatch(r"[A-Za-z]", named):
        place = ord(named.upper()) - ord("A")
    if not 0 <= place < len(choices):
        raise DataError(
            f"The right answer of {where} is {gold!r}, which is none of its {len(choices)} choices."
        )
    return place


def stop_of(task: ExactMatch) -> str | None:
    """The text at which an answer ends: outside a chat, by default where the next question would
    begin, as in lm-eval, since a base model goes on with questions of its own.
    """
    return task.stop or (None if task.chat else QUESTION_SEPARATOR)


def is_right_answer(task: ExactMatch, target: str, text: str) -> bool:
    """Whether the answer in a text that a model wrote is the right one, by a task's rules.

    target: the right answer, which may be worked out: its end is found by the same rule. What
    follows the task's stop text does not count.
    """
    return is_right(Verifier(extract=task.extract, stop=stop_of(task)), target, text)
