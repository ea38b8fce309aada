"""`bf16`, `int8` and `basis`: hidden states of chosen layers, and their errors."""

import numpy as np
import pytest
import torch

from teachers.codecs.layer_states import Bfloat16, Int8, rotation
from teachers.codecs.pca_basis import (
    BANDS,
    Basis,
    codes_at_the_limit,
    from_bands,
    principal,
    to_bands,
)

N = 256


@pytest.fixture
def trip(learned):
    """`trip(codec, hidden, sample=hidden)`: these states, encoded and decoded."""

    def make(codec, hidden, sample=None):
        assets = learned(codec, hidden if sample is None else sample)
        flat = {name: c.reshape(-1) for name, c in codec.encode(hidden, assets).items()}
        return codec.decode(flat, len(hidden), assets)

    return make


@pytest.fixture
def with_outliers(normal):
    """`with_outliers(H)`: states of which two channels are a hundred times larger."""

    def make(width):
        hidden = normal(N, width)
        hidden[:, [1, width // 2]] *= 100
        return hidden

    return make


def off(decoded, hidden):
    """Norm of the error relative to the norm of the state, (N,)."""
    return (decoded.double() - hidden.double()).norm(dim=-1) / hidden.double().norm(dim=-1)


# bf16 --------------------------------------------------------------------------------------------


def test_bf16_is_exact_for_what_was_computed_in_bf16(normal, trip):
    hidden = normal(N, 64).to(torch.bfloat16)
    assert torch.equal(trip(Bfloat16(), hidden), hidden.float())
    wide = normal(N, 64)
    assert torch.equal(trip(Bfloat16(), wide), wide.to(torch.bfloat16).float())


# int8 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 7, 64, 96, 576])
def test_the_rotation_is_orthogonal(width):
    turn = rotation(width).double()
    assert turn.shape == (width, width)
    torch.testing.assert_close(turn @ turn.T, torch.eye(width).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(turn.T @ turn, torch.eye(width).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("width", [64, 96, 576])
def test_the_rotation_spreads_one_channel_and_all_alike(width):
    """A large channel, a constant, and blocks of channels are all spread by the rotation."""
    single = torch.eye(width)
    alike = torch.ones(1, width)
    blocks = torch.ones(width).view(2, -1).mul(torch.tensor([[1.0], [-1.0]])).view(1, -1)
    for states in (single, alike, blocks):
        turned = states @ rotation(width)
        share = turned.abs().amax(-1) / states.norm(dim=-1)
        assert share.max() < 5 / width**0.5


@pytest.mark.parametrize("width", [64, 96, 576, 7])
def test_int8_is_off_by_half_a_step_of_the_turned_state(normal, trip, width):
    hidden = normal(N, width)
    turned = hidden @ rotation(width)
    step = turned.abs().amax(-1, keepdim=True) / 127
    stored = trip(Int8(), hidden) @ rotation(width)
    assert ((stored - turned).abs() <= step * 0.5001 + 1e-6).all()


@pytest.mark.parametrize("width", [64, 576])
def test_outlier_channels_cost_int8_little(with_outliers, trip, width):
    """Without the rotation, outliers set the step for all other channels."""
    hidden = with_outliers(width)
    step = hidden.abs().amax(-1, keepdim=True) / 127
    plain = off((hidden / step).round() * step, hidden).mean()
    turned = off(trip(Int8(), hidden), hidden).mean()
    assert turned < plain / (2 if width == 64 else 4)
    small = [i for i in range(width) if i not in (1, width // 2)]
    error_of = {
        "plain": ((hidden / step).round() * step - hidden)[:, small].square().mean(),
        "turned": (trip(Int8(), hidden) - hidden)[:, small].square().mean(),
    }
    assert error_of["turned"] < error_of["plain"] / 4
    cosine = torch.cosine_similarity(trip(Int8(), hidden), hidden, dim=-1)
    assert cosine.min() > 0.999


def test_int8_takes_the_bytes_that_plans_count(normal):
    for codec in (Int8(), Bfloat16()):
        columns = codec.encode(normal(N, 96), {})
        assert sum(c.nbytes for c in columns.values()) / N == codec.bytes_per_token(96)


# basis -------------------------------------------------------------------------------------------


@pytest.fixture
def correlated(normal):
    """`correlated(H)`: (sample, other states) with most variance in a few directions."""

    def make(width):
        mixed = normal(width, width, seed=5) * torch.logspace(0.5, -1.5, width)[:, None]
        states = normal(2 * N, width) @ mixed + normal(width, seed=6)
        states *= torch.logspace(-2, 3, 2 * N)[torch.randperm(2 * N), None]  # lengths differ
        return states[:N], states[N:]

    return make


@pytest.mark.parametrize("width", [5, 7, 64, 96])
@pytest.mark.parametrize("step", [0.02, 0.2, 1.0])
def test_basis_is_off_by_its_step_whatever_a_states_length(correlated, trip, width, step):
    """The error of a coefficient is at most step / 2, and step / sqrt(12) for large ones."""
    sample, hidden = correlated(width)
    error = off(trip(Basis(step=step), hidden, sample), hidden)
    assert error.max() < step / 2 + 1e-5
    assert error.mean() < step / 12**0.5 * 1.05 + 1e-5


def test_a_finer_step_is_a_smaller_error_and_more_bytes(correlated, trip):
    sample, hidden = correlated(64)
    steps = [0.8, 0.4, 0.2, 0.1, 0.05]
    errors = [off(trip(Basis(step=s), hidden, sample), hidden).mean().item() for s in steps]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 8
    planned = [Basis(step=step).bytes_per_token(64) for step in steps]
    assert planned == sorted(planned)
    cosine = torch.cosine_similarity(trip(Basis(), hidden, sample), hidden, dim=-1)
    assert cosine.mean() > 0.99


def test_the_basis_puts_what_varies_first(correlated, learned):
    sample, hidden = correlated(64)
    columns = Basis(step=0.1).encode(hidden, learned(Basis(), sample))
    energy = [np.square(columns[f"_{band}"].astype(float)).mean() for band in range(BANDS)]
    assert energy[0] > 20 * energy[-1]
    assert energy == sorted(energy, reverse=True)


def test_the_learned_basis_is_orthogonal_and_its_signs_are_fixed(correlated, learned):
    sample, _ = correlated(64)
    basis = learned(Basis(), sample)["forward"].double()
    torch.testing.assert_close(basis.T @ basis, torch.eye(64).double(), atol=1e-5, rtol=0)
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()


def test_principal_directions_are_those_of_falling_variance(normal):
    states = (normal(500, 6) * torch.tensor([3.0, 0.1, 2.0, 0.5, 1.0, 0.2])).double()
    turned = states @ principal(states)
    variance = turned.square().mean(0)
    assert variance.tolist() == sorted(variance.tolist(), reverse=True)
    torch.testing.assert_close(
        turned.T @ turned, torch.diag((turned.T @ turned).diag()), atol=1e-8, rtol=0
    )


@pytest.mark.parametrize("width", [1, 7, 8, 20])
def test_codes_survive_their_bands(width):
    random = np.random.default_rng(0)
    codes = random.integers(-32767, 32768, (50, width)).astype(np.float32)
    codes[0, 0], codes[1, 0], codes[2, 0] = 0, -32767, 32767
    codes[3:] = np.sign(codes[3:]) * (np.abs(codes[3:]) % 300)  # most codes are small
    flat = {name: c.reshape(-1) for name, c in to_bands(torch.from_numpy(codes)).items()}
    found = from_bands(flat, 50, torch.device("cpu"))
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), codes)
    assert all(column.dtype == np.uint8 for column in flat.values())


def test_small_codes_of_both_signs_are_small_bytes():
    codes = torch.tensor([[0.0, -1.0, 1.0, -2.0, 2.0]])
    bands = to_bands(codes)
    low = np.concatenate([bands[str(band)] for band in range(BANDS)], axis=1)
    assert low.tolist() == [[0, 1, 2, 3, 4]]
    assert not bands["high"].any()


def test_codes_beyond_what_is_stored_are_cut_off_not_wrapped():
    found = to_bands(torch.tensor([[1e9, -1e9]]))
    assert from_bands(found, 1, torch.device("cpu")).tolist() == [[32767, -32767]]
    assert codes_at_the_limit({f"hidden_1_{name}": column for name, column in found.items()}) == 2
    healthy = to_bands(torch.tensor([[32766.0, -32766.0, 1.0]]))
    assert codes_at_the_limit(healthy) == 0
