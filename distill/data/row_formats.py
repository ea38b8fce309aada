"""Formats of rows: a text, a conversation, or a prompt and its answer.

Judged answers are formats of `preference_rows.py`, which says the format of any table.

Columns with usual names are recognised; others are named in the recipe. A labelled row becomes a
prompt made from a template and the word of its class as the answer, which a language model learns.
`conversations.py` makes messages of rows.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from attar.config import Section
from attar.errors import DataError, nearest
from distill.data.bad_rows import RowError
from distill.data.column_types import holds_text, is_nested

TEXT_COLUMNS = ("text", "content")
CONVERSATION_COLUMNS = ("messages", "conversations", "conversation")
PROMPT_COLUMNS = ("prompt", "instruction", "question")
CONTEXT_COLUMNS = ("input", "context")
ANSWER_COLUMNS = ("completion", "response", "answer", "output")
REASONING_COLUMNS = ("rationale", "reasoning", "thought", "cot")
SYSTEM_COLUMNS = ("system", "system_prompt")
TEXT_PARTS = ("text", "input_text", "output_text")  # types of content parts
HISTORY_COLUMNS = ("history",)
TOOLS_COLUMNS = ("tools",)
LABEL_PROMPT = "{%s}\nLabel:"  # of labelled rows, where the recipe has no template
Message = dict[str, Any]  # `role` and `content` are text


def _checked_template(value: str) -> str:
    template_columns(value)
    return value


Template = Annotated[str, AfterValidator(_checked_template)]  # of a prompt, over columns of a row


class RowOptions(Section):
    """Keys that name the columns of the data, where these do not have usual names."""

    section: ClassVar[str] = "data"  # its path in the recipe
    text_column: str | None = None
    pair_column: str | None = Field(
        None, description="second text of a pair, for `task: sequence-classification`"
    )
    label_column: str | None = Field(
        None, description="column of the class, or of the word, that is the answer"
    )
    label_names: list[str] | None = Field(
        None,
        min_length=1,
        description="words of the classes 0, 1, ... where the column numbers them",
    )
    prompt: Template | None = Field(
        None, description="template of the prompt, column names in braces: `{text}\\nSentiment:`"
    )

    @model_validator(mode="after")
    def _each_has_an_effect(self) -> RowOptions:
        if self.prompt is not None and self.text_column is not None:
            raise ValueError("`text_column` has no effect beside `prompt`, which names its columns")
        return self


@dataclass(frozen=True)
class RowFormat:
    """The format of a table's rows, and the columns that hold each piece."""

    kind: Literal["text", "messages", "pair", "preference", "rated"]
    columns: tuple[str, ...]  # of the text, the messages, or the prompt
    answer: str | None = None  # of a preference the chosen one
    reasoning: str | None = None  # goes before the answer
    template: str | None = None  # makes the prompt
    names: tuple[str, ...] | None = None  # words of the classes whose numbers `answer` holds
    section: str = "data"  # path of the recipe's section that named the columns
    system: str | None = None  # goes before the conversation, or the prompt
    history: str | None = None  # earlier turns of a prompt
    tools: str | None = None  # that the assistant may call
    rejected: str | None = None  # the other answer of a preference
    label: str | None = None  # whether a rated answer is good

    @property
    def read(self) -> list[str]:
        """The columns whose values are used."""
        asked = template_columns(self.template) if self.template is not None else []
        more = [self.answer, self.rejected, self.label, self.reasoning]
        more += [self.system, self.history, self.tools]
        return [*self.columns, *asked, *(name for name in more if name is not None)]


# Templates ---------------------------------------------------------------------------------------


def template_columns(template: str) -> list[str]:
    """The columns that a template names in braces; `{{` and `}}` are braces of its text.

    Raises `ValueError` for text that is not such a template.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"not a template ({error}); write a brace of the text twice") from None
    columns = [name for _, name, _, _ in parts if name is not None]
    for _, name, form, conversion in parts:
        if name is not None and (not name or form or conversion or set(".[") & set(name)):
            raise ValueError("write only the name of a column between braces")
    if not columns:
        raise ValueError("a template names at least one column in braces, as in `{text}`")
    return columns


def fill(template: str, row: Mapping[str, Any]) -> str:
    """A template with the values of a row in it; a missing value is empty."""
    return template.format_map({name: text_of(row[name]) for name in template_columns(template)})


def text_of(value: Any) -> str:
    """A cell as text: an empty one is empty text, an object or a list is JSON."""
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "" if value is None or value != value else str(value)  # NaN is no value


def plain_text(value: Any, column: str) -> str:
    """A cell of a column of texts. Raises `RowError` for an object or a list."""
    if isinstance(value, dict | list):
        kind = "an object" if isinstance(value, dict) else "a list"
        raise RowError(f"have {kind} in `{column}`, where text belongs")
    return text_of(value)


def join(prompt: str, answer: str) -> str:
    """A prompt and its answer, with a space between them unless one has white space there."""
    separated = not prompt or prompt[-1].isspace() or answer[:1].isspace()
    return prompt + answer if separated else f"{prompt} {answer}"


# Columns -----------------------------------------------------------------------------------------


def check_column(name: str, columns: Iterable[str], source: str, key: str) -> None:
    """Raise `DataError`, with the nearest name, for a column that a table does not have."""
    known = list(columns)
    if name not in known:
        raise DataError(
            f"`{source}` has no column `{name}` (`{key}`); it has {', '.join(known)}."
            f"{nearest(name, known)}"
        )


def choose_column(
    columns: Iterable[str],
    named: str | None,
    usual: Iterable[str],
    *,
    source: str,
    key: str,
    holds: str,
) -> str:
    """The column that the recipe names; else, of the usual names in their order, the first that the
    table has.

    key: path of the recipe's key that names it. holds: what it holds, for the message. Raises
    `DataError` for a named column that is missing, and where no column has a usual name.
    """
    known = list(columns)
    if named is not None:
        check_column(named, known, source, key)
        return named
    found = first_of(usual, known)
    if found is None:
        raise DataError(
            f"`{source}` has columns {', '.join(known)}: which holds the {holds}? Name it with "
            f"`{_as_written(key)}`."
        )
    return found


def _as_written(key: str) -> str:
    """A column's key; as a command takes it where the key is an option of the command."""
    return f"{key}=COLUMN" if key.startswith("--set ") else key


def row_format_of(features: Mapping[str, Any], source: str, options: RowOptions) -> RowFormat:
    """The format of a table's rows; `features` are its columns and their types, as in `datasets`.

    Raises `DataError` for a named column that is missing, for classes that are numbers without
    words, and where no column has a usual name.
    """
    columns = list(features)
    for key in ("text_column", "label_column"):
        if (name := getattr(options, key)) is not None:
            check_column(name, columns, source, f"{options.section}.{key}")
    for name in template_columns(options.prompt) if options.prompt is not None else ():
        check_column(name, columns, source, f"{options.section}.prompt")
    if options.label_column is not None:
        return _labelled(features, source, options)
    if options.label_names is not None:
        raise DataError(
            f"`{options.section}.label_names` are the words of `{options.section}.label_column`, "
            "which is missing."
        )
    if options.text_column is not None:
        return RowFormat("text", (options.text_column,))
    if options.prompt is not None:
        answer = first_of(ANSWER_COLUMNS, columns)
        if answer is None:
            raise DataError(
                f"`{source}` has columns {', '.join(columns)}: none of them is an answer to "
                f"`{options.section}.prompt` ({', '.join(ANSWER_COLUMNS)}); name it with "
                f"`{options.section}.label_column`."
            )
        return RowFormat("pair", (), answer, first_of(REASONING_COLUMNS, columns), options.prompt)
    found = _usual(columns)
    if found is None:
        raise _no_text(source, features, options.section)
    return found


def _no_text(source: str, features: Mapping[str, Any], section: str) -> DataError:
    """The error for rows of which no column is known to hold text."""
    if not features:
        return DataError(
            f"`{source}` has no columns: no row is a JSON object; write one a line, as in "
            '`{"text": "..."}`.'
        )
    texts = sum(holds_text(kind) for kind in features.values())
    nested = [name for name, kind in features.items() if is_nested(kind)]
    if nested:
        mend = (
            f"rename `{nested[0]}`, if it holds conversations, to `messages` (objects with `role` "
            "and `content`) or to `conversations` (`from` and `value`)"
        )
    else:
        mend = f"name the text with `{_as_written(f'{section}.text_column')}`"
        if texts > 1 and not section.startswith("--set "):
            by = f"`{section}.prompt` (its column in braces) and `{section}.label_column`"
            mend += f", or questions and their answers with {by}"
    return DataError(
        f"`{source}` has columns {', '.join(features)}: none of them is `text`, `messages`, or "
        f"`prompt` with `completion`; {mend}."
    )


def first_of(names: Iterable[str | None], columns: Iterable[str]) -> str | None:
    """The first of the names that is a column; None where none is."""
    known = set(columns)
    return next((name for name in names if name in known), None)


def _usual(columns: list[str]) -> RowFormat | None:
    """The format of columns with usual names; None where there are none."""
    system, tools = first_of(SYSTEM_COLUMNS, columns), first_of(TOOLS_COLUMNS, columns)
    if (conversation := first_of(CONVERSATION_COLUMNS, columns)) is not None:
        return RowFormat("messages", (conversation,), system=system, tools=tools)
    prompt, answer = first_of(PROMPT_COLUMNS, columns), first_of(ANSWER_COLUMNS, columns)
    if prompt is not None and answer is not None:
        more = [name for name in CONTEXT_COLUMNS if name in columns]
        return RowFormat(
            "pair",
            (prompt, *more),
            answer,
            first_of(REASONING_COLUMNS, columns),
            system=system,
            history=first_of(HISTORY_COLUMNS, columns),
            tools=tools,
        )
    text = first_of(TEXT_COLUMNS, columns)
    return None if text is None else RowFormat("text", (text,))


def _labelled(features: Mapping[str, Any], source: str, options: RowOptions) -> RowFormat:
    """The format of labelled rows: a prompt, and the word of the class as its answer."""
    column = options.label_column
    assert column is not None
    kind = features[column]
    names = options.label_names or getattr(kind, "names", None)
    dtype = str(getattr(kind, "dtype", ""))
    numbers = dtype.startswith(("int", "uint", "bool"))
    if options.label_names is not None and dtype.startswith(("float", "double")):
        numbers = True  # a spreadsheet's 1.0
    if numbers and names is None:
        raise DataError(
            f"`{column}` of `{source}` holds numbers of classes; name their words with "
            f"`{options.section}.label_names`, e.g. `[negative, positive]`."
        )
    if options.label_names is not None and not numbers:
        raise DataError(
            f"`{options.section}.label_names` has no effect: `{column}` of `{source}` does not "
            "hold numbers of classes; leave it out."
        )
    template = options.prompt
    if template is None:
        text = first_of((options.text_column, *TEXT_COLUMNS, "sentence"), features)
        if text is None:
            raise DataError(
                f"`{source}` has columns {', '.join(features)}: none of them is `text`; write the "
                f"prompt with `{options.section}.prompt`, e.g. `{{review}}\\nSentiment:`."
            )
        template = LABEL_PROMPT % text
    return RowFormat("pair", (), column, None, template, tuple(names or ()), options.section)


# Rows --------------------------------------------------------------------------------------------


def whole(value: Any) -> Any:
    """A value; a whole number that is written as a fraction (1.0) is a whole number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def word_of(value: Any, names: tuple[str, ...], column: str, section: str) -> str:
    """The word of a class; empty where the row has no class.

    Raises `RowError` for a number without a word, and for a value that is neither word nor number.
    """
    value = whole(value)
    if value is None or isinstance(value, str) or value != value:
        return value if isinstance(value, str) else ""
    if not isinstance(value, int) or not names:
        raise RowError(
            f"hold {value!r} in `{column}`, which is neither a word nor the number of a class in "
            f"`{section}.label_names`"
        )
    if not 0 <= value < len(names):
        raise RowError(
            f"hold in `{column}` class {value}, and `{section}.label_names` has words for 0 to "
            f"{len(names) - 1}"
        )
    return names[value]


def pair_of(row: Mapping[str, Any], layout: RowFormat) -> tuple[Any, Any]:
    """The prompt and the answer of a row of kind `pair`: each a text, or a list of messages.

    Reasoning is put before the answer, on lines of its own. Raises `RowError`.
    """
    assert layout.answer is not None
    if layout.template is not None:
        asked: Any = fill(layout.template, row)
    elif is_messages(row[layout.columns[0]]):
        asked = row[layout.columns[0]]
    else:
        texts = [content_text(row[name]) for name in layout.columns]
        asked = "\n\n".join(text for text in texts if text)
    answer = row[layout.answer]
    if is_messages(answer):
        return asked, answer
    if layout.names is not None:
        answer = word_of(answer, layout.names, layout.answer, layout.section)
    answer = content_text(answer)
    reasoning = text_of(row[layout.reasoning]).rstrip() if layout.reasoning is not None else ""
    if reasoning and answer.strip():
        answer = f"{reasoning}\n{answer}"
    return asked, answer


def is_messages(value: Any) -> bool:
    """Whether a value is a list of messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, Mapping) and bool({"role", "from"} & set(one)) for one in value)
    )


def content_text(value: Any) -> str:
    """A message's content, or a cell, as text; the texts of a list of parts are put together.

    Other lists, and objects, are JSON. Raises `RowError` for a part that is no text.
    """
    if not isinstance(value, list) or not value or not all(is_part(part) for part in value):
        return text_of(value)
    for part in value:
        if part.get("type", "text") not in TEXT_PARTS or not isinstance(part.get("text"), str):
            raise RowError(
                f"have a content part of the type `{part['type']}`; only text is learned"
            )
    return "".join(part["text"] for part in value)


def is_part(value: Any) -> bool:
    """Whether a value is a part of a content: an object with a type, or with a text alone."""
    keys = set(value) if isinstance(value, Mapping) else set()
    return "type" in keys or (keys == {"text"} and isinstance(value["text"], str))
