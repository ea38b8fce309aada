"""Looking up draws block by block, and the random numbers behind them."""

import numpy as np
import pytest
import torch

from attar.counter_random import uniforms
from teachers.codecs import sampling as drawing
from teachers.codecs.sampling import IDS_PER_BLOCK, BlockedWeights
from teachers.signals import seeds_of

N = 30
vocabularies = pytest.mark.parametrize("vocabulary", [1, 2, 255, 256, 257, 1000])


@pytest.fixture
def made(normal):
    """`made(V)`: (blocked weights, the same in float64 (N, V)); some ids have weight 0."""

    def make(vocabulary):
        logits = normal(N, vocabulary) * torch.logspace(-1, 1, N)[:, None]
        logits[:, 1::5] = -torch.inf  # a probability of zero, as after an exact entry
        weights = BlockedWeights(logits.clone())
        return weights, (logits.double() - logits.double().amax(-1, keepdim=True)).exp()

    return make


def points_in(total_N, count=400):
    """Points over the whole range of each token's weight, both ends included."""
    share_J = torch.linspace(0, 1, count, dtype=torch.float64)
    share_J[-1] = 1 - 2**-53
    return share_J * total_N.double()[:, None]


def assert_looked_up(ids_NJ, points_NJ, exact_NV):
    """The cumulative sum passes the point at the id and not before, up to float32."""
    ends_NV = exact_NV.cumsum(-1)
    slack = 1e-5 * ends_NV[:, -1:]
    assert ids_NJ.max() < exact_NV.shape[1]
    assert (exact_NV.gather(-1, ids_NJ) > 0).all()
    assert (points_NJ < ends_NV.gather(-1, ids_NJ) + slack).all()
    before = (ends_NV - exact_NV).gather(-1, ids_NJ)
    assert (points_NJ >= before - slack).all()


@vocabularies
def test_points_find_the_ids_of_the_plain_running_sum(made, vocabulary):
    weights, exact_NV = made(vocabulary)
    points_NJ = points_in(weights.total_N)
    assert_looked_up(weights.at(points_NJ), points_NJ, exact_NV)
    torch.testing.assert_close(weights.total_N.double(), exact_NV.sum(-1), rtol=1e-6, atol=0)


def test_points_well_inside_an_id_find_exactly_it(made):
    weights, exact_NV = made(1000)
    ends_NV = exact_NV.cumsum(-1)
    large_NV = exact_NV > 1e-3 * ends_NV[:, -1:]
    middles_NV = ends_NV - exact_NV / 2
    ids_NV = weights.at(middles_NV)
    wanted_NV = torch.arange(1000).expand(N, -1)
    assert large_NV.sum() > 1000
    assert torch.equal(ids_NV[large_NV], wanted_NV[large_NV])


def test_a_point_at_the_very_end_finds_the_last_id_with_weight(normal):
    """Rounding may put a point at the end; ids without weight are still never drawn."""
    logits = normal(N, 1000)
    last_N = torch.arange(N) * 30 + 5
    logits[torch.arange(1000) > last_N[:, None]] = -torch.inf
    weights = BlockedWeights(logits)
    points_N1 = weights.total_N.double()[:, None] * (1 + 1e-6)
    assert weights.at(points_N1)[:, 0].tolist() == last_N.tolist()


@pytest.mark.parametrize("gathered", [1, 5 * IDS_PER_BLOCK * 400, 1 << 30])
def test_how_much_is_copied_at_once_changes_nothing(made, monkeypatch, gathered):
    weights, _ = made(600)
    points_NJ = points_in(weights.total_N)
    whole = weights.at(points_NJ)
    monkeypatch.setattr(drawing, "MAX_GATHERED_WEIGHTS", {"cpu": gathered, "other": gathered})
    assert torch.equal(weights.at(points_NJ), whole)


@vocabularies
@pytest.mark.parametrize("k", [1, 2, 10, 1000])
def test_taking_ids_above_a_threshold_leaves_the_others(made, vocabulary, k):
    weights, exact_NV = made(vocabulary)
    threshold_N = weights.total_N / k
    tokens_E, ids_E, weights_E = weights.take_above(threshold_N)
    above_NV = exact_NV.float() >= threshold_N[:, None]
    taken_NV = torch.zeros_like(above_NV)
    taken_NV[tokens_E, ids_E] = True
    unsure_NV = (exact_NV / threshold_N[:, None] - 1).abs() < 1e-5
    assert torch.equal(taken_NV | unsure_NV, above_NV | unsure_NV)
    assert len(tokens_E) == taken_NV.sum(), "no id twice"
    assert (tokens_E.diff() >= 0).all()
    torch.testing.assert_close(weights_E.double(), exact_NV[tokens_E, ids_E], rtol=1e-5, atol=0)
    left_NV = exact_NV.masked_fill(taken_NV, 0.0)
    left_N = weights.sums_NB.double().sum(-1)
    torch.testing.assert_close(left_N, left_NV.sum(-1), rtol=1e-5, atol=1e-12)
    some = left_N > 0
    if some.any():
        points_NJ = points_in(left_N)
        ids_NJ = weights.at(points_NJ)
        assert_looked_up(ids_NJ[some], points_NJ[some], left_NV[some])


# Random numbers ---------------------------------------------------------------------------------

MASK = (1 << 64) - 1


def splitmix64(state):
    """Next state and output, as in Steele, Lea and Flood (2014), with Python integers."""
    state = (state + 0x9E3779B97F4A7C15) & MASK
    bits = state
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & MASK
    return state, bits ^ (bits >> 31)


def finalised(seed):
    """The output function alone: splitmix64 of the previous state."""
    return splitmix64((seed - 0x9E3779B97F4A7C15) & MASK)[1]


def test_the_generator_of_this_test_is_splitmix64():
    """The first outputs of the published generator for seed 1234567."""
    state, outputs = 1234567, []
    for _ in range(3):
        state, output = splitmix64(state)
        outputs.append(output)
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1, 0x5EED0FA110FB0CA7])
@pytest.mark.parametrize("stream", [0, 1, 7])
def test_uniforms_are_splitmix64_of_seed_stream_and_column(seed, stream):
    state = (finalised(seed) + (stream << 32) * 0x9E3779B97F4A7C15) & MASK
    wanted = []
    for _ in range(5):
        state, bits = splitmix64(state)
        wanted.append((bits >> 11) / 2**53)
    assert uniforms(np.array([seed], np.uint64), 5, stream)[0].tolist() == wanted


def test_uniforms_are_what_caches_were_drawn_with():
    """Frozen: other numbers would make a continued build differ from an uninterrupted one."""
    first, second = uniforms(seeds_of("0123456789abcdef" * 2, 2), 1, 0)[:, 0]
    assert (first, second) == (0.8732300191118335, 0.00824790090336136)


def test_seeds_are_the_key_and_multiples_of_an_odd_constant():
    seeds = seeds_of("ffffffffffffffff0000000000000000", 3)
    assert seeds.dtype == np.uint64
    want = [(2**64 - 1 + i * 0x9E3779B97F4A7C15) & MASK for i in range(3)]
    assert [int(seed) for seed in seeds] == want


def test_uniforms_are_uniform_and_unrelated():
    """Moments, a histogram and correlations of 200,000 numbers, each within five deviations."""
    drawn = uniforms(seeds_of("5eed" * 8, 2000), 100, 0)
    other = uniforms(seeds_of("5eed" * 8, 2000), 100, 1)
    assert drawn.dtype == np.float64
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert len(np.unique(drawn)) == drawn.size
    assert abs(drawn.mean() - 0.5) < 5 * (1 / 12 / drawn.size) ** 0.5
    assert abs(drawn.var() - 1 / 12) < 5 * (1 / 180 / drawn.size) ** 0.5
    counts = np.histogram(drawn, 100, (0, 1))[0]
    chi_squared = ((counts - 2000) ** 2 / 2000).sum()
    assert abs(chi_squared - 99) < 5 * (2 * 99) ** 0.5
    pairs = {
        "next token": (drawn[:-1], drawn[1:]),
        "next column": (drawn[:, :-1], drawn[:, 1:]),
        "other stream": (drawn, other),
        "low seed bits": (drawn, np.broadcast_to(np.arange(2000)[:, None] % 2, drawn.shape)),
    }
    for name, (one, two) in pairs.items():
        correlation = np.corrcoef(one.ravel(), two.ravel())[0, 1]
        assert abs(correlation) < 5 / one.size**0.5, name
