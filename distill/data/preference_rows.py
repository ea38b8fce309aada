"""Rows of judged answers: a chosen and a rejected one to a prompt, or one that is rated.

Each answer of such a row is read as a row with a prompt and one answer is (`ordinary_rows`), so
that nothing of a prompt is read in two ways.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from attar.errors import DataError
from distill.data.bad_rows import RowError
from distill.data.conversations import messages_of
from distill.data.row_formats import (
    ANSWER_COLUMNS,
    CONTEXT_COLUMNS,
    HISTORY_COLUMNS,
    PROMPT_COLUMNS,
    REASONING_COLUMNS,
    SYSTEM_COLUMNS,
    TOOLS_COLUMNS,
    RowFormat,
    RowOptions,
    content_text,
    first_of,
    is_messages,
    is_part,
    pair_of,
    row_format_of,
    template_columns,
    text_of,
    whole,
)

PREFERENCE_COLUMNS = (  # the better answer, and the other
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_j", "response_k"),  # of stack-exchange-paired
)
RATING_COLUMN = "label"
MARGIN_COLUMN = "margin"  # of a preference: by how much the chosen answer is better
PROMPT_KEY, ANSWER_KEY = "judged prompt", "judged answer"  # columns of the ordinary rows
WORDS = {"true": True, "false": False, "1": True, "0": False}
SAMPLE_ROWS = 1000  # of a table, spread over it, that tell what its columns hold
FEW_PROMPTS, MANY_ANSWERS = 10, 10  # fewer prompts than this, with more rows each, divide nothing


def format_of_table(table: Any, source: str, options: RowOptions) -> RowFormat:
    """The format of any table's rows.

    A table with both columns of a preference holds preferences; one with a prompt, an answer and a
    boolean `label` holds rated answers; keys of the recipe that name a text or a label come first.
    Raises `DataError` as `row_format_of`, and for one half of a preference.
    """
    features = table.features
    if options.text_column is None and options.label_column is None and not options.label_names:
        found = preference_format(features, source, options) or _rated(table, options)
        if found is not None:
            return found
    try:
        return row_format_of(features, source, options)
    except DataError:
        for pair in PREFERENCE_COLUMNS:
            there = [name for name in pair if name in features]
            if len(there) == 1:
                (missing,) = set(pair) - set(there)
                raise DataError(
                    f"`{source}` has a column `{there[0]}` and no column `{missing}`; preferences "
                    f"need both answers: write `{missing}` beside it, or call the answer "
                    "`completion` to learn it alone."
                ) from None
        raise


def preference_format(
    features: Mapping[str, Any], source: str, options: RowOptions
) -> RowFormat | None:
    """The format of rows with both columns of a preference; None of a table without them.

    Raises `DataError` for a template of the prompt that names a missing column.
    """
    pair = next((pair for pair in PREFERENCE_COLUMNS if set(pair) <= set(features)), None)
    if pair is None:
        return None
    prompts: tuple[str, ...] = ()
    if options.prompt is None:
        prompt = first_of(PROMPT_COLUMNS, features)
        more = [name for name in CONTEXT_COLUMNS if name in features]
        prompts = (prompt, *more) if prompt is not None else ()
    elif unknown := [name for name in template_columns(options.prompt) if name not in features]:
        raise DataError(
            f"`{source}` has no column `{unknown[0]}` (`{options.section}.prompt`); it has "
            f"{', '.join(features)}."
        )
    return RowFormat(
        "preference",
        prompts,
        pair[0],
        template=options.prompt,
        system=first_of(SYSTEM_COLUMNS, features),
        history=first_of(HISTORY_COLUMNS, features),
        tools=first_of(TOOLS_COLUMNS, features),
        rejected=pair[1],
    )


def _rated(table: Any, options: RowOptions) -> RowFormat | None:
    features = table.features
    prompt, answer = first_of(PROMPT_COLUMNS, features), first_of(ANSWER_COLUMNS, features)
    if answer is None or RATING_COLUMN not in features or not _is_boolean(table, RATING_COLUMN):
        return None
    if prompt is None and options.prompt is None:
        return None
    more = [name for name in CONTEXT_COLUMNS if name in features]
    return RowFormat(
        "rated",
        (prompt, *more) if prompt is not None and options.prompt is None else (),
        answer,
        first_of(REASONING_COLUMNS, features),
        template=options.prompt,
        system=first_of(SYSTEM_COLUMNS, features),
        history=first_of(HISTORY_COLUMNS, features),
        tools=first_of(TOOLS_COLUMNS, features),
        label=RATING_COLUMN,
    )


def margin_of(row: Mapping[str, Any], column: str | None) -> float | None:
    """By how much the chosen answer is better; None where the row does not say.

    Raises `RowError` for what is not a finite number.
    """
    value = None if column is None else row[column]
    if value is None or value == "" or value != value:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        shown = text_of(value)[:40]
        raise RowError(f"hold {shown!r} in `{column}`, where a number says how much better it is")
    return number


def sampled_rows(table: Any) -> list[Mapping[str, Any]]:
    """Up to `SAMPLE_ROWS` rows from all over a table, without those that cannot be parsed."""
    found = []
    number = len(table)
    for i in sorted({k * number // SAMPLE_ROWS for k in range(SAMPLE_ROWS)} if number else ()):
        try:
            found.append(table[i])
        except RowError:
            continue  # named where all rows are read
    return found


def _is_boolean(table: Any, column: str) -> bool:
    """Whether a column holds yes and no: booleans, beside which anything else is a mistake; or only
    0 and 1, or the words for true and false, in a sample of the rows. Classes have names.
    """
    if getattr(table.features[column], "names", None):
        return False
    if str(getattr(table.features[column], "dtype", "")).startswith("bool"):
        return True
    values = [row[column] for row in sampled_rows(table)]
    values = [value for value in values if value is not None and value != ""]
    if any(isinstance(value, bool) for value in values):
        return True
    return bool(values) and all(_boolean(value) is not None for value in values)


def _boolean(value: Any) -> bool | None:
    """A value as true or false; None for anything else."""
    if isinstance(value, str):
        return WORDS.get(value.strip().lower())
    value = whole(value)
    return bool(value) if isinstance(value, int) and value in (0, 1) else None


def rating_of(row: Mapping[str, Any], layout: RowFormat) -> bool | None:
    """Whether a rated answer is good; None where the row does not say. Raises `RowError`."""
    assert layout.label is not None
    value = row[layout.label]
    if value is None or value == "" or value != value:
        return None
    found = _boolean(value)
    if found is None:
        shown = text_of(value)[:40]
        raise RowError(f"hold {shown!r} in `{layout.label}`, where true or false rates the answer")
    return found


# Answers -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OrdinaryRow:
    """A prompt and one answer, as a row of kind `pair`.

    bare: the two are pieces of one text that has its own marks of who speaks, so that no chat
    template is put around them.
    """

    values: Mapping[str, Any]
    layout: RowFormat
    bare: bool = False

    @property
    def prompt(self) -> Any:
        """The prompt: text or messages."""
        return pair_of(self.values, self.layout)[0]


def ordinary_rows(row: Mapping[str, Any], layout: RowFormat) -> tuple[OrdinaryRow, ...]:
    """The answers of a row of judged answers, each with the prompt: chosen and rejected, or one.

    Empty where one of the two is missing. Raises `RowError` for values that are no answers, and
    where whole texts or conversations begin with no common prompt.
    """
    if layout.kind == "rated":
        return (OrdinaryRow(row, replace(layout, kind="pair", label=None)),)
    assert layout.answer is not None and layout.rejected is not None  # noqa: PT018
    given = [row[layout.answer], row[layout.rejected]]
    if any(value is None or value != value for value in given):
        return ()
    names = layout.answer, layout.rejected
    answers = [_answer(value, name) for value, name in zip(given, names, strict=True)]
    asked: Any = None
    bare = False
    if all(isinstance(one, str) for one in answers):
        if not layout.columns and layout.template is None:
            asked, answers = split_texts(answers[0], answers[1], names)
            bare = True
    elif any(isinstance(one, str) for one in answers):
        raise RowError(
            f"have messages in one of `{names[0]}` and `{names[1]}`, and text in the other"
        )
    elif any(one[0]["role"] != "assistant" for one in answers):
        asked, answers = split_conversations(answers[0], answers[1], names)
    elif not layout.columns and layout.template is None:
        raise RowError(f"have answers in `{names[0]}` and `{names[1]}`, and no prompt")
    if asked is None:
        plain = replace(layout, kind="pair", answer=ANSWER_KEY, rejected=None)
    else:
        plain = replace(
            layout, kind="pair", columns=(PROMPT_KEY,), answer=ANSWER_KEY, rejected=None,
            template=None, history=None,
        )  # fmt: skip
    return tuple(
        OrdinaryRow({**row, PROMPT_KEY: asked, ANSWER_KEY: answer}, plain, bare)
        for answer in answers
    )


def _answer(value: Any, column: str) -> Any:
    """An answer: text, or messages that were read."""
    if is_messages(value):
        messages_of(value)  # raises for what is no message
        return _named(value)
    if isinstance(value, Mapping) or (isinstance(value, list) and not all(map(is_part, value))):
        kind = "an object" if isinstance(value, Mapping) else "a list"
        raise RowError(f"have {kind} in `{column}`, where text or messages belong")
    return content_text(value) if value != [] else ""


def _named(messages: Any) -> Any:
    """Messages with `role` and `content`, whatever they were called, and their flags."""
    read, muted = messages_of(messages)
    return [{**message, "weight": 0} if i in muted else message for i, message in enumerate(read)]


def common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items two sequences begin with in common."""
    differ = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differ, min(len(one), len(other)))


def split_texts(chosen: str, rejected: str, names: tuple[str, str]) -> tuple[str, list[str]]:
    """(the prompt, both answers) of two texts that begin alike.

    The prompt is what they have in common, cut back to the white space before the first word in
    which they differ. Raises `RowError` where that is nothing.
    """
    common = common_length(chosen, rejected)
    while common and not _starts_word(chosen, rejected, common):
        common -= 1
    while common and chosen[common - 1].isspace():
        common -= 1
    if not chosen[:common].strip():
        raise RowError(
            f"have texts in `{names[0]}` and `{names[1]}` that do not begin with the same prompt"
        )
    return chosen[:common], [chosen[common:], rejected[common:]]


def _starts_word(chosen: str, rejected: str, place: int) -> bool:
    """Whether white space stands at a place of both texts and something follows it in both."""
    rests = chosen[place:], rejected[place:]
    return all(rest[:1].isspace() and rest.strip() for rest in rests)


def split_conversations(
    chosen: list[Any], rejected: list[Any], names: tuple[str, str]
) -> tuple[list[Any], list[list[Any]]]:
    """(the prompt's messages, those of both answers) of two conversations that begin alike.

    Both answers begin with a message of the assistant. Raises `RowError` where there is no prompt.
    """
    common = common_length(chosen, rejected)
    common = min(common, len(chosen) - 1, len(rejected) - 1)
    while common and any(one[common]["role"] != "assistant" for one in (chosen, rejected)):
        common -= 1
    if not common:
        raise RowError(
            f"have conversations in `{names[0]}` and `{names[1]}` that do not begin with the same "
            "prompt"
        )
    return chosen[:common], [chosen[common:], rejected[common:]]


# Prompts -----------------------------------------------------------------------------------------


def prompt_text(row: Mapping[str, Any], layout: RowFormat) -> dict[str, Any]:
    """What a row's prompt says, by which rows of one prompt are known: without system texts.

    The same for a text and for a conversation whose only message it is. Raises `RowError`.
    """
    rows = ordinary_rows(row, layout)
    if not rows:
        return {"prompt": ""}
    history = rows[0].layout.history
    asked = rows[0].prompt
    if isinstance(asked, str):
        said = [asked]
    else:
        messages, _ = messages_of(asked)
        said = [m["content"] for m in messages if m["role"] not in ("system", "developer")]
    return {"prompt": [*([text_of(row[history])] if history and row[history] else []), *said]}


def known_text(table: Any, layout: RowFormat) -> tuple[Callable[..., dict[str, Any]], int]:
    """(what the rows of a table are known by, the number of prompts where these are few, else 0).

    Rows are known by their prompts, unless a table has few of them with many answers each: such
    prompts would leave nothing to divide, so its rows are known by prompt and answers.
    """
    rows, prompts = sampled_rows(table), set()
    for row in rows:
        try:
            prompts.add(str(prompt_text(row, layout)))
        except RowError:
            continue
        if len(prompts) >= FEW_PROMPTS:
            break
    if not prompts or len(prompts) >= FEW_PROMPTS or len(rows) < MANY_ANSWERS * len(prompts):
        return lambda row: prompt_text(row, layout), 0
    names = [name for name in (layout.answer, layout.rejected) if name is not None]

    def with_answers(row: Mapping[str, Any]) -> dict[str, Any]:
        return {**prompt_text(row, layout), "answers": [row[name] for name in names]}

    return with_answers, len(prompts)
