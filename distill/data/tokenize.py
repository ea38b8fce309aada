"""From a row to examples: ids and labels. Labels are shifted here, and nowhere else.

Legend: T tokens of an example.

`labels[t]` is the id that follows position t, or -100 where that prediction does not count. Text is
cut into windows of `max_length` that overlap by one token, so each token but a document's first is
predicted exactly once; where the tokenizer begins every text with an id of its own, every window
does. Conversations, and prompts with their answers, are truncated; only the
answers count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from attar.errors import DataError
from distill.data.row_formats import (
    Conversation,
    Message,
    RowFormat,
    conversation_of,
    join,
    pair_of,
)

if TYPE_CHECKING:
    from distill.data.config import DataConfig

IGNORE = -100
TokenizedExamples = list[tuple[list[int], list[int]]]  # (ids, labels) of each of its examples

# Why rows are cut or left out, for a tally; the braces are filled with the data's section.
CUT = "reach `{}.max_length` and end there"
NO_TEXT = "have no text"
NO_ANSWER = "have an empty answer"
NO_ROOM = "have a prompt that fills `{}.max_length`, so that no token of the answer is left"
NO_REPLY = "have no message of the assistant"


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


def render_chat(tokenizer: Any, messages: list[Message], first: int = 0) -> tuple[str, list[range]]:
    """A conversation through the chat template, and the spans of text the assistant wrote.

    Each turn's span runs from the end of the generation prompt to the end of the turn's marker;
    turns before number `first` are part of the prompt and have none.
    Raises `DataError` where the template rewrites earlier turns, so that spans cannot be known.
    """
    spans = []
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or i < first:
            continue
        if i == 0:  # it has no prompt, and templates cannot render an empty conversation
            continue
        before = tokenizer.apply_chat_template(
            messages[:i], tokenize=False, add_generation_prompt=True
        )
        upto = tokenizer.apply_chat_template(messages[: i + 1], tokenize=False)
        if not upto.startswith(before) or not text.startswith(upto.rstrip()):
            raise DataError("The chat template rewrites earlier turns; its loss mask is unknown.")
        end = len(upto.rstrip()) if upto.rstrip().endswith(str(tokenizer.eos_token)) else len(upto)
        spans.append(range(len(before), end))
    return text, spans


def tokenize_chat(
    tokenizer: Any, messages: list[Message], max_length: int, first: int = 0
) -> tuple[list[int], list[int]]:
    """(ids, labels) of one conversation, truncated; only the assistant's tokens count, of turns
    from number `first` on.
    """
    text, spans = render_chat(tokenizer, messages, first)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spoken = [
        any(span.start <= start < span.stop for span in spans)
        for start, _ in encoded["offset_mapping"]
    ]
    return _shifted(encoded["input_ids"], spoken, max_length)


def tokenize_pair(
    tokenizer: Any, prompt: str, text: str, max_length: int, *, append_eos: bool = True
) -> tuple[list[int], list[int]]:
    """(ids, labels) of a text that starts with its prompt, truncated; the prompt does not count.

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
    return _shifted(ids, answered, max_length)


def _shifted(ids: list[int], answered: list[bool], max_length: int) -> tuple[list[int], list[int]]:
    """(ids, labels), truncated, where exactly the ids of the answer are predicted and count."""
    ids = ids[:max_length]
    following = zip(ids[1:], answered[1:], strict=False)
    return ids, [*(i if counts else IGNORE for i, counts in following), IGNORE][: len(ids)]


def tokenize_document(
    tokenizer: Any,
    row: Mapping[str, Any],
    layout: RowFormat,
    config: DataConfig,
    tally: Counter[str] | None = None,
) -> TokenizedExamples:
    """All examples of one row; those without a token that counts are left out.

    Rows that were cut or left out are counted in `tally`, by reason. Raises `DataError` for a
    conversation where the tokenizer has no chat template, or its template refuses it.
    """
    tally = Counter() if tally is None else tally
    if layout.kind == "text":
        found = _text(tokenizer, row[layout.columns[0]] or "", config)
        tally[NO_TEXT] += not found
        return found
    if layout.kind == "pair":
        asked, answer = pair_of(row, layout)
        if isinstance(answer, str) and not answer.strip():
            tally[NO_ANSWER] += 1
            return []
        if tokenizer.chat_template is None and isinstance(asked, str) and isinstance(answer, str):
            whole = asked + answer if layout.template is None else join(asked, answer)
            example = tokenize_pair(
                tokenizer, asked, whole, config.max_length, append_eos=config.append_eos
            )
            return _counted(example, config, tally)
    conversation = conversation_of(row, layout)
    first = max(1, conversation.first)
    if not any(message["role"] == "assistant" for message in conversation.messages[first:]):
        tally[NO_REPLY] += 1
        return []
    return _counted(_conversation(tokenizer, conversation, config), config, tally)


def _text(tokenizer: Any, text: str, config: DataConfig) -> TokenizedExamples:
    ids = tokenizer(text, verbose=False)["input_ids"] if text.strip() else []
    if not ids:
        return []
    eos = tokenizer.eos_token_id
    if config.append_eos and eos is not None and ids[-1] != eos:
        ids = [*ids, eos]
    first = id_before_texts(tokenizer) if len(ids) > config.max_length else None
    return list(windows(ids, config.max_length, first))


def _conversation(
    tokenizer: Any, conversation: Conversation, config: DataConfig
) -> tuple[list[int], list[int]]:
    if tokenizer.chat_template is None:
        raise DataError(
            "The data are conversations but the tokenizer has no chat template; use an instruct "
            f"model's tokenizer, or name a text column with `{config.section}.text_column`."
        )
    messages = conversation.messages
    try:
        return tokenize_chat(tokenizer, messages, config.max_length, conversation.first)
    except TemplateError as error:
        turns = ", ".join(message["role"] for message in messages[:6])
        raise DataError(f"The chat template refuses a conversation ({turns}): {error}") from None


def _counted(
    example: tuple[list[int], list[int]], config: DataConfig, tally: Counter[str]
) -> TokenizedExamples:
    """The example, unless it has no token that counts."""
    ids, labels = example
    full = len(ids) == config.max_length
    if any(label != IGNORE for label in labels):
        tally[CUT] += full
        return [example]
    tally[NO_ROOM if full else NO_ANSWER] += 1
    return []
