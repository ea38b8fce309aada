"""Entries as bytes and back, for any ragged sparse distribution."""

from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from teachers.codecs.codec import split_columns
from teachers.codecs.packed_entries import learn_ranks, pack_entries, unpack_entries

HIGHEST = 70_000  # of the codes: three bytes


@cache
def permutation(vocabulary, seed):
    return np.random.default_rng(seed).permutation(vocabulary)


@st.composite
def ragged(draw):
    """(V, id_of_rank, tokens of (id, code) entries in any order, ids may be there twice)."""
    vocabulary = draw(st.sampled_from([1, 2, 256, 257, 65_536, 65_537, 151_936]))
    order = permutation(vocabulary, draw(st.integers(0, 2)))
    ids = st.integers(0, vocabulary - 1) | st.sampled_from([0, vocabulary - 1, vocabulary // 2])
    entry = st.tuples(ids, st.integers(1, HIGHEST // 8))
    tokens = draw(st.lists(st.lists(entry, max_size=8), min_size=1, max_size=6))
    return vocabulary, order, tokens


def packed(order, tokens, shuffle=0):
    """Columns of these entries, packed in any order of tokens and entries."""
    flat = [(n, i, code) for n, token in enumerate(tokens) for i, code in token]
    random = np.random.default_rng(shuffle)
    flat = [flat[i] for i in random.permutation(len(flat))]
    arrays = [np.array(column, np.int64) for column in zip(*flat, strict=True)] or [
        np.empty(0, np.int64)
    ] * 3
    assets = {"id_of_rank": torch.from_numpy(order).int()}
    return pack_entries(*arrays, len(tokens), HIGHEST, assets), assets


def found_in(columns, assets):
    """Entries of every token as {id: code}, and the slots that are not used."""
    ids_NK, codes_NK, used_NK = unpack_entries(columns, assets)
    assert ids_NK.dtype == torch.int64
    assert codes_NK.dtype == torch.float32
    rows = []
    for ids, codes, used in zip(ids_NK, codes_NK, used_NK, strict=True):
        kept = ids[used].tolist()
        assert len(set(kept)) == len(kept)
        if kept:
            assert set(ids[~used].tolist()) <= {kept[0]}
        assert (codes[~used] == 0).all()
        rows.append(dict(zip(kept, codes[used].int().tolist(), strict=True)))
    return rows


def wanted(tokens):
    totals = [Counter() for _ in tokens]
    for total, token in zip(totals, tokens, strict=True):
        for i, code in token:
            total[i] += code
    return [dict(total) for total in totals]


@given(ragged())
def test_entries_come_back_with_codes_of_the_same_id_added(made):
    _, order, tokens = made
    columns, assets = packed(order, tokens)
    assert found_in(columns, assets) == wanted(tokens)


@given(ragged())
def test_bytes_do_not_depend_on_the_order_of_entries(made):
    _, order, tokens = made
    one, other = packed(order, tokens)[0], packed(order, tokens, shuffle=1)[0]
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


@given(ragged(), st.integers(1, 5))
def test_tokens_can_be_taken_apart_and_put_together(made, cut):
    _, order, tokens = made
    columns, assets = packed(order, tokens)
    cut = min(cut, len(tokens) - 1)
    if cut == 0:
        return
    first, second = split_columns(columns, [cut, len(tokens) - cut])
    assert found_in(first, assets) == wanted(tokens[:cut])
    assert found_in(second, assets) == wanted(tokens[cut:])
    back = {name: np.concatenate([second[name], first[name]]) for name in first}
    assert found_in(back, assets) == wanted(tokens[cut:] + tokens[:cut])


@given(ragged())
def test_columns_are_bytes_one_an_entry_in_as_few_planes_as_are_needed(made):
    vocabulary, order, tokens = made
    columns, _ = packed(order, tokens)
    planes = [name for name in columns if name.startswith("entry_")]
    assert columns["entries"].dtype == np.uint16
    assert all(columns[name].dtype == np.uint8 for name in planes)
    assert {len(columns[name]) for name in planes} == {columns["entries"].sum()}
    gaps = 1 if vocabulary <= 256 else 2 if vocabulary <= 65_536 else 3
    assert sum(name.startswith("entry_gap_") for name in planes) == gaps
    assert sum(name.startswith("entry_code_") for name in planes) == 3


@pytest.mark.parametrize("tokens", [[[]], [[], []], [[], [(3, 1)], []], [[(3, 1)], []]])
def test_tokens_without_entries_stay_without(tokens):
    columns, assets = packed(np.arange(9), tokens)
    assert columns["entries"].tolist() == [len(token) for token in tokens]
    assert found_in(columns, assets) == wanted(tokens)


def test_common_ids_come_first_so_that_gaps_are_short():
    """Gaps between ids in the learned order are small for any ids."""
    order = np.random.default_rng(0).permutation(100_000)
    common = [[(int(order[rank]), 1) for rank in (0, 2, 3, 9)]]
    columns, _ = packed(order, common)
    assert columns["entry_gap_0"].tolist() == [0, 1, 0, 5]
    assert not columns["entry_gap_1"].any()
    assert not columns["entry_gap_2"].any()


def test_ranks_are_the_ids_by_their_chance_to_be_an_entry(normal, chunk_of):
    logits = normal(600, 50) * 4  # more tokens than are looked at at once
    ranks = learn_ranks(chunk_of(logits), 0.1)["id_of_rank"]
    chance = logits.double().softmax(-1).clamp(max=0.1).sum(0)
    assert ranks.dtype == torch.int32
    assert ranks.tolist() == chance.argsort(descending=True).tolist()
    assert ranks.tolist() != logits.softmax(-1).sum(0).argsort(descending=True).tolist()
