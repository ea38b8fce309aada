"""Rows in memory become the examples that a recipe would make of them."""

import logging

import pytest

from attar.errors import DataError
from distill.data.config import DataConfig
from distill.data.examples import Examples
from distill.data.prepare import prepare
from distill.data.row_list import examples_of
from tests.helpers.judging import preferences, ratings
from tests.helpers.preparing import texts, write_jsonl

WORDS = ["light", "falls", "on", "the", "water", "and", "nobody", "sees", "what", "it", "says"]
CHAT = [
    {"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": word}]}
    for i, word in enumerate(WORDS)
]
PAIRS = [
    {"prompt": f"what says {i}", "completion": f"the student says {i}", "extra": i}
    for i in range(9)
]


@pytest.mark.parametrize(
    "rows",
    [[{"text": t} for t in texts(9, 20)], CHAT, PAIRS, preferences(9), ratings(9)],
    ids=["texts", "chats", "pairs", "preferences", "ratings"],
)
def test_they_are_the_examples_of_a_recipe(rows, tokenizer, tmp_path):
    config = DataConfig(train=write_jsonl(tmp_path / "rows.jsonl", rows), max_length=48)
    folder = prepare(config, tokenizer, "id", 0, tmp_path / "data")
    prepared = {}
    for part in ("train", "validation", "held_out"):
        prepared.update({one.key: one for one in Examples(folder / f"{part}.arrow")})
    found = {one.key: one for one in examples_of(rows, tokenizer, config)}
    assert found.keys() == prepared.keys()
    for key, one in found.items():
        assert one.input_ids.tolist() == prepared[key].input_ids.tolist()
        assert one.labels.tolist() == prepared[key].labels.tolist()
        assert one.labels.dtype == prepared[key].labels.dtype
        assert one.role == prepared[key].role
        assert [text.key for text in one.texts] == [text.key for text in prepared[key].texts]


def test_a_bad_row_is_left_out_and_named(tokenizer, caplog):
    rows = [{"text": text} for text in texts(20)]
    rows[6] = {"text": {"no": "text"}}
    config = DataConfig(train="questions", max_length=256)
    with caplog.at_level(logging.WARNING):
        found = examples_of(rows, tokenizer, config)
    assert len(found) == 19
    assert "row 7 of questions" in caplog.text


def test_many_bad_rows_are_an_error(tokenizer):
    rows = [{"text": "light"}, "no row", None, {"text": 3}]
    with pytest.raises(DataError, match="of questions cannot be used"):
        examples_of(rows, tokenizer, DataConfig(train="questions"))


def test_unknown_columns_are_an_error(tokenizer):
    with pytest.raises(DataError, match=r"`questions` has columns a: .*`data.text_column`"):
        examples_of([{"a": "light"}], tokenizer, DataConfig(train="questions"))
