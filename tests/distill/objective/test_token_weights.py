"""Terms with one weight a token, through the head: against the definitions, and merged or not.

Legend: N tokens, V vocabulary, H width, K entries.
"""

from dataclasses import replace

import pytest
import torch

from attar.models.structure import Head, label_logprobs
from distill.objective import chunked_head
from distill.objective.chunked_head import head_logprobs, head_losses, logit_losses
from distill.objective.closed_form import covers
from distill.objective.head_term import HeadTerm
from distill.objective.losses import LOSSES
from distill.objective.model_outputs import LanguageReadout
from teachers.signals import DenseDistribution, KnownLogits, SparseDistribution
from tests.helpers.definitions import VOCABULARY_LOSSES, over_all_logits, ragged, sparse

N, V, H, K = 9, 37, 8, 5
LABELS = torch.arange(N) * 7 % V
NLL = LOSSES["cross_entropy"]


def normal(*shape, seed, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


WEIGHT = normal(N, seed=20)  # some are negative
WEIGHT[2] = 0.0


def leaves():
    return [normal(N, H, seed=0, scale=2), normal(V, H, seed=1, scale=2)]


def target_of(kind, temperature=1.0):
    dense = DenseDistribution(normal(N, H, seed=3), Head(normal(V, H, seed=4)), temperature)
    if kind == "dense":
        return dense
    if kind == "known":
        return KnownLogits(dense.head.logits(dense.hidden_NH), temperature)
    bucket = ragged(sparse(dense.logprobs(), K))
    if kind == "bucket":
        return bucket
    return SparseDistribution(bucket.ids_NK, bucket.logprobs_NK, None)


def run(terms, chunk=4, options=None, dtype=torch.float32):
    """(total, sums, gradients at states and head)."""
    hidden, weight = (x.requires_grad_() for x in leaves())
    head = Head(weight, **(options or {}))
    total, sums = head_losses(hidden, head, LABELS, terms, chunk=chunk, dtype=dtype)
    return total, sums, torch.autograd.grad(total, [hidden, weight])


def assert_same(got, want, rtol=1e-4, atol=2e-5):
    for one, other in zip([*got[:2], *got[2]], [*want[:2], *want[2]], strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=rtol, atol=atol)


def kl_term(kind, temperature, weight=WEIGHT):
    target = target_of(kind, temperature)
    scale = 0.7 * temperature**2
    return HeadTerm(LOSSES["forward_kl"], scale, temperature, {}, target, weight)


KINDS = ["dense", "known", "bucket", "sampled"]


@pytest.mark.parametrize("chunk", [1, 4, N])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("nll", ["none", "watched", "plain", "weighted", "both"])
def test_weighted_forward_kl_by_hand_equals_the_definition(kind, temperature, nll, chunk):
    more = {
        "none": [],
        "watched": [HeadTerm(NLL, 0.0)],
        "plain": [HeadTerm(NLL, 0.3)],
        "weighted": [HeadTerm(NLL, 0.3, weight_N=WEIGHT.flip(0))],
        "both": [HeadTerm(NLL, 0.3, weight_N=WEIGHT.flip(0)), HeadTerm(NLL, 0.2)],
    }[nll]
    terms = [kl_term(kind, temperature), *more]
    if kind != "dense":  # its states become logits in the head
        assert covers(terms)
    assert_same(run(terms, chunk), over_all_logits(leaves(), {}, LABELS, terms))


@pytest.mark.parametrize("chunk", [1, 4, N])
@pytest.mark.parametrize("options", [{}, {"scale": 0.4}, {"softcap": 3.0}], ids=str)
def test_several_nlls_equal_the_definition(chunk, options):
    """By hand without a soft-cap, and through autograd with one."""
    terms = [
        HeadTerm(NLL, 0.3),
        HeadTerm(NLL, 0.5, weight_N=WEIGHT),
        HeadTerm(NLL, -0.2, weight_N=WEIGHT.abs()),
        HeadTerm(NLL, 0.0),
    ]
    assert_same(run(terms, chunk, options), over_all_logits(leaves(), options, LABELS, terms))


def test_nlls_together_equal_each_in_a_pass_of_its_own():
    terms = [HeadTerm(NLL, 0.3), HeadTerm(NLL, 0.5, weight_N=WEIGHT), HeadTerm(NLL, 0.1)]
    separate = [run([term]) for term in terms]
    gradients = [sum(parts) for parts in zip(*(one[2] for one in separate), strict=True)]
    sums = torch.cat([one[1] for one in separate])
    want = sum(one[0] for one in separate), sums, gradients
    assert_same(run(terms), want, rtol=1e-5, atol=1e-6)


def test_nlls_take_one_pass(monkeypatch):
    """Several terms cost one softmax a block, not one each."""
    seen = []
    real = chunked_head.value_and_gradient
    monkeypatch.setattr(
        chunked_head, "value_and_gradient", lambda *a: seen.append(len(a[2])) or real(*a)
    )
    monkeypatch.setattr(chunked_head, "_by_autograd", None)
    run([HeadTerm(NLL, 0.3), HeadTerm(NLL, 0.5, weight_N=WEIGHT), kl_term("bucket", 1.0)], chunk=N)
    assert seen == [3]


@pytest.mark.parametrize("name", VOCABULARY_LOSSES)
@pytest.mark.parametrize("chunk", [1, 4])
def test_every_loss_takes_weights_through_autograd(name, chunk):
    labels = LOSSES[name].reads == "labels"
    parameters = {"label_smoothing": 0.1} if labels else {}
    target = None if labels else target_of("dense", 2.0)
    temperature = 1.0 if labels else 2.0
    watched = HeadTerm(NLL, 0.0, parameters={"label_smoothing": 0.5})
    terms = [HeadTerm(LOSSES[name], 0.7, temperature, parameters, target, WEIGHT), watched]
    assert not covers(terms)
    assert_same(run(terms, chunk), over_all_logits(leaves(), {}, LABELS, terms))


@pytest.mark.parametrize("kind", ["known", None])
def test_weights_on_known_logits(kind):
    """As classes have them: plain autograd on all rows at once."""
    name = "cross_entropy" if kind is None else "forward_kl"
    term = HeadTerm(LOSSES[name], 0.7, target=kind and target_of(kind), weight_N=WEIGHT)
    logits = normal(N, V, seed=5, scale=2).requires_grad_()
    total, sums = logit_losses(logits, LABELS, [term])
    (gradient,) = torch.autograd.grad(total, logits)
    eye = torch.eye(V)
    want = over_all_logits([logits, eye], {}, LABELS, [term])
    assert_same((total, sums, [gradient]), (*want[:2], want[2][:1]))


@pytest.mark.parametrize("terms", [("nll",), ("kl",), ("kl", "nll")])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_one_are_no_weights(terms, kind):
    ones = torch.ones(N)
    made = {
        "nll": HeadTerm(NLL, 0.4),
        "kl": kl_term(kind, 2.5, None),
    }
    plain = [made[name] for name in terms]
    weighted = [replace(term, weight_N=ones) for term in plain]
    assert_same(run(weighted), run(plain), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_weight_zero_might_as_well_not_be_there(kind):
    zeros = (torch.arange(N) < 5).float()
    terms = [kl_term(kind, 2.5, zeros), HeadTerm(NLL, 0.4, weight_N=zeros)]
    total, sums, (on_hidden, on_head) = run(terms)
    assert on_hidden[5:].abs().max() == 0
    assert on_hidden[:5].abs().max() > 0
    hidden, weight = (x.requires_grad_() for x in leaves())
    kl = kl_term(kind, 2.5, None)
    cut = [replace(kl, target=kl.target.rows(0, 5)), HeadTerm(NLL, 0.4)]
    fewer = head_losses(hidden[:5], Head(weight), LABELS[:5], cut, chunk=4, dtype=torch.float32)
    gradients = torch.autograd.grad(fewer[0], [hidden, weight])
    assert_same((total, sums, (on_hidden, on_head)), (*fewer, gradients), rtol=1e-5, atol=1e-5)


def test_weights_scale_value_and_gradient_and_negative_ones_turn_them():
    term = HeadTerm(NLL, 0.4, weight_N=WEIGHT)
    total, sums, gradients = run([term])
    want = (-3 * total, -3 * sums, [-3 * g for g in gradients])
    assert_same(run([replace(term, weight_N=-3 * WEIGHT)]), want, rtol=1e-5, atol=1e-5)


def test_a_smoothed_nll_is_not_reported_as_the_nll():
    assert HeadTerm(NLL, 1.0, weight_N=WEIGHT).reads_nll
    assert not HeadTerm(NLL, 1.0, parameters={"label_smoothing": 0.1}).reads_nll


def test_bfloat16_products_stay_close():
    terms = [kl_term("bucket", 1.0), HeadTerm(NLL, 0.3, weight_N=WEIGHT)]
    total, _, gradients = run(terms, dtype=torch.bfloat16)
    want, _, exact = over_all_logits(leaves(), {}, LABELS, terms)
    assert total.item() == pytest.approx(want.item(), rel=0.03, abs=0.03)
    for got, gradient in zip(gradients, exact, strict=True):
        assert (got - gradient).norm() / gradient.norm() < 0.03


# Log-probabilities of labels ---------------------------------------------------------------------

HEADS = [{}, {"scale": 0.4}, {"softcap": 3.0}, {"scale": 0.4, "bias_V": normal(V, seed=9)}]


@pytest.mark.parametrize("chunk", [1, 4, N, 100])
@pytest.mark.parametrize("options", HEADS, ids=["plain", "scale", "softcap", "bias"])
def test_label_logprobs_are_those_of_all_logits(chunk, options):
    hidden, weight = (x.requires_grad_() for x in leaves())
    head = Head(weight, **options)
    got = head_logprobs(hidden, head, LABELS, chunk=chunk, dtype=torch.float32)
    wide = replace(head, weight_VH=weight.double()).finish(hidden.double() @ weight.double().T)
    want = wide.log_softmax(-1)[torch.arange(N), LABELS]
    assert got.dtype == torch.float32
    assert not got.requires_grad
    torch.testing.assert_close(got.double(), want.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_label_logprobs_are_bit_for_bit_those_of_the_losses(dtype):
    """So a policy that is its own reference has a margin of exactly 0."""
    hidden, weight = leaves()
    logprobs = head_logprobs(hidden, Head(weight), LABELS, chunk=4, dtype=dtype)
    for n in range(N):
        only = torch.zeros(N)
        only[n] = 1.0
        terms = [HeadTerm(NLL, 1.0, weight_N=only)]
        _, sums = head_losses(hidden, Head(weight), LABELS, terms, chunk=4, dtype=dtype)
        assert sums[0].item() == -logprobs[n].item()


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_label_logprobs_are_those_of_a_reference_that_runs_under_autocast(softcap):
    """So that a policy that is its reference has no margin: the same products, rounded as often."""
    hidden, weight = leaves()
    head = Head(weight, softcap=softcap)
    own = head_logprobs(hidden, head, LABELS, chunk=4, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        other = label_logprobs(hidden, head, LABELS)
    torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-6)


def test_blocks_of_label_logprobs_change_nothing(monkeypatch):
    hidden, weight = leaves()
    whole = head_logprobs(hidden, Head(weight), LABELS, chunk=N, dtype=torch.float32)
    monkeypatch.setattr(chunked_head, "BLOCK_BYTES", 4 * V)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    parts = head_logprobs(hidden, Head(weight), LABELS, chunk=5, dtype=torch.float32)
    torch.testing.assert_close(whole, parts, rtol=1e-6, atol=1e-6)


def test_label_logprobs_of_no_tokens_are_none():
    hidden, weight = leaves()
    none = head_logprobs(hidden[:0], Head(weight), LABELS[:0], chunk=4, dtype=torch.float32)
    assert none.shape == (0,)


def test_readout_of_a_language_model_gives_them(make_model):
    model = make_model(3)
    ids = torch.arange(12)[None] * 5 % 90
    readout = LanguageReadout(vocabulary=90, chunk=5, dtype=torch.float32)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]
    got = readout.label_logprobs(model, hidden, ids[0, 1:])
    logits = model(input_ids=ids).logits[0, :-1, :90].double()
    want = logits.log_softmax(-1)[torch.arange(11), ids[0, 1:]]
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
