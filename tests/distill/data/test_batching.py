"""Plans cover everything once; collated rows hold what their examples say."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill.data.batching import collate, pack_rows, plan_epoch, plan_in_order
from distill.data.examples import Example
from distill.data.tokenize import IGNORE

MAX_LENGTH = 32
lengths_lists = st.lists(st.integers(2, MAX_LENGTH), min_size=1, max_size=120)
plan_options = st.fixed_dictionaries(
    {"batch_size": st.integers(1, 9), "packing": st.booleans(), "seed": st.integers(0, 99)}
)


def blank(example):
    """The same ids with nothing counted."""
    return Example(example.key, example.input_ids, np.full_like(example.labels, IGNORE))


def flat(plan):
    return [i for micro in plan for row in micro for i in row]


@given(lengths_lists, plan_options)
def test_plan_takes_each_example_exactly_once(lengths, options):
    plan = plan_epoch(lengths, max_length=MAX_LENGTH, **options)
    assert sorted(flat(plan)) == list(range(len(lengths)))


@given(lengths_lists, plan_options)
def test_rows_hold_at_most_max_length_tokens_and_batches_at_most_their_rows(lengths, options):
    plan = plan_epoch(lengths, max_length=MAX_LENGTH, **options)
    for micro in plan:
        assert 1 <= len(micro) <= options["batch_size"]
        assert all(0 < sum(lengths[i] for i in row) <= MAX_LENGTH for row in micro)
    assert all(len(micro) == options["batch_size"] for micro in plan[:-1])
    if not options["packing"]:
        assert all(len(row) == 1 for micro in plan for row in micro)


@given(lengths_lists, plan_options)
def test_plan_depends_on_the_seed_alone(lengths, options):
    plan = plan_epoch(lengths, max_length=MAX_LENGTH, **options)
    assert plan == plan_epoch(np.array(lengths), max_length=MAX_LENGTH, **options)


def test_another_seed_is_another_order():
    def plan(seed):
        return plan_epoch([9] * 50, batch_size=4, max_length=32, packing=True, seed=seed)

    assert flat(plan(0)) != flat(plan(1))
    assert flat(plan(0)) != list(range(50))


@given(lengths_lists)
def test_packing_leaves_no_two_rows_that_fit_into_one(lengths):
    """Best fit keeps at most one row half empty as long as no open row was closed."""
    rows = pack_rows(range(len(lengths)), lengths, MAX_LENGTH)
    sums = sorted(sum(lengths[i] for i in row) for row in rows)
    if len(rows) <= 64 and len(rows) > 1:
        assert sums[0] + sums[1] > MAX_LENGTH


@given(lengths_lists, st.integers(1, 9))
def test_evaluation_takes_each_example_once_longest_first(lengths, batch_size):
    plan = plan_in_order(lengths, batch_size)
    order = flat(plan)
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[i] for i in order] == sorted(lengths, reverse=True)
    assert all(len(row) == 1 for micro in plan for row in micro)


@given(st.integers(1, 12), st.integers(0, 50), st.booleans())
def test_signals_of_keys_line_up_with_counted_positions(make_examples, number, seed, packing):
    """Concatenating the counted labels of `keys` gives the counted labels of the batch."""
    examples = make_examples(number, seed)
    examples[seed % number] = blank(examples[seed % number])
    by_key = {example.key: example for example in examples}
    lengths = [len(example.input_ids) for example in examples]
    plan = plan_epoch(lengths, batch_size=3, max_length=40, packing=packing, seed=seed)
    for micro in plan:
        batch = collate([[examples[i] for i in row] for row in micro])
        counted = batch.labels_BT[batch.labels_BT != IGNORE].tolist()
        labels_of_keys = [by_key[key].labels for key in batch.keys]
        assert counted == [
            label for labels in labels_of_keys for label in labels if label != IGNORE
        ]
        assert batch.num_counted == len(counted)


def test_rows_hold_their_examples_and_positions_start_again(make_examples):
    examples = make_examples(5, seed=3)
    rows = [examples[:2], examples[2:5]]
    batch = collate(rows)
    for b, row in enumerate(rows):
        start = 0
        for example in row:
            part = slice(start, start + len(example.input_ids))
            assert batch.input_ids_BT[b, part].tolist() == example.input_ids.tolist()
            assert batch.labels_BT[b, part].tolist() == example.labels.tolist()
            assert batch.position_ids_BT[b, part].tolist() == list(range(len(example.input_ids)))
            start = part.stop
        assert (batch.labels_BT[b, start:] == IGNORE).all()
        steps = batch.position_ids_BT[b, start - 1 :].diff()
        assert (steps == 1).all(), "padding belongs to the last example: nothing starts there"


def test_no_attention_mask_is_passed(make_examples):
    """A mask would make `transformers` ignore the position ids that keep packed examples apart."""
    inputs = collate([make_examples(2)]).to(torch.device("cpu")).model_inputs()
    assert inputs["attention_mask"] is None
    assert inputs["position_ids"].dtype == torch.int64


def test_example_of_full_length_fills_a_row_alone():
    assert pack_rows([0, 1, 2], [MAX_LENGTH, 2, MAX_LENGTH], MAX_LENGTH) == [[0], [1], [2]]


@pytest.mark.parametrize("packing", [True, False])
def test_many_open_rows_are_still_covered(packing):
    """More than 64 rows with room: the fullest are closed, no example is lost."""
    lengths = [20] * 200 + [12] * 200
    plan = plan_epoch(lengths, batch_size=8, max_length=32, packing=packing, seed=1)
    assert sorted(flat(plan)) == list(range(400))
