"""Plans cover everything once; collated rows hold what their examples say."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill.data.batching import collate, pack_rows, plan_epoch, plan_in_order
from distill.data.examples import ALONE, CHOSEN, REJECTED, Example, example_of
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


# Judged answers ----------------------------------------------------------------------------------


def text_of(dice, length):
    """(ids, labels) of a text of which some tokens count."""
    ids = dice.integers(5, 90, length).tolist()
    first = int(dice.integers(0, length - 1))
    return ids, [IGNORE] * first + ids[first + 1 :] + [IGNORE]


def some_examples(kinds, seed, longest=MAX_LENGTH):
    """Examples that are texts alone (a), pairs (p), good (g) and bad (b) answers."""
    dice = np.random.default_rng(seed)
    found = []
    for kind in kinds:
        one, other = (text_of(dice, int(dice.integers(2, longest + 1))) for _ in range(2))
        role = {"a": ALONE, "p": CHOSEN, "g": CHOSEN, "b": REJECTED}[kind]
        found.append(example_of(*one, None, role, other if kind == "p" else None))
    return found


def texts_in(batch):
    """(key, role, counted labels) of each text of a batch, in their order."""
    labels_N = batch.labels_BT[batch.labels_BT != IGNORE]
    roles = [ALONE] * len(batch.keys) if batch.roles_S is None else batch.roles_S.tolist()
    parts = labels_N.split(batch.counts)
    return [
        (key, role, tuple(part.tolist()))
        for key, role, part in zip(batch.keys, roles, parts, strict=True)
    ]


kinds_lists = st.lists(st.sampled_from("apgb"), min_size=1, max_size=24)


@given(kinds_lists, plan_options)
def test_plans_of_pairs_hold_every_text_once_and_keep_pairs_together(kinds, options):
    examples = some_examples(kinds, len(kinds))
    lengths = [sum(len(text.input_ids) for text in example.texts) for example in examples]
    plan = plan_epoch(lengths, max_length=MAX_LENGTH, **options)
    batches = [collate([[examples[i] for i in row] for row in rows]) for rows in plan]
    found = [text for batch in batches for text in texts_in(batch)]
    wanted = [
        (text.key, text.role, tuple(text.labels[text.counted].tolist()))
        for example in examples
        for text in example.texts
    ]
    assert sorted(found) == sorted(wanted)
    following = {tuple(text.key for text in e.texts) for e in examples if e.rejected is not None}
    for batch in batches:
        assert len(batch.input_ids_BT) <= 2 * options["batch_size"]
        assert batch.input_ids_BT.shape[1] <= MAX_LENGTH
        if batch.roles_S is not None:
            assert batch.roles_S.dtype == torch.int8
    beside = {pair for batch in batches for pair in zip(batch.keys, batch.keys[1:], strict=False)}
    assert following <= beside


@given(kinds_lists, st.integers(0, 9))
def test_every_counted_token_belongs_to_a_text_of_its_unit(kinds, seed):
    examples = some_examples(kinds, seed, longest=12)
    batch = collate([[example] for example in examples])
    texts = [text for example in examples for text in example.texts]
    assert batch.text_of_token.tolist() == [s for s, text in enumerate(texts) for _ in text.counted]
    assert batch.on("all") is None
    for unit, has in (("rejected", {REJECTED}), ("chosen", {ALONE, CHOSEN})):
        wanted = [float(text.role in has) for text in texts for _ in text.counted]
        mask_N = batch.on(unit)
        assert (mask_N is None) == all(wanted)
        if mask_N is not None:
            assert mask_N.tolist() == wanted
    moved = batch.to(torch.device("meta"))  # no value can be asked of a tensor there
    assert moved.roles.tolist() == batch.roles.tolist()
    for unit in ("chosen", "rejected", "all"):
        here, there = batch.on(unit), moved.on(unit)
        assert (here is None) == (there is None)
        assert there is None or (there.device.type, there.shape) == ("meta", here.shape)
    assert moved.text_of_token is moved.text_of_token


def test_a_batch_without_judgements_has_no_roles():
    batch = collate([[example] for example in some_examples("aaa", 0)])
    assert batch.roles_S is None
    assert batch.on("chosen") is None
    assert batch.on("rejected").tolist() == [0.0] * batch.num_counted


def test_a_packed_pair_is_two_texts_that_begin_at_position_0():
    pair, alone = some_examples("pa", 3, longest=9)
    batch = collate([[pair, alone]])
    lengths = [len(text.input_ids) for text in (*pair.texts, alone)]
    positions = [t for length in lengths for t in range(length)]
    assert batch.position_ids_BT[0].tolist() == positions
    apart = collate([[pair]])
    assert apart.input_ids_BT.shape == (2, max(lengths[:2]))
    assert apart.keys == [text.key for text in pair.texts]


def test_what_is_longer_than_a_row_has_a_row_to_itself():
    assert pack_rows(range(4), [40, 10, 22, 33], 32) == [[0], [1, 2], [3]]
