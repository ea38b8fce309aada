"""Three parts: what is learned from, what chooses, what is reported; and what few data give."""

import logging
import math
import random

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from attar.errors import DataError
from attar.files import read_json
from distill.data.config import DataConfig, source_stamp
from distill.data.examples import Examples
from distill.data.masked_texts import MaskedTexts
from distill.data.placed import DATA_PARTS, part_file
from distill.data.prepare import prepare, prepare_whole
from tests.helpers.classifying import BAD, GOOD, PLAIN, write_rows
from tests.helpers.masking import tokenizer

WINDOW = 16


def word_rows(number, longest, seed):
    """Texts of 6 to `longest` random words."""
    dice = random.Random(seed)
    words = PLAIN + GOOD + BAD
    return [{"text": " ".join(dice.choices(words, k=dice.randint(6, longest)))}
            for _ in range(number)]  # fmt: skip


@pytest.fixture
def split(tmp_path, monkeypatch):
    """`split(rows or a source, **keys of data)`: the parts by name, and stats.json.

    held.jsonl and chosen.jsonl hold four texts each for parts with a source of their own.
    """
    monkeypatch.chdir(tmp_path)
    for name, seed in (("held.jsonl", 4), ("chosen.jsonl", 5)):
        write_rows(name, word_rows(4, 12, seed))

    def make(source, *, reader=None, seed=0, **keys):
        if isinstance(source, list):
            write_rows("train.jsonl", source)
            source = "train.jsonl"
        values = {"train": source, "max_length": 32, "append_eos": False, **keys}
        config = DataConfig.model_validate(values)
        folder = prepare(config, tokenizer(), "ids", seed, tmp_path / "data", reader)
        parts = {part: Examples(part_file(folder, part)) for part in DATA_PARTS}
        return parts, read_json(folder / "stats.json")

    return make


def texts_of(part):
    """Words of each example of a part."""
    words = tokenizer().convert_ids_to_tokens
    return [" ".join(words(example.input_ids[1:-1].tolist())) for example in part]


def words_of(rows):
    return [row["text"] for row in rows]


# The held-out part -------------------------------------------------------------------------------

# What was held out before there was a validation part: beginnings of keys, and documents.
HELD_OUT = {
    "share": (word_rows(30, 12, 0), {"held_out": 0.1},
              ["52dda98a", "a54132ea", "9c2582c2"], [0, 1, 2]),
    "bounded": (word_rows(12, 40, 1), {"held_out": 0.5, "held_out_tokens": 60, "max_length": 10},
                ["8109561a", "ff732ff2", "4d2b6e8a", "4fdc9687", "9c2c2f72", "d095f0e3",
                 "ddb86929", "ee7a7245"], [0, 0, 1, 1, 2, 2, 3, 3]),
    "masked": (word_rows(12, 40, 1), {"held_out": 0.3, "held_out_tokens": 5, "max_length": 12,
                                      "masking": {"copies": 2}, "reader": MaskedTexts(0)},
               ["0b852c24", "5a87f2b5", "d1412aae"], [0, 1, 2]),
    "one document": ([{"text": " ".join(words_of(word_rows(10, 12, 2)))}],
                     {"held_out": 0.2, "max_length": 16}, ["96282091", "27fc7e05"], [0, 0]),
    "source": (word_rows(10, 12, 3), {"held_out": "held.jsonl"},
               ["2d4df529", "c0fd81bf", "b5bcf69d", "d52effc4"], [0, 1, 2, 3]),
}  # fmt: skip


@pytest.mark.parametrize("name", HELD_OUT)
@pytest.mark.parametrize("validation", [{}, {"validation": "chosen.jsonl"}, {"validation": 0.5}])
def test_the_held_out_part_is_what_it_was_before_there_was_validation(split, name, validation):
    rows, keys, expected, documents = HELD_OUT[name]
    parts, _ = split(rows, **keys, **validation)
    assert [key[:8] for key in parts["held_out"].keys] == expected
    assert parts["held_out"].documents.tolist() == documents


# Shares and bounds -------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.02, 0.2, 0.9])
def test_validation_is_a_share_of_the_documents_that_are_not_held_out(split, share):
    parts, stats = split(word_rows(40, 12, 0), held_out=0.25, validation=share)
    rest = 30
    assert len(parts["held_out"]) == 10
    assert len(parts["validation"]) == math.ceil(share * rest)
    assert len(parts["train"]) == rest - math.ceil(share * rest)
    assert stats["validation_from"] == "documents"
    for part, examples in parts.items():
        documents = len(set(examples.documents.tolist()))
        numbers = {
            "examples": len(examples),
            "tokens": examples.num_tokens,
            "judged": 0,
            "pairs": 0,
        }
        assert stats[part] == {"documents": documents, **numbers}


def test_at_least_one_document_is_left_to_learn_from(split):
    parts, _ = split(word_rows(3, 12, 0), held_out=0.1, validation=0.99)
    assert [len(parts[part]) for part in DATA_PARTS] == [1, 1, 1]


def test_a_limit_on_validation_tokens_is_spread_over_its_documents(split):
    rows = word_rows(30, 80, 0)
    keys = {"held_out": 0.1, "validation": 0.3, "max_length": 10}
    whole = split(rows, **keys, validation_tokens=None)[0]["validation"]
    some = split(rows, **keys, validation_tokens=81)[0]["validation"]
    assert 60 < some.num_tokens < 81 + 9
    assert set(some.documents) == set(whole.documents) == set(range(9))
    assert set(some.keys) < set(whole.keys)


def test_documents_that_the_limit_does_not_reach_are_learned_from(split):
    rows = word_rows(100, 12, 0)
    parts, _ = split(rows, held_out=0.1, validation=0.5, validation_tokens=50)
    assert 50 <= parts["validation"].num_tokens < 50 + 12
    assert len(parts["held_out"]) == 10
    assert sum(map(len, parts.values())) == 100


def test_the_limit_holds_where_not_every_token_counts(split):
    rows, keys = word_rows(30, 40, 1), {"max_length": 12, "validation": 0.5}
    parts, _ = split(rows, **keys, validation_tokens=6, reader=MaskedTexts(0))
    assert parts["validation"].num_tokens >= 6 > parts["validation"].num_tokens - 2
    assert len(set(parts["validation"].documents)) == len(parts["validation"])


def test_validation_tokens_are_bounded_unless_the_recipe_says_otherwise():
    config = DataConfig(train="x")
    assert (config.validation, config.validation_tokens) == (0.02, 16384)


@pytest.mark.parametrize("share", [0, 1.0, -0.5, 2])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValidationError, match="between 0 and 1"):
        DataConfig.model_validate({"train": "x", "validation": share})


# No example in two parts -------------------------------------------------------------------------


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.lists(st.integers(0, 12), min_size=2, max_size=25),
    held_out=st.sampled_from([0.05, 0.3, "held.jsonl"]),
    validation=st.sampled_from([0.02, 0.3, 0.8, "chosen.jsonl"]),
    limit=st.sampled_from([None, 1, 40]),
    seed=st.integers(0, 3),
)
def test_no_example_is_in_two_parts(split, kinds, held_out, validation, limit, seed):
    """Of documents that may be alike; where one alone is left, it is said to be in two."""
    texts = [row for kind in range(13) for row in word_rows(1, 40, kind)]
    keys = {"held_out": held_out, "validation": validation, "validation_tokens": limit}
    try:
        parts, stats = split([texts[kind] for kind in kinds], seed=seed, max_length=WINDOW, **keys)
    except DataError as error:
        assert "data.train" in str(error), "everything is held out"  # noqa: PT017
        return
    found = {part: set(examples.keys) for part, examples in parts.items()}
    assert all(found.values())
    assert not found["held_out"] & (found["train"] | found["validation"])
    if stats["validation_from"] == "training examples":
        assert found["train"] == found["validation"]
        assert len(found["train"]) == 1
    elif stats["validation_from"] != "windows":
        assert not found["train"] & found["validation"]


def test_what_stands_in_another_part_is_counted_in_the_log(split, caplog):
    chosen, rows = word_rows(4, 12, 5), word_rows(20, 12, 6)
    held = word_rows(4, 12, 4)
    write_rows("chosen.jsonl", [*chosen, held[0]])
    with caplog.at_level(logging.INFO):
        parts, stats = split([*rows, chosen[0], *held[:2]], held_out="held.jsonl",
                             validation="chosen.jsonl")  # fmt: skip
    assert "1 validation examples also stand in the held-out part" in caplog.text
    assert "3 training examples also stand in the validation or held-out part" in caplog.text
    assert sorted(texts_of(parts["validation"])) == sorted(words_of(chosen))
    assert len(parts["train"]) == 20
    assert stats["validation_from"] == "source"


# Sources and splits ------------------------------------------------------------------------------


def test_a_split_can_be_the_validation_part(split, tmp_path):
    rows = {"train": word_rows(9, 12, 0), "validation": word_rows(3, 12, 1),
            "test": word_rows(2, 12, 2)}  # fmt: skip
    saved = {name: datasets.Dataset.from_list(some) for name, some in rows.items()}
    datasets.DatasetDict(saved).save_to_disk(str(tmp_path / "saved"))
    parts, stats = split(
        str(tmp_path / "saved"), validation="split:validation", held_out="split:test"
    )
    for part, name in zip(DATA_PARTS, ("train", "validation", "test"), strict=True):
        assert sorted(texts_of(parts[part])) == sorted(words_of(rows[name]))
    assert stats["validation_from"] == "split"


@pytest.mark.parametrize("name", ["held.jsonl", "split:test"])
def test_what_chooses_cannot_be_what_is_reported(name):
    with pytest.raises(ValidationError, match="`validation` and `held_out` are both"):
        DataConfig(train="x", held_out=name, validation=name)


def test_a_validation_source_without_an_example_of_its_own_is_refused(split):
    write_rows("chosen.jsonl", word_rows(4, 12, 4))
    with pytest.raises(DataError, match=r"`data\.validation`.*stand in another part"):
        split(word_rows(9, 12, 0), held_out="held.jsonl", validation="chosen.jsonl")


def test_an_edited_validation_source_is_prepared_again(split):
    rows, keys = word_rows(9, 12, 0), {"validation": "chosen.jsonl"}
    before = split(rows, **keys)[0]["validation"].keys
    stamp = source_stamp(DataConfig(train="train.jsonl", validation="chosen.jsonl"))
    write_rows("chosen.jsonl", word_rows(2, 12, 7))
    assert split(rows, **keys)[0]["validation"].keys != before
    assert source_stamp(DataConfig(train="train.jsonl", validation="chosen.jsonl")) != stamp


def test_a_missing_validation_source_is_named(split):
    with pytest.raises(DataError, match=r"chosn\.jsonl.*chosen\.jsonl"):
        split(word_rows(9, 12, 0), validation="chosn.jsonl")


def test_a_seed_draws_the_same_validation_part_and_another_seed_another(split):
    rows = word_rows(40, 12, 0)
    drawn = [split(rows, validation=0.2, seed=seed)[0]["validation"].keys for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]


# Few data ----------------------------------------------------------------------------------------


def test_one_document_is_learned_then_validated_then_held_out(split, caplog):
    words = " ".join(words_of(word_rows(30, 12, 2)))
    parts, stats = split([{"text": words}], held_out=0.2, validation=0.25, max_length=WINDOW)
    ids = tokenizer()(words)["input_ids"]
    whole = [example for part in DATA_PARTS for example in parts[part]]
    joined = [whole[0].input_ids[0], *(label for e in whole for label in e.labels[:-1])]
    assert [int(i) for i in joined] == ids, "in order, and nothing is lost"
    left = len(whole) - math.ceil(0.2 * len(whole))
    assert len(parts["validation"]) == math.ceil(0.25 * left)
    assert stats["validation_from"] == "windows"
    assert f"the last {len(parts['validation'])} of {left} training examples" in caplog.text


def test_two_documents_validate_on_the_end_of_the_one_that_is_learned(split, caplog):
    rows = word_rows(2, 12, 1)
    for row in rows:
        row["text"] = " ".join([row["text"]] * 4)
    parts, stats = split(rows, max_length=8)
    assert stats["validation_from"] == "windows"
    assert len(parts["validation"]) == 1
    assert set(parts["train"].documents) == set(parts["validation"].documents) == {0}
    assert "too few documents for a validation part" in caplog.text


def test_the_validation_windows_stop_at_their_limit(split):
    words = " ".join(words_of(word_rows(60, 12, 2)))
    keys = {"held_out": 0.1, "validation": 0.9, "max_length": WINDOW}
    parts, _ = split([{"text": words}], **keys, validation_tokens=40)
    assert 40 <= parts["validation"].num_tokens < 40 + WINDOW
    parts, _ = split([{"text": words}], **keys, validation_tokens=1)
    assert len(parts["validation"]) == 1


def test_a_single_training_example_is_validated_on_too_and_said_so(split, caplog):
    parts, stats = split(word_rows(2, 12, 0))
    assert stats["validation_from"] == "training examples"
    assert parts["train"].keys == parts["validation"].keys
    assert len(parts["train"]) == 1
    assert "only one training example, so it is the validation part too" in caplog.text
    assert sum("validation" in record.message for record in caplog.records) == 1


def test_documents_that_are_all_alike_give_what_can_be_given(split):
    """Both training documents are of the validation part's text: one of three is learned."""
    one, other = word_rows(2, 12, 0)
    parts, stats = split([one, other, other, other], held_out=0.01, seed=1)
    found = {part: set(texts_of(examples)) for part, examples in parts.items()}
    assert found["train"] == found["validation"] != found["held_out"]
    assert stats["validation_from"] == "training examples"


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("filled", [1, 2, 3, 8])
def test_empty_rows_are_never_all_of_a_part(split, filled, seed):
    texts = [" ".join(words_of(word_rows(9, 12, i))) for i in range(filled)]
    rows = [{"text": text} for text in [*texts, *[" "] * (20 - filled)]]
    random.Random(seed).shuffle(rows)
    parts, stats = split(rows, held_out=0.05, validation=0.05, max_length=8, seed=seed)
    assert all(len(parts[part]) for part in DATA_PARTS)
    assert stats["validation_from"] == ("documents" if filled > 2 else "windows")
    assert sum(len({*parts[part]._rows["text"]}) for part in DATA_PARTS) >= min(filled, 3)


def test_a_limit_on_held_out_tokens_is_reached_where_texts_are_short(split):
    rows = word_rows(60, 30, 3)
    rows[7]["text"] = " ".join([rows[7]["text"]] * 40)
    for limit in (20, 300, 900):
        parts, _ = split(rows, held_out=0.9, held_out_tokens=limit, max_length=32)
        assert limit <= parts["held_out"].num_tokens < limit + 32
    keys = {"held_out": 0.1, "validation": 0.9, "max_length": 32}
    parts, _ = split(rows, **keys, validation_tokens=700)
    assert 700 <= parts["validation"].num_tokens < 732


def test_equal_texts_of_a_part_are_one_document(split):
    write_rows("held.jsonl", [{"text": "good film", "id": i} for i in range(9)])
    parts, _ = split(word_rows(9, 12, 0), held_out="held.jsonl")
    assert len(parts["held_out"]) == 9
    assert len(set(parts["held_out"].documents)) == 1, "they tell no more than one"


def test_enough_documents_warn_of_nothing(split, caplog):
    split(word_rows(3, 12, 0))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_measuring_a_file_makes_no_other_part(split, tmp_path):
    write_rows("some.jsonl", word_rows(5, 12, 0))
    folder = prepare_whole(DataConfig(train="some.jsonl"), tokenizer(), 0, tmp_path / "whole")
    assert [file.name for file in folder.iterdir()] == ["held_out.arrow"]
    assert len(Examples(folder / "held_out.arrow")) == 5
