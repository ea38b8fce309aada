"""Cross-entropy and forward KL by hand, against the definitions and against autograd on the same.

Legend: N tokens, V vocabulary, H width, K entries.
"""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attar.models.structure import Head
from distill.objective import chunked_head
from distill.objective.chunked_head import head_losses
from distill.objective.closed_form import covers
from distill.objective.head_term import HeadTerm
from distill.objective.losses import LOSSES
from teachers.signals import DenseDistribution, KnownLogits
from tests.helpers.definitions import over_all_logits, ragged, sparse

N, V, H, K = 7, 31, 8, 5
LABELS = torch.arange(N) * 7 % V
NOTHING = HeadTerm(LOSSES["cross_entropy"], 0.0, parameters={"label_smoothing": 0.5})


def normal(*shape, seed, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def teacher_of(seed, temperature):
    head = Head(normal(V, H, seed=seed + 3))
    return DenseDistribution(normal(N, H, seed=seed + 2), head, temperature)


def target_of(kind, temperature, seed=0):
    """Each kind of target that is known by hand."""
    dense = teacher_of(seed, temperature)
    if kind == "dense":
        return dense
    if kind == "known":
        return KnownLogits(dense.head.logits(dense.hidden_NH), temperature)
    if kind == "all":
        return sparse(dense.logprobs(), V)
    bucket = ragged(sparse(dense.logprobs(), K), seed)
    if kind == "sampled":  # weights that do not sum to one, as draws have them
        weights_NK = bucket.logprobs_NK + torch.linspace(-0.5, 0.5, N)[:, None]
        return replace(bucket, logprobs_NK=weights_NK, tail_N=None)
    return bucket if kind == "bucket" else bucket.without_tail(kind)


def objective(kind, temperature, scale, ce_scale, seed=0):
    """Forward KL, and cross-entropy where it has a scale; 0 is one that is only watched."""
    target = target_of(kind, temperature, seed)
    terms = [HeadTerm(LOSSES["forward_kl"], scale * temperature**2, temperature, {}, target)]
    return terms if ce_scale is None else [*terms, HeadTerm(LOSSES["cross_entropy"], ce_scale)]


def leaves(seed=0):
    return [normal(*shape, seed=seed + i, scale=2).requires_grad_() for i, shape in SHAPES]


SHAPES = [(0, (N, H)), (1, (V, H)), (7, (V,))]


def run(terms, options=None, chunk=3, seed=0):
    """(total, sums, gradients at states, head and bias); the targets stay as they are."""
    hidden, weight, bias = leaves(seed)
    options = {"bias_V": None, **(options or {})}
    if options["bias_V"] is True:
        options["bias_V"] = bias
    total, sums = head_losses(
        hidden, Head(weight, **options), LABELS, terms, chunk=chunk, dtype=torch.float32
    )
    wanted = [hidden, weight] if options["bias_V"] is None else [hidden, weight, bias]
    return total, sums, torch.autograd.grad(total, wanted)


def true_values(terms, options=None, seed=0):
    """The same from the definitions in float64, over all logits at once."""
    options = options or {}
    tensors = leaves(seed) if options.get("bias_V") else leaves(seed)[:2]
    return over_all_logits(tensors, options, LABELS, terms)


def assert_same(got, want, rtol=1e-4, atol=2e-5):
    for one, other in zip([*got[:2], *got[2]], [*want[:2], *want[2]], strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=rtol, atol=atol)


KINDS = ["dense", "known", "all", "bucket", "sampled", "drop", "renormalize"]
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("ce_scale", [None, 0.0, 0.3])
def test_by_hand_equals_the_definition_and_autograd(kind, temperature, ce_scale):
    terms = objective(kind, temperature, 0.7, ce_scale)
    assert covers([replace(term, target=known(term.target)) for term in terms])
    assert not covers([*terms, NOTHING])
    by_hand = run(terms)
    assert_same(by_hand, true_values(objective(kind, temperature, 0.7, ce_scale)))
    total, sums, gradients = run([*objective(kind, temperature, 0.7, ce_scale), NOTHING])
    assert_same(by_hand, (total, sums[:-1], gradients), rtol=1e-4, atol=1e-5)


def known(target):
    """As the head shows a teacher to the closed form: states have become logits."""
    if isinstance(target, DenseDistribution):
        return KnownLogits(target.head.logits(target.hidden_NH), target.temperature)
    return target


def test_what_only_autograd_knows_is_not_taken_by_hand():
    kl, ce = objective("bucket", 1.0, 1.0, 1.0)
    closed = objective("renormalize_both", 1.0, 1.0, None)
    smooth = HeadTerm(LOSSES["cross_entropy"], 1.0, parameters={"label_smoothing": 0.1})
    reverse = replace(kl, loss=LOSSES["reverse_kl"])
    assert covers([kl])
    assert covers([ce])
    assert covers([ce, kl])
    assert covers([ce, kl, ce, ce])
    assert not any(covers(terms) for terms in (closed, [smooth], [kl, kl], [kl, reverse]))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("ce_scale", [None, 0.3])
def test_entries_closed_on_both_sides_go_through_autograd(temperature, ce_scale):
    terms = objective("renormalize_both", temperature, 0.7, ce_scale)
    assert_same(run(terms), true_values(terms))


@every_kind
def test_terms_may_stand_in_any_order(kind):
    forth = run(objective(kind, 2.5, 0.7, 0.3))
    total, sums, gradients = run(objective(kind, 2.5, 0.7, 0.3)[::-1])
    assert_same(forth, (total, sums.flip(0), gradients), rtol=1e-6, atol=1e-6)


def test_cross_entropy_alone_is_by_hand_whether_it_counts_or_not():
    for scale in (0.7, 0.0):
        terms = [HeadTerm(LOSSES["cross_entropy"], scale)]
        assert covers(terms)
        assert_same(run(terms), true_values(terms))


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_smoothed_labels_equal_the_definition(smoothing):
    smooth = HeadTerm(LOSSES["cross_entropy"], 0.7, parameters={"label_smoothing": smoothing})
    assert_same(run([smooth]), true_values([smooth]))
    terms = [*objective("bucket", 2.5, 0.4, 0.0), smooth]
    assert_same(run(terms), true_values(terms))


HEADS = {
    "bias": {"bias_V": True},
    "scale": {"scale": 0.4},
    "softcap": {"softcap": 3.0},
    "all": {"bias_V": True, "scale": 0.4, "softcap": 3.0},
}


@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("kind", ["dense", "known", "bucket"])
def test_bias_scale_and_softcap_of_the_student(kind, options):
    terms = objective(kind, 2.5, 0.7, 0.3)
    assert_same(run(terms, options), true_values(objective(kind, 2.5, 0.7, 0.3), options))


@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("ce_scale", [None, 0.3])
def test_bias_scale_and_softcap_of_the_teacher(options, ce_scale):
    """A dense target is read through the teacher's own head, chunk by chunk."""
    if options.get("bias_V"):
        options = {**options, "bias_V": normal(V, seed=11)}
    kl, *others = objective("dense", 2.5, 0.7, ce_scale)
    head = Head(kl.target.head.weight_VH, **options)
    terms = [replace(kl, target=replace(kl.target, head=head)), *others]
    assert_same(run(terms), true_values(terms))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_teachers_head_in_16_bits_is_its_own_rounding_and_no_more(dtype):
    """Logits may come in 16 bits; what is computed from them is as exact as from float32."""
    logits = target_of("known", 1.0).logits_NV.to(dtype)
    for temperature in (1.0, 2.5):
        terms = objective("known", temperature, 0.7, 0.3)
        rounded = [replace(terms[0], target=KnownLogits(logits.clone(), temperature)), terms[1]]
        want = true_values(rounded)
        assert_same(run(rounded), want)


# Blocks, chunks, sharing -------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_block_and_chunk_boundaries_change_nothing(kind, rows, chunk, monkeypatch):
    whole = run(objective(kind, 2.5, 0.7, 0.3), chunk=100)
    monkeypatch.setattr(chunked_head, "BLOCK_BYTES", 4 * V * rows)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # a block has a row a thread at least
    seen = []
    real = chunked_head.value_and_gradient
    monkeypatch.setattr(
        chunked_head, "value_and_gradient", lambda *a: seen.append(len(a[0])) or real(*a)
    )
    parts = run(objective(kind, 2.5, 0.7, 0.3), chunk=chunk)
    assert max(seen) == min(rows, chunk)
    assert sum(seen) == N
    assert_same(whole, parts, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 3])
def test_blocks_of_the_generic_path_change_nothing(rows, monkeypatch):
    names = [n for n, loss in LOSSES.items() if loss.reads == "distribution"]
    target = target_of("dense", 2.0)
    terms = [HeadTerm(LOSSES[name], 0.5, 2.0, {}, target) for name in names]
    whole = run(terms, HEADS["all"], chunk=100)
    monkeypatch.setattr(chunked_head, "BLOCK_BYTES", 4 * V * rows)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert_same(whole, run(terms, HEADS["all"], chunk=5), rtol=1e-5, atol=1e-6)


def test_dense_terms_share_a_target_and_keep_apart_by_temperature():
    """One product a target and chunk, however many terms read it; each at its own temperature."""
    one, other = target_of("dense", 1.0), target_of("dense", 2.5)
    terms = [
        HeadTerm(LOSSES["forward_kl"], 0.7, 1.0, {}, one),
        HeadTerm(LOSSES["reverse_kl"], 0.2, 1.0, {}, one),
        HeadTerm(LOSSES["jsd"], 0.4, 2.5, {"beta": 0.3}, other),
        HeadTerm(LOSSES["logit_mse"], 0.1, 2.5, {}, other),
        HeadTerm(LOSSES["cross_entropy"], 0.3),
    ]
    assert_same(run(terms), true_values(terms))


@every_kind
@pytest.mark.parametrize("ce_scale", [None, 0.3])
def test_a_target_can_be_read_again(kind, ce_scale):
    """An evaluation, a second term or a second epoch may read the same signals."""
    terms = objective(kind, 2.5, 0.7, ce_scale)
    first = run(terms)
    assert_same(first, run(terms), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_only_watched_has_no_part_in_the_gradient(kind):
    alone, watched = run(objective(kind, 2.5, 0.7, None)), run(objective(kind, 2.5, 0.7, 0.0))
    for one, other in zip(alone[2], watched[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    nll = run([HeadTerm(LOSSES["cross_entropy"], 1.0)])[1][0]
    assert watched[1][1].item() == pytest.approx(nll.item(), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_values_without_gradients_are_the_same(kind):
    with_grad = run(objective(kind, 2.5, 0.7, 0.3))
    hidden, weight, _ = (x.detach() for x in leaves())
    terms = objective(kind, 2.5, 0.7, 0.3)
    total, sums = head_losses(hidden, Head(weight), LABELS, terms, chunk=3, dtype=torch.float32)
    torch.testing.assert_close(sums, with_grad[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(total, with_grad[0].detach(), rtol=1e-6, atol=1e-6)


@settings(max_examples=20)
@given(
    st.integers(0, 5000),
    st.sampled_from(KINDS),
    st.sampled_from([1.0, 0.7, 4.0]),
    st.sampled_from([None, 0.0, 1.3]),
    st.integers(1, N + 1),
)
def test_any_ragged_target_equals_the_definition(seed, kind, temperature, ce_scale, chunk):
    terms = objective(kind, temperature, 0.7, ce_scale, seed=10 * seed)
    want = true_values(objective(kind, temperature, 0.7, ce_scale, seed=10 * seed), seed=seed)
    assert_same(run(terms, chunk=chunk, seed=seed), want, rtol=2e-4, atol=5e-5)


@pytest.mark.parametrize("kind", ["bucket", "sampled", "dense", "known"])
@pytest.mark.parametrize("size", [30.0, 1e4])
def test_peaked_models_keep_finite_values_and_gradients(kind, size):
    """Logits far beyond what exp can hold, on either side."""
    kl, ce = objective(kind, 1.0, 1.0, 1.0)
    if kind == "known":
        kl = replace(kl, target=KnownLogits(kl.target.logits_NV * size))
    hidden, weight = (x.detach().clone().requires_grad_() for x in leaves()[:2])
    scaled = Head(weight * math.sqrt(size))
    total, sums = head_losses(
        hidden * math.sqrt(size), scaled, LABELS, [kl, ce], chunk=3, dtype=torch.float32
    )
    total.backward()
    assert sums.isfinite().all()
    assert hidden.grad.isfinite().all()
    assert weight.grad.isfinite().all()
