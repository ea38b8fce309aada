"""`sampled` and `hybrid`: their mean is the dense distribution, with the right variance.

Legend: P distributions, R tokens with each, V vocabulary.
"""

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
import torch

from attar.errors import RecipeError
from teachers.codecs.codec import split_columns
from teachers.codecs.hybrid import Hybrid
from teachers.codecs.sampled import Sampled
from teachers.signals import TeacherChunk, seeds_of

R = 1024
CASES = [
    (Sampled(draws=1), 211),
    (Sampled(draws=20), 2),
    (Sampled(draws=20), 600),
    (Hybrid(k=1), 211),
    (Hybrid(k=2, steps=1), 256),
    (Hybrid(k=8, steps=1), 2),
    (Hybrid(k=8, steps=1), 600),
    (Hybrid(k=32), 257),
    (Hybrid(k=40, steps=3), 30),
]
every = pytest.mark.parametrize(("codec", "vocabulary"), CASES, ids=repr)


@pytest.fixture(scope="module")
def teachers(normal):
    """`teachers(V)`: logits (P, V): uniform, confident, undecided, Zipfian and extreme teachers."""

    def make(vocabulary):
        logits = torch.zeros(5, vocabulary)
        logits[1, vocabulary // 2] = math.log(32.0 * vocabulary)
        logits[2, [0, vocabulary - 1]] = math.log(32.0 * vocabulary)
        logits[3] = -torch.arange(1.0, vocabulary + 1).log()
        logits[4] = 3 * normal(vocabulary, seed=vocabulary)
        return logits

    return make


@pytest.fixture(scope="module")
def drawn(teachers, chunk_of, round_trip, probabilities):
    """`drawn(codec, V, R)`: (decoded targets (P, R, V), the dense ones (P, V)), float64."""

    @lru_cache(maxsize=len(CASES))
    def draw(codec, vocabulary, repeat=R):
        logits_PV = teachers(vocabulary)
        decoded = round_trip(codec, chunk_of(logits_PV, repeat))
        assert decoded.tail_N is None
        full = probabilities(decoded, vocabulary)
        return full.view(len(logits_PV), repeat, vocabulary), logits_PV.double().softmax(-1)

    return draw


def variance(codec, p_PV):
    """The variance of each id's decoded weight, by the codec's definition."""
    if isinstance(codec, Sampled):
        return p_PV * (1 - p_PV) / codec.draws
    inside = p_PV * codec.k
    between = inside * codec.steps % 1  # how far above a stored weight an exact one is
    rounded = between * (1 - between) / (codec.k * codec.steps) ** 2
    return torch.where(inside >= 1 - 1e-6, rounded, p_PV * (1 / codec.k - p_PV))


@every
def test_the_mean_target_converges_on_the_dense_one(codec, vocabulary, drawn):
    """The squared error of a mean of n targets is their variance / n, for n = 1 to all."""
    full_PRV, p_PV = drawn(codec, vocabulary)
    expected_P = variance(codec, p_PV).sum(-1)
    varies = expected_P > 1e-9
    for n in (1, 16, 64, R):
        means = full_PRV.view(len(p_PV), R // n, n, vocabulary).mean(2)
        squared_P = (means - p_PV[:, None]).square().sum(-1).mean(1)
        ratio = squared_P[varies] / expected_P[varies] * n
        # one group of all tokens: with one degree of freedom 15 is four standard deviations
        low, high = (0.5, 2.0) if n < R else (0.0, 15.0)
        assert (ratio > low).all(), (n, ratio)
        assert (ratio < high).all(), (n, ratio)
        assert (squared_P[~varies] < 1e-9).all()


@every
def test_no_id_is_favoured(codec, vocabulary, drawn):
    """Bernstein's bound at one in a billion for every id, rare and last ones included."""
    full_PRV, p_PV = drawn(codec, vocabulary)
    variance_PV = variance(codec, p_PV)
    jump = 1 / (codec.draws if isinstance(codec, Sampled) else codec.k)
    surprise = math.log(2e9)
    bound = (2 * variance_PV * surprise / R).sqrt() + jump * surprise / (3 * R) + 1e-6
    assert ((full_PRV.mean(1) - p_PV).abs() <= bound).all()


@every
def test_weights_sum_to_about_one(codec, vocabulary, drawn):
    full_PRV, p_PV = drawn(codec, vocabulary)
    sums_PR = full_PRV.sum(-1)
    if isinstance(codec, Sampled):
        torch.testing.assert_close(sums_PR, torch.ones_like(sums_PR))
        return
    exact_P = (p_PV >= 1 / codec.k).sum(-1)
    off_P = 1 / codec.k + exact_P / (codec.k * codec.steps)  # one draw, and each rounding
    assert ((sums_PR - 1).abs().amax(-1) <= off_P + 1e-6).all()
    assert ((sums_PR.mean(-1) - 1).abs() < 5 * off_P / R**0.5 + 1e-6).all()


# sampled -----------------------------------------------------------------------------------------


def test_sampled_weights_are_shares_of_the_draws(drawn):
    full_PRV, _ = drawn(Sampled(draws=20), 211)
    counts = full_PRV * 20
    torch.testing.assert_close(counts, counts.round(), atol=1e-5, rtol=0)
    assert (full_PRV[1] > 0).sum(-1).float().mean() < 3  # a sure teacher: few different ids
    assert (full_PRV[0] > 0).sum(-1).float().mean() > 17


# hybrid ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 4, 64])
@pytest.mark.parametrize("k", [1, 2, 8, 32, 300])
def test_hybrid_always_has_the_likely_ids_and_few_others(drawn, k, steps):
    full_PRV, p_PV = drawn(Hybrid(k=k, steps=steps), 211, 64)
    likely_PV = p_PV > (1 + 1e-5) / k
    present_PRV = full_PRV > 0
    assert (present_PRV | ~likely_PV[:, None]).all()
    assert present_PRV.sum(-1).max() <= k + 1
    assert present_PRV.sum(-1).min() >= 1
    off = (full_PRV - p_PV[:, None]).abs().amax(1)
    assert (off[likely_PV] < 1 / (k * steps) + 1e-6).all()
    others = full_PRV[present_PRV & ~likely_PV[:, None]]
    torch.testing.assert_close(others, torch.full_like(others, 1 / k), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("k", [8, 32])
def test_hybrid_has_less_variance_than_sampled_in_as_many_entries(drawn, k):
    """Compared with plain draws that give the same number of distinct ids, by teacher."""
    full_PRV, p_PV = drawn(Hybrid(k=k), 211, 256)
    entries_P = (full_PRV > 0).sum(-1).double().mean(-1)
    error_P = (full_PRV - p_PV[:, None]).square().sum(-1).mean(-1)
    for row, p_V in enumerate(p_PV):
        different = [(1 - (1 - p_V) ** draws).sum() for draws in range(1, 100)]
        draws = max(1, sum(int(number <= entries_P[row]) for number in different))
        other = drawn(Sampled(draws=draws), 211, 256)[0][row]
        ratio = error_P[row] / (other - p_V).square().sum(-1).mean()
        assert ratio < (1.0 if row == 0 else 0.8), (row, draws)  # a flat teacher is hard for both


# Draws depend only on the example's key and the token's position -----------------------------


def rows_of(codec, made, rows, assets):
    part = TeacherChunk(made.hidden_NH[rows], made.head, made.seeds_N[rows])
    columns = split_columns(codec.encode(part, assets), [1] * len(rows))
    return [{name: column.tolist() for name, column in row.items()} for row in columns]


@pytest.mark.parametrize("codec", [Sampled(draws=9), Hybrid(k=9)], ids=repr)
def test_draws_depend_on_key_and_position_only(codec, teachers, chunk_of, learned):
    made = chunk_of(teachers(211), 9, key="a" * 32)
    assets = learned(codec, made)
    rows = np.arange(45)
    whole = rows_of(codec, made, rows, assets)
    shuffled = np.random.default_rng(1).permutation(rows)
    assert rows_of(codec, made, shuffled, assets) == [whole[i] for i in shuffled]
    assert [rows_of(codec, made, [i], assets)[0] for i in rows] == whole
    again = chunk_of(teachers(211), 9, key="a" * 32)
    assert rows_of(codec, again, rows, assets) == whole


@pytest.mark.parametrize("kind", [Sampled, Hybrid])
def test_other_keys_positions_and_seeds_draw_anew(kind, teachers, chunk_of, learned):
    logits = teachers(600)[:1]
    made = chunk_of(logits, 30, key="a" * 32)
    other = chunk_of(logits, 30, key="a" * 15 + "b" + "a" * 16)
    assets = learned(kind(), made)
    tokens = rows_of(kind(), made, np.arange(30), assets)
    assert sum(one == two for one, two in pairwise(tokens)) < 10
    # hybrid draws once a token: with a uniform teacher a few tokens coincide
    assert rows_of(kind(seed=0), made, np.arange(30), assets) == tokens
    for moved in (
        rows_of(kind(), other, np.arange(30), assets),
        rows_of(kind(seed=1), made, np.arange(30), assets),
        rows_of(kind(seed=-1), made, np.arange(30), assets),
    ):
        assert sum(one == two for one, two in zip(tokens, moved, strict=True)) < 10


def test_a_token_keeps_its_seed_however_long_its_example():
    assert seeds_of("c" * 32, 50)[:20].tolist() == seeds_of("c" * 32, 20).tolist()
    assert len(set(seeds_of("c" * 32, 5000).tolist())) == 5000


@pytest.mark.parametrize("codec", [Sampled(), Hybrid()], ids=repr)
def test_other_temperatures_are_refused_with_what_would_serve(
    codec, teachers, chunk_of, round_trip
):
    with pytest.raises(
        RecipeError, match=rf"`{codec.name}` draws at temperature 1.* 2; use `final_hidden`"
    ):
        round_trip(codec, chunk_of(teachers(20)), 2.0)
