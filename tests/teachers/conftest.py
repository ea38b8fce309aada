"""Chunks of a teacher's run, and the way through a codec as the cache takes it."""

import pytest
import torch
from safetensors.torch import load, save

from attar.anatomy import Head
from teachers.signals import SparseDistribution, TeacherChunk, seeds_of


@pytest.fixture(scope="session")
def normal():
    """`normal(*shape, seed=0)`: float32 numbers that are the same on every run."""

    def make(*shape, seed=0):
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture(scope="session")
def chunk_of():
    """`chunk_of(logits_PV, repeat=1, key=...)`: tokens with exactly these logits, each repeated.

    The head's columns are the logits and the hidden states pick one of them.
    """

    def make(logits_PV, repeat=1, key="5eed0fa110fb0ca7"):
        hidden_NP = torch.eye(len(logits_PV)).repeat_interleave(repeat, 0)
        return TeacherChunk(hidden_NP, Head(logits_PV.T), seeds_of(key, len(hidden_NP)))

    return make


@pytest.fixture(scope="session")
def learned():
    """`learned(codec, sample)`: the codec's assets as a cache gives them back from its file."""

    def make(codec, sample):
        return load(save({name: t.contiguous() for name, t in codec.learn(sample).items()}))

    return make


@pytest.fixture(scope="session")
def round_trip(learned):
    """`round_trip(codec, chunk, temperature=1.0)`: what a loss reads of these tokens."""

    def trip(codec, chunk, temperature=1.0, assets=None):
        assets = learned(codec, chunk) if assets is None else assets
        flat = {name: c.reshape(-1) for name, c in codec.encode(chunk, assets).items()}
        return codec.decode(flat, len(chunk.hidden_NH), temperature, assets)

    return trip


@pytest.fixture(scope="session")
def probabilities():
    """`probabilities(decoded, V)`: float64 weight of every id; a sparse tail is not among them."""

    def make(decoded, vocabulary):
        if not isinstance(decoded, SparseDistribution):
            return decoded.logprobs().double().exp()
        empty = torch.zeros(len(decoded.ids_NK), vocabulary, dtype=torch.float64)
        return empty.scatter_add_(-1, decoded.ids_NK, decoded.logprobs_NK.double().exp())

    return make
