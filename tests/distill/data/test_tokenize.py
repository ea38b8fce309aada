"""Prompts with answers, reasoning and classes: what they become, and that only answers count."""

import json

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from attar.errors import DataError
from distill.data.chat_rendering import LearnedText
from distill.data.config import DataConfig
from distill.data.examples import Examples, key_of
from distill.data.placed import DATA_PARTS
from distill.data.prepare import prepare
from distill.data.row_formats import row_format_of
from distill.data.tokenize import IGNORE, tokenize_document, tokenize_learned, tokenize_pair
from distill.run.load import check_recipe
from tests.helpers.chatting import tokenize_chat

ASKED = {"role": "user", "content": "What is 2 + 2?"}
ANSWERED = {"role": "assistant", "content": "It is four."}


@pytest.fixture
def examples_of(tokenizer):
    """`examples_of(row, tokenizer=..., key=value, ...)`: its examples by options of the recipe."""

    def make(row, tokenizer=tokenizer, **options):
        config = DataConfig.model_validate({"train": "rows", "max_length": 512, **options})
        table = datasets.Dataset.from_list([row])
        layout = row_format_of(table.features, "rows", config)
        return tokenize_document(tokenizer, table[0], layout, config)

    return make


def parts(tokenizer, example):
    """(the text before what counts, the text that counts)."""
    ids, labels = example
    counted = [t for t, label in enumerate(labels) if label != IGNORE]
    assert all(labels[t] == ids[t + 1] for t in counted), "labels are the following ids"
    assert counted == list(range(counted[0], len(ids) - 1)), "from there on, all of them"
    return tokenizer.decode(ids[: counted[0] + 1]), tokenizer.decode([labels[t] for t in counted])


# A prompt and its answer without a chat template --------------------------------------------------


def test_without_a_template_prompt_and_answer_are_put_one_after_the_other(
    examples_of, bare_tokenizer
):
    row = {"prompt": "What is 2 + 2? ", "completion": "It is four."}
    (example,) = examples_of(row, bare_tokenizer)
    assert parts(bare_tokenizer, example) == ("What is 2 + 2? ", "It is four.<|endoftext|>")


def test_without_a_template_and_end_only_the_answer_counts(examples_of, bare_tokenizer):
    row = {"prompt": "What is 2 + 2? ", "completion": "It is four."}
    (example,) = examples_of(row, bare_tokenizer, append_eos=False)
    assert parts(bare_tokenizer, example) == ("What is 2 + 2? ", "It is four.")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@given(prompt=TEXT, answer=TEXT)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_no_part_of_an_answer_is_lost(bare_tokenizer, prompt, answer):
    """Whatever joins prompt and answer, each of the answer's tokens counts and they spell it."""
    ids, labels, _ = tokenize_pair(bare_tokenizer, prompt, prompt + answer, 512)
    assert ids[:-1] == bare_tokenizer(prompt + answer)["input_ids"]
    spelt = bare_tokenizer.decode([i for i in labels if i != IGNORE], skip_special_tokens=True)
    if len(bare_tokenizer(prompt)["input_ids"]) > 1:  # else the joined token is first of all
        assert spelt.endswith(answer)


def test_a_token_that_joins_prompt_and_answer_counts(bare_tokenizer):
    """`the` is one token; where the prompt ends inside it, it is the answer that needs it."""
    ids, labels, _ = tokenize_pair(bare_tokenizer, "says th", "says the student", 512)
    joined = next(t for t, i in enumerate(ids) if "the" in bare_tokenizer.decode([i]))
    assert labels[joined - 1] == ids[joined]
    assert labels[joined - 2] == IGNORE


def test_a_token_that_joins_template_and_answer_counts(bare_tokenizer):
    """Where a template's prompt ends inside a token, as in a space, the answer needs that token."""
    learned = LearnedText("says the student", [range(len("says th"), len("says the"))])
    ids, labels, _ = tokenize_learned(bare_tokenizer, learned, 512)
    joined = next(t for t, i in enumerate(ids) if "the" in bare_tokenizer.decode([i]))
    assert [t for t, label in enumerate(labels) if label != IGNORE] == [joined - 1]


def test_chats_still_need_a_template(examples_of, bare_tokenizer):
    for row in ({"messages": [ASKED, ANSWERED]}, {"prompt": [ASKED], "completion": [ANSWERED]}):
        with pytest.raises(DataError, match=r"no chat template; put one .*`chat_template\.jinja`"):
            examples_of(row, bare_tokenizer)


# Lists of messages as prompt and completion -------------------------------------------------------


def test_messages_in_prompt_and_completion_are_one_conversation(examples_of, tokenizer):
    (example,) = examples_of({"prompt": [ASKED], "completion": [ANSWERED]})
    assert example == tokenize_chat(tokenizer, [ASKED, ANSWERED], 512)


def test_what_the_assistant_said_in_the_prompt_does_not_count(examples_of, tokenizer):
    earlier = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    (example,) = examples_of({"prompt": [*earlier, ASKED], "completion": [ANSWERED]})
    before, counted = parts(tokenizer, (example[0][:-1], [*example[1][:-2], IGNORE]))
    assert "Hello!" in before
    assert counted == "It is four.<|im_end|>"


def test_a_completion_without_an_assistant_teaches_nothing(examples_of):
    assert examples_of({"prompt": [ASKED], "completion": [ASKED]}) == []


# Reasoning ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["rationale", "reasoning", "thought", "cot"])
def test_reasoning_stands_before_the_answer_and_both_count(examples_of, bare_tokenizer, column):
    row = {"question": "2 + 2? ", column: "Two and two.\n", "answer": "4"}
    (example,) = examples_of(row, bare_tokenizer)
    assert parts(bare_tokenizer, example)[1] == "Two and two.\n4<|endoftext|>"
    (plain,) = examples_of({**row, column: None}, bare_tokenizer)
    assert parts(bare_tokenizer, plain)[1] == "4<|endoftext|>"


def test_reasoning_goes_through_the_chat_template(examples_of, tokenizer):
    (example,) = examples_of({"question": "2 + 2?", "cot": "Two and two.", "answer": "4"})
    said = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "Two and two.\n4"},
    ]
    assert example == tokenize_chat(tokenizer, said, 512)


def test_worked_answers_need_no_preparation(shared_data, examples_of, bare_tokenizer):
    source = str(shared_data("gsm8k") / "test.jsonl.gz")
    row = datasets.load_dataset("json", data_files=source, split="train[:1]")[0]
    (example,) = examples_of(row, bare_tokenizer)
    before, counted = parts(bare_tokenizer, example)
    assert before == row["prompt"]
    assert counted == f"{row['response']}<|endoftext|>"


# Classes as text ----------------------------------------------------------------------------------


LABELLED = {"label_column": "label", "label_names": ["negative", "positive"]}
SENTIMENT = {**LABELLED, "prompt": "{text}\nSentiment:"}


def test_a_class_is_answered_by_its_word(examples_of, bare_tokenizer):
    (example,) = examples_of({"text": "what light", "label": 1}, bare_tokenizer, **SENTIMENT)
    assert bare_tokenizer.decode(example[0]) == "what light\nSentiment: positive<|endoftext|>"
    assert parts(bare_tokenizer, example)[1] == " positive<|endoftext|>"


def test_a_class_is_answered_through_the_chat_template(examples_of, tokenizer):
    (example,) = examples_of({"text": "what light", "label": 0}, **SENTIMENT)
    said = [
        {"role": "user", "content": "what light\nSentiment:"},
        {"role": "assistant", "content": "negative"},
    ]
    assert example == tokenize_chat(tokenizer, said, 512)


WAYS = {
    "words": ({"text": "light", "label": "positive"}, {"label_column": "label"}),
    "truth": ({"text": "light", "label": True}, LABELLED),
    "another column": ({"body": "light", "kind": 1}, {
        "label_column": "kind", "label_names": ["negative", "positive"], "text_column": "body",
    }),
}  # fmt: skip


@pytest.mark.parametrize(("row", "options"), WAYS.values(), ids=WAYS.keys())
def test_without_a_template_the_prompt_is_the_text(examples_of, bare_tokenizer, row, options):
    ((ids, _),) = examples_of(row, bare_tokenizer, **options)
    assert bare_tokenizer.decode(ids) == "light\nLabel: positive<|endoftext|>"


def test_names_that_come_with_the_data_are_used(bare_tokenizer):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    table = datasets.Dataset.from_list([{"text": "light", "label": 1}], features)
    config = DataConfig.model_validate({"train": "rows", "label_column": "label"})
    layout = row_format_of(table.features, "rows", config)
    ((ids, _),) = tokenize_document(bare_tokenizer, table[0], layout, config)
    assert bare_tokenizer.decode(ids) == "light\nLabel: yes<|endoftext|>"


def test_a_template_asks_for_an_answer_of_the_usual_name(examples_of, bare_tokenizer):
    row = {"question": "2 + 2?", "hint": "{small}", "answer": "4"}
    template = "Q: {question} ({hint}) {{1}}\nA:"
    ((ids, _),) = examples_of(row, bare_tokenizer, prompt=template)
    assert bare_tokenizer.decode(ids) == "Q: 2 + 2? ({small}) {1}\nA: 4<|endoftext|>"


# Keys of existing data ----------------------------------------------------------------------------


def test_keys_of_data_that_caches_hold_stay(examples_of):
    """A cache finds its signals by these: they must not change with the library."""
    pair = {"instruction": "What is 2 + 2?", "input": "Say it.", "output": "It is four."}
    rows = ({"text": "what light falls on water"}, {"messages": [ASKED, ANSWERED]}, pair)
    keys = [key_of(*examples_of(row)[0]) for row in rows]
    assert keys == KEYS


KEYS = [  # fixed: what caches on disk were written with
    "8b3ef7058d3e08d5022275e883fd6b3d",
    "17c5e4862df76b2c399321feb7c21a0f",
    "eed7cf2f9242f6ac77a13f6b3eecd456",
]


# Refused and left out -----------------------------------------------------------------------------


ROW = {"text": "light", "label": 1}
REFUSED = {
    "unknown label": (ROW, {"label_column": "labels"}, r"no column `labels`.*`label`"),
    "numbers without words": (ROW, {"label_column": "label"}, "data.label_names"),
    "class without a word": (
        {**ROW, "label": 2}, LABELLED, r"class 2, and `data.label_names` has words for 0 to 1",
    ),
    "words named": ({**ROW, "label": "yes"}, LABELLED, "no effect"),
    "names of nothing": (ROW, {"label_names": ["a", "b"]}, "label_column"),
    "neither word nor number": ({**ROW, "label": 0.5}, {"label_column": "label"}, "0.5"),
    "template's column": (ROW, {**LABELLED, "prompt": "{txt}:"}, r"no column `txt`.*`text`"),
    "nothing to ask": ({"a": "b", "label": "yes"}, {"label_column": "label"}, "data.prompt"),
    "nothing to answer": (ROW, {"prompt": "{text}:"}, "data.label_column"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "options", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_columns_that_do_not_fit_are_named(examples_of, row, options, says):
    with pytest.raises(DataError, match=says):
        examples_of(row, **options)


WRONG = {
    "no column": ({"prompt": "Sentiment:"}, "names at least one column"),
    "open brace": ({"prompt": "{text"}, "not a template"),
    "format": ({"prompt": "{text!r:>20}"}, "only the name of a column"),
    "attribute": ({"prompt": "{text.__class__}"}, "only the name of a column"),
    "two prompts": ({"prompt": "{a}", "text_column": "b"}, "no effect"),
}


@pytest.mark.parametrize(("options", "says"), WRONG.values(), ids=WRONG.keys())
def test_options_that_make_no_sense_are_refused(options, says):
    with pytest.raises(ValidationError, match=says):
        DataConfig.model_validate({"train": "rows", **options})


def test_specialising_takes_the_same_keys():
    values = {
        "data": {"train": "x"}, "teacher": {"model": "x"}, "student": {},
        "specialize": {"data": {"train": "y", **SENTIMENT}},
    }  # fmt: skip
    assert check_recipe(values).specialize.data.label_names == ["negative", "positive"]


def test_a_column_is_asked_for_in_its_own_section():
    for section, more in (("specialize", {}), ("features", {"model": "y"})):
        values = {
            "data": {"train": "x"}, "teacher": {"model": "x"}, "student": {},
            section: {"data": {"train": "y", "text_column": "no"}, **more},
        }  # fmt: skip
        config = getattr(check_recipe(values), section).data
        with pytest.raises(DataError, match=rf"`{section}\.data\.text_column`"):
            row_format_of({"text": None}, "y", config)


def test_what_is_left_out_is_counted_and_said(tmp_path, bare_tokenizer, caplog):
    """Empty answers, and prompts so long that no token of the answer is left."""
    good = [{"prompt": f"what is {i}? ", "completion": "light"} for i in range(6)]
    empty = [{"prompt": "what? ", "completion": answer} for answer in ("", " \n", None)]
    long = [{"prompt": "water " * 40, "completion": "light"}] * 2
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*good, *empty, *long]))
    config = DataConfig(train=str(file), max_length=24, held_out=0.2)
    made = prepare(config, bare_tokenizer, "id", 0, tmp_path / "data")
    kept = [Examples(made / f"{part}.arrow") for part in DATA_PARTS]
    assert sum(map(len, kept)) == 6
    assert "3 have an empty answer, and are left out" in caplog.text
    assert "2 have a prompt that fills `data.max_length`" in caplog.text


def test_data_of_which_nothing_is_left_says_why(tmp_path, bare_tokenizer):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": "x", "completion": ""}) + "\n" for _ in range(4)))
    with pytest.raises(DataError, match="4 have an empty answer"):
        prepare(DataConfig(train=str(file)), bare_tokenizer, "id", 0, tmp_path / "data")
