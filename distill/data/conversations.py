"""Conversations: rows as chat messages, of which some are learned, with all that comes with them.

Messages go to the chat template whole: whatever keys they have beside `role` and `content` (calls
of tools, reasoning, names) is the template's to show. A value of nothing (null) is as if the key
were absent: tables of one schema cannot tell these apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.data.bad_rows import RowError
from distill.data.row_formats import Message, RowFormat, content_text, pair_of, text_of

SYNONYMS = {"human": "user", "gpt": "assistant"}  # ShareGPT's
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
LEARNED_KEYS = ("train", "training", "weight")  # of a message: whether it is learned
THINKING_KEYS = ("reasoning_content", "reasoning", "thinking")
OPEN_THOUGHT, CLOSE_THOUGHT = "<think>", "</think>"


@dataclass(frozen=True)
class Conversation:
    """Messages; those of the assistant from number `first` on are learned, but for `muted` ones.

    tools: that the assistant may call, as the chat template takes them.
    """

    messages: list[Message]
    first: int
    muted: frozenset[int] = frozenset()
    tools: list[Any] | None = None

    @property
    def replies(self) -> list[int]:
        """Numbers of the messages that the assistant answers with; the first message is none."""
        return [
            i
            for i in range(max(1, self.first), len(self.messages))
            if self.messages[i]["role"] == "assistant"
        ]

    @property
    def learned(self) -> list[int]:
        """Numbers of the replies that are learned: not muted, and not empty."""
        return [i for i in self.replies if i not in self.muted and not is_empty(self.messages[i])]


def is_empty(message: Message) -> bool:
    """Whether a message says nothing and calls no tool."""
    return not message["content"].strip() and not message.get("tool_calls")


def thinking_of(message: Message) -> tuple[str, str]:
    """(what the assistant thinks, what it says): of a key for it, else of tags in the content."""
    content = message["content"]
    for key in THINKING_KEYS:
        if message.get(key):
            return message[key].strip(), content
    thought, closed, answer = content.rpartition(CLOSE_THOUGHT)
    if not closed:
        return "", content
    return thought.rpartition(OPEN_THOUGHT)[2].strip(), answer


def conversation_of(row: Mapping[str, Any], layout: RowFormat) -> Conversation:
    """A row as chat messages, of which some are the answer.

    Raises `RowError` for what is no conversation: no role, no content, a role of nobody.
    """
    if layout.kind == "messages":
        messages, muted = messages_of(row[layout.columns[0]])
        first = 0
    else:
        asked, answer = pair_of(row, layout)
        messages, _ = _side(asked, "user")
        after, later = _side(answer, "assistant")
        messages = [*_history(row, layout), *messages]
        first = len(messages)
        messages, muted = [*messages, *after], {first + i for i in later}
    if (system := text_of(row[layout.system]).strip() if layout.system else "") and messages:
        if messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system}, *messages]
            first, muted = first + bool(first), {i + 1 for i in muted}
        elif messages[0]["content"].strip() != system:
            raise RowError(f"have a system turn and another text in `{layout.system}`")
    return Conversation(messages, first, frozenset(muted), _tools(row, layout))


def _side(value: Any, role: str) -> tuple[list[Message], set[int]]:
    """A prompt or an answer as messages: it holds some, or is one of a role."""
    if isinstance(value, str):
        return [{"role": role, "content": value}], set()
    return messages_of(value)


def _history(row: Mapping[str, Any], layout: RowFormat) -> list[Message]:
    """Earlier turns: pairs of what was asked and answered."""
    messages: list[Message] = []
    for asked, answer in history_of(row, layout):
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": answer})
    return messages


def history_of(row: Mapping[str, Any], layout: RowFormat) -> list[tuple[str, str]]:
    """Pairs of what was asked and answered before a prompt, by the column of such pairs.

    Raises `RowError` for a value that is no list of pairs.
    """
    value = _parsed(row[layout.history], layout.history) if layout.history else None
    pairs = value or []
    if not isinstance(pairs, list) or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
        raise RowError(f"have a `{layout.history}` that is no list of pairs")
    return [(text_of(asked), text_of(answer)) for asked, answer in pairs]


def _tools(row: Mapping[str, Any], layout: RowFormat) -> list[Any] | None:
    if layout.tools is None:
        return None
    value = without_nulls(_parsed(row[layout.tools], layout.tools))
    if not value:
        return None
    if not isinstance(value, list):
        raise RowError(f"have `{layout.tools}` that are no list")
    return [_parsed(tool, layout.tools) for tool in value]


def _parsed(value: Any, column: str | None) -> Any:
    """A value; text is parsed as JSON. Raises `RowError` where it is none."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except ValueError:
        raise RowError(f"have text in `{column}` that is no JSON") from None


# Messages ----------------------------------------------------------------------------------------


def messages_of(given: Any) -> tuple[list[Message], set[int]]:
    """(messages, numbers of those not to be learned) of a list, of its JSON, or of a table of it.

    ShareGPT's `from` and `value` are read as `role` and `content`. Raises `RowError`.
    """
    value = _parsed(given, "messages")
    if isinstance(value, Mapping):
        columns = {key: each for key, each in value.items() if each is not None}
        if all(isinstance(each, list) for each in columns.values()):
            rows = zip(*columns.values(), strict=False)
            value = [dict(zip(columns, row, strict=True)) for row in rows]
        else:
            value = [value]
    if value is None:
        value = []
    if not isinstance(value, list):
        raise RowError("have messages that are no list")
    messages, muted = [], set()
    for number, item in enumerate(value):
        message, learned = _message(_parsed(item, "messages"))
        messages.append(message)
        muted |= set() if learned else {number}
    return messages, muted


def _message(given: Any) -> tuple[Message, bool]:
    """(a message with role and content as text, whether it may be learned)."""
    if not isinstance(given, Mapping):
        raise RowError("have a message that is no object with `role` and `content`")
    message = without_nulls(dict(given))
    if "role" not in message and "from" in message:
        message["role"] = message.pop("from")
        if "value" in message:
            message["content"] = message.pop("value")
    role = message.get("role")
    if not isinstance(role, str):
        raise RowError("have a message without a `role`")
    message["role"] = SYNONYMS.get(role, role)
    for key in THINKING_KEYS:
        if not isinstance(message.get(key, ""), str):
            raise RowError(f"have a message whose `{key}` is no text")
    if "content" not in message and not any(message.get(k) for k in ("tool_calls", *THINKING_KEYS)):
        raise RowError("have a message without `content`")
    message["content"] = content_text(message.get("content", ""))
    flags = [message.pop(key) for key in LEARNED_KEYS if key in message]
    if any(flag not in (0, 1) for flag in flags):
        raise RowError("have a message with a weight that is neither 0 nor 1")
    return message, all(flags)


def without_nulls(value: Any) -> Any:
    """A value without the keys, at any depth, that have no value."""
    if isinstance(value, Mapping):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value
