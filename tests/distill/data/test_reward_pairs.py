"""Pairs of answers as whole texts: how rows are read, cut, left out, told apart, and batched."""

from collections import Counter

import numpy as np
import pytest
import torch

from attar.errors import DataError
from attar.files import read_json
from distill.data.bad_rows import RowError
from distill.data.batching import collate_texts
from distill.data.config import DataConfig
from distill.data.counted import Counted
from distill.data.examples import CHOSEN, REJECTED, Examples
from distill.data.placed import DATA_PARTS, part_file
from distill.data.preference_rows import common_length, preference_format
from distill.data.prepare import prepare
from distill.data.reward_pairs import RewardPairs, tokenize_reward_pair
from distill.data.tokenize import (
    CUT,
    IGNORE,
    NO_ANSWER,
    NO_ROOM,
    ONE_ANSWER,
    SAME_ANSWERS,
    SAME_BEGINNINGS,
)
from tests.helpers.classifying import word_tokenizer
from tests.helpers.judging import said
from tests.helpers.preparing import write_jsonl
from tests.helpers.rewarding import pairs


def read(tokenizer, row, max_length=64, **keys):
    """((ids of both texts) or None, the reasons of the tally)."""
    config = DataConfig.model_validate({"train": "rows", "max_length": max_length, **keys})
    layout, tally = preference_format(row, "rows", config), Counter()
    found = tokenize_reward_pair(tokenizer, row, layout, max_length, tally)
    if not found:
        return None, set(tally)
    for ids, labels in found[0]:
        assert labels == [0, *[IGNORE] * (len(ids) - 1)]
    return tuple(ids for ids, _ in found[0]), set(tally)


def parts_of(tokenizer, folder, rows, **keys):
    """({part: examples}, stats.json)."""
    values = {"train": write_jsonl(folder / "rows.jsonl", rows), "held_out": 0.2, **keys}
    config = DataConfig.model_validate({"validation": 0.2, "max_length": 64, **values})
    made = prepare(config, tokenizer, "ids", 0, folder / "data", RewardPairs())
    parts = {part: Examples(part_file(made, part)) for part in DATA_PARTS}
    return parts, read_json(made / "stats.json")


# Rows --------------------------------------------------------------------------------------------


def test_a_text_is_its_prompt_and_one_answer_as_the_tokenizer_reads_it():
    tokenizer = word_tokenizer()
    row = {"prompt": "the film ", "chosen": "was lovely", "rejected": "was very dull"}
    found, tally = read(tokenizer, row)
    assert found == tuple(
        tokenizer(text)["input_ids"] for text in ("the film was lovely", "the film was very dull")
    )
    assert not tally


def test_a_conversation_is_rendered_by_the_chat_template(tokenizer):
    asked = [said("system", "be brief"), said("user", "what falls?")]
    answers = {"chosen": [said("assistant", "light")], "rejected": [said("assistant", "it says")]}
    found, _ = read(tokenizer, {"prompt": asked, **answers})
    want = [
        tokenizer.apply_chat_template([*asked, *answers[side]], return_dict=False)
        for side in ("chosen", "rejected")
    ]
    assert list(found) == want
    whole = {side: [*asked, *messages] for side, messages in answers.items()}
    assert read(tokenizer, whole)[0] == found, "the prompt is what both begin with"


def test_plain_answers_go_through_the_chat_template_too(tokenizer):
    found, _ = read(tokenizer, {"prompt": "what?", "chosen": "light", "rejected": "water"})
    messages = [said("user", "what?"), said("assistant", "light")]
    assert found[0] == tokenizer.apply_chat_template(messages, return_dict=False)


def test_texts_that_begin_alike_have_their_prompt_in_common(bare_tokenizer):
    row = {"chosen": "Q: what falls? A: light", "rejected": "Q: what falls? A: water and what"}
    found, _ = read(bare_tokenizer, row)
    assert found == tuple(bare_tokenizer(row[side])["input_ids"] for side in row)


def test_conversations_need_a_chat_template(bare_tokenizer):
    row = {
        "prompt": [said("user", "what?")],
        "chosen": [said("assistant", "light")],
        "rejected": [said("assistant", "it")],
    }
    with pytest.raises(DataError, match="no chat template; put one into the model's folder"):
        read(bare_tokenizer, row)


def test_a_template_makes_the_prompt():
    row = {"title": "film", "chosen": "was kind", "rejected": "was grim"}
    found, _ = read(word_tokenizer(), row, prompt="the {title}")
    assert found[0] == word_tokenizer()("the film was kind")["input_ids"]


def test_answers_are_cut_at_their_end_and_the_last_special_token_stays():
    tokenizer = word_tokenizer()
    row = {"prompt": "the film ", "chosen": "was kind with music", "rejected": "was grim"}
    (chosen, rejected), tally = read(tokenizer, row, max_length=6)
    assert tally == {CUT}
    assert chosen == tokenizer("the film was kind")["input_ids"]
    assert rejected == tokenizer("the film was grim")["input_ids"]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"prompt": "the film and the story "}, NO_ROOM),
        ({"chosen": "was a story", "rejected": "was a film"}, SAME_BEGINNINGS),
        ({"chosen": "was a story", "rejected": "was a story"}, SAME_ANSWERS),
        ({"chosen": "kind", "rejected": "kind"}, SAME_ANSWERS),
        ({"chosen": "unheard", "rejected": "unknown"}, SAME_ANSWERS),  # one id for both
        ({"rejected": " "}, NO_ANSWER),
        ({"rejected": None}, ONE_ANSWER),
    ],
)
def test_pairs_that_teach_nothing_are_left_out_with_the_reason(values, reason):
    row = {"prompt": "the film ", "chosen": "kind", "rejected": "grim", **values}
    assert read(word_tokenizer(), row, max_length=6) == (None, {reason})


def test_other_rows_are_refused_with_what_to_write(tmp_path):
    with pytest.raises(DataError, match="columns text: a reward model learns from pairs of ans"):
        parts_of(word_tokenizer(), tmp_path, [{"text": "the film"}] * 9)


# Margins -----------------------------------------------------------------------------------------


def test_a_margin_is_kept_with_its_pair(tmp_path):
    rows = pairs(20, margins=True)
    parts, _ = parts_of(word_tokenizer(), tmp_path, rows)
    kept = Counter(example.margin for part in parts.values() for example in part)
    assert kept == Counter(row["margin"] for row in rows)
    assert len(kept) == 3


@pytest.mark.parametrize("given", [None, ""])
def test_a_pair_without_a_margin_has_0(tmp_path, given):
    rows = [{**row, "margin": given} for row in pairs(9)]
    parts, _ = parts_of(word_tokenizer(), tmp_path, rows)
    assert {example.margin for example in parts["train"]} == {0.0}


@pytest.mark.parametrize("given", ["much", True, float("inf")])
def test_a_margin_that_is_not_a_number_is_named_before_work(tmp_path, given):
    rows = [{**row, "margin": given} for row in pairs(9)]
    with pytest.raises((DataError, RowError), match="in `margin`, where a number says how much"):
        parts_of(word_tokenizer(), tmp_path, rows)


# Parts -------------------------------------------------------------------------------------------


def test_no_prompt_is_in_two_parts(tmp_path):
    parts, stats = parts_of(word_tokenizer(), tmp_path, pairs(30, each=3))
    seen = {}
    for part, examples in parts.items():
        assert stats[part]["pairs"] == stats[part]["examples"] == len(examples)
        assert stats[part]["tokens"] == 2 * len(examples)
        assert (examples.num_texts == 2).all()
        assert set(np.bincount(examples.documents)) <= {0, 3}
        for example in examples:
            chosen, rejected = (text.input_ids.tolist() for text in example.texts)
            assert common_length(chosen, rejected) >= 6
    for part, examples in parts.items():
        for example in examples:
            assert seen.setdefault(example.key, part) == part
    assert stats["outputs"] == 1


# Batches -----------------------------------------------------------------------------------------


def test_both_texts_of_a_pair_are_in_one_batch_one_behind_the_other(tmp_path):
    parts, _ = parts_of(word_tokenizer(), tmp_path, pairs(20, margins=True))
    examples = list(parts["train"])[:3]
    batch = collate_texts([[example] for example in examples])
    assert batch.roles.tolist() == [CHOSEN, REJECTED] * 3
    assert batch.counted == Counted(6, rejected=3, judged=3, good=3, bad=3)
    assert batch.counted == parts["train"].counted(range(3))
    assert batch.keys == [text.key for example in examples for text in example.texts]
    assert batch.margins_P.tolist() == [example.margin for example in examples]
    texts = [text for example in examples for text in example.texts]
    for ids_T, mask_T, text in zip(batch.input_ids_BT, batch.mask_BT, texts, strict=True):
        assert ids_T[mask_T.bool()].tolist() == text.input_ids.tolist()


def test_a_whole_text_counts_as_its_mean_where_its_role_is_asked_for(tmp_path):
    parts, _ = parts_of(word_tokenizer(), tmp_path, pairs(20))
    batch = collate_texts([[example] for example in list(parts["train"])[:4]])
    values_N = torch.randn(sum(batch.counts), generator=torch.Generator().manual_seed(0))
    means = torch.stack([part.mean() for part in values_N.split(batch.counts)])
    for texts, chosen in (("chosen", means[::2]), ("rejected", means[1::2]), ("all", means)):
        torch.testing.assert_close(batch.total(values_N, texts), chosen.sum())
