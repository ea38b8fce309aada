"""`topk` and `nucleus`: entries and the tail, against their float64 definitions."""

import math

import numpy as np
import pytest
import torch

from attar.errors import RecipeError
from attar.models.structure import Head
from teachers.codecs.nucleus import MAX_SURPRISAL, Nucleus
from teachers.codecs.topk import TopK
from teachers.signals import TeacherChunk, seeds_of

N, V = 40, 211
GRID = [0.5, 1.0, 2.0, 4.0]
both = pytest.mark.parametrize("kind", [TopK, Nucleus])


@pytest.fixture
def tokens(normal, chunk_of):
    """`tokens(scale=3.0)`: N tokens, the first nearly uniform, the last nearly certain."""

    def make(scale=3.0, num_tokens=N):
        spread = torch.logspace(-1.5, 0.5, num_tokens)[:, None]
        return chunk_of(normal(num_tokens, V) * spread * scale)

    return make


def dense64(made, temperature=1.0):
    """The full distribution in float64: the definition of what is stored."""
    return (made.logits().double() / temperature).log_softmax(-1)


def used_ids(decoded):
    return [
        ids[logprobs > -math.inf].tolist()
        for ids, logprobs in zip(decoded.ids_NK, decoded.logprobs_NK, strict=True)
    ]


def tail_at(made, ids_of_tokens, temperature):
    """Probability of all other ids at a temperature, float64 (N,)."""
    dense = dense64(made, temperature)
    for row, ids in zip(dense, ids_of_tokens, strict=True):
        row[ids] = -math.inf
    return dense.logsumexp(-1)


def close(one, other, **tolerance):
    torch.testing.assert_close(one.double(), other.double(), **tolerance)


# Both --------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("scale", [0.0, 0.3, 3.0, 100.0])
@pytest.mark.parametrize("temperature", GRID)
def test_entries_and_tail_sum_to_one_at_every_captured_temperature(
    kind, tokens, round_trip, probabilities, scale, temperature
):
    decoded = round_trip(kind(temperatures=GRID), tokens(scale), temperature)
    mass = probabilities(decoded, V).sum(-1) + decoded.tail_N.double().exp()
    close(mass, torch.ones(N), atol=2e-6, rtol=0)


@both
@pytest.mark.parametrize("temperature", GRID)
def test_the_tail_is_the_mass_of_the_other_ids_at_that_temperature(
    kind, tokens, round_trip, temperature
):
    made = tokens()
    decoded = round_trip(kind(k=16, temperatures=GRID), made, temperature)
    want = tail_at(made, used_ids(decoded), temperature)
    off = 0.04 / temperature if kind is Nucleus else 5e-3  # the entries' codes set their share
    close(decoded.tail_N, want, rtol=2e-3, atol=off)


@both
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("peak", [5.0, 15.0, 25.0])
def test_the_tail_is_right_where_the_entries_hold_nearly_everything(
    kind, normal, chunk_of, round_trip, peak, temperature
):
    """A confident teacher: one minus the entries' mass would be rounding noise, or 0.

    A tail of zero that is not zero makes KL(student || teacher) infinite.
    """
    logits = 0.1 * normal(N, V)
    logits[:, 3] = peak * temperature
    made = chunk_of(logits)
    decoded = round_trip(kind(k=4, temperatures=[1.0, 2.0]), made, temperature)
    want = tail_at(made, used_ids(decoded), temperature)
    assert want.max() > -30
    close(decoded.tail_N, want, rtol=5e-3, atol=1e-2)


@both
def test_temperature_outside_the_grid_is_refused_with_the_key_and_what_is_cached(
    kind, tokens, round_trip
):
    with pytest.raises(
        RecipeError, match=r"\[1\.0, 2\.0\].* asks for 3; add it to `cache\.codec\.temperatures`"
    ):
        round_trip(kind(temperatures=[2.0, 1.0]), tokens(), 3.0)


@both
@pytest.mark.parametrize("bad", [[], [0.0], [-1.0, 1.0]])
def test_temperatures_must_be_above_zero(kind, bad):
    with pytest.raises(ValueError, match="temperatures"):
        kind(temperatures=bad)


@both
def test_everything_kept_is_the_dense_distribution(kind, tokens, round_trip, probabilities):
    options = {"mass": 1.0} if kind is Nucleus else {}
    made = tokens(0.5)
    decoded = round_trip(kind(k=10 * V, **options), made)
    assert decoded.ids_NK.shape == (N, V)
    assert (decoded.tail_N == -math.inf).all()
    dense = dense64(made)
    divergence = (dense.exp() * (dense - probabilities(decoded, V).log())).sum(-1)
    assert divergence.min() > -1e-6
    assert divergence.max() < (1e-5 if kind is TopK else 5e-4)


@both
@pytest.mark.parametrize("vocabulary", [65_536, 65_537, 70_000, 150_000])
def test_ids_survive_large_vocabularies(kind, learned, round_trip, vocabulary):
    best = [vocabulary - 1, 65_535, 40_000, 0]
    weight = torch.zeros(vocabulary, 4)
    weight[best, range(4)] = 20.0
    made = TeacherChunk(torch.eye(4), Head(weight), seeds_of("0" * 32, 4))
    codec = kind(k=2)
    assert round_trip(codec, made).ids_NK[:, 0].tolist() == best
    columns = codec.encode(made, learned(codec, made))
    third_byte = "ids_high" if kind is TopK else "entry_gap_2"
    assert (third_byte in columns) == (vocabulary > 65_536)


# topk --------------------------------------------------------------------------------------------

# float16 keeps 11 bits: a log-probability of -16 is off by at most 2^-7, one near 0 by far less.


@pytest.mark.parametrize("temperature", GRID)
@pytest.mark.parametrize("k", [1, 8, 64])
def test_topk_entries_are_the_dense_ones_by_falling_probability(tokens, round_trip, k, temperature):
    made = tokens()
    decoded, dense = round_trip(TopK(k=k, temperatures=GRID), made, temperature), dense64(made)
    order = dense.argsort(-1, descending=True)[:, :k]
    assert decoded.ids_NK.tolist() == order.tolist()
    want = dense64(made, temperature).gather(-1, order)
    close(decoded.logprobs_NK, want, rtol=2e-3, atol=4e-3)


def test_topk_takes_the_bytes_that_plans_count(tokens):
    codec = TopK(k=8, temperatures=[1.0, 2.0])
    columns = codec.encode(tokens(), {})
    assert sum(column.nbytes for column in columns.values()) / N == codec.bytes_per_token(V, 16)


# nucleus -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mass", [0.3, 0.9, 0.99])
@pytest.mark.parametrize("k", [4, 500])
def test_nucleus_keeps_as_few_entries_as_reach_the_mass(tokens, round_trip, mass, k):
    made = tokens()
    found = used_ids(round_trip(Nucleus(mass=mass, k=k), made))
    ragged = {len(ids) for ids in found}
    assert len(ragged) > 1
    assert max(ragged) <= k
    for ids, p in zip(found, dense64(made).exp(), strict=True):
        falling = p.sort(descending=True)
        needed = int((falling.values.cumsum(-1) < mass - 1e-6).sum()) + 1
        assert len(ids) == min(needed, k)
        assert set(ids) == set(falling.indices[: len(ids)].tolist())


@pytest.mark.parametrize("temperature", GRID)
def test_nucleus_entries_are_within_half_a_code_of_the_dense_ones(tokens, round_trip, temperature):
    """-log p = 16 (c / 255)^2: half a code is at most 0.063 nats, for the least likely ones."""
    made = tokens()
    decoded = round_trip(Nucleus(mass=0.999, k=V, temperatures=GRID), made, temperature)
    want = dense64(made, temperature).gather(-1, decoded.ids_NK)
    at_one = -dense64(made).gather(-1, decoded.ids_NK).clamp(min=-MAX_SURPRISAL)
    half_a_code = (at_one / MAX_SURPRISAL).sqrt() * MAX_SURPRISAL / 255 + MAX_SURPRISAL / (
        4 * 255**2
    )
    used = decoded.logprobs_NK > -math.inf
    off = (decoded.logprobs_NK.double() - want).abs() * temperature
    within = half_a_code + 0.025  # ... and the sum to one moves all of a token's entries
    assert used.sum() > 10 * N
    assert (off[used] <= within[used]).all()


def test_nucleus_stores_a_sure_token_in_a_few_bytes(chunk_of, learned):
    logits = torch.zeros(N, V)
    logits[:, 5] = 20.0
    codec = Nucleus()
    columns = codec.encode(chunk_of(logits), learned(codec, chunk_of(logits)))
    assert (columns["entries"] == 1).all()
    assert sum(column.nbytes for column in columns.values()) / N == 2 + 1 + 1 + 2


def test_nucleus_probabilities_below_the_lowest_code_are_stored_as_that(chunk_of, round_trip):
    logits = torch.full((1, 3), -60.0)
    logits[0, 0] = 0.0
    decoded = round_trip(Nucleus(mass=1.0), chunk_of(logits))
    found = dict(zip(decoded.ids_NK[0].tolist(), decoded.logprobs_NK[0].tolist(), strict=True))
    assert np.isclose(found[0], 0, atol=1e-6)
    assert all(logprob >= -MAX_SURPRISAL - 1e-6 for logprob in found.values())
