"""The chunked head against a dense float64 reference: values, gradients, memory."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attar.models.structure import Head, head_of, run_body
from distill.objective.chunked_head import head_losses, logit_losses
from distill.objective.head_term import HeadTerm
from distill.objective.losses import LOSSES
from teachers.signals import DenseDistribution, KnownLogits, SparseDistribution
from tests.helpers.definitions import (
    DISTRIBUTION_LOSSES,
    VOCABULARY_LOSSES,
    defined,
    defined_on,
    over_all_logits,
)

N, V, H = 11, 41, 16
HEADS = {
    "plain": {},
    "bias": {"bias_V": True},
    "scale": {"scale": 0.4},
    "softcap": {"softcap": 3.0},
    "all": {"bias_V": True, "scale": 0.4, "softcap": 3.0},
}


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def leaves(bias=False):
    """Hidden states, weight and bias of a student, to be differentiated."""
    made = [normal(N, H, seed=0), normal(V, H, seed=1)]
    return [x.requires_grad_() for x in [*made, *([normal(V, seed=2)] if bias else [])]]


def make_head(tensors, options):
    bias = tensors[2] if len(tensors) > 2 else None
    return Head(tensors[1], **{**options, "bias_V": bias})


def make_target(kind, temperature=1.0):
    """A teacher's targets: dense by states or by logits, the 5 largest and a bucket, the same with
    unused slots, or those slots without a bucket, as unbiased samples have them.
    """
    teacher = DenseDistribution(normal(N, H, seed=3), Head(normal(V, H, seed=4)), temperature)
    if kind == "dense":
        return teacher
    if kind == "known":
        return KnownLogits(teacher.head.logits(teacher.hidden_NH), temperature)
    dense = teacher.logprobs()
    top = dense.topk(5, -1)
    tail = dense.scatter(-1, top.indices, -math.inf).logsumexp(-1)
    ids, logprobs = top.indices, top.values
    if kind != "topk":  # the first tokens use three slots only; a used id fills the others
        ids, logprobs, tail = ids.clone(), logprobs.clone(), tail.clone()
        tail[:4] = torch.logaddexp(tail[:4], logprobs[:4, 3:].logsumexp(-1))
        ids[:4, 3:], logprobs[:4, 3:] = ids[:4, :1], -math.inf
    return SparseDistribution(ids, logprobs, None if kind == "sampled" else tail)


LABELS = torch.arange(N) * 7 % V


def make_terms(*weighted, kind="topk", temperature=1.0):
    """Terms as the objective makes them: weight times T^2 for a distribution."""
    terms = []
    for name, weight in weighted:
        if LOSSES[name].reads == "labels":
            terms.append(HeadTerm(LOSSES[name], weight))
            continue
        target = make_target(kind, temperature)
        terms.append(HeadTerm(LOSSES[name], weight * temperature**2, temperature, {}, target))
    return terms


def reference(tensors, options, terms):
    """(scaled total, sums, gradients) of the definitions."""
    return over_all_logits(tensors, options, LABELS, terms)


def run(tensors, options, terms, chunk=4, dtype=torch.float32):
    head = make_head(tensors, options)
    total, sums = head_losses(tensors[0], head, LABELS, terms, chunk=chunk, dtype=dtype)
    return total, sums, torch.autograd.grad(total, tensors)


def check(tensors, options, terms, rtol=1e-4, atol=2e-5, **more):
    total, sums, gradients = run(tensors, options, terms, **more)
    expected_total, expected_sums, expected = reference(tensors, options, terms)
    torch.testing.assert_close(sums, expected_sums, rtol=rtol, atol=atol)
    torch.testing.assert_close(total.double(), expected_total, rtol=rtol, atol=atol)
    for got, want, what in zip(gradients, expected, ("hidden", "weight", "bias"), strict=False):
        torch.testing.assert_close(
            got.double(), want, rtol=rtol, atol=atol, msg=lambda m, w=what: f"{w}: {m}"
        )


def serves(kind, names):
    """Those of the losses that such targets can be right for, by their flags."""
    found = [LOSSES[name] for name in names]
    if kind not in ("dense", "known"):
        found = [loss for loss in found if not loss.full]
    if kind == "sampled":
        found = [loss for loss in found if loss.linear or loss.reads == "labels"]
    return tuple(loss.name for loss in found)


KINDS = [(k, name) for k in ("dense", "known", "topk", "ragged") for name in VOCABULARY_LOSSES]


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, n in KINDS if serves(k, [n])])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_value_and_gradients_equal_the_dense_reference(kind, name, temperature):
    check(leaves(), {}, make_terms((name, 0.7), kind=kind, temperature=temperature))


@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("terms", [("cross_entropy",), ("forward_kl", "reverse_kl")])
def test_bias_scale_and_softcap_of_the_family_are_applied(options, terms):
    tensors = leaves(bias="bias_V" in options)
    check(tensors, options, make_terms(*((name, 0.7) for name in terms)))


@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("weights", [(0.7, 0.0), (0.7, 0.3)])
def test_samples_have_the_gradients_of_the_dense_reference(options, weights):
    """By hand; one more term of the same loss takes the generic path."""
    tensors = leaves(bias="bias_V" in options)
    named = zip(("forward_kl", "cross_entropy"), weights, strict=True)
    terms = make_terms(*named, kind="sampled")
    check(tensors, options, terms)
    check(tensors, options, [*terms, *make_terms(("forward_kl", 0.1), kind="sampled")])


@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS.keys())
def test_head_logits_are_the_familys_formula(options):
    tensors = leaves(bias="bias_V" in options)
    want = tensors[0].double() @ tensors[1].double().T
    want = want + (tensors[2] if len(tensors) > 2 else 0.0)
    want = want * options.get("scale", 1.0)
    cap = options.get("softcap")
    want = cap * torch.tanh(want / cap) if cap else want
    got = make_head(tensors, options).logits(tensors[0])
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, N, 1000])
def test_chunk_size_changes_nothing(chunk):
    terms = make_terms(("forward_kl", 1.0), ("cross_entropy", 0.3), ("reverse_kl", 0.5))
    check(leaves(), {}, terms, chunk=chunk)
    check(leaves(), {}, terms[:2], chunk=chunk)  # the hand-derived path


@pytest.mark.parametrize("kind", ["topk", "ragged"])
@pytest.mark.parametrize("names", [("forward_kl",), ("cross_entropy", "forward_kl")])
def test_hand_derived_gradient_equals_autograd(kind, names):
    """A further term of weight 0 takes the generic path; nothing else may change."""
    terms = make_terms(*((name, 0.7) for name in names), kind=kind)
    by_hand = run(leaves(), {}, terms)
    generic = run(leaves(), {}, [*terms, *make_terms(("reverse_kl", 0.0), kind=kind)])
    torch.testing.assert_close(by_hand[0], generic[0])
    torch.testing.assert_close(by_hand[1], generic[1][: len(terms)], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(by_hand[2], generic[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0])
def test_peaked_students_keep_finite_values_and_gradients(scale):
    tensors = [(x * scale).detach().requires_grad_() for x in leaves()]
    for names in (["forward_kl", "cross_entropy"], VOCABULARY_LOSSES):
        named = ((name, 1.0) for name in serves("topk", names))
        total, sums, gradients = run(tensors, {}, make_terms(*named))
        assert total.isfinite()
        assert sums.isfinite().all()
        assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("name", VOCABULARY_LOSSES)
def test_bfloat16_products_stay_close(name):
    tensors = leaves()
    terms = make_terms((name, 1.0), kind="topk" if serves("topk", [name]) else "dense")
    total, _, gradients = run(tensors, {}, terms, dtype=torch.bfloat16)
    want, _, exact = reference(tensors, {}, terms)
    assert total.item() == pytest.approx(want.item(), rel=0.02)
    for got, gradient in zip(gradients, exact, strict=True):
        assert got.dtype == torch.float32
        assert (got - gradient).norm() / gradient.norm() < 0.03


def test_value_scales_with_the_gradient_that_comes_in():
    """An optimiser step divides by its tokens after the head: the factor must reach every leaf."""
    terms = make_terms(("forward_kl", 1.0))
    plain = run(leaves(), {}, terms)[2]
    tensors = leaves()
    total, _ = head_losses(
        tensors[0], Head(tensors[1]), LABELS, terms, chunk=4, dtype=torch.float32
    )
    (total * 0.125).backward()
    for tensor, gradient in zip(tensors, plain, strict=True):
        torch.testing.assert_close(tensor.grad, gradient * 0.125)


@pytest.mark.parametrize("trainable", [0, 1])
def test_what_is_frozen_gets_no_gradient(trainable):
    tensors = leaves()
    tensors[1 - trainable].requires_grad_(False)
    terms = make_terms(("forward_kl", 1.0), ("cross_entropy", 1.0))
    total, _ = head_losses(
        tensors[0], Head(tensors[1]), LABELS, terms, chunk=4, dtype=torch.float32
    )
    total.backward()
    torch.testing.assert_close(tensors[trainable].grad, run(leaves(), {}, terms)[2][trainable])
    assert tensors[1 - trainable].grad is None


@pytest.mark.parametrize("name", DISTRIBUTION_LOSSES)
def test_no_gradient_reaches_the_teacher(name):
    dense, sparse = make_target("dense"), make_target("topk")
    watched = [dense.hidden_NH, dense.head.weight_VH, sparse.logprobs_NK, sparse.tail_N]
    for tensor in watched:
        tensor.requires_grad_()
    targets = (dense, sparse) if serves("topk", [name]) else (dense,)
    terms = [HeadTerm(LOSSES[name], 1.0, target=target) for target in targets]
    tensors = leaves()
    total, _ = head_losses(
        tensors[0], Head(tensors[1]), LABELS, terms, chunk=4, dtype=torch.float32
    )
    total.backward()
    assert tensors[1].grad.abs().max() > 0
    assert all(tensor.grad is None for tensor in watched)


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation made; views make none."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and not func.is_view:
                self.elements = max(self.elements, leaf.numel())
        return result


LONG, CHUNK = 64, 4  # 64 tokens: all logits would be 64 x 41 numbers, the head is 16 x 41


def long_batch(names, kind):
    target = make_target(kind)
    tensors = {k: v for k, v in vars(target).items() if isinstance(v, torch.Tensor)}
    repeated = {k: v.repeat_interleave(6, 0)[:LONG] for k, v in tensors.items()}
    target = type(target)(**{**vars(target), **repeated})
    terms = [
        HeadTerm(LOSSES[n], 1.0, target=None if LOSSES[n].reads == "labels" else target)
        for n in serves(kind, names)
    ]
    hidden = normal(LONG, H, seed=0).requires_grad_()
    return hidden, torch.arange(LONG) % V, terms


@pytest.mark.parametrize("kind", ["dense", "topk", "sampled"])
@pytest.mark.parametrize("names", [("cross_entropy", "forward_kl"), tuple(VOCABULARY_LOSSES)])
def test_logits_of_all_tokens_never_exist(kind, names):
    hidden, labels, terms = long_batch(names, kind)
    weight = normal(V, H, seed=1).requires_grad_()
    with LargestTensor() as largest:
        total, _ = head_losses(
            hidden, Head(weight), labels, terms, chunk=CHUNK, dtype=torch.float32
        )
        total.backward()
    assert 0 < largest.elements <= max(CHUNK * V, V * H, LONG * H) < LONG * V


@pytest.mark.parametrize("names", [("cross_entropy", "forward_kl"), tuple(VOCABULARY_LOSSES)])
def test_without_grad_no_gradient_is_formed(names):
    hidden, labels, terms = long_batch(names, "topk")
    weight = normal(V, H, seed=1).requires_grad_()
    arguments = (hidden, Head(weight), labels, terms)
    with_grad, _ = head_losses(*arguments, chunk=CHUNK, dtype=torch.float32)
    with torch.no_grad(), LargestTensor() as largest:
        total, _ = head_losses(*arguments, chunk=CHUNK, dtype=torch.float32)
    assert not total.requires_grad
    torch.testing.assert_close(total, with_grad.detach())
    assert 0 < largest.elements <= CHUNK * V < V * H


def test_tied_head_gets_both_gradients(make_model):
    model = make_model(3, tie_word_embeddings=True)
    ids = torch.arange(24).reshape(2, 12) * 5 % 97
    dense = model(input_ids=ids, use_cache=False).logits[:, :-1].double()
    nll = -dense.log_softmax(-1).gather(-1, ids[:, 1:, None]).sum()
    want = torch.autograd.grad(nll, model.model.embed_tokens.weight)[0]
    hidden = run_body(model, {"input_ids": ids})[:, :-1].flatten(0, 1)
    terms = [HeadTerm(LOSSES["cross_entropy"], 1.0)]
    total, _ = head_losses(
        hidden, head_of(model, 97), ids[:, 1:].flatten(), terms, chunk=5, dtype=torch.float32
    )
    total.backward()
    assert total.item() == pytest.approx(nll.item(), rel=1e-5)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    torch.testing.assert_close(model.lm_head.weight.grad, want, rtol=1e-4, atol=1e-4)


def test_padded_columns_of_the_model_have_no_part_in_the_loss(make_model):
    model = make_model(4)
    hidden = run_body(model, {"input_ids": torch.arange(12)[None]})[0]
    terms = [HeadTerm(LOSSES["cross_entropy"], 1.0)]
    total, _ = head_losses(
        hidden, head_of(model, 90), torch.arange(12), terms, chunk=5, dtype=torch.float32
    )
    logits = model(input_ids=torch.arange(12)[None]).logits[0, :, :90].double()
    want = -logits.log_softmax(-1)[torch.arange(12), torch.arange(12)].sum()
    assert total.item() == pytest.approx(want.item(), rel=1e-5)
    total.backward()
    assert model.lm_head.weight.grad[:90].abs().max() > 0
    assert (model.lm_head.weight.grad[90:] == 0).all()


def test_a_flat_student_on_targets_of_every_id_has_finite_gradients():
    """k = V leaves no rest: what divides by it must not reach the gradient."""
    vocabulary = 256
    teacher = normal(N, vocabulary, seed=5).log_softmax(-1)
    ids = torch.arange(vocabulary).expand(N, -1)
    target = SparseDistribution(ids, teacher, torch.full((N,), -math.inf))
    hidden = torch.zeros(N, H, requires_grad=True)
    weight = normal(vocabulary, H, seed=6).requires_grad_()
    terms = [HeadTerm(LOSSES["forward_kl"], 1.0, target=target)]
    labels = torch.zeros(N, dtype=torch.long)
    total, _ = head_losses(hidden, Head(weight), labels, terms, chunk=4, dtype=torch.float32)
    total.backward()
    uniform = torch.full((N, vocabulary), 1 / vocabulary)
    expected = (uniform - teacher.exp()) @ weight.detach()
    torch.testing.assert_close(hidden.grad, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", VOCABULARY_LOSSES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_losses_on_logits_of_classes_equal_the_definition(name, temperature):
    """As sequence classification has them: logits that are there, one row a text."""
    logits = (3 * normal(N, V, seed=0)).requires_grad_()
    known = KnownLogits(3 * normal(N, V, seed=1), temperature)
    target = known if LOSSES[name].reads == "distribution" else None
    terms = [HeadTerm(LOSSES[name], 0.7, temperature, {}, target)]
    total, sums = logit_losses(logits, LABELS, terms)
    wide = logits.detach().double().requires_grad_()
    if target is None:
        want = defined(name, (wide.log_softmax(-1), LABELS)).sum()
    else:
        want = defined_on(name, wide, known, temperature).sum()
    assert sums[0].item() == pytest.approx(want.item(), rel=1e-5)
    got, expected = torch.autograd.grad(total, logits)[0], torch.autograd.grad(0.7 * want, wide)[0]
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)
