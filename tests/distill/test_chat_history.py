"""What of a conversation is left out where a model has too few positions for it."""

import pytest

from attar.errors import ModelError
from distill.chat.history import History


def history(positions=40, **more):
    """A history that encodes each character as a token, and the lines that it says."""
    said = []

    def encode(messages):
        return list("".join(message["content"] for message in messages))

    return History(encode, positions, said.append, **more), said


def prompts_of(history, *questions, max_tokens=6):
    """(prompt, most tokens of the answer) of each question; every answer has three characters."""
    found = []
    for question in questions:
        ids, most = history.ask(question, max_tokens)
        found.append(("".join(ids), most))
        history.remember("...")
    return found


def test_the_oldest_turns_are_left_out_where_the_answer_has_no_room():
    one, said = history()
    one.begin("SYS")
    found = prompts_of(one, "a" * 10, "b" * 10, "c" * 10, "d" * 27)
    assert [prompt for prompt, _ in found] == [
        "SYS" + "a" * 10,
        "SYS" + "a" * 10 + "..." + "b" * 10,
        "SYS" + "b" * 10 + "..." + "c" * 10,
        "SYS" + "d" * 27,
    ]
    assert {most for _, most in found} == {6}
    assert said == [
        "(The oldest turn is left out from here on: the model has 40 positions.)\n",
        "(The 2 oldest turns are left out from here on: the model has 40 positions.)\n",
    ]


def test_a_long_answer_that_is_asked_for_leaves_three_quarters_to_the_conversation():
    one, said = history()
    assert prompts_of(one, "a" * 12, "b" * 15, max_tokens=500) == [
        ("a" * 12, 28), ("a" * 12 + "..." + "b" * 15, 10),
    ]  # fmt: skip
    assert said == []


def test_a_message_that_leaves_no_position_is_refused_and_not_remembered():
    one, _ = history(name="mine")
    one.begin("SYS")
    assert prompts_of(one, "a" * 36) == [("SYS" + "a" * 36, 1)]
    with pytest.raises(ModelError, match=r"has 40 tokens with the system message.* 40 positions"):
        one.ask("b" * 37, 6)
    assert prompts_of(one, "c") == [("SYSc", 6)]


def test_without_a_template_or_without_a_limit_nothing_is_left_out():
    bare, said = history(keeps_turns=False)
    assert prompts_of(bare, "a" * 30, "b" * 30) == [("a" * 30, 6), ("b" * 30, 6)]
    endless, more = history(positions=None)
    assert prompts_of(endless, "a" * 90)[0] == ("a" * 90, 6)
    assert said == more == []
