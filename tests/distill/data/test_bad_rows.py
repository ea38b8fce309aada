"""A bad row stops nothing: it is left out, counted and named; many of them are an error."""

import json
import logging
import re
from collections import Counter
from contextlib import suppress

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attar.errors import DataError
from attar.files import read_json
from distill.data.bad_rows import RowError
from distill.data.config import DataConfig
from distill.data.examples import Examples
from distill.data.labelled_texts import LabelledTexts
from distill.data.masked_texts import MaskedTexts
from distill.data.prepare import prepare, prepare_whole
from distill.data.row_formats import row_format_of
from distill.data.scored_pairs import PairsConfig, load_pairs
from distill.data.split import DATA_PARTS
from distill.data.tokenize import tokenize_document
from distill.data.unlabelled_texts import SingleTexts
from tests.helpers.classifying import word_tokenizer
from tests.helpers.masking import tokenizer as tokenizer_with_mask

WORDS = ["the film was fine", "a grim story", "very lovely music", "cold and dull"]


def asked(i):
    return [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"It is {i}."}]


GOOD = {
    "text": lambda i: {"text": f"text {i}"},
    "pair": lambda i: {"prompt": f"{i}?", "completion": f"It is {i}."},
    "chat": lambda i: {"messages": asked(i)},
}
BROKEN = b'{"text": \n'
LATIN = json.dumps({"text": "caf\u00e9"}, ensure_ascii=False).encode("latin-1") + b"\n"
BAD = {
    "broken": ("text", BROKEN, "1 is no JSON"),
    "latin": ("text", LATIN, "1 holds bytes that are not UTF-8; save the file as UTF-8"),
    "array": ("text", b"[1, 2]\n", "1 is JSON, but no object with keys"),
    "surrogate": ("text", b'{"text": "\\ud83d"}\n', "1 holds half of a character"),
    "object": ("text", b'{"text": {"a": 1}}\n', "1 has an object in `text`"),
    "list": ("text", b'{"text": ["a"]}\n', "1 has a list in `text`"),
    "role": ("chat", {"messages": [asked(1)[0], {"role": "bot", "content": "1"}]},
             "1 has a message of the role `bot`"),
    "refused": ("chat", {"messages": [asked(1)[0], asked(2)[0], *asked(3)]},
                r"1 is refused by the chat template \(two users\)"),
    "image": ("chat", {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
              "1 has a content part of the type `image`"),
    "history": ("pair", {"prompt": "x", "completion": "y", "history": ["z"]},
                "1 has a `history` that is no list of pairs"),
}  # fmt: skip


@pytest.fixture
def refusing(tokenizer):
    """A tokenizer whose template refuses two users in a row."""
    tokenizer.chat_template = (
        "{% for m in messages %}{% if not loop.first and m.role == 'user' and "
        "loop.previtem.role == 'user' %}{{ raise_exception('two users') }}{% endif %}{% endfor %}"
        + tokenizer.chat_template
    )
    return tokenizer


def lines(rows):
    return [json.dumps(row).encode() + b"\n" if isinstance(row, dict) else row for row in rows]


@pytest.mark.parametrize(("kind", "bad", "says"), BAD.values(), ids=BAD.keys())
def test_one_bad_row_is_left_out_and_named(tmp_path, refusing, caplog, kind, bad, says):
    rows = [GOOD[kind](i) for i in range(16)]
    (tmp_path / "rows.jsonl").write_bytes(b"".join(lines([*rows[:4], bad, *rows[4:]])))
    config = DataConfig(train=str(tmp_path / "rows.jsonl"), held_out=0.2)
    made = prepare(config, refusing, "id", 0, tmp_path / "data")
    assert sum(len(Examples(made / f"{part}.arrow")) for part in DATA_PARTS) == 16
    assert re.search(rf"data: 1 row is left out: {says}.*line 5 of .*rows\.jsonl", caplog.text)


@pytest.mark.parametrize(("kind", "bad", "says"), BAD.values(), ids=BAD.keys())
def test_more_than_a_tenth_of_bad_rows_is_an_error(tmp_path, refusing, kind, bad, says):
    rows = [GOOD[kind](i) for i in range(16)]
    (tmp_path / "rows.jsonl").write_bytes(b"".join(lines([bad, bad, *rows])))
    config = DataConfig(train=str(tmp_path / "rows.jsonl"), held_out=0.2)
    says = says.replace("1 is ", "2 are ", 1).replace("1 has ", "2 have ", 1)
    says = says.replace("1 holds ", "2 hold ", 1)
    with pytest.raises(
        DataError, match=rf"At least 2 of 18 rows of .*tenth: {says}.*line 1 of .*, line 2 of"
    ):
        prepare(config, refusing, "id", 0, tmp_path / "data")


def test_a_tenth_is_of_each_source(tmp_path, tokenizer, write_rows):
    """Many good rows to learn from do not hide that half of those to be measured on are bad."""
    train = write_rows([GOOD["text"](i) for i in range(60)])
    held_out = write_rows([{"text": "a"}, {"text": ["b"]}], "held.jsonl")
    config = DataConfig(train=train, held_out=held_out)
    with pytest.raises(DataError, match=r"1 of 2 rows of .*held\.jsonl cannot be used"):
        prepare(config, tokenizer, "id", 0, tmp_path / "data")


READERS = {
    "classes": (LabelledTexts(), {"text": ["a"], "label": "good"}, "a list in `text`"),
    "class of a list": (LabelledTexts(), {"text": "a", "label": ["good"]}, "label that is a list"),
    "fraction": (LabelledTexts(), {"text": "a", "label": 0.5}, "numbers with fractions"),
    "masked": (MaskedTexts(0), {"text": {"a": 1}, "label": "good"}, "an object in `text`"),
    "embedded": (SingleTexts(), {"text": {"a": 1}, "label": "good"}, "an object in `text`"),
}


@pytest.mark.parametrize(("reader", "bad", "says"), READERS.values(), ids=READERS.keys())
def test_one_bad_row_stops_no_task(tmp_path, write_rows, caplog, reader, bad, says):
    rows = [{"text": WORDS[i % 4], "label": ("good", "bad")[i % 2]} for i in range(16)]
    config = DataConfig(train=write_rows([*rows, bad]), max_length=24)
    made = prepare_whole(config, tokenizer_with_mask(), 0, tmp_path / "data", reader)
    assert len(Examples(made / "held_out.arrow")) == 16
    assert "data: 1 row is left out: 1 has" in caplog.text
    assert says in caplog.text
    assert "line 17 of" in caplog.text


def test_a_label_without_a_name_is_one_bad_row(tmp_path, write_rows, caplog):
    rows = [{"text": WORDS[i % 4], "label": i % 2} for i in range(16)]
    names = {"label_column": "label", "label_names": ["bad", "good"]}
    config = DataConfig(train=write_rows([*rows, {"text": "a", "label": 7}]), **names)
    prepare(config, word_tokenizer(), "id", 0, tmp_path / "data", LabelledTexts())
    assert "1 has 7 as label, and there are 2 classes" in caplog.text


def test_one_bad_pair_is_left_out(write_rows, caplog):
    rows = [{"sentence1": "a", "sentence2": "b", "score": i} for i in range(16)]
    source = write_rows([*rows, {**rows[0], "score": "high"}, {**rows[0], "score": "3.5"}])
    assert len(load_pairs(PairsConfig(source=source))) == 17
    assert "1 holds 'high' in `score`; a score is a number (first: line 17 of" in caplog.text


def test_rows_of_a_saved_table_are_named_by_their_number(tmp_path, tokenizer, caplog):
    rows = [GOOD["chat"](i) for i in range(16)]
    rows[6] = {"messages": [*asked(1), {"role": "bot", "content": "x"}]}
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    prepare(DataConfig(train=str(tmp_path / "saved")), tokenizer, "id", 0, tmp_path / "data")
    assert "row 7 of" in caplog.text


# What of good rows is not learned ----------------------------------------------------------------


def test_columns_that_are_not_read_are_named_with_their_rows(
    tmp_path, tokenizer, write_rows, caplog
):
    rows = [{**GOOD["pair"](i), "id": i} for i in range(4)]
    rows += [{**GOOD["pair"](9), "score": 1.5}]
    with caplog.at_level(logging.INFO):
        prepare(DataConfig(train=write_rows(rows)), tokenizer, "id", 0, tmp_path / "data")
    assert "that are not read: id (4 rows), score (1 rows)" in caplog.text


def test_keys_of_messages_that_a_template_does_not_show_are_counted(
    tmp_path, tokenizer, write_rows, caplog
):
    rows = [GOOD["chat"](i) for i in range(5)]
    rows[1]["messages"][0]["name"] = "Ann"
    rows[2]["messages"][0]["name"] = "Bob"
    prepare(DataConfig(train=write_rows(rows)), tokenizer, "id", 0, tmp_path / "data")
    assert "of the rows, 2 have `name`, which the chat template does not show" in caplog.text


def test_an_empty_thought_of_the_template_is_told(tmp_path, tokenizer, write_rows, caplog):
    begin = "<|im_start|>assistant\n"
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '" + begin + "<think>\n\n</think>' if m.role == 'assistant' "
        "else m.role }}{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}" + begin + "{% endif %}"
    )
    source = write_rows([GOOD["chat"](i) for i in range(5)])
    prepare(DataConfig(train=source), tokenizer, "id", 0, tmp_path / "data")
    assert "5 have no thinking, and are learned with the empty thought of the" in caplog.text


def test_an_example_of_just_the_length_is_not_cut(tmp_path, tokenizer, write_rows, caplog):
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>\n", "<|im_end|>")
    length = len(tokenizer(tokenizer.apply_chat_template(asked(3), tokenize=False))["input_ids"])
    source = write_rows([GOOD["chat"](i) for i in range(5)])
    for max_length, said in ((length, False), (length - 1, True)):
        config = DataConfig(train=source, max_length=max_length)
        prepare(config, tokenizer, "id", 0, tmp_path / f"{max_length}")
        assert ("are longer than `data.max_length`" in caplog.text) is said


def test_a_tokenizer_that_knows_no_places_is_refused_before_work(
    tmp_path, tokenizer, write_rows, monkeypatch
):
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    config = DataConfig(train=write_rows([GOOD["chat"](1)] * 3))
    with pytest.raises(DataError, match=r"not a fast tokenizer.*tokenizer\.json"):
        prepare(config, tokenizer, "id", 0, tmp_path / "data")
    config = DataConfig(train=write_rows([GOOD["text"](i) for i in range(4)]))
    prepare(config, tokenizer, "id", 0, tmp_path / "data")


# Classes -----------------------------------------------------------------------------------------


@pytest.fixture
def classes(tmp_path, write_rows):
    """`classes(labels, order)`: the names of the classes of rows with these labels."""

    def make(labels, order=None, **keys):
        rows = [{"text": WORDS[i % 4], "label": label} for i, label in enumerate(labels)]
        config = DataConfig.model_validate({"train": write_rows(rows), **keys})
        made = prepare(config, word_tokenizer(), "id", 0, tmp_path / "data", LabelledTexts(order))
        return read_json(made / "stats.json")["classes"]

    return make


def test_a_class_of_one_row_that_is_almost_another_is_pointed_at(classes, caplog):
    assert classes(["NUM", "LOC"] * 40 + ["NUMM"]) == ["LOC", "NUM", "NUMM"]
    assert re.search(
        r"one row alone has the class `NUMM` \(the first: line 81 of .*40 have `NUM`", caplog.text
    )


def test_a_few_rows_of_a_misspelt_class_are_told_and_kept_for_the_report(classes, caplog, tmp_path):
    classes(["lost_phone", "fee"] * 20 + ["los_phone"] * 4)
    [told] = [record.getMessage() for record in caplog.records if "misspelt" in record.message]
    assert "4 rows have the class `los_phone`" in told
    assert told.removeprefix("data: ") in read_json(tmp_path / "data/stats.json")["left_out"]


def test_classes_of_one_row_each_are_one_sentence(classes, caplog):
    classes([f"topic {letter}" for letter in "abcdefghij"] + ["fee"] * 4)
    [told] = [r.getMessage() for r in caplog.records if "one row" in r.message]
    assert told.startswith("data: 10 of 11 classes have one row each: too few to learn them from (")
    assert told.endswith("`topic h`, 2 more)")


@pytest.mark.parametrize("labels", [["NUM", "LOC"] * 40 + ["ABBR"], ["10", "11"] * 40 + ["12"]])
def test_a_class_of_one_row_that_is_like_no_other_is_not(classes, caplog, labels):
    classes(labels)
    assert "misspelt" not in caplog.text


def test_classes_that_a_spreadsheet_made_fractions_are_whole(classes):
    assert classes([1.0, 2.0, None, 10.0] * 8) == ["1", "2", "10"]
    names = {"label_column": "label", "label_names": ["bad", "good"]}
    assert classes([1.0, 0.0] * 8, **names) == ["bad", "good"]


def test_words_for_a_teacher_without_names_are_told_in_their_order(classes, caplog):
    default = ["LABEL_0", "LABEL_1"]
    assert classes(["good", "bad"] * 8, default) == ["bad", "good"]
    assert re.search("no names .*taken to be bad, good, in alphabetical order", caplog.text)
    caplog.clear()
    named = {"label_column": "label", "label_names": ["good", "bad"]}
    assert classes(["good", "bad"] * 8, default, **named) == ["good", "bad"]
    assert "alphabetical" not in caplog.text


# Any row -----------------------------------------------------------------------------------------

ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "text", "type", "a"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
KEYS = ["role", "content", "from", "value", "tool_calls", "reasoning", "weight", "train", "name"]
ROLE = st.sampled_from(["system", "user", "assistant", "tool", "gpt", "bot", ""]) | ANY
MESSAGE = st.fixed_dictionaries({"role": ROLE, "content": st.text(max_size=6) | ANY}) | (
    st.dictionaries(st.sampled_from(KEYS), ANY, max_size=4)
)
ROW = st.one_of(
    st.fixed_dictionaries({"text": ANY}),
    st.fixed_dictionaries(
        {"messages": st.lists(MESSAGE | ANY, max_size=4) | ANY, "system": ANY, "tools": ANY}
    ),
    st.fixed_dictionaries({"prompt": ANY, "completion": ANY, "history": ANY, "system": ANY}),
)


@given(row=ROW, has_template=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_whatever_a_row_holds_it_is_read_or_a_bad_row(tokenizer, bare_tokenizer, row, has_template):
    chosen = tokenizer if has_template or "messages" in row else bare_tokenizer
    config = DataConfig.model_validate({"train": "rows"})
    layout = row_format_of(row, "rows", config)
    found = []
    with suppress(DataError if chosen.chat_template is None else RowError):
        found = tokenize_document(chosen, row, layout, config, Counter())
    for ids, labels in found:
        assert len(ids) == len(labels)
        assert any(label >= 0 for label in labels)
