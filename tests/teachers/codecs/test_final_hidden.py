"""`final_hidden`: the full distribution from a coded final state and the teacher's head."""

import numpy as np
import pytest
import torch

from attar.models.structure import Head
from teachers.codecs.codec import split_columns
from teachers.codecs.final_hidden import FinalHidden
from teachers.signals import DenseDistribution, TeacherChunk, seeds_of

N, V, H = 1024, 300, 24
HEADS = {
    "plain": {},
    "bias": {"bias_V": True},
    "scale": {"scale": 0.25},
    "softcap": {"softcap": 8.0},
    "all": {"bias_V": True, "scale": 2.0, "softcap": 12.0},
}
every_head = pytest.mark.parametrize("options", HEADS.values(), ids=HEADS.keys())


@pytest.fixture(scope="module")
def teacher(normal):
    """`teacher(**head)`: (a sample to learn from, other tokens to store) of one teacher.

    States have a mean and an outlier channel; the head reads some directions ten times as much
    as others. Logits vary by about three nats, as those of language models do.
    """

    def make(dtype=torch.float32, seed=0, **options):
        mixed = normal(H, H, seed=7) * torch.logspace(0.3, -1, H)
        hidden = normal(2 * N, H, seed=seed) @ mixed / 2 + normal(H, seed=8)
        hidden[:, 5] *= 30
        weight = normal(V, H, seed=9) * torch.logspace(-1, 0, H)
        weight[:, 5] /= 30
        weight *= 3 / (hidden @ weight.T).std() / options.get("scale", 1.0)
        if options.get("bias_V"):
            options = {**options, "bias_V": normal(V, seed=10).to(dtype)}
        head = Head(weight.to(dtype), **options)
        seeds = seeds_of("0" * 32, N)
        hidden = hidden.to(dtype)
        return TeacherChunk(hidden[:N], head, seeds), TeacherChunk(hidden[N:], head, seeds)

    return make


def divergence(made, decoded, temperature=1.0):
    """KL(dense || decoded) of every token, float64."""
    dense = (made.logits().double() / temperature).log_softmax(-1)
    stored = (decoded.head.logits(decoded.hidden_NH).double() / temperature).log_softmax(-1)
    return (dense.exp() * (dense - stored)).sum(-1)


@pytest.fixture(scope="module")
def stored(learned, round_trip):
    """`stored(codec, sample, made, T=1.0)`: learned from the sample; tokens encoded and decoded."""

    def trip(codec, sample, made, temperature=1.0):
        return round_trip(codec, made, temperature, learned(codec, sample))

    return trip


@every_head
@pytest.mark.parametrize("kl", [1e-2, 1e-3, 1e-4, 1e-5])
def test_divergence_is_about_what_the_recipe_allows(teacher, stored, options, kl):
    sample, made = teacher(**options)
    mean = divergence(made, stored(FinalHidden(kl=kl), sample, made)).mean().item()
    assert mean < 2 * kl
    if "softcap" not in options:  # which flattens the head: the metric errs on the safe side
        assert mean > kl / 4, "bytes spent for nothing"


@every_head
@pytest.mark.parametrize("temperature", [0.5, 2.0, 5.0])
def test_any_temperature_is_as_exact(teacher, stored, options, temperature):
    """An error d of the logits costs about var(d) / 2 T^2 nats at temperature T."""
    sample, made = teacher(**options)
    codec = FinalHidden(kl=1e-4)
    decoded = stored(codec, sample, made, temperature)
    assert decoded.temperature == temperature
    mean = divergence(made, decoded, temperature).mean().item()
    assert mean < 3e-4 / temperature**2
    dense = (made.logits().double() / temperature).log_softmax(-1)
    assert (decoded.logprobs().double() - dense).abs().mean() < 0.05 / temperature


def test_half_the_divergence_costs_half_a_bit_a_channel(teacher, learned):
    """Bytes by the entropy of the codes, which the files' compressor nearly reaches."""
    sample, made = teacher()
    bits = []
    for kl in (1e-2, 1e-2 / 4**3):
        codec = FinalHidden(kl=kl)
        columns = codec.encode(made, learned(codec, sample))
        bands = [columns[f"final_{band}"].astype(int) for band in range(8)]
        codes = np.concatenate(bands, axis=1) + 256 * columns["final_high"].astype(int)
        shares = [np.unique(channel, return_counts=True)[1] / N for channel in codes.T]
        bits.append(sum(-(share * np.log2(share)).sum() for share in shares) / H)
    planned = FinalHidden(kl=1e-2 / 4**3).bytes_per_token(V, H) - FinalHidden(
        kl=1e-2
    ).bytes_per_token(V, H)
    assert bits[1] - bits[0] == pytest.approx(3, abs=0.6)
    assert 8 * planned / H == pytest.approx(3, abs=1e-6)


@every_head
def test_the_head_of_the_cache_is_the_teachers(teacher, stored, options):
    sample, made = teacher(**options)
    head = stored(FinalHidden(), sample, made).head
    torch.testing.assert_close(head.logits(made.hidden_NH), made.logits())
    assert (head.bias_V is None) == ("bias_V" not in options)
    assert head.softcap == options.get("softcap")


@pytest.mark.parametrize("options", [{}, {"bias_V": True}])
def test_a_bfloat16_head_is_kept_in_bfloat16(teacher, learned, stored, options):
    sample, made = teacher(torch.bfloat16, **options)
    assets = learned(FinalHidden(), sample)
    assert assets["head_weight"].dtype == torch.bfloat16
    assert torch.equal(assets["head_weight"], made.head.weight_VH)
    decoded = stored(FinalHidden(), sample, made)
    assert decoded.hidden_NH.dtype == torch.float32
    assert divergence(made, decoded).mean() < 5e-3  # 16-bit products, not codes, set the limit


def test_states_are_near_the_true_ones_where_the_head_looks(teacher, stored):
    """The order of the likeliest ids is kept."""
    sample, made = teacher()
    decoded = stored(FinalHidden(), sample, made)
    top = made.logits().argmax(-1)
    agree = (decoded.logprobs().argmax(-1) == top).double().mean()
    assert agree > 0.98


def test_more_bytes_than_one_a_channel_only_where_needed(teacher, learned):
    sample, made = teacher()
    codec = FinalHidden(kl=1e-3)
    columns = codec.encode(made, learned(codec, sample))
    assert columns["final_high"].max() <= 1
    assert (columns["final_high"] > 0).mean() < 0.1
    assert sum(columns[f"final_{band}"].shape[1] for band in range(8)) == H


def test_what_all_ids_share_costs_nothing(teacher, learned):
    """A vector added to every row of the head shifts all logits: no distribution changes."""
    sample, made = teacher()
    shifted = Head(sample.head.weight_VH + sample.head.weight_VH.std() * torch.ones(H))
    moved = TeacherChunk(sample.hidden_NH, shifted, sample.seeds_N)
    codec = FinalHidden(kl=1e-4)
    one = codec.encode(made, learned(codec, sample))
    other = codec.encode(made, learned(codec, moved))
    same = [(one[name] == other[name]).mean() for name in one]
    assert min(same) > 0.8  # but for what float32 rounds


def test_states_far_from_the_sample_are_still_exact(teacher, stored):
    """Codes have 16 bits, so a token unlike the learning sample can be stored."""
    sample, made = teacher()
    far = TeacherChunk(made.hidden_NH * 20, made.head, made.seeds_N)
    assert divergence(far, stored(FinalHidden(), sample, far)).max() < 0.01


def test_a_dense_distribution_is_cut_into_rows_and_moved_like_others(teacher, stored, learned):
    sample, made = teacher()
    codec = FinalHidden()
    assets = learned(codec, sample)
    whole = stored(codec, sample, made, 2.0)
    one = split_columns(codec.encode(made, assets), [10, N - 10])[0]
    part = codec.decode({k: v.reshape(-1) for k, v in one.items()}, 10, 2.0, assets)
    assert isinstance(part, DenseDistribution)
    torch.testing.assert_close(whole.rows(0, 10).logprobs(), part.logprobs())
    torch.testing.assert_close(whole.to(torch.device("cpu")).logprobs(), whole.logprobs())


def test_a_teacher_of_few_tokens_can_be_learned_from(teacher, stored):
    """Fewer tokens than channels: the other directions are stored too."""
    sample, made = teacher()
    few = TeacherChunk(sample.hidden_NH[:5], sample.head, sample.seeds_N[:5])
    assert divergence(made, stored(FinalHidden(), few, made)).mean() < 3e-3
