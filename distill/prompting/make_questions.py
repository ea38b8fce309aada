"""Questions from rows: of classes, of prompts with answers, and of a downstream task.

Everything that can be wrong with them is found here, before any model is loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from attar.errors import DataError, RecipeError, nearest
from distill.data.config import DataConfig
from distill.data.conversations import conversation_of
from distill.data.labelled_texts import LabelledColumns, columns_of
from distill.data.preference_rows import format_of_table
from distill.data.row_formats import (
    RowFormat,
    check_column,
    content_text,
    fill,
    is_messages,
    pair_of,
    plain_text,
    template_columns,
)
from distill.data.rows_of_parts import PartRow
from distill.data.verifier import final_answer
from distill.evaluation.downstream.config import Cloze, ExactMatch, Harness, TaskConfig
from distill.evaluation.downstream.questions import Question, questions_of
from distill.prompting.config import PromptConfig
from distill.prompting.prompt import TEXT
from distill.prompting.question_set import Kind, QuestionPart, QuestionSet, in_own_order

log = logging.getLogger(__name__)
TEXT_COLUMN = TEXT.strip("{}")  # stands for the column of the texts, whatever its name
SHARES = {"train": 0.25, "dev": 0.25}  # of a task's questions; the others are unseen


# Classes -----------------------------------------------------------------------------------------


def words_of_classes(config: PromptConfig, classes: Sequence[str]) -> tuple[str, ...]:
    """The word of each class. Raises `RecipeError` for a word of an unknown class."""
    words = dict(config.labels or {})
    for name in words:
        if name not in classes:
            raise RecipeError(
                f"`prompt.labels` has a word for `{name}`, which is no class of the data; they are "
                f"{_some(classes)}.{nearest(name, classes)}"
            )
    found = tuple(words.get(name, name) for name in classes)
    if all(word.isdecimal() for word in found):
        log.warning(
            "prompt: the classes are called %s, which says nothing to a model; name them with "
            "`data.label_names`, or with `prompt.labels`",
            _some(found),
        )
    if len(set(found)) < len(found):
        raise RecipeError("`prompt.labels` gives two classes one word; write another for one.")
    return found


def class_questions(
    rows: Mapping[str, Sequence[PartRow]],
    classes: Sequence[str],
    config: PromptConfig,
    data: DataConfig,
) -> QuestionSet:
    """Questions of labelled texts, with the words of all classes as choices."""
    words = words_of_classes(config, classes)
    known: dict[str, LabelledColumns] = {}

    def question(row: PartRow) -> Question:
        columns = known.get(row.source)
        if columns is None:
            columns = known[row.source] = columns_of(row.table.features, row.source, data)
            check_template(config, row.table.features, row.source, (columns.text, columns.pair))
        texts = [plain_text(row.values[n], n) for n in (columns.text, columns.pair) if n]
        text = "\n".join(texts)
        if config.template is not None:
            text = fill(config.template, {TEXT_COLUMN: texts[0], **row.values})
        return Question(text, words, row.label, words[row.label])

    found = question_set("classes", rows, question, config)
    return QuestionSet(
        "classes", found.train, found.dev, found.unseen, words, tuple(classes), found.is_filled
    )


def check_template(
    config: PromptConfig, columns: Mapping[str, Any], source: str, asked: Sequence[str | None]
) -> None:
    """Raise `RecipeError` or `DataError` for a template without the question, or with a column that
    the table does not have.
    """
    if config.template is None:
        return
    named = template_columns(config.template)
    for name in named:
        if name != TEXT_COLUMN:
            check_column(name, columns, source, "prompt.template")
    if not {TEXT_COLUMN, *asked} & set(named):
        places = dict.fromkeys([TEXT, *(f"{{{name}}}" for name in asked if name is not None)])
        raise RecipeError(
            "`prompt.template` does not hold the question: put "
            f"{' or '.join(f'`{place}`' for place in places)} where the text of a row goes."
        )


# Prompts with answers ----------------------------------------------------------------------------


def answer_questions(
    rows: Mapping[str, Sequence[PartRow]], config: PromptConfig, data: DataConfig
) -> QuestionSet:
    """Questions of rows with a prompt and an answer, which a model writes."""
    known: dict[str, RowFormat] = {}

    def question(row: PartRow) -> Question:
        layout = known.get(row.source)
        if layout is None:
            layout = known[row.source] = _format(row, config, data)
        asked, answer = _pair(row, layout)
        text = asked
        if config.template is not None:
            text = fill(config.template, {TEXT_COLUMN: asked, **row.values})
        return Question(text, (final_answer(answer),), 0, answer)

    return question_set("generation", rows, question, config)


def _format(row: PartRow, config: PromptConfig, data: DataConfig) -> RowFormat:
    layout = format_of_table(row.table, row.source, data)
    if layout.kind not in ("pair", "messages"):
        raise DataError(
            f"`prompt` asks questions that have an answer, and the rows of `{row.source}` are "
            "plain texts or judged answers; give rows with `prompt` and `completion`, or name a "
            "task of `evaluate.tasks` with `prompt.task`."
        )
    check_template(config, row.table.features, row.source, layout.columns)
    return layout


def _pair(row: PartRow, layout: RowFormat) -> tuple[str, str]:
    """The text asked and its answer; of a conversation the last question and its answer."""
    if layout.kind == "pair":
        asked, answer = pair_of(row.values, layout)
        if not is_messages(asked) and not is_messages(answer):
            return content_text(asked), content_text(answer)
    messages = conversation_of(row.values, layout).messages
    said = [m for m in messages if m["role"] in ("user", "assistant")]
    if len(said) != 2 or [m["role"] for m in said] != ["user", "assistant"]:
        raise DataError(
            f"`prompt` asks one question at a time, and row {row.example} of a part of "
            f"`{row.source}` is a conversation of several turns; give rows with `prompt` and "
            "`completion`."
        )
    asked, answer = (content_text(m["content"]) for m in said)
    return asked, answer


def question_set(
    kind: Kind,
    rows: Mapping[str, Sequence[PartRow]],
    question: Callable[[PartRow], Question],
    config: PromptConfig,
) -> QuestionSet:
    """The parts, each of the questions of its rows. Raises `DataError` for too many shots."""
    parts = {
        part: QuestionPart(
            tuple(question(row) for row in own),
            np.array([row.example for row in own], np.int64),
            np.array([row.document for row in own], np.int64),
        )
        for part, own in rows.items()
    }
    return QuestionSet(
        kind,
        parts["train"],
        parts["validation"],
        parts["held_out"],
        is_filled=config.template is not None,
    )


def possible_shots(config: PromptConfig, rows: int, where: str) -> PromptConfig:
    """The section with numbers of demonstrations that there are: defaults that are too large are
    left out. Raises `RecipeError` where the recipe itself asks for more rows than may be shown.

    where: the rows that may be shown, in words.
    """
    most, room = max(config.shots), min(rows, config.pool)
    if most <= room:
        return config
    if "shots" not in config.model_fields_set:
        return config.model_copy(update={"shots": [n for n in config.shots if n <= room]})
    few = f"there are {rows} {where}" if rows < config.pool else f"`prompt.pool` is {room}"
    raise RecipeError(
        f"`prompt.shots` asks for {most} demonstrations, and {few}; write {room} or fewer."
    )


# Downstream tasks --------------------------------------------------------------------------------


def task_named(name: str, tasks: Sequence[TaskConfig]) -> TaskConfig:
    """The task of `evaluate.tasks` with a name. Raises `RecipeError` where there is none."""
    for task in tasks:
        if task.name == name:
            if isinstance(task, Harness):
                raise RecipeError(
                    f"`prompt.task: {name}` is a task of lm-eval, which asks its own prompts; name "
                    "one whose questions are in a file."
                )
            return task
    names = [task.name for task in tasks]
    known = f"its tasks are {_some(names)}" if names else "it has none"
    raise RecipeError(
        f"`prompt.task: {name}` is not in `evaluate.tasks`; {known}.{nearest(name, names)}"
    )


def task_questions(task: TaskConfig, config: PromptConfig) -> QuestionSet:
    """The questions of a task's file in three parts: by their content, so that their order does not
    matter. With `shots_data` those are shown, and the file's own choose and report.
    """
    assert not isinstance(task, Harness), "`task_named` refuses it"
    if config.template is not None:
        raise RecipeError(
            f"`prompt.template` has no effect with `prompt.task`; write `prompt` in the task "
            f"`{task.name}` instead."
        )
    kind: Kind = "choices"
    if isinstance(task, Cloze | ExactMatch):
        kind = "cloze" if isinstance(task, Cloze) else "generation"
    alone = {"shots": 0, "limit": None, "shots_data": None}
    _, asked = questions_of(task.model_copy(update=alone))
    order = in_own_order(asked)
    parts: dict[str, QuestionPart] = {}
    if task.shots_data is not None:
        _, shown = questions_of(task.model_copy(update={**alone, "data": task.shots_data}))
        inside = {one.prompt for one in asked}
        others = [one for one in shown if one.prompt not in inside]
        parts["train"] = _part(others, in_own_order(others))
        sizes = [round(SHARES["dev"] * len(order))]
    else:
        sizes = [round(SHARES["train"] * len(order)), round(SHARES["dev"] * len(order))]
        parts["train"] = _part(asked, order[: sizes[0]])
    start = 0 if task.shots_data is not None else sizes[0]
    end = start + max(1, min(sizes[-1], config.dev))
    limit = task.limit if task.limit is not None else len(order)
    parts["dev"] = _part(asked, order[start:end])
    parts["unseen"] = _part(asked, order[end:][:limit])
    if not len(parts["unseen"]):
        raise DataError(
            f"`{task.data}` of the task `{task.name}` has {len(asked)} questions, too few to "
            "choose a prompt and to report it; give 4 or more."
        )
    return QuestionSet(kind, parts["train"], parts["dev"], parts["unseen"])


def _part(questions: Sequence[Question], numbers: Sequence[int]) -> QuestionPart:
    chosen = np.array(sorted(numbers), np.int64)
    return QuestionPart(tuple(questions[i] for i in chosen), chosen, chosen)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
