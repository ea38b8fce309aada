"""From a server's entries to columns: exact where that can be, and tails within rounding."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from teachers.codecs.nucleus import Nucleus
from teachers.codecs.top_entries import top_entries_of
from teachers.codecs.topk import TopK
from teachers.remote.entries import LEAST_TAIL, SpreadEntries, joined, top_entries
from teachers.remote.scored_prompt import ScoredPrompt

V = 40


def scored_of(logprobs_PV, k):
    """What a server says of these float32 log-probabilities."""
    top = logprobs_PV.topk(k, -1)
    own_P = np.zeros(len(logprobs_PV), np.float32)
    return ScoredPrompt(top.indices.numpy(), top.values.numpy(), own_P)


def logprobs_of(seed, rows=6, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, V, generator=generator) * spread).log_softmax(-1)


@given(st.integers(0, 10**6), st.integers(1, V), st.sampled_from([0.3, 3.0, 12.0]))
def test_entries_and_tails_are_those_of_the_whole_distribution(seed, k, spread):
    whole_PV = logprobs_of(seed, spread=spread)
    places = np.array([0, 3, 4])
    entries, cut = top_entries(scored_of(whole_PV, k), places, V)
    local = top_entries_of(whole_PV[places].clone(), k, [1.0])
    assert cut == 0
    assert torch.equal(entries.ids_NK, local.ids_NK)
    torch.testing.assert_close(entries.logprobs_NK, local.logprobs_NK, rtol=0, atol=2e-6)
    kept_N = scored_of(whole_PV, k).logprobs_PK[places].astype(np.float64)
    tail_N = 1 - np.exp(kept_N).sum(-1)
    if k == V:
        assert (entries.tails[1.0] == -torch.inf).all()
        return
    wanted_N = np.log(np.maximum(tail_N, LEAST_TAIL))
    np.testing.assert_allclose(entries.tails[1.0].numpy(), wanted_N, rtol=1e-6)
    exact_N = local.tails[1.0].double().exp().numpy()
    np.testing.assert_allclose(entries.tails[1.0].exp().numpy(), exact_N, atol=1e-6)


def test_ids_that_the_tokenizer_lacks_are_cut_as_of_a_teacher_that_runs_here():
    whole_PV, known = logprobs_of(1), V - 8
    entries, cut = top_entries(scored_of(whole_PV, 20), np.arange(6), known)
    top = whole_PV.topk(20, -1)
    lost_P = top.values.double().exp().masked_fill(top.indices < known, 0).sum(-1)
    assert cut == pytest.approx(float(lost_P.mean()), rel=1e-5)
    assert cut > 0
    used = entries.logprobs_NK > -torch.inf
    assert (used.sum(-1) == (top.indices < known).sum(-1)).all()
    wanted = (whole_PV - torch.log1p(-lost_P)[:, None].float()).gather(-1, entries.ids_NK)
    torch.testing.assert_close(entries.logprobs_NK[used], wanted[used])
    total = entries.logprobs_NK.exp().sum(-1) + entries.tails[1.0].exp()
    torch.testing.assert_close(total, torch.ones(6))
    columns = TopK(k=20).encode_top(entries, known, {})
    assert columns["ids"].max() < known
    assert (np.isfinite(columns["logprobs"]).sum(1) == used.sum(-1).numpy()).all()


def test_a_tail_that_rounding_hides_is_the_least_that_can_be_known():
    logits_PV = torch.zeros(1, V)
    logits_PV[0, 0] = 40.0
    entries, _ = top_entries(scored_of(logits_PV.log_softmax(-1), 3), np.array([0]), V)
    assert entries.tails[1.0].exp().item() == pytest.approx(LEAST_TAIL)


def test_the_order_of_ids_is_learned_from_entries_as_from_whole_distributions():
    whole_PV = logprobs_of(2, rows=50)
    parts = [scored_of(whole_PV[i : i + 25], V - 1) for i in (0, 25)]
    entries = joined([top_entries(part, np.arange(25), V)[0] for part in parts])
    spread = SpreadEntries(entries, V)
    torch.testing.assert_close(spread.logits().exp().sum(-1), torch.ones(50))
    torch.testing.assert_close(spread.logits().exp(), whole_PV.exp(), rtol=0, atol=1e-6)
    codec = Nucleus(k=16)

    class Whole:
        seeds_N = np.zeros(50)

        def logits(self):
            return whole_PV.clone()

        def rows(self, start, stop):
            return self

    ranks = [codec.learn(one)["id_of_rank"].tolist() for one in (spread, Whole())]
    assert ranks[0] == ranks[1]


def test_a_tail_is_spread_over_all_ids_that_are_no_entry():
    scored = ScoredPrompt(
        np.array([[0, 39]]), np.log(np.array([[0.5, 0.2]], np.float32)), np.zeros(1, np.float32)
    )
    entries, _ = top_entries(scored, np.array([0]), 30)  # id 39 is cut, and id 0 stays
    p_V = SpreadEntries(entries, 30).logits().exp()[0]
    assert p_V[0] == pytest.approx(0.5 / 0.8)
    assert p_V[1:].numpy() == pytest.approx(np.full(29, 0.3 / 0.8 / 29))
