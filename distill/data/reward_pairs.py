"""Pairs of answers as whole texts, which a reward model scores; one example is both of a pair.

Each text is the prompt with one answer: by the chat template where the tokenizer has one, else the
two put together, with the special tokens that the tokenizer adds to a text. `labels` has 0 at
position 0 and `IGNORE` elsewhere, so that a text counts once. Legend: T tokens.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attar.errors import DataError
from distill.data.chat_rendering import Chat
from distill.data.examples import CHOSEN
from distill.data.preference_rows import (
    MARGIN_COLUMN,
    OrdinaryRow,
    common_length,
    margin_of,
    ordinary_rows,
    preference_format,
)
from distill.data.reader import ReadExamples, Reading, judged_reading, log_unread
from distill.data.row_formats import RowFormat
from distill.data.tokenize import (
    CUT,
    HIDDEN,
    IGNORE,
    LEFT_OUT,
    NO_ROOM,
    ONE_ANSWER,
    SAME_ANSWERS,
    SAME_BEGINNINGS,
    check_chat_template,
)
from distill.data.tokenize_answers import answered_conversation, bare_answer, is_bare

if TYPE_CHECKING:
    from distill.data.config import DataConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnswerText:
    """The text of a prompt with one answer, and the prompt's own, with which it begins.

    bare: no template made it, so that the tokenizer adds its special tokens.
    """

    text: str
    prompt: str
    bare: bool


class RewardPairs:
    """Reader of tables of preferences, for models that give each whole text one number."""

    counts_all: ClassVar[bool] = False
    outputs: ClassVar[int] = 1  # numbers that a teacher gives for a text

    @property
    def stamp(self) -> list[Any]:
        """What examples depend on beside data, tokenizer and seed; part of the fingerprint."""
        return ["rewards"]

    def open(
        self, tokenizer: Any, config: DataConfig, tables: Sequence[Any], sources: Sequence[str]
    ) -> list[Reading]:
        """For each table, the function that reads a row. Raises `DataError` where rows are not
        pairs of answers.
        """
        found = []
        for table, source in zip(tables, sources, strict=True):
            layout = preference_format(table.features, source, config)
            if layout is None:
                raise DataError(
                    f"`{source}` has columns {', '.join(table.features)}: a reward model learns "
                    "from pairs of answers; write `prompt`, `chosen` and `rejected`."
                )
            margin = MARGIN_COLUMN if MARGIN_COLUMN in table.features else None
            log_unread(table, source, [*layout.read, margin or ""])
            found.append(self._reading(tokenizer, config, layout, margin, table, source))
        return found

    def _reading(
        self,
        tokenizer: Any,
        config: DataConfig,
        layout: RowFormat,
        margin: str | None,
        table: Any,
        source: str,
    ) -> Reading:
        def read(row: Mapping[str, Any], tally: Counter[str]) -> ReadExamples:
            better = margin_of(row, margin)
            return [
                (*texts[0], None, CHOSEN, texts[1], better)
                for texts in tokenize_reward_pair(tokenizer, row, layout, config.max_length, tally)
            ]

        return judged_reading(layout, table, source, read)

    def finish(self, files: Mapping[str, Path]) -> dict[str, Any]:
        """Keep how many numbers a teacher gives for a text."""
        return {"outputs": self.outputs}


IdsAndLabels = tuple[list[int], list[int]]


def tokenize_reward_pair(
    tokenizer: Any, row: Mapping[str, Any], layout: RowFormat, max_length: int, tally: Counter[str]
) -> list[tuple[IdsAndLabels, IdsAndLabels]]:
    """(chosen, rejected) of a row, each (ids, labels); nothing of a row that is left out.

    An answer is cut at its end where the text is longer than `max_length`; the special tokens
    behind a text stay. Rows that were cut or left out are counted in `tally`, by reason. Raises
    `RowError` for one that cannot be used, and `DataError` for conversations without a template.
    """
    answers = ordinary_rows(row, layout)
    notes: set[str] = set() if answers else {ONE_ANSWER}
    texts = [_text_of(tokenizer, answer, notes) for answer in answers]
    found = [_cut(tokenizer, text, max_length, notes) for text in texts if text is not None]
    if len(found) == 2 and found[0] == found[1] and NO_ROOM not in notes:
        notes.add(SAME_BEGINNINGS if CUT in notes and texts[0] != texts[1] else SAME_ANSWERS)
    if notes & set(LEFT_OUT):
        tally.update(notes & set(LEFT_OUT))
        return []
    tally.update(notes)
    chosen, rejected = ((ids, [0, *[IGNORE] * (len(ids) - 1)]) for ids in found)
    return [(chosen, rejected)]


def _text_of(tokenizer: Any, answer: OrdinaryRow, notes: set[str]) -> AnswerText | None:
    """The text of one answer; None, with the reason in `notes`, where it is left out."""
    if is_bare(tokenizer, answer):
        pair = bare_answer(answer, notes)
        return pair and AnswerText(pair[1], pair[0], bare=True)
    check_chat_template(tokenizer, "write prompts and answers as plain text")
    conversation = answered_conversation(answer, notes)
    if conversation is None:
        return None
    chat = Chat(tokenizer, conversation)
    notes |= {HIDDEN % key for key in chat.hidden_keys}
    prompt = chat.render(conversation.learned[0], prompt=True)
    return AnswerText(chat.render(len(chat.messages)), prompt, bare=False)


def _cut(tokenizer: Any, answer: AnswerText, max_length: int, notes: set[str]) -> list[int]:
    """The ids of a text, cut to `max_length` before the special tokens behind it.

    Notes that it was cut, or that no token of the answer is left.
    """
    ids, behind = _ids_of(tokenizer, answer.text, answer.bare)
    room = max_length - behind
    if len(ids) <= max_length:
        return ids
    prompt, after = _ids_of(tokenizer, answer.prompt, answer.bare)
    shared = common_length(prompt[: len(prompt) - after], ids)
    notes.add(NO_ROOM if shared >= room else CUT)
    return ids[:room] + ids[len(ids) - behind :]


def _ids_of(tokenizer: Any, text: str, bare: bool) -> tuple[list[int], int]:
    """(ids of a text, how many special tokens the tokenizer put behind it)."""
    encoded = tokenizer(
        text, add_special_tokens=bare, return_special_tokens_mask=True, verbose=False
    )
    added = encoded["special_tokens_mask"]
    behind = next((i for i, one in enumerate(reversed(added)) if not one), len(added))
    return list(encoded["input_ids"]), behind if bare else 0
