"""Conversations through a chat template: the texts to learn from, and what of them is learned.

Each turn is learned as the template gives it at that turn: after the text that a model is prompted
with there, up to the end of the turn. Templates of thinking models drop the thoughts of earlier
turns as turns are added, so the text of one turn need not begin the text of the next. Turns whose
texts do are learned in one text; a new one begins where a text does not continue the last.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from distill.data.bad_rows import RowError
from distill.data.conversations import (
    CLOSE_THOUGHT,
    OPEN_THOUGHT,
    ROLES,
    THINKING_KEYS,
    Conversation,
    thinking_of,
)
from distill.data.row_formats import Message

MARK_START, MARK_END = "\ue0a1", "\ue0a2"  # for private use: around contents, to find them again
EMPTY_THOUGHT = rf"\s*({OPEN_THOUGHT})?\s*{CLOSE_THOUGHT}\s*"
FEW_TURNS = 4  # are all rendered
REWRITES = "have a turn that does not follow the prompt that the chat template gives for it"
NO_THOUGHT = (
    f"have an answer without thinking, and the chat template begins every answer with "
    f"`{OPEN_THOUGHT}`; write the thinking before the answer, as `reasoning_content` or in "
    f"`{OPEN_THOUGHT}...{CLOSE_THOUGHT}`"
)
SYSTEM_MEND = "; put the text of the system turn at the start of the first user turn"


@dataclass(frozen=True)
class LearnedText:
    """A text, and the spans of it that the assistant says: to the end of the turn's marker."""

    text: str
    spans: list[range]


@dataclass(frozen=True)
class Turn:
    """What the model is prompted with at a turn, and what it is to say."""

    prompt: str
    said: str

    @property
    def text(self) -> str:
        """Both."""
        return self.prompt + self.said


class Chat:
    """A conversation and the chat template of a tokenizer.

    adds_empty_thought: whether the template gave a turn without thinking an empty thought; known
    once the texts are made.

    Raises `RowError` for a role that the template does not know, and for tools' calls that it does
    not show.
    """

    def __init__(self, tokenizer: Any, conversation: Conversation) -> None:
        self._tokenizer = tokenizer
        self._template = str(tokenizer.chat_template)
        self._tools = conversation.tools
        self.learned = conversation.learned
        self.adds_empty_thought = False
        self.messages = [self._named_for_template(m) for m in conversation.messages]
        for message in self.messages:
            role = message["role"]
            if role not in ROLES and not re.search(rf"['\"]{re.escape(role)}['\"]", self._template):
                raise RowError(f"have a message of the role `{role}`; known are {', '.join(ROLES)}")
        self._choose_arguments()

    def _named_for_template(self, message: Message) -> Message:
        """The message with its thinking under the key that the template reads."""
        given = next((key for key in THINKING_KEYS if message.get(key)), None)
        if given is None or self._mentions(given):
            return message
        read = next((key for key in THINKING_KEYS if self._mentions(key)), None)
        if read is None:
            return message
        return {read if key == given else key: value for key, value in message.items()}

    def _mentions(self, key: str) -> bool:
        return re.search(rf"\b{re.escape(key)}\b", self._template) is not None

    @cached_property
    def hidden_keys(self) -> list[str]:
        """Keys of the messages, and `tools`, that the template does not show."""
        keys = {k for m in self.messages for k in m if k not in ("role", "content", *THINKING_KEYS)}
        keys |= {"tools"} if self._tools else set()
        return sorted(key for key in keys if not self._mentions(key))

    # Rendering -------------------------------------------------------------------------------

    def render(self, number: int, *, prompt: bool = False) -> str:
        """The first messages; prompt: and the beginning of the assistant's next turn."""
        return self._rendered(self.messages[:number], prompt)

    def _rendered(self, messages: list[Message], prompt: bool = False) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, tools=self._tools, tokenize=False, add_generation_prompt=prompt
                )
            )
        except Exception as error:  # a template is a program, and raises what programs raise
            says = " ".join(str(error).split())[:160]
            mend = SYSTEM_MEND if self._minds_system(messages) else ""
            raise RowError(f"are refused by the chat template ({says}){mend}") from error

    def _minds_system(self, messages: list[Message]) -> bool:
        """Whether the template takes the messages without their system turn."""
        others = [message for message in messages if message["role"] != "system"]
        if len(others) in (0, len(messages)):
            return False
        try:
            self._tokenizer.apply_chat_template(others, tools=self._tools, tokenize=False)
        except Exception:  # as above
            return False
        return True

    def _choose_arguments(self) -> None:
        """Give the arguments of calls as objects, or as JSON text where the template wants that.

        Raises `RowError` where the template does not show calls.
        """
        if not any(message.get("tool_calls") for message in self.messages):
            return
        given = self.messages
        tried: list[str] = []
        text = ""
        for as_text in (False, True):
            self.messages = [_with_arguments(message, as_text) for message in given]
            try:
                text = self.render(len(given))
            except RowError as error:
                tried.append(error.reason)
                continue
            if as_text or not any(str(a) in text for m in self.messages for a in _arguments(m)):
                break
        if len(tried) == 2:
            raise RowError(tried[0])
        bare = [{k: v for k, v in m.items() if k != "tool_calls"} for m in self.messages]
        try:
            shown = self._rendered(bare) != text
        except RowError:
            shown = True
        if not shown:
            raise RowError("have `tool_calls`, which the chat template does not show")

    # Turns -----------------------------------------------------------------------------------

    def turn(self, i: int) -> Turn:
        """Message `i` as the template gives it as the last one, its thinking included.

        Raises `RowError` where that cannot be known.
        """
        before, after = self.render(i, prompt=True), self.render(i + 1)
        thought, answer = thinking_of(self.messages[i])
        opened = before.rstrip().endswith(OPEN_THOUGHT)
        head = before.rstrip().removesuffix(OPEN_THOUGHT) if opened else before
        if after.startswith(before):
            said = after[len(before) :]
            self.adds_empty_thought |= not thought and re.match(EMPTY_THOUGHT, said) is not None
            if _shows(said, thought, answer):
                self._check_calls(i, said)
                return Turn(before, said)
        elif not (opened and after.startswith(head)):
            raise RowError(REWRITES)
        else:
            said = after[len(head) :]
        if not thought:
            raise RowError(NO_THOUGHT)
        if not opened and CLOSE_THOUGHT not in self._template:
            key = next((key for key in THINKING_KEYS if self.messages[i].get(key)), "content")
            raise RowError(
                f"have thinking in `{key}`, which the chat template does not show; write it into "
                f"`content` before the answer, or leave it out"
            )
        rest = re.sub(f"^{EMPTY_THOUGHT}", "", said).lstrip()
        if CLOSE_THOUGHT in rest:
            raise RowError("have thinking that the chat template changes")
        self._check_calls(i, rest)
        opening = "" if opened else f"{OPEN_THOUGHT}\n"
        return Turn(before, f"{opening}{thought}\n{CLOSE_THOUGHT}\n\n{rest}")

    def _check_calls(self, i: int, said: str) -> None:
        """Raise `RowError` where a turn's text lacks a call of a tool that the turn makes."""
        names = [_function(call).get("name") for call in self.messages[i].get("tool_calls") or []]
        if not all(str(name) in said for name in names):
            raise RowError("have `tool_calls` in a turn to learn, which the chat template hides")

    def _span(self, turn: Turn) -> range:
        """Where the assistant speaks in a turn's text."""
        text, end = turn.text, str(self._tokenizer.eos_token)
        shown = text.rstrip()
        return range(len(turn.prompt), len(shown) if shown.endswith(end) else len(text))

    def texts(self) -> list[LearnedText]:
        """The texts to learn from; one where every turn's text begins the next one's."""
        if not self.learned:
            return []
        found = self._nested() if len(self.learned) > FEW_TURNS else None
        if found is not None:
            return [found]
        texts: list[LearnedText] = []
        for i in self.learned:
            turn = self.turn(i)
            span = self._span(turn)
            if texts and turn.prompt.startswith(texts[-1].text.rstrip()):
                texts[-1] = LearnedText(turn.text, [*texts[-1].spans, span])
            else:
                texts.append(LearnedText(turn.text, [span]))
        if self.learned[-1] + 1 < len(self.messages):
            whole = self.render(len(self.messages))
            if whole.startswith(texts[-1].text.rstrip()):
                texts[-1] = LearnedText(whole, texts[-1].spans)
        return texts

    def _nested(self) -> LearnedText | None:
        """The whole conversation as one text, found by few renderings; None where it is not sure.

        Each message is found by marks around some text of it. What stands between two such texts
        is the template's own, and what it makes of thinking and calls. A turn is rendered where
        these words are new, and turns between the same words lie in the same way. Turns are
        rendered in between, too, to be sure.
        """
        anchors = [_anchor(message) for message in self.messages]
        if any(not text or MARK_START in text or MARK_END in text for text in anchors):
            return None
        whole = self.render(len(self.messages))
        marked = self._rendered([_marked(message) for message in self.messages])
        marks = list(re.finditer(f"[{MARK_START}{MARK_END}]", marked))
        places = [mark.start() - k for k, mark in enumerate(marks)]
        starts, ends = places[::2], places[1::2]
        found = [whole[start:end] for start, end in zip(starts, ends, strict=False)]
        if found != anchors or re.sub(f"[{MARK_START}{MARK_END}]", "", marked) != whole:
            return None
        gaps = [range(a, b) for a, b in zip([0, *ends], [*starts, len(whole)], strict=True)]
        words = _Words()
        spans = []
        for n, i in enumerate(self.learned):
            lead, tail = gaps[i], gaps[i + 1]
            before, behind = whole[lead.start : lead.stop], whole[tail.start : tail.stop]
            kind = self._kind(i)
            lies = words.find(kind, before, behind)
            if lies is not None and any(kind):
                said = whole[lead.start + lies[0] : tail.stop - lies[1]]
                lies = lies if self._shows_all(i, said) else None
            if lies is None or n & (n + 1) == 0 or i == self.learned[-1]:
                turn = self.turn(i)
                span = self._span(turn)
                exact = span.start - lead.start, tail.stop - span.stop
                if not whole.startswith(turn.text.rstrip()) or lies not in (None, exact):
                    return None
                lies = exact
                words.learn(kind, before, behind, exact)
            spans.append(range(lead.start + lies[0], tail.stop - lies[1]))
        return LearnedText(whole, spans)

    def _kind(self, i: int) -> tuple[bool, ...]:
        """What a message has beside its content: thinking, calls, other keys."""
        thought, _ = thinking_of(self.messages[i])
        others = set(self.messages[i]) - {"role", "content", "tool_calls", *THINKING_KEYS}
        return bool(thought), bool(self.messages[i].get("tool_calls")), bool(others)

    def _shows_all(self, i: int, said: str) -> bool:
        """Whether a text has what the assistant thinks, and its calls."""
        try:
            self._check_calls(i, said)
        except RowError:
            return False
        return _shows(said, *thinking_of(self.messages[i]))


class _Words:
    """Words of a template before and behind turns, and where in them a turn begins and ends.

    Around a content alone the words are always the same. Thinking and calls stand in them, so of
    turns that have such the outer ends are compared, with those of turns of the same kind.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[int, int]] = {}
        self._ends: dict[tuple[bool, ...], tuple[set[str], set[str]]] = {}

    def learn(
        self, kind: tuple[bool, ...], before: str, behind: str, lies: tuple[int, int]
    ) -> None:
        """Note that a turn begins and ends so many characters from the ends of the words."""
        self._known[before, behind] = lies
        leads, tails = self._ends.setdefault(kind, (set(), set()))
        leads.add(before[: lies[0]])
        tails.add(behind[len(behind) - lies[1] :])

    def find(self, kind: tuple[bool, ...], before: str, behind: str) -> tuple[int, int] | None:
        """Where a turn between these words begins and ends, if that is known in one way."""
        if not any(kind):
            return self._known.get((before, behind))
        leads, tails = self._ends.get(kind, ((), ()))
        begins = [len(lead) for lead in leads if before.startswith(lead)]
        ends = [len(tail) for tail in tails if behind.endswith(tail)]
        return (begins[0], ends[0]) if len(begins) == len(ends) == 1 else None


def _shows(said: str, thought: str, answer: str) -> bool:
    """Whether a turn's text has its thinking beside its answer; white space may differ."""
    said, thought, answer = ("".join(text.split()) for text in (said, thought, answer))
    before, _, behind = said.rpartition(answer) if answer else (said, "", "")
    return thought in before or thought in behind


def _anchor(message: Message) -> str:
    """A text of a message by which it is found: its content, else the name of its first call."""
    text: str = message["content"].strip()
    if not text and (calls := message.get("tool_calls")):
        text = str(_function(calls[0]).get("name") or "")
    return text


def _marked(message: Message) -> Message:
    """A message with marks around its anchor, inside the white space that templates may strip."""
    text, content = _anchor(message), message["content"]
    marked = f"{MARK_START}{text}{MARK_END}"
    if content.strip():
        return {**message, "content": content.replace(text, marked, 1)}
    first, *others = message["tool_calls"]
    named = {**_function(first), "name": marked}
    call = {**first, "function": named} if "function" in first else named
    return {**message, "tool_calls": [call, *others]}


# Calls of tools ----------------------------------------------------------------------------------


def _function(call: Any) -> dict[str, Any]:
    """The function of a call, which may be the call itself."""
    if not isinstance(call, dict):
        raise RowError("have `tool_calls` that are no list of objects")
    function = call.get("function", call)
    if not isinstance(function, dict):
        raise RowError("have `tool_calls` whose `function` is no object")
    return function


def _arguments(message: Message) -> list[Any]:
    calls = message.get("tool_calls") or []
    return [a for call in calls if isinstance(a := _function(call).get("arguments"), dict) and a]


def _with_arguments(message: Message, as_text: bool) -> Message:
    """A message whose calls have their arguments as JSON text, or as objects."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    if not isinstance(calls, list):
        raise RowError("have `tool_calls` that are no list of objects")
    made = []
    for call in calls:
        function = dict(_function(call))
        given = function.get("arguments")
        if as_text and not isinstance(given, str | None):
            function["arguments"] = json.dumps(given, ensure_ascii=False)
        if not as_text and isinstance(given, str):
            with suppress(ValueError):
                function["arguments"] = json.loads(given)
        made.append({**call, "function": function} if "function" in call else function)
    return {**message, "tool_calls": made}
