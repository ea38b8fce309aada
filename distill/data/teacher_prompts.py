"""A prompt of the teacher's own, by a template over the columns of a row.

Legend: T tokens of a text, P of the teacher's prompt.

The teacher may see more than the student, such as the right answer. What it reads in place of the
student's prompt is followed by the same ids, so its signals at them are of the same predictions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.data.bad_rows import RowError
from distill.data.chat_rendering import Chat
from distill.data.conversations import Conversation, conversation_of
from distill.data.examples import ALONE, Example
from distill.data.row_formats import RowFormat, fill, template_columns
from distill.data.tokenize import (
    IGNORE,
    NO_TEACHER_PROMPT,
    NO_TEACHER_ROOM,
    SEVERAL_TURNS,
    bare_pair,
    bare_prompt,
    bare_text,
    ids_of_learned,
    ids_of_pair,
    tokenize_document,
)

if TYPE_CHECKING:
    from distill.data.config import DataConfig

KEY = "teacher.prompt"  # its path in the recipe
AskedExample = tuple[list[int], list[int], None, int, None, None, list[int]]


def as_teacher_reads(example: Example) -> Example:
    """The text that the teacher reads: its own prompt, where the example has one, and the answer.

    It has the example's key, and as many counted positions with the same labels in the same order.
    """
    prompt = example.teacher_prompt
    if prompt is None:
        return example
    first = int(example.counted[0])
    before = np.full(len(prompt) - 1, IGNORE, np.int64)
    return replace(
        example,
        input_ids=np.concatenate([prompt, example.input_ids[first + 1 :]]),
        labels=np.concatenate([before, example.labels[first:]]),
        teacher_prompt=None,
    )


@dataclass(frozen=True)
class TeacherPrompts:
    """template: of what the teacher is asked. positions: that it has; None: no limit."""

    template: str
    positions: int | None = None

    @property
    def columns(self) -> list[str]:
        """The columns that the template names."""
        return template_columns(self.template)

    def tokenize(
        self,
        tokenizer: Any,
        row: Mapping[str, Any],
        layout: RowFormat,
        config: DataConfig,
        tally: Counter[str],
    ) -> list[AskedExample]:
        """The example of a row as `example_of` takes it, with the teacher's prompt; none of a row
        that is left out.

        Rows that were cut or left out are counted in `tally`, by reason. Raises `RowError` for one
        that cannot be used.
        """
        notes = Counter[str]()
        examples = tokenize_document(tokenizer, row, layout, config, notes)
        found: list[AskedExample] = []
        for ids, labels in examples[:1]:
            prompt = self._prompt(tokenizer, row, layout, config, labels)
            if isinstance(prompt, str):
                notes = Counter([prompt])
                break
            first = _first_counted(labels)
            if self.positions and len(prompt) + len(ids) - first - 1 > self.positions:
                notes = Counter([NO_TEACHER_ROOM])
                break
            found.append((ids, labels, None, ALONE, None, None, prompt))
        tally.update(notes)
        return found

    def _prompt(
        self,
        tokenizer: Any,
        row: Mapping[str, Any],
        layout: RowFormat,
        config: DataConfig,
        labels: list[int],
    ) -> list[int] | str:
        """The ids of the teacher's prompt; or why the row is left out."""
        asked = fill(self.template, row)
        if not any(fill(f"{{{name}}}", row).strip() for name in self.columns):
            return NO_TEACHER_PROMPT
        if tokenizer.chat_template is None:
            return _bare_prompt(tokenizer, row, layout, config, asked, labels)
        conversation = conversation_of(row, layout)
        if len(conversation.learned) > 1:
            return SEVERAL_TURNS
        (text,) = Chat(tokenizer, _asking(conversation, asked)).texts()
        ids, answered = ids_of_learned(tokenizer, text)
        return ids[: answered.index(True)]


def _asking(conversation: Conversation, asked: str) -> Conversation:
    """A conversation whose user asks otherwise before the answer. Raises `RowError` without one."""
    (answer,) = conversation.learned
    messages = list(conversation.messages)
    turns = [i for i in range(answer) if messages[i]["role"] == "user"]
    if not turns:
        raise RowError(f"have no turn of a user, in whose place `{KEY}` stands")
    messages[turns[-1]] = {**messages[turns[-1]], "content": asked}
    return replace(conversation, messages=messages)


def _bare_prompt(
    tokenizer: Any,
    row: Mapping[str, Any],
    layout: RowFormat,
    config: DataConfig,
    asked: str,
    labels: list[int],
) -> list[int] | str:
    """The ids of the teacher's prompt where no chat template puts it before the answer."""
    prompt, whole = bare_pair(row, layout)
    shown = bare_prompt(row, layout, asked)
    text = bare_text(layout, shown, whole[len(prompt) :])
    ids, answered = ids_of_pair(tokenizer, shown, text, append_eos=config.append_eos)
    found = ids[: answered.index(True)]
    if not found:
        return NO_TEACHER_PROMPT
    if _first_counted(labels) == 0:  # the student's prompt may have no id of its own
        own, of_answer = ids_of_pair(tokenizer, prompt, whole, append_eos=config.append_eos)
        found = [*found, *own[: int(of_answer[0])]]
    return found


def _first_counted(labels: list[int]) -> int:
    """The first position whose prediction counts."""
    return next(t for t, label in enumerate(labels) if label != IGNORE)
