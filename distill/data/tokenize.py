"""From a row to examples: ids and labels. Labels are shifted here, and nowhere else.

Legend: T tokens of an example.

`labels[t]` is the id that follows position t, or -100 where that prediction does not count. Text is
cut into windows of `max_length` that overlap by one token, so each token but a document's first is
predicted exactly once; where the tokenizer begins every text with an id of its own, every window
does. Conversations, and prompts with their answers, are truncated; only the answers count.
`chat_rendering.py` says which texts a conversation becomes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from attar.errors import DataError
from distill.data.chat_rendering import Chat, LearnedText
from distill.data.conversations import Conversation, conversation_of, history_of
from distill.data.row_formats import RowFormat, join, pair_of, plain_text, text_of

if TYPE_CHECKING:
    from distill.data.config import DataConfig

IGNORE = -100
TokenizedExamples = list[tuple[list[int], list[int]]]  # (ids, labels) of each of its examples

# Why rows are cut or left out, for a tally; the braces are filled with the data's section.
CUT = "are longer than `{}.max_length` and end there"
EMPTY_TURN = "have an empty turn of the assistant, which is not learned"
IN_PIECES = "are learned in several texts, since the chat template changes earlier turns"
EMPTY_THOUGHT = "have no thinking, and are learned with the empty thought of the chat template"
HIDDEN = "have `%s`, which the chat template does not show"
NO_TEXT = "have no text"
NO_CLASS = "have no label"
NO_ANSWER = "have an empty answer"
NO_ROOM = "have a prompt that fills `{}.max_length`, so that no token of the answer is left"
NO_REPLY = "have no message of the assistant to learn"
ONE_ANSWER = "lack one of two answers"
NO_RATING = "have no rating"
SAME_ANSWERS = "have the same answer as chosen and rejected, which teaches nothing"
SAME_BEGINNINGS = "have answers that differ only beyond `{}.max_length`, which teaches nothing"
SEVERAL_TEXTS = "have an answer that the chat template gives in several texts, as no judgement is"
SEVERAL_TURNS = "have several turns to learn, and `teacher.prompt` is the prompt of one"
NO_TEACHER_PROMPT = "have nothing in the columns of `teacher.prompt`"
NO_TEACHER_ROOM = (
    "have a `teacher.prompt` that leaves the answer no room in the teacher's positions"
)
LEFT_OUT = (
    NO_TEXT, NO_CLASS, NO_ANSWER, NO_ROOM, NO_REPLY,
    ONE_ANSWER, NO_RATING, SAME_ANSWERS, SAME_BEGINNINGS, SEVERAL_TEXTS,
    SEVERAL_TURNS, NO_TEACHER_PROMPT, NO_TEACHER_ROOM,
)  # fmt: skip


def windows(
    ids: list[int], max_length: int, first: int | None = None
) -> Iterator[tuple[list[int], list[int]]]:
    """(ids, labels) of windows that overlap by one token; every label but the last counts.

    first: an id that is put before every window but the first, and predicts nothing there.
    """
    lead = [] if first is None or max_length < 3 else [first]
    start, length = 0, max_length
    while start == 0 or start < len(ids) - 1:
        before, piece = lead if start else [], ids[start : start + length]
        if len(piece) >= 2:
            yield [*before, *piece], [*(IGNORE for _ in before), *piece[1:], IGNORE]
        start, length = start + length - 1, max_length - len(lead)


def id_before_texts(tokenizer: Any) -> int | None:
    """The id of the beginning of a sequence, where the tokenizer puts it before every text.

    Models whose tokenizer does so never saw text without it, and some (Gemma) fail on such text: so
    each window of a long text begins with it.
    """
    bos = tokenizer.bos_token_id
    return bos if bos is not None and tokenizer("")["input_ids"][:1] == [bos] else None


def tokenize_learned(
    tokenizer: Any, learned: LearnedText, max_length: int
) -> tuple[list[int], list[int], bool]:
    """(ids, labels, whether they were truncated) of a text of a conversation."""
    return shifted(*ids_of_learned(tokenizer, learned), max_length)


def ids_of_learned(tokenizer: Any, learned: LearnedText) -> tuple[list[int], list[bool]]:
    """(ids, which of them the assistant says) of a text of a conversation.

    A token that stands in a turn and before it counts: where a template ends its prompt in a space,
    the answer's first word is one token with that space.
    """
    encoded = tokenizer(
        learned.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    said = np.zeros(len(learned.text) + 1, np.int64)  # of characters
    for span in learned.spans:
        said[span.start : span.stop] = 1
    before = np.concatenate([[0], np.cumsum(said)])
    offsets = np.asarray(encoded["offset_mapping"], np.int64).reshape(-1, 2)
    starts, ends = offsets[:, 0], np.maximum(offsets[:, 1], offsets[:, 0] + 1)
    return list(encoded["input_ids"]), (before[ends] > before[starts]).tolist()


def tokenize_pair(
    tokenizer: Any, prompt: str, text: str, max_length: int, *, append_eos: bool = True
) -> tuple[list[int], list[int], bool]:
    """(ids, labels, whether it was truncated) of a text that starts with its prompt, which
    does not count.
    """
    return shifted(*ids_of_pair(tokenizer, prompt, text, append_eos=append_eos), max_length)


def ids_of_pair(
    tokenizer: Any, prompt: str, text: str, *, append_eos: bool = True
) -> tuple[list[int], list[bool]]:
    """(ids, which of them are the answer's) of a text that starts with its prompt.

    Both are tokenised together; a token that spans both counts, so the whole answer is learned. The
    end-of-sequence token counts.
    """
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    ids: list[int] = list(encoded["input_ids"])
    answered = [end > max(start, len(prompt)) for start, end in encoded["offset_mapping"]]
    eos = tokenizer.eos_token_id
    if append_eos and eos is not None:
        if not ids or ids[-1] != eos:
            ids, answered = [*ids, eos], [*answered, True]
        answered[-1] = True
    return ids, answered


def shifted(
    ids: list[int], answered: list[bool], max_length: int
) -> tuple[list[int], list[int], bool]:
    """(ids, labels, whether they were truncated); exactly the ids of the answer are predicted."""
    cut, ids = len(ids) > max_length, ids[:max_length]
    following = zip(ids[1:], answered[1:], strict=False)
    return ids, [*(i if counts else IGNORE for i, counts in following), IGNORE][: len(ids)], cut


def answered(
    prompt: Sequence[int], answer: Sequence[int], max_length: int | None = None
) -> tuple[list[int], list[int]]:
    """(ids, labels) of a prompt with an answer, cut at `max_length`: exactly the answer's ids are
    predicted.
    """
    ids, counts = [*prompt, *answer], [False] * len(prompt) + [True] * len(answer)
    ids, labels, _ = shifted(ids, counts, len(ids) if max_length is None else max_length)
    return ids, labels


def tokenize_document(
    tokenizer: Any,
    row: Mapping[str, Any],
    layout: RowFormat,
    config: DataConfig,
    tally: Counter[str] | None = None,
) -> TokenizedExamples:
    """All examples of one row; those without a token that counts are left out.

    Rows that were cut or left out are counted in `tally`, by reason. Raises `RowError` for one
    that cannot be used, and `DataError` where the tokenizer has no chat template for conversations.
    """
    tally = Counter() if tally is None else tally
    if layout.kind == "text":
        found = _text(tokenizer, plain_text(row[layout.columns[0]], layout.columns[0]), config)
        tally[NO_TEXT] += not found
        return found
    if layout.kind == "pair" and tokenizer.chat_template is None:
        asked, answer = pair_of(row, layout)
        if isinstance(asked, str) and isinstance(answer, str):
            return _bare_pair(tokenizer, row, layout, config, tally)
    return _conversation(tokenizer, conversation_of(row, layout), config, tally)


def _text(tokenizer: Any, text: str, config: DataConfig) -> TokenizedExamples:
    ids = tokenizer(text, verbose=False)["input_ids"] if text.strip() else []
    if not ids:
        return []
    eos = tokenizer.eos_token_id
    if config.append_eos and eos is not None and ids[-1] != eos:
        ids = [*ids, eos]
    first = id_before_texts(tokenizer) if len(ids) > config.max_length else None
    return list(windows(ids, config.max_length, first))


def bare_pair(row: Mapping[str, Any], layout: RowFormat) -> tuple[str, str]:
    """(the prompt, the prompt with its answer) where no chat template puts them together.

    What stands before the prompt, a system text and earlier turns, is put before it.
    """
    asked, answer = pair_of(row, layout)
    prompt = bare_prompt(row, layout, asked)
    return prompt, bare_text(layout, prompt, answer)


def bare_prompt(row: Mapping[str, Any], layout: RowFormat, asked: str) -> str:
    """What is asked, with what stands before it in a row: a system text and earlier turns."""
    if layout.template is not None:
        return asked
    system = text_of(row[layout.system]) if layout.system else ""
    earlier = [text for pair in history_of(row, layout) for text in pair]
    return "\n\n".join(text for text in (system, *earlier, asked) if text)


def bare_text(layout: RowFormat, prompt: str, answer: str) -> str:
    """A prompt with its answer; a template says nothing of the space between them."""
    return prompt + answer if layout.template is None else join(prompt, answer)


def _bare_pair(
    tokenizer: Any,
    row: Mapping[str, Any],
    layout: RowFormat,
    config: DataConfig,
    tally: Counter[str],
) -> TokenizedExamples:
    prompt, whole = bare_pair(row, layout)
    if not whole[len(prompt) :].strip():
        tally[NO_ANSWER] += 1
        return []
    if layout.tools is not None and row[layout.tools]:
        tally[HIDDEN % layout.tools] += 1
    example = tokenize_pair(
        tokenizer, prompt, whole, config.max_length, append_eos=config.append_eos
    )
    return _counted([example], tally)


def name_a_text(config: DataConfig) -> str:
    """The remedy of who has conversations and no chat template, where plain texts are learned."""
    return f"name a column of plain text with `{config.section}.text_column`"


def check_chat_template(tokenizer: Any, remedy: str) -> None:
    """Raise `DataError` for a tokenizer without a chat template, which conversations need.

    remedy: what else can be done than to give it one.
    """
    if tokenizer.chat_template is None:
        raise DataError(
            "The data are conversations, and the tokenizer has no chat template; put one into the "
            "model's folder as `chat_template.jinja` (instruct models of its family have one), or "
            f"{remedy}."
        )


def _conversation(
    tokenizer: Any, conversation: Conversation, config: DataConfig, tally: Counter[str]
) -> TokenizedExamples:
    check_chat_template(tokenizer, name_a_text(config))
    chat, learned = Chat(tokenizer, conversation), conversation.learned
    spoken = [i for i in conversation.replies if i not in conversation.muted]
    if not learned:
        tally[NO_ANSWER if spoken else NO_REPLY] += 1
        return []
    texts = [tokenize_learned(tokenizer, text, config.max_length) for text in chat.texts()]
    found = _counted(texts, tally)
    if found:
        tally[EMPTY_TURN] += len(learned) < len(spoken)
        tally[IN_PIECES] += len(texts) > 1
        tally[EMPTY_THOUGHT] += chat.adds_empty_thought
        for key in chat.hidden_keys:
            tally[HIDDEN % key] += 1
    return found


def _counted(
    texts: list[tuple[list[int], list[int], bool]], tally: Counter[str]
) -> TokenizedExamples:
    """The examples with a token that counts."""
    found = [(ids, labels) for ids, labels, _ in texts if any(i != IGNORE for i in labels)]
    cut = any(truncated for *_, truncated in texts)
    if found:
        tally[CUT] += cut
    else:
        tally[NO_ROOM if cut else NO_ANSWER] += 1
    return found
