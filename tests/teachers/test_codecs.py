"""What a codec gives back, against the dense distribution in float64."""

import math

import numpy as np
import pytest
import torch

from attar.anatomy import Head
from attar.errors import RecipeError
from teachers.codecs import CODECS, LAYER_CODECS
from teachers.codecs.topk import TopK
from teachers.signals import SparseDistribution, TeacherChunk

N, V, H = 40, 211, 16
every_codec = pytest.mark.parametrize("name", list(CODECS))
every_layer_codec = pytest.mark.parametrize("name", list(LAYER_CODECS))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def chunk_of(logits_NV):
    """A chunk whose head is the identity, so that its logits are these."""
    return TeacherChunk(logits_NV, Head(torch.eye(logits_NV.shape[1])))


def chunk(scale=1.0):
    return TeacherChunk(normal(N, H), Head(normal(V, H, seed=1) * scale))


def dense64(made, temperature=1.0):
    """The full distribution in float64: the definition of what is stored."""
    return (made.logits().double() / temperature).log_softmax(-1)


def round_trip(codec, made, temperature=1.0):
    flat = {name: column.reshape(-1) for name, column in codec.encode(made).items()}
    return codec.decode(flat, len(made.hidden_NH), temperature)


def mass(decoded):
    """Probability of all outcomes, (N,)."""
    if isinstance(decoded, SparseDistribution):
        return decoded.logprobs_NK.double().exp().sum(-1) + decoded.tail_N.double().exp()
    return decoded.logprobs().double().exp().sum(-1)


def close(one, other, **tolerance):
    torch.testing.assert_close(one.double(), other.double(), **tolerance)


# Every codec of distributions -------------------------------------------------------------------


@every_codec
@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_mass_sums_to_one(name, scale, temperature):
    codec = CODECS[name](temperatures=[0.5, 1.0, 2.0])
    close(mass(round_trip(codec, chunk(scale), temperature)), torch.ones(N), atol=2e-6, rtol=0)


@every_codec
def test_bytes_on_disk_are_those_that_plans_count(name):
    codec = CODECS[name](temperatures=[1.0, 2.0])
    columns = codec.encode(chunk())
    assert sum(column.nbytes for column in columns.values()) / N == codec.bytes_per_token(V)


@every_codec
def test_temperature_outside_the_grid_is_refused_with_the_key(name):
    with pytest.raises(RecipeError, match=r"cache\.codec\.temperatures"):
        round_trip(CODECS[name](temperatures=[1.0, 2.0]), chunk(), 3.0)


@every_codec
def test_one_token_does_not_depend_on_its_neighbours(name):
    codec, made = CODECS[name](), chunk()
    whole = codec.encode(made)
    one = codec.encode(TeacherChunk(made.hidden_NH[7:8], made.head))
    for column in whole:
        np.testing.assert_allclose(
            whole[column][7:8].astype(float), one[column].astype(float), rtol=2e-3
        )


@pytest.mark.parametrize("bad", [[], [0.0], [-1.0, 1.0]])
def test_temperatures_must_be_above_zero(bad):
    with pytest.raises(ValueError, match="temperatures"):
        TopK(temperatures=bad)


# topk --------------------------------------------------------------------------------------------

# float16 keeps 11 bits: a log-probability of -16 is off by at most 2^-7, one near 0 by far less.


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0, 4.0])
@pytest.mark.parametrize("k", [1, 8, 64])
def test_topk_entries_and_tail_are_the_dense_ones(k, temperature):
    made, codec = chunk(), TopK(k=k, temperatures=[0.5, 1.0, 2.0, 4.0])
    decoded, dense = round_trip(codec, made, temperature), dense64(made, temperature)
    order = made.logits().argsort(-1, descending=True)
    assert decoded.ids_NK.tolist() == order[:, :k].tolist()
    close(decoded.logprobs_NK, dense.gather(-1, order[:, :k]), rtol=2e-3, atol=4e-3)
    tail = dense.gather(-1, order[:, k:]).exp().sum(-1)
    close(decoded.tail_N.exp(), tail, rtol=0, atol=3e-3)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_topk_of_everything_is_the_dense_distribution(temperature):
    """KL(dense || decoded): positive, and no more than float16's rounding leaves."""
    made = chunk()
    decoded = round_trip(TopK(k=V, temperatures=[0.5, 1.0, 2.0]), made, temperature)
    full = torch.empty(N, V).scatter_(-1, decoded.ids_NK, decoded.logprobs_NK).double()
    dense = dense64(made, temperature)
    divergence = (dense.exp() * (dense - full)).sum(-1)
    assert decoded.ids_NK.sort(-1).values.tolist() == [list(range(V))] * N
    assert divergence.min() > -1e-6
    assert divergence.max() < 1e-5


def test_topk_of_more_than_there_is_keeps_all():
    decoded = round_trip(TopK(k=10 * V), chunk())
    assert decoded.ids_NK.shape == (N, V)
    assert (decoded.tail_N == -math.inf).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("peak", [5.0, 15.0, 25.0])
def test_topk_tail_is_right_where_the_entries_hold_nearly_everything(peak, temperature):
    """A confident teacher: one minus the entries' mass would be rounding, or nothing at all.

    A tail of zero that is not zero makes KL(student || teacher) infinite.
    """
    logits = 0.1 * normal(N, V)
    logits[:, 3] = peak * temperature
    made, codec = chunk_of(logits), TopK(k=4, temperatures=[1.0, 2.0])
    decoded, dense = round_trip(codec, made, temperature), dense64(made, temperature)
    tail = dense.scatter(-1, decoded.ids_NK, -math.inf).logsumexp(-1)
    close(decoded.tail_N, tail, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("vocabulary", [65_536, 70_000])
def test_topk_ids_survive_large_vocabularies(vocabulary):
    hidden = torch.eye(3)
    weight = torch.zeros(vocabulary, 3)
    best = [vocabulary - 1, 65_535, 40_000]
    weight[best, range(3)] = 20.0
    codec = TopK(k=2)
    made = TeacherChunk(hidden, Head(weight))
    assert round_trip(codec, made).ids_NK[:, 0].tolist() == best
    stored = sum(column.nbytes for column in codec.encode(made).values())
    assert stored / 3 == codec.bytes_per_token(vocabulary)


# Codecs of hidden states ------------------------------------------------------------------------


def layer_trip(name, hidden):
    codec = LAYER_CODECS[name]
    flat = {suffix: column.reshape(-1) for suffix, column in codec.encode(hidden).items()}
    return codec.decode(flat, hidden.shape[1])


@every_layer_codec
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_hidden_states_keep_their_direction_and_length(name, dtype, scale):
    hidden = (normal(N, 64) * scale).to(dtype)
    decoded = layer_trip(name, hidden)
    assert decoded.dtype == torch.float32
    assert decoded.shape == hidden.shape
    cosine = torch.cosine_similarity(decoded.double(), hidden.double(), dim=-1)
    assert cosine.min() > 0.999
    close(decoded.norm(dim=-1), hidden.float().norm(dim=-1), rtol=1e-2, atol=0)


@every_layer_codec
def test_hidden_state_of_zeros_stays_zero(name):
    assert (layer_trip(name, torch.zeros(3, 8)) == 0).all()


@every_layer_codec
def test_bytes_of_hidden_states_are_those_that_plans_count(name):
    columns = LAYER_CODECS[name].encode(normal(N, 64))
    assert sum(c.nbytes for c in columns.values()) / N == LAYER_CODECS[name].bytes_per_token(64)


def test_bf16_is_exact_for_what_was_computed_in_bf16():
    hidden = normal(N, 64).to(torch.bfloat16)
    assert torch.equal(layer_trip("bf16", hidden), hidden.float())
    wide = normal(N, 64)
    assert torch.equal(layer_trip("bf16", wide), wide.to(torch.bfloat16).float())


def test_int8_is_off_by_at_most_half_a_step():
    hidden = normal(N, 64)
    step = hidden.abs().amax(-1, keepdim=True) / 127
    assert ((layer_trip("int8", hidden) - hidden).abs() <= step * 0.5001).all()
