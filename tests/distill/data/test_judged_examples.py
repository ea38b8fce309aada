"""Judged answers on disk: parts that share no prompt, and views by text and of what is liked."""

from collections import Counter

import numpy as np
import pytest

from attar.errors import DataError
from distill.data.batching import collate
from distill.data.calibration import calibration_rows
from distill.data.examples import (
    ALONE,
    CHOSEN,
    REJECTED,
    Examples,
    example_of,
    key_of,
    text_keys,
)
from distill.data.part_writer import numbers_of
from distill.data.placed import part_file
from distill.data.prepare import prepare_whole
from distill.data.tokenize import IGNORE
from tests.helpers.judging import preferences, prepare_parts, ratings
from tests.helpers.preparing import texts, write_jsonl

FOLDERS = ("pref_gsm8k", "pref_truthfulqa", "pref_sentiment")


def prompts_of(tokenizer, examples):
    """The prompt of each example."""
    return [tokenizer.decode(e.input_ids[: e.counted[0] + 1]) for e in examples]


def contents(example):
    """What a text holds, to compare texts."""
    return example.key, example.input_ids.tolist(), example.labels.tolist(), example.role


@pytest.fixture
def mixed(tokenizer, tmp_path):
    """Training examples that are texts, pairs and rated answers, from three files."""
    files = [
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
        for name, rows in (
            ("texts", [{"text": text} for text in texts(6, 3)]),
            ("pairs", preferences(8)),
            ("ratings", ratings(9)),
        )
    ]
    parts, stats = prepare_parts(tokenizer, tmp_path, None, train=files, held_out=0.1)
    return parts["train"], stats


def test_a_pair_is_one_example_of_two_ordinary_texts():
    chosen, rejected = ([1, 2, 3], [IGNORE, 3, IGNORE]), ([1, 2, 4, 5], [IGNORE, 4, 5, IGNORE])
    pair = example_of(*chosen, None, CHOSEN, rejected)
    first, second = pair.texts
    assert text_keys(pair.key) == [key_of(*chosen), key_of(*rejected)] == [first.key, second.key]
    assert (first.role, second.role) == (CHOSEN, REJECTED)
    assert (first.rejected, second.rejected) == (None, None)
    assert pair.input_ids.tolist() == first.input_ids.tolist() == chosen[0]
    assert second.labels.tolist() == rejected[1]
    alone = example_of(*chosen)
    assert (alone.texts, alone.key, alone.role) == ((alone,), first.key, ALONE)


def test_numbers_of_pairs_ratings_and_texts_are_sums_over_their_texts(mixed):
    train, stats = mixed
    for i, example in enumerate(train):
        assert train.lengths[i] == sum(len(text.input_ids) for text in example.texts)
        assert train.counts[i] == sum(len(text.counted) for text in example.texts)
        rejected = [text for text in example.texts if text.role == REJECTED]
        assert train.rejected[i] == sum(len(text.counted) for text in rejected)
        assert train.num_texts[i] == len(example.texts)
        assert train.judged[i] == (example.role != ALONE)
    assert stats["train"]["judged"] == train.judged.sum()
    assert stats["train"]["pairs"] == (train.num_texts == 2).sum()
    assert 0 < stats["train"]["pairs"] < stats["train"]["judged"] < len(train)
    counted = train.counted()
    assert counted.tokens == train.num_tokens
    assert (counted.rejected, counted.judged) == (train.rejected.sum(), train.judged.sum())
    roles = [text.role for example in train for text in example.texts]
    assert (counted.good, counted.bad) == (roles.count(CHOSEN), roles.count(REJECTED))
    assert counted == collate([[example] for example in train]).counted
    assert train.counted([0, 2]) + train.counted(range(3, len(train))) + train.counted([1]) == (
        counted
    )


def test_by_text_every_text_is_an_example(mixed):
    train, _ = mixed
    view = train.by_text()
    wanted = [text for example in train for text in example.texts]
    assert [contents(text) for text in view] == [contents(text) for text in wanted]
    assert view.keys == [text.key for text in wanted]
    assert view.lengths.tolist() == [len(text.input_ids) for text in wanted]
    assert view.counts.tolist() == [len(text.counted) for text in wanted]
    assert view.roles.tolist() == [text.role for text in wanted]
    assert view.rejected.sum() == train.rejected.sum()
    assert view.by_text() is view
    assert train.text_counts() == {text.key: len(text.counted) for text in wanted}
    some = view.among({wanted[1].key, wanted[-1].key})
    assert {text.key for text in some} == {wanted[1].key, wanted[-1].key}


def test_preferred_are_ordinary_texts_without_the_rejected(mixed):
    train, _ = mixed
    view = train.preferred()
    wanted = {e.texts[0].key for e in train if e.role != REJECTED}
    assert Counter(view.keys) == Counter(wanted)
    assert all(text.role == ALONE and text.rejected is None for text in view)
    assert [text.key for text in view] == view.keys
    assert view.lengths.tolist() == [len(text.input_ids) for text in view]
    assert view.counts.tolist() == [len(text.counted) for text in view]
    assert view.counted().judged == view.counted().rejected == 0
    rows_BT = calibration_rows(train, 200)
    assert rows_BT.shape[0] * rows_BT.shape[1] >= 100


def test_where_no_answer_is_good_all_are_preferred(tokenizer, tmp_path):
    rows = [{**row, "label": False} for row in ratings(20)]
    parts, _ = prepare_parts(tokenizer, tmp_path, rows)
    assert sorted(parts["train"].preferred().keys) == sorted(parts["train"].keys)


def test_ordinary_examples_are_their_own_views_and_keep_their_keys(tokenizer, tmp_path):
    parts, stats = prepare_parts(tokenizer, tmp_path, [{"text": text} for text in texts(20)])
    train = parts["train"]
    assert train.by_text() is train.preferred() is train
    assert train.keys == [key_of(e.input_ids.tolist(), e.labels.tolist()) for e in train]
    assert stats["train"]["judged"] == 0


def test_pairs_of_one_prompt_stay_together_and_no_prompt_is_in_two_parts(tokenizer, tmp_path):
    parts, stats = prepare_parts(tokenizer, tmp_path, preferences(30, each=3))
    prompts = {part: prompts_of(tokenizer, examples) for part, examples in parts.items()}
    assert sum(len(found) for found in prompts.values()) == 90
    assert sum(len(set(found)) for found in prompts.values()) == 30
    for part, examples in parts.items():
        assert set(Counter(prompts[part]).values()) == {3}
        assert stats[part]["documents"] == len(set(prompts[part]))
        assert len(set(zip(prompts[part], examples.documents, strict=True))) == len(
            set(prompts[part])
        )


def test_a_held_out_file_takes_its_prompts_from_the_training_part(tokenizer, tmp_path):
    held_out = write_jsonl(tmp_path / "held.jsonl", preferences(14, each=1)[:5])
    parts, _ = prepare_parts(tokenizer, tmp_path, preferences(14), held_out=held_out)
    held = set(prompts_of(tokenizer, parts["held_out"]))
    assert len(held) == 5
    assert not held & set(prompts_of(tokenizer, parts["train"]))


def test_a_limit_on_tokens_splits_no_pair(tokenizer, tmp_path):
    parts, _ = prepare_parts(tokenizer, tmp_path, preferences(30), train_tokens=50)
    train = parts["train"]
    assert train.num_tokens >= 50 > train.num_tokens - train.counts[-1]
    assert all(len(example.texts) == 2 for example in train)


def test_rows_left_out_are_counted_by_reason(tokenizer, tmp_path):
    rows = preferences(30)
    rows[0]["rejected"] = rows[0]["chosen"]
    rows[7]["chosen"] = ""
    rows[9]["rejected"] = None
    _, stats = prepare_parts(tokenizer, tmp_path, rows)
    said = " ".join(stats["left_out"])
    for reason in ("1 have the same answer as chosen and rejected", "1 have an empty answer",
                   "1 lack one of two answers, and are left out"):  # fmt: skip
        assert reason in said


@pytest.mark.parametrize(
    ("change", "keys", "says"),
    [
        ({"chosen": ""}, {}, "have an empty answer"),
        ({"prompt": "what? " * 40}, {"max_length": 24}, "have a prompt that fills"),
        ({"rejected": None}, {}, "lack one of two answers"),
    ],
)
def test_where_every_row_is_left_out_the_error_says_why(tokenizer, tmp_path, change, keys, says):
    rows = [{**row, **change, "prompt": f"{i} {change.get('prompt', 'a')}"}
            for i, row in enumerate(preferences(12))]  # fmt: skip
    with pytest.raises(DataError, match=says):
        prepare_parts(tokenizer, tmp_path, rows, **keys)


def test_ratings_that_are_neither_true_nor_false_are_an_error(tokenizer, tmp_path):
    rows = [
        {**row, "label": "perhaps" if i % 4 == 0 else True} for i, row in enumerate(ratings(20))
    ]
    with pytest.raises(DataError, match=r"hold 'perhaps' in `label`, where true or false"):
        prepare_parts(tokenizer, tmp_path, rows)


def test_few_prompts_are_divided_by_their_answers(tokenizer, tmp_path, caplog):
    rows = [{"prompt": "say", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(40)]
    parts, _ = prepare_parts(tokenizer, tmp_path, rows)
    assert sum(len(examples) for examples in parts.values()) == 40
    assert "only 1 prompt, with many answers each" in caplog.text


def test_data_to_measure_on_are_pairs_too(tokenizer, tmp_path):
    from distill.data.config import DataConfig

    source = write_jsonl(tmp_path / "rows.jsonl", preferences(6))
    folder = prepare_whole(DataConfig(train=source), tokenizer, 0, tmp_path / "whole")
    assert numbers_of(part_file(folder, "held_out"))["pairs"] == 12
    assert len(Examples(part_file(folder, "held_out")).preferred()) == 6


@pytest.mark.parametrize("name", FOLDERS)
def test_real_preferences(shared_data, tokenizer, tmp_path, name):
    source = str(shared_data(name) / "test.jsonl.gz")
    parts, stats = prepare_parts(tokenizer, tmp_path, source, max_length=1024, held_out=0.1)
    total = sum(stats[part]["pairs"] for part in parts)
    assert total == sum(len(examples) for examples in parts.values()) > 140
    assert all("cannot" not in one for one in stats["left_out"])
    found = {part: set(prompts_of(tokenizer, examples)) for part, examples in parts.items()}
    if name != "pref_sentiment":  # it has two prompts
        assert not found["train"] & found["held_out"]
        assert not found["train"] & found["validation"]
    for example in parts["held_out"]:
        one, other = example.texts
        start = one.counted[0] + 1
        assert other.counted[0] + 1 == start
        assert np.array_equal(one.input_ids[:start], other.input_ids[:start])
        assert not np.array_equal(one.labels, other.labels)


def test_without_rejected_texts_a_step_reads_the_chosen_text_of_the_same_pairs(mixed):
    train, _ = mixed
    alone = train.without_rejected()
    assert (alone.lengths == train.lengths).all()  # rows are planned alike
    assert alone.counted().of("chosen") == train.counted().of("chosen")
    assert alone.num_tokens == sum(len(example.counted) for example in alone) < train.num_tokens
    assert [contents(one) for one in alone] == [contents(one.texts[0]) for one in train]
    assert alone.keys == [one.key for one in alone]
    rows = [[i] for i in range(len(train))]
    both, read = (collate([[part[i] for i in row] for row in rows]) for part in (train, alone))
    assert len(both.keys) - len(read.keys) == (train.num_texts == 2).sum() > 0
    assert read.input_ids_BT.shape[0] == len(train)
