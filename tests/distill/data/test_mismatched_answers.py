"""Prompts with the answers to other prompts: the same texts whatever the batch, beside it alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.data.batching import TOKEN_BATCHING, collate, plan_epoch
from distill.data.examples import ALONE, has_two_prompts, key_of
from distill.data.tokenize import IGNORE
from tests.helpers.judging import preferences, prepare_parts, ratings
from tests.helpers.preparing import texts, write_jsonl

MAX_LENGTH = 64


@pytest.fixture
def mixed(tokenizer, tmp_path):
    """Training examples that are texts, pairs and rated answers."""
    files = [
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
        for name, rows in (
            ("texts", [{"text": text} for text in texts(6, 3)]),
            ("pairs", preferences(8)),
            ("ratings", [{**row, "prompt": f"so {row['prompt']}"} for row in ratings(9)]),
        )
    ]
    parts, _ = prepare_parts(tokenizer, tmp_path, None, train=files, held_out=0.1)
    return parts["train"]


def mismatched_of(examples):
    """{key of a judged text: key of its mismatched text}."""
    return {
        text.key: text.mismatched.key
        for example in examples
        for text in example.texts
        if text.mismatched is not None
    }


def test_the_answer_is_that_of_the_next_key_whose_prompt_differs(mixed):
    judged = sorted((t for e in mixed for t in e.texts if t.role != ALONE), key=lambda t: t.key)
    wanted = {}
    for i, text in enumerate(judged):
        other = next(
            other
            for other in judged[i + 1 :] + judged[:i]
            if other.prompt.tolist() != text.prompt.tolist()
        )
        prompt, answer = text.prompt.tolist(), other.counted_labels.tolist()
        labels = [IGNORE] * (len(prompt) - 1) + answer + [IGNORE]
        wanted[text.key] = key_of(prompt + answer, labels), prompt + answer, labels
    found = [text for example in mixed.with_mismatched(MAX_LENGTH) for text in example.texts]
    for text in found:
        if text.role == ALONE:
            assert text.mismatched is None
            continue
        one = text.mismatched
        assert (one.key, one.input_ids.tolist(), one.labels.tolist()) == wanted[text.key]
        assert (one.role, one.mismatched) == (ALONE, None)
    assert len(wanted) == len({text.key for text in found if text.role != ALONE}) > 20


def test_views_and_other_orders_have_the_same_texts(mixed):
    view = mixed.with_mismatched(MAX_LENGTH)
    found = mismatched_of(view)
    some = [3, 0, len(mixed) - 1, 9]
    for part in (view.numbered(some), view.by_text(), view.among(set(mixed.keys[:7]))):
        mine = mismatched_of(part)
        assert mine
        assert mine.items() <= found.items()
    backwards = mixed.numbered(range(len(mixed) - 1, -1, -1))
    assert mismatched_of(backwards.with_mismatched(MAX_LENGTH)) == found
    assert not mismatched_of(mixed)


def test_a_view_counts_what_it_counted(mixed):
    view = mixed.with_mismatched(MAX_LENGTH)
    assert view.counted() == mixed.counted()
    assert view.lengths.tolist() == mixed.lengths.tolist()
    assert view.fingerprint() == mixed.fingerprint()
    assert replace(view[0], mismatched=None).key == mixed[0].key


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_texts_are_the_same_for_every_batch_and_nothing_of_them_is_counted(
    mixed, batch_size, packing
):
    view = mixed.with_mismatched(MAX_LENGTH)
    wanted, seen = mismatched_of(view), []
    plan = plan_epoch(
        view.lengths, batch_size=batch_size, max_length=MAX_LENGTH, packing=packing, seed=3
    )
    for rows in plan:
        batch = collate([[view[i] for i in row] for row in rows])
        plain = collate([[mixed[i] for i in row] for row in rows])
        assert batch.counted == plain.counted
        for name, value in vars(plain).items():
            if name != "mismatched":
                assert np.all(np.asarray(getattr(batch, name) == value))
        judged = [key for key, role in zip(batch.keys, batch.roles, strict=True) if role != ALONE]
        assert (batch.mismatched is None) == (not judged)
        if batch.mismatched is None:
            continue
        assert sorted(batch.mismatched.keys) == sorted(wanted[key] for key in judged)
        assert batch.mismatched.roles_S is None
        seen += batch.mismatched.keys
        rows_of = batch.mismatched.input_ids_BT.shape[0]
        assert rows_of <= len(judged) if packing else rows_of == len(judged)
        assert batch.mismatched.input_ids_BT.shape[1] <= MAX_LENGTH
    everything = [text for example in view for text in example.texts if text.role != ALONE]
    assert sorted(seen) == sorted(wanted[text.key] for text in everything)


def test_packed_batches_pack_mismatched_texts_into_rows_of_their_own_length(mixed):
    view = mixed.with_mismatched(MAX_LENGTH)
    micro = TOKEN_BATCHING.plan(
        view.lengths, batch_size=4, max_length=MAX_LENGTH, packing=True, seed=0
    )
    batch = collate([[view[i] for i in row] for row in micro[0]])
    assert len(batch.mismatched.input_ids_BT) < len(batch.mismatched.keys)
    starts = (batch.mismatched.position_ids_BT == 0).sum()
    assert starts == len(batch.mismatched.keys)


def test_a_batch_moves_with_its_mismatched_texts(mixed):
    view = mixed.with_mismatched(MAX_LENGTH)
    batch = collate([[example] for example in view]).to(torch.device("meta"))
    assert batch.mismatched.input_ids_BT.device.type == "meta"


def test_long_texts_are_cut(mixed):
    whole = {t.key: t for e in mixed.with_mismatched(MAX_LENGTH) for t in e.texts}
    longest = max(len(t.mismatched.input_ids) for t in whole.values() if t.mismatched)
    cut = [t for e in mixed.with_mismatched(longest - 2) for t in e.texts if t.mismatched]
    assert max(len(text.mismatched.input_ids) for text in cut) == longest - 2
    for text in cut:
        one = text.mismatched
        full = whole[text.key].mismatched
        assert one.input_ids.tolist() == full.input_ids[: longest - 2].tolist()
        assert one.labels[-1] == IGNORE
        assert one.counted_labels.tolist() == full.counted_labels[: len(one.counted)].tolist()


def test_one_prompt_alone_has_no_other_answers(tokenizer, tmp_path):
    rows = [{"prompt": "say", "completion": f"it {i}", "label": i % 2 > 0} for i in range(40)]
    parts, _ = prepare_parts(tokenizer, tmp_path, rows)
    assert not has_two_prompts(parts["train"])
    with pytest.raises(AssertionError, match="at least two prompts"):
        parts["train"].with_mismatched(MAX_LENGTH)
    few = [{**row, "prompt": f"say {i % 2}"} for i, row in enumerate(rows)]
    parts, _ = prepare_parts(tokenizer, tmp_path, few)
    assert has_two_prompts(parts["train"])
    assert len(mismatched_of(parts["train"].with_mismatched(MAX_LENGTH))) == len(parts["train"])
