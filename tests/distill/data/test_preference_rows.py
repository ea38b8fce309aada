"""Rows of judged answers: which tables hold them, and the prompt and answers of each."""

import datasets
import pytest

from attar.errors import DataError
from distill.data.bad_rows import RowError
from distill.data.conversations import conversation_of
from distill.data.preference_rows import (
    format_of_table,
    known_text,
    ordinary_rows,
    prompt_text,
    rating_of,
)
from distill.data.row_formats import RowOptions, pair_of
from distill.data.row_list import RowList
from tests.helpers.judging import preferences, ratings, said

HELLO = [said("user", "hello?")]


def layout_of(rows, **options):
    return format_of_table(RowList(rows), "rows.jsonl", RowOptions.model_validate(options))


def answers_of(row, **options):
    return ordinary_rows(row, layout_of([row], **options))


def sides(row, **options):
    return [pair_of(one.values, one.layout) for one in answers_of(row, **options)]


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        (("prompt", "chosen", "rejected"), "preference"),
        (("chosen", "rejected"), "preference"),
        (("instruction", "chosen_response", "rejected_response"), "preference"),
        (("question", "response_j", "response_k"), "preference"),
        (("prompt", "completion", "chosen", "rejected"), "preference"),
        (("messages", "chosen", "rejected"), "preference"),
        (("prompt", "completion", "chosen"), "pair"),
        (("text", "rejected"), "text"),
        (("prompt", "completion", "chosen", "rejected_response"), "pair"),
    ],
)
def test_a_table_with_both_columns_holds_preferences_and_no_other_does(columns, kind):
    assert layout_of([dict.fromkeys(columns, "a")]).kind == kind


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([True, False, None], "rated"),
        ([1, 0, 1], "rated"),
        (["true", "False"], "rated"),
        ([True, "perhaps"], "rated"),
        ([0, 1, 2], "pair"),
        (["good", "bad"], "pair"),
        ([0.5, 1.0], "pair"),
        ([None, None], "pair"),
    ],
)
def test_answers_with_a_boolean_label_are_rated(labels, kind):
    rows = [{"prompt": "a", "completion": "b", "label": label} for label in labels]
    assert layout_of(rows).kind == kind


def test_classes_with_names_rate_nothing():
    text = datasets.Value("string")
    label = datasets.ClassLabel(names=["sport", "art"])
    names = datasets.Features({"prompt": text, "answer": text, "label": label})
    rows = {"prompt": ["a", "b"], "answer": ["c", "d"], "label": [0, 1]}
    table = datasets.Dataset.from_dict(rows, features=names)
    assert format_of_table(table, "hub", RowOptions()).kind == "pair"
    table = datasets.Dataset.from_dict({**rows, "label": [True, False]})
    assert format_of_table(table, "hub", RowOptions()).kind == "rated"


def test_a_column_that_the_recipe_names_comes_first():
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "label": "x"}
    assert layout_of([row], text_column="chosen").kind == "text"
    assert layout_of([row], label_column="label", prompt="{prompt}").kind == "pair"
    rated = {"prompt": "a", "completion": "b", "label": True}
    named = layout_of([rated], label_column="label", label_names=["no", "yes"], prompt="{prompt}")
    assert (named.kind, named.answer) == ("pair", "label")


@pytest.mark.parametrize("there", ["chosen", "rejected"])
def test_half_a_preference_is_an_error_that_names_the_other_half(there):
    missing = {"chosen": "rejected", "rejected": "chosen"}[there]
    with pytest.raises(DataError, match=f"a column `{there}` and no column `{missing}`"):
        layout_of([{"prompt": "a", there: "b"}])


def test_texts_beside_a_prompt():
    row = {"instruction": "ask", "input": "more", "chosen": "yes", "rejected": "no"}
    assert sides(row) == [("ask\n\nmore", "yes"), ("ask\n\nmore", "no")]
    template = {"prompt": "{instruction}! ({input})"}
    assert sides(row, **template) == [("ask! (more)", "yes"), ("ask! (more)", "no")]


def test_a_template_of_unknown_columns_is_an_error():
    with pytest.raises(DataError, match=r"no column `ask` \(`data.prompt`\)"):
        layout_of([{"chosen": "yes", "rejected": "no"}], prompt="{ask}")


def test_answers_as_messages_or_as_parts_of_a_content_beside_a_prompt():
    chosen, rejected = [said("assistant", "hi")], [{"from": "gpt", "value": "no"}]
    row = {"prompt": HELLO, "chosen": chosen, "rejected": rejected, "system": "be kind"}
    for one, text in zip(answers_of(row), ("hi", "no"), strict=True):
        found = conversation_of(one.values, one.layout)
        assert [m["content"] for m in found.messages] == ["be kind", "hello?", text]
        assert found.learned == [2]
    parts = {
        "prompt": "a",
        "chosen": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}],
        "rejected": [{"type": "text", "text": "d"}],
    }
    assert sides(parts) == [("a", "bc"), ("a", "d")]


def test_whole_conversations_have_their_first_messages_in_common():
    start = [said("system", "be kind"), *HELLO]
    row = {
        "prompt": "hello?",  # as UltraFeedback has it, beside whole conversations
        "chosen": [*start, said("assistant", "hi"), said("user", "go"), said("assistant", "ok")],
        "rejected": [*start, said("assistant", "no")],
    }
    chosen, rejected = (conversation_of(one.values, one.layout) for one in answers_of(row))
    assert chosen.messages == row["chosen"]
    assert rejected.messages == row["rejected"]
    assert (chosen.learned, rejected.learned) == ([2, 4], [2])


def test_answers_that_begin_alike_are_not_taken_for_the_prompt():
    talk = [*HELLO, said("assistant", "hi"), said("user", "go")]
    row = {
        "chosen": [*talk, said("assistant", "ok")],
        "rejected": [*talk, said("assistant", "no")],
    }
    assert [one.prompt for one in answers_of(row)] == [talk, talk]
    same = {"chosen": talk[:2], "rejected": talk[:2]}
    assert [one.prompt for one in answers_of(same)] == [HELLO, HELLO]


def test_turns_that_are_not_learned_stay_so():
    answer = [{**said("assistant", "hm"), "weight": 0}, said("user", "?"), said("assistant", "yes")]
    row = {"prompt": HELLO, "chosen": answer, "rejected": [said("assistant", "no")]}
    chosen, _ = (conversation_of(one.values, one.layout) for one in answers_of(row))
    assert chosen.learned == [3]


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Human: hi\n\nAssistant: I can", "Human: hi\n\nAssistant: I cannot",
         "Human: hi\n\nAssistant: I"),
        ("Human: hi\n\nAssistant: Yes", "Human: hi\n\nAssistant: No", "Human: hi\n\nAssistant:"),
        ("ask this that", "ask this", "ask"),
        ("ask same", "ask same", "ask"),
    ],
)  # fmt: skip
def test_the_prompt_of_two_texts_is_their_beginning_up_to_a_white_space(chosen, rejected, prompt):
    found = answers_of({"chosen": chosen, "rejected": rejected})
    assert [one.prompt for one in found] == [prompt, prompt]
    assert [prompt + pair_of(o.values, o.layout)[1] for o in found] == [chosen, rejected]
    assert all(one.bare for one in found)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"chosen": "yes", "rejected": "no"}, "do not begin with the same prompt"),
        ({"chosen": HELLO + HELLO, "rejected": [*HELLO]}, "do not begin with the same prompt"),
        ({"chosen": [said("assistant", "a")], "rejected": [said("assistant", "b")]}, "no prompt"),
        ({"prompt": "a", "chosen": {"b": 1}, "rejected": "c"}, "an object in `chosen`"),
        ({"prompt": "a", "chosen": "b", "rejected": [1, 2]}, "a list in `rejected`"),
        ({"prompt": "a", "chosen": "b", "rejected": [said("assistant", "c")]}, "text in the other"),
        ({"prompt": "a", "chosen": [{"role": "user"}], "rejected": HELLO}, "without `content`"),
    ],
)
def test_what_is_no_answer_is_a_bad_row(row, says):
    with pytest.raises(RowError, match=says):
        answers_of(row)


def test_a_missing_answer_leaves_no_rows():
    assert answers_of({"prompt": "a", "chosen": "b", "rejected": None}) == ()
    assert answers_of({"prompt": "a", "chosen": float("nan"), "rejected": "c"}) == ()


def test_ratings_are_true_or_false():
    layout = layout_of(ratings(3))
    for value, rating in ((True, 1), (0, 0), ("TRUE", 1), ("0", 0), (1.0, 1), (None, None)):
        assert rating_of({"label": value}, layout) == rating
    for value in ("good", 2, 0.5, [True]):
        with pytest.raises(RowError, match="in `label`, where true or false rates the answer"):
            rating_of({"label": value}, layout)


def test_a_prompt_is_known_however_it_is_written():
    rows = [
        {"prompt": "hello?", "chosen": "a", "rejected": "b"},
        {"prompt": HELLO, "chosen": "a", "rejected": "b"},
        {"chosen": [*HELLO, said("assistant", "c")], "rejected": [*HELLO, said("assistant", "d")]},
        {"prompt": "hello?", "completion": "a", "label": True},
        {"prompt": [said("system", "x"), *HELLO], "chosen": "a", "rejected": "b"},
    ]
    assert {str(prompt_text(row, layout_of([row]))) for row in rows} == {"{'prompt': ['hello?']}"}


def test_rows_of_few_prompts_are_known_by_their_answers_too():
    few = [{"prompt": "say", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(30)]
    known, prompts = known_text(RowList(few), layout_of(few))
    assert prompts == 1
    assert known(few[0]) != known(few[1])
    many = preferences(20)
    known, prompts = known_text(RowList(many), layout_of(many))
    assert prompts == 0
    assert known(many[0]) == known(many[1]) != known(many[2])
