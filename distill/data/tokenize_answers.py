"""From a row of judged answers to one example: both answers to a prompt, or one that is rated.

Legend: T tokens of a text.

Each answer becomes a text as a prompt with one answer does, cut at `max_length` at its end. The ids
of the prompt are the same in both texts: where the tokenizer joins the prompt's end with the first
word of one answer, the prompt ends before that token in both, and its rest counts as answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from distill.data.chat_rendering import Chat
from distill.data.conversations import Conversation, conversation_of
from distill.data.examples import CHOSEN, REJECTED
from distill.data.preference_rows import (
    OrdinaryRow,
    common_length,
    ordinary_rows,
    rating_of,
)
from distill.data.row_formats import RowFormat, pair_of
from distill.data.tokenize import (
    CUT,
    EMPTY_THOUGHT,
    EMPTY_TURN,
    HIDDEN,
    IGNORE,
    LEFT_OUT,
    NO_ANSWER,
    NO_RATING,
    NO_REPLY,
    NO_ROOM,
    ONE_ANSWER,
    SAME_ANSWERS,
    SAME_BEGINNINGS,
    SEVERAL_TEXTS,
    bare_pair,
    check_chat_template,
    ids_of_learned,
    ids_of_pair,
    name_a_text,
    shifted,
)

if TYPE_CHECKING:
    from distill.data.config import DataConfig

Ids = tuple[list[int], list[bool]]  # of a text, and which of them are the answer's
JudgedExample = tuple[list[int], list[int], None, int, tuple[list[int], list[int]] | None]


def tokenize_judged(
    tokenizer: Any,
    row: Mapping[str, Any],
    layout: RowFormat,
    config: DataConfig,
    tally: Counter[str],
) -> list[JudgedExample]:
    """(ids, labels, None, role, the rejected text's ids and labels) of a row; nothing of one that
    is left out.

    Rows that were cut or left out are counted in `tally`, by reason. Raises `RowError` for one that
    cannot be used, and `DataError` where the tokenizer has no chat template for conversations.
    """
    role = CHOSEN
    if layout.kind == "rated":
        rating = rating_of(row, layout)
        if rating is None:
            tally[NO_RATING] += 1
            return []
        role = CHOSEN if rating else REJECTED
    answers = ordinary_rows(row, layout)
    if not answers:
        tally[ONE_ANSWER] += 1
        return []
    notes: set[str] = set()
    texts = [_ids_of(tokenizer, answer, config, notes) for answer in answers]
    found = [text for text in texts if text is not None]
    if len(found) < len(texts):
        tally.update(notes & set(LEFT_OUT))
        return []
    examples = _judged(found, role, config.max_length, notes)
    tally.update(notes if examples else notes & set(LEFT_OUT))
    return examples


def _judged(texts: list[Ids], role: int, max_length: int, notes: set[str]) -> list[JudgedExample]:
    """The example of one text or of two; none, with the reason in `notes`, where it is left out."""
    texts = _with_one_prompt(texts)
    shortened = [shifted(*text, max_length) for text in texts]
    if not all(any(label != IGNORE for label in labels) for _, labels, _ in shortened):
        notes.add(NO_ROOM if any(cut for *_, cut in shortened) else NO_ANSWER)
        return []
    if any(cut for *_, cut in shortened):
        notes.add(CUT)
    (ids, labels, _), *others = shortened
    if not others:
        return [(ids, labels, None, role, None)]
    other_ids, other_labels, _ = others[0]
    if (ids, labels) == (other_ids, other_labels):
        notes.add(SAME_ANSWERS if texts[0] == texts[1] else SAME_BEGINNINGS)
        return []
    return [(ids, labels, None, role, (other_ids, other_labels))]


def _with_one_prompt(texts: list[Ids]) -> list[Ids]:
    """The texts with the same ids before the first that counts."""
    firsts = [_first(answered) for _, answered in texts]
    prompts = [ids[:first] for (ids, _), first in zip(texts, firsts, strict=True)]
    common = common_length(prompts[0], prompts[-1])
    return [
        (ids, [False] * common + [True] * (first - common) + answered[first:])
        for (ids, answered), first in zip(texts, firsts, strict=True)
    ]


def _first(answered: list[bool]) -> int:
    """The place of the first token of the answer; the number of tokens where there is none."""
    return answered.index(True) if True in answered else len(answered)


def is_bare(tokenizer: Any, answer: OrdinaryRow) -> bool:
    """Whether an answer stands behind its prompt as it is, without a chat template."""
    is_text = all(isinstance(side, str) for side in pair_of(answer.values, answer.layout))
    return answer.bare or (is_text and tokenizer.chat_template is None)


def bare_answer(answer: OrdinaryRow, notes: set[str]) -> tuple[str, str] | None:
    """(the prompt, the prompt with its answer); None and a note of an empty one."""
    row, layout = answer.values, answer.layout
    prompt, text = bare_pair(row, layout)
    if not text[len(prompt) :].strip():
        notes.add(NO_ANSWER)
        return None
    if layout.tools is not None and row[layout.tools]:
        notes.add(HIDDEN % layout.tools)
    return prompt, text


def answered_conversation(answer: OrdinaryRow, notes: set[str]) -> Conversation | None:
    """The conversation of one answer; None and a note where it has no answer."""
    conversation = conversation_of(answer.values, answer.layout)
    if not conversation.learned:
        spoken = [i for i in conversation.replies if i not in conversation.muted]
        notes.add(NO_ANSWER if spoken else NO_REPLY)
        return None
    return conversation


def _ids_of(tokenizer: Any, answer: OrdinaryRow, config: DataConfig, notes: set[str]) -> Ids | None:
    """The ids of one answer's text; None, with the reason in `notes`, where it is left out."""
    if is_bare(tokenizer, answer):
        pair = bare_answer(answer, notes)
        return pair and ids_of_pair(tokenizer, *pair, append_eos=config.append_eos)
    check_chat_template(tokenizer, name_a_text(config))
    conversation = answered_conversation(answer, notes)
    if conversation is None:
        return None
    spoken = [i for i in conversation.replies if i not in conversation.muted]
    chat = Chat(tokenizer, conversation)
    texts = chat.texts()
    if len(texts) > 1:
        notes.add(SEVERAL_TEXTS)
        return None
    if len(conversation.learned) < len(spoken):
        notes.add(EMPTY_TURN)
    if chat.adds_empty_thought:
        notes.add(EMPTY_THOUGHT)
    notes |= {HIDDEN % key for key in chat.hidden_keys}
    return ids_of_learned(tokenizer, texts[0])
