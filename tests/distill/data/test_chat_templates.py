"""The templates people distil with: each turn is learned as the template gives it at that turn.

The templates are in tests/helpers/chatting.py.
"""

import json

import pytest

from attar.errors import DataError
from distill.data.bad_rows import RowError
from distill.data.chat_rendering import Chat
from distill.data.config import DataConfig
from distill.data.conversations import Conversation, conversation_of
from distill.data.row_formats import RowOptions, row_format_of
from distill.data.tokenize import IGNORE, tokenize_document
from tests.helpers.chatting import (
    FORGETTING,
    PLAIN,
    STRIPPING,
    SYSTEM_LAST,
    WITHOUT_SYSTEM,
    tokenize_chats,
)

ASKED, AGAIN = {"role": "user", "content": "2 + 2?"}, {"role": "user", "content": "Sure?"}


def said(text, **more):
    return {"role": "assistant", "content": text, **more}


@pytest.fixture
def learned(tokenizer):
    """`learned(template, messages)`: (the text before, what is learned) of each example."""

    def make(template, messages, max_length=512, **more):
        tokenizer.chat_template = template
        row = {"messages": messages, **more}
        layout = row_format_of(row, "rows", RowOptions())
        config = DataConfig.model_validate({"train": "rows", "max_length": max_length})
        found = []
        for ids, labels in tokenize_document(tokenizer, row, layout, config):
            counted = [t for t, label in enumerate(labels) if label != IGNORE]
            assert all(labels[t] == ids[t + 1] for t in counted)
            before = tokenizer.decode(ids[: counted[0] + 1])
            found.append((before, tokenizer.decode([labels[t] for t in counted])))
        return found

    return make


THINKING = [
    ASKED,
    said("Four.", reasoning_content="two and two"),
    AGAIN,
    said("Yes.", reasoning_content="I am"),
]
IN_TAGS = [
    ASKED,
    said("<think>\ntwo and two\n</think>\n\nFour."),
    AGAIN,
    said("<think>\nI am\n</think>\n\nYes."),
]


@pytest.mark.parametrize("messages", [THINKING, IN_TAGS], ids=["key", "tags"])
def test_each_turn_of_a_template_that_strips_thinking_is_learned_with_its_own(learned, messages):
    first, second = learned(STRIPPING, messages)
    assert first[1] == "<think>\ntwo and two\n</think>\n\nFour.<|im_end|>"
    assert first[0].endswith("<|im_start|>assistant\n")
    assert second[1] == "<think>\nI am\n</think>\n\nYes.<|im_end|>"
    assert "two and two" not in second[0], "as the model is prompted there"
    assert "Four." in second[0]


@pytest.mark.parametrize("messages", [THINKING, IN_TAGS], ids=["key", "tags"])
def test_thinking_is_learned_where_the_prompt_opens_it_and_finished_turns_lose_it(
    learned, messages
):
    first, second = learned(FORGETTING, messages)
    assert first == ("[U]2 + 2?[A]<think>\n", "two and two\n</think>\n\nFour.<|im_end|>")
    assert second[0].replace("\n", "") == "[U]2 + 2?[A]Four.<|im_end|>[U]Sure?[A]<think>"
    assert second[1] == "I am\n</think>\n\nYes.<|im_end|>"


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_thinking_has_many_keys_and_one_meaning(learned, key):
    (found,) = learned(STRIPPING, [ASKED, said("Four.", **{key: "two and two"})])
    assert found[1] == "<think>\ntwo and two\n</think>\n\nFour.<|im_end|>"


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_thinking_that_a_template_does_not_show_is_refused_by_name(learned, key):
    for thought in ("two and two", "Four"):
        with pytest.raises(RowError, match=f"thinking in `{key}`, which the chat template does no"):
            learned(PLAIN, [ASKED, said("Four.", **{key: thought})])


def test_turns_without_thinking_stay_what_the_template_makes_of_them(learned):
    first, second = learned(STRIPPING, [ASKED, said("Four."), AGAIN, said("Yes.")])
    assert first[1] == "<think>\n\n</think>\n\nFour.<|im_end|>"
    assert second[1] == "<think>\n\n</think>\n\nYes.<|im_end|>"


def test_a_template_that_moves_the_system_text_gives_a_text_a_turn(learned):
    system = {"role": "system", "content": "Be kind."}
    first, second = learned(SYSTEM_LAST, [system, ASKED, said("Four."), AGAIN, said("Yes.")])
    assert first == ("[INST]Be kind.\n2 + 2?[/INST]", "Four.<|im_end|>")
    assert second == ("[INST]2 + 2?[/INST]Four.<|im_end|>[INST]Be kind.\nSure?[/INST]",
                      "Yes.<|im_end|>")  # fmt: skip
    (both,) = learned(SYSTEM_LAST, [ASKED, said("Four."), AGAIN, said("Yes.")])
    assert both[1] == "Four.<|im_end|>Yes.<|im_end|>", "texts that continue each other are one"


def test_a_refused_system_turn_says_the_mend(learned):
    system = {"role": "system", "content": "Be kind."}
    with pytest.raises(RowError, match=r"not supported\); put the text of the system turn at"):
        learned(WITHOUT_SYSTEM, [system, ASKED, said("Four.")])
    with pytest.raises(RowError, match=r"must alternate user/assistant\)\.$"):
        learned(WITHOUT_SYSTEM, [ASKED, AGAIN, said("Four.")])
    assert learned(WITHOUT_SYSTEM, [ASKED, said("Four.")])[0][1] == "Four.<|im_end|>"


# Tools -------------------------------------------------------------------------------------------

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"a": {"type": "number"}}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
AS_TEXT = {"type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
OF_A_TABLE = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": None}}}
RESULT = {"role": "tool", "content": "4", "tool_call_id": "1"}


@pytest.mark.parametrize("content", [None, ""])
@pytest.mark.parametrize("call", [CALL, AS_TEXT, OF_A_TABLE], ids=["object", "text", "table"])
def test_calls_of_tools_are_learned_and_tools_are_in_the_prompt(learned, content, call):
    messages = [ASKED, said(content, tool_calls=[call]), RESULT, said("Four.")]
    (found,) = learned(STRIPPING.replace("loop.last or thought", "thought"), messages, tools=[TOOL])
    assert json.dumps([TOOL]) in found[0]
    assert found[1] == '<call>add {"a": 2}<|im_end|>Four.<|im_end|>'
    as_json = learned(STRIPPING, messages, tools=json.dumps([TOOL]))
    assert as_json[0][0].startswith("<|im_start|>system\nTools: [{")


def test_arguments_are_text_for_a_template_that_puts_texts_together(learned):
    call = "m.tool_calls[0].function.name + m.tool_calls[0].function.arguments"
    joining = PLAIN.replace("m.content +", f"({call} if m.tool_calls else m.content) +")
    printing = joining.replace("name +", "name ~")
    for template in (joining, printing):
        for call in (CALL, AS_TEXT):
            (found,) = learned(template, [ASKED, said(None, tool_calls=[call])])
            assert found[1] == 'add{"a": 2}<|im_end|>'


def test_calls_that_a_template_does_not_show_are_refused_by_name(learned):
    with pytest.raises(RowError, match="`tool_calls`, which the chat template does not show"):
        learned(PLAIN, [ASKED, said(None, tool_calls=[CALL]), RESULT, said("Four.")])


# What of a conversation is learned ---------------------------------------------------------------


@pytest.mark.parametrize("flag", [{"weight": 0}, {"train": False}, {"training": False}])
def test_turns_that_are_not_to_be_learned_are_not(learned, flag):
    (found,) = learned(PLAIN, [ASKED, said("Five.", **flag), AGAIN, said("Four.", weight=1)])
    assert found[1] == "Four.<|im_end|>"
    assert "Five." in found[0]
    assert not set(flag) & set(found[0].split())


def test_an_empty_turn_is_not_learned(learned):
    (found,) = learned(PLAIN, [ASKED, said(" "), AGAIN, said("Four.")])
    assert found[1] == "Four.<|im_end|>"
    assert learned(PLAIN, [ASKED, said("")]) == []


def test_a_role_of_nobody_is_named(learned):
    with pytest.raises(RowError, match="a message of the role `bot`"):
        learned(PLAIN, [ASKED, {"role": "bot", "content": "Four."}])
    (found,) = learned(
        PLAIN, [{"from": "human", "value": "2 + 2?"}, {"role": "gpt", "content": "Four."}]
    )
    assert found[1] == "Four.<|im_end|>"


SAME = {
    "json": json.dumps([ASKED, said("Four.")]),
    "table": {"role": ["user", "assistant"], "content": ["2 + 2?", "Four."]},
    "parts": [{"role": "user", "content": [{"type": "text", "text": "2 + "},
                                           {"type": "text", "text": "2?"}]}, said("Four.")],
    "nulls": [{**ASKED, "tool_calls": None, "weight": None}, said("Four.")],
}  # fmt: skip


@pytest.mark.parametrize("messages", SAME.values(), ids=SAME.keys())
def test_a_conversation_may_be_json_a_table_or_in_parts(learned, messages):
    assert learned(PLAIN, messages) == learned(PLAIN, [ASKED, said("Four.")])


NO_CONVERSATION = {
    "image": ([{"role": "user", "content": [{"type": "image_url"}]}], "part of the type `image_ur"),
    "role": ([{"content": "x"}], "without a `role`"),
    "content": ([{"role": "user"}], "without `content`"),
    "weight": ([{**ASKED, "weight": 0.5}], "neither 0 nor 1"),
    "no json": ("2 + 2?", "no JSON"),
    "number": (3, "no list"),
    "texts": (["2 + 2?"], "no JSON"),
    "calls": ([ASKED, said(None, tool_calls=["add"])], "no list of objects"),
}


@pytest.mark.parametrize(("messages", "says"), NO_CONVERSATION.values(), ids=NO_CONVERSATION.keys())
def test_what_is_no_conversation_is_a_bad_row(learned, messages, says):
    with pytest.raises(RowError, match=says):
        learned(PLAIN, messages)


def test_system_and_history_columns_are_part_of_the_prompt(tokenizer, bare_tokenizer):
    row = {
        "system": "Be kind.", "history": [["Hi", "Hello!"]],
        "instruction": "2 + 2?", "input": "", "output": "Four.",
    }  # fmt: skip
    layout = row_format_of(row, "rows", RowOptions())
    chat = conversation_of(row, layout)
    assert [(m["role"], m["content"]) for m in chat.messages] == [
        ("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello!"),
        ("user", "2 + 2?"), ("assistant", "Four."),
    ]  # fmt: skip
    assert chat.learned == [4]
    config = DataConfig.model_validate({"train": "rows"})
    ((ids, labels),) = tokenize_document(bare_tokenizer, row, layout, config)
    assert bare_tokenizer.decode(ids) == "Be kind.\n\nHi\n\nHello!\n\n2 + 2?Four.<|endoftext|>"
    assert bare_tokenizer.decode([i for i in labels if i >= 0]) == "Four.<|endoftext|>"


@pytest.mark.parametrize("column", ["system", "system_prompt"])
def test_a_system_column_stands_before_the_conversation(column):
    row = {column: "Be kind.", "conversations": [{"from": "human", "value": "Hi"}]}
    layout = row_format_of(row, "rows", RowOptions())
    assert conversation_of(row, layout).messages[0] == {"role": "system", "content": "Be kind."}
    own = {**row, "conversations": [{"from": "system", "value": "Be rude."}]}
    with pytest.raises(DataError, match=f"another text in `{column}`"):
        conversation_of(own, layout)


# Long conversations ------------------------------------------------------------------------------


@pytest.fixture
def renderings(tokenizer, monkeypatch):
    """Numbers of messages of all renderings so far."""
    right, found = tokenizer.apply_chat_template, []

    def counting(messages, **keys):
        found.append(len(messages))
        return right(messages, **keys)

    monkeypatch.setattr(tokenizer, "apply_chat_template", counting)
    return found


def test_a_long_conversation_is_rendered_few_times_and_as_if_turn_by_turn(
    tokenizer, renderings, monkeypatch
):
    tokenizer.chat_template = PLAIN
    chat = [m for i in range(200) for m in (ASKED, said(f" It is {i}.\n" if i % 3 else "a"))]
    ids, labels = tokenize_chats(tokenizer, chat, 1 << 20)[0]
    assert sum(renderings) < 12 * len(chat)
    monkeypatch.setattr(Chat, "_nested", lambda self: None)
    assert tokenize_chats(tokenizer, chat, 1 << 20) == [(ids, labels)]


def calling(turns, thoughtless=()):
    """A question, and a long run of calls, each with thinking but for some."""
    chat = [ASKED]
    for i in range(turns):
        function = {"name": "add", "arguments": {"a": i}}
        calls = [{"type": "function", "function": function}] * (1 + i % 2)
        more = {} if i in thoughtless else {"reasoning_content": f"what of {i}"}
        words = "Let me see." if i % 5 == 0 else ""
        chat += [said(words, tool_calls=calls, **more), {**RESULT, "content": f"It is {i}."}]
    return [*chat, said("Four.", reasoning_content="that is it")]


def test_a_long_run_of_calls_is_rendered_few_times_and_as_if_turn_by_turn(
    tokenizer, renderings, monkeypatch
):
    """Thinking and calls make every turn another: they are looked for between what is known."""
    tokenizer.chat_template = STRIPPING
    chat = calling(90)
    found = tokenize_chats(tokenizer, chat, 1 << 20)
    assert len(found) == 1
    assert sum(renderings) < 16 * len(chat)
    monkeypatch.setattr(Chat, "_nested", lambda self: None)
    assert found == tokenize_chats(tokenizer, chat, 1 << 20)


@pytest.mark.parametrize("thoughtless", range(12))
def test_one_turn_without_thinking_among_many_is_not_missed(tokenizer, monkeypatch, thoughtless):
    """At that turn the template adds an empty thought, which later texts do not have."""
    tokenizer.chat_template = STRIPPING
    chat = calling(11, {thoughtless})
    found = tokenize_chats(tokenizer, chat, 1 << 20)
    assert len(found) == (2 if thoughtless < 11 else 1)
    monkeypatch.setattr(Chat, "_nested", lambda self: None)
    assert found == tokenize_chats(tokenizer, chat, 1 << 20)


@pytest.mark.parametrize("template", [STRIPPING, SYSTEM_LAST, WITHOUT_SYSTEM, PLAIN])
def test_many_turns_are_what_each_of_them_is(tokenizer, template, monkeypatch):
    tokenizer.chat_template = template
    start = [{"role": "system", "content": "Be kind."}] if template == SYSTEM_LAST else []
    chat = [*start, *(m for i in range(9) for m in (ASKED, said(f"It is {i}.")))]
    found = tokenize_chats(tokenizer, chat, 4096)
    monkeypatch.setattr(Chat, "_nested", lambda self: None)
    assert found == tokenize_chats(tokenizer, chat, 4096)
    spoken = "".join(tokenizer.decode([i for i in labels if i >= 0]) for _, labels in found)
    assert all(f"It is {i}.<|im_end|>" in spoken for i in range(9))


def test_an_unusual_turn_among_many_is_not_missed(tokenizer):
    """The template words a turn otherwise in the middle: spans follow it."""
    tokenizer.chat_template = PLAIN.replace("m.content", "(m.content | replace('odd', ''))")
    chat = [m for i in range(30) for m in (ASKED, said("odd" if i == 17 else f"It is {i}."))]
    texts = Chat(tokenizer, Conversation(chat, 0)).texts()
    found = ["".join(t.text[s.start : s.stop] for s in t.spans) for t in texts]
    assert found == ["".join(f"{'' if i == 17 else f'It is {i}.'}<|im_end|>" for i in range(30))]
