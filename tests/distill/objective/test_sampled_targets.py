"""Targets that are an unbiased sample of the teacher: no tail, weights that sum to one on average.

Legend: N tokens, K entries, V vocabulary, H width, S seeds.
"""

import math

import pytest
import torch

from attar.models.structure import Head
from distill.objective.chunked_head import head_losses
from distill.objective.head_term import HeadTerm
from distill.objective.losses import LOSSES, on_outcomes
from teachers.codecs.hybrid import Hybrid
from teachers.codecs.sampled import Sampled
from teachers.codecs.topk import TopK
from teachers.signals import DenseDistribution, SparseDistribution, TeacherChunk, seeds_of

N, V, H, K = 9, 41, 16, 6
LABELS = torch.arange(N) * 7 % V
linear = [name for name, loss in LOSSES.items() if loss.reads == "distribution" and loss.linear]
curved = [name for name, loss in LOSSES.items() if loss.reads == "distribution" and not loss.linear]


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sample():
    """K - 2 entries of some tokens, K of others; weights sum to 0.4 to 1.4; slots repeat an id."""
    ids_NK = normal(N, V, seed=0).argsort(-1)[:, :K]
    weights_NK = normal(N, K, seed=1).softmax(-1) * torch.linspace(0.4, 1.4, N)[:, None]
    logprobs_NK = weights_NK.log()
    ids_NK[:4, K - 2 :], logprobs_NK[:4, K - 2 :] = ids_NK[:4, :1], -math.inf
    return SparseDistribution(ids_NK, logprobs_NK, None)


def dense_weights(target):
    """t: the weight of every id, float64 (N, V)."""
    empty_NV = torch.zeros(N, V, dtype=torch.float64)
    return empty_NV.scatter_add_(-1, target.ids_NK, target.logprobs_NK.double().exp())


def at_the_logits(terms, chunk=4):
    """(sums of the terms, gradient at the logits): a head that is the identity."""
    logits_NV = (3 * normal(N, V, seed=2)).requires_grad_()
    total, sums = head_losses(
        logits_NV, Head(torch.eye(V)), LABELS, terms, chunk=chunk, dtype=torch.float32
    )
    return sums, torch.autograd.grad(total, logits_NV)[0], logits_NV.detach().double()


def forward_kl(target, weight=1.0):
    return HeadTerm(LOSSES["forward_kl"], weight, target=target)


PATHS = {
    "by hand": lambda target: [forward_kl(target, 0.7)],
    "by autograd": lambda target: [forward_kl(target, 0.7), forward_kl(target, 0.0)],
}


@pytest.mark.parametrize("terms", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_gradient_is_sum_t_times_softmax_minus_t(terms, chunk):
    target = sample()
    sums, gradient_NV, logits_NV = at_the_logits(terms(target), chunk)
    t_NV, student_NV = dense_weights(target), logits_NV.log_softmax(-1)
    want_NV = t_NV.sum(-1, keepdim=True) * student_NV.exp() - t_NV
    torch.testing.assert_close(gradient_NV.double(), 0.7 * want_NV, rtol=1e-4, atol=1e-6)
    value = torch.where(t_NV > 0, t_NV * (t_NV.log() - student_NV), 0.0).sum()
    assert sums[0].item() == pytest.approx(value.item(), rel=1e-5)


def test_paths_agree_beside_cross_entropy():
    target = sample()
    ce = HeadTerm(LOSSES["cross_entropy"], 0.3)
    one, other = (at_the_logits([*terms(target), ce]) for terms in PATHS.values())
    torch.testing.assert_close(one[1], other[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(one[0][[0, -1]], other[0][[0, -1]], rtol=1e-6, atol=1e-6)
    alone = at_the_logits([ce])[1] + at_the_logits(PATHS["by hand"](target))[1]
    torch.testing.assert_close(one[1], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", linear)
def test_a_sample_of_every_id_is_the_dense_target(name):
    teacher_NV = normal(N, V, seed=3).double().log_softmax(-1)
    target = SparseDistribution(torch.arange(V).expand(N, -1), teacher_NV, None)
    logits_NV = normal(N, V, seed=2).double()
    value = LOSSES[name].function(*on_outcomes(logits_NV, target, 1.0))
    dense = LOSSES[name].function(logits_NV.log_softmax(-1), teacher_NV)
    torch.testing.assert_close(value, dense)


def gradient_for(name, teacher_NV):
    """At the logits, of a loss against any weights of the ids, float64."""
    leaf = normal(N, V, seed=2).double().requires_grad_()
    LOSSES[name].function(leaf.log_softmax(-1), teacher_NV.log()).sum().backward()
    return leaf.grad


@pytest.mark.parametrize("name", [*linear, *curved])
def test_losses_that_say_so_are_linear_in_the_teacher_and_others_are_not(name):
    """Only then is the mean gradient of unbiased samples the gradient of the dense target."""
    one_NV, other_NV = (3 * normal(2, N, V, seed=4)).double().softmax(-1)
    mixed = gradient_for(name, 0.3 * one_NV + 0.9 * other_NV)
    apart = 0.3 * gradient_for(name, one_NV) + 0.9 * gradient_for(name, other_NV)
    assert torch.allclose(mixed, apart, rtol=1e-9, atol=1e-12) == LOSSES[name].linear


# Over many seeds ---------------------------------------------------------------------------------


class Trial:
    """A student and a teacher on N tokens; gradients at the head's weights, and at the states."""

    def __init__(self):
        self.hidden_NH, self.weight_VH = normal(N, H, seed=5), normal(V, H, seed=6)
        self.teacher = DenseDistribution(normal(N, H, seed=7), Head(normal(V, H, seed=8)))

    def gradients(self, target, repeats):
        """Mean gradients over `repeats` targets of the same N tokens."""
        hidden = self.hidden_NH.repeat(repeats, 1).requires_grad_()
        weight = self.weight_VH.clone().requires_grad_()
        terms = [forward_kl(target, 1 / repeats)]
        labels = LABELS.repeat(repeats)
        total, _ = head_losses(hidden, Head(weight), labels, terms, chunk=4096, dtype=torch.float32)
        at_hidden, at_weight = torch.autograd.grad(total, [hidden, weight])
        return at_hidden.view(repeats, N, H).sum(0), at_weight

    def sampled(self, codec, repeats):
        """Targets of the tokens under so many keys, one after the other."""
        hidden = self.teacher.hidden_NH.repeat(repeats, 1)
        chunk = TeacherChunk(hidden, self.teacher.head, seeds_of("f00d" * 8, len(hidden)))
        assets = codec.learn(chunk)
        flat = {name: c.reshape(-1) for name, c in codec.encode(chunk, assets).items()}
        return codec.decode(flat, len(hidden), 1.0, assets)

    def errors(self, codec, repeats):
        """Relative errors of the mean gradients over `repeats` samples."""
        pairs = zip(
            self.gradients(self.sampled(codec, repeats), repeats),
            self.gradients(self.teacher, 1),
            strict=True,
        )
        return [((got - want).norm() / want.norm()).item() for got, want in pairs]


@pytest.mark.parametrize("codec", [Sampled(draws=20), Hybrid(k=8), Hybrid(k=4, steps=1)], ids=repr)
def test_mean_gradient_over_seeds_converges_on_the_dense_one(codec):
    """Sixty-four times the samples, an eighth of the error, at the head and at the states."""
    trial = Trial()
    some, many = trial.errors(codec, 16), trial.errors(codec, 1024)
    for few, most in zip(some, many, strict=True):
        assert most < 0.04
        assert 4 < few / most < 16


def test_a_bucket_does_not_converge():
    """The same comparison tells a biased target: more of it changes nothing."""
    trial = Trial()
    some, many = trial.errors(TopK(k=2), 16), trial.errors(TopK(k=2), 1024)
    assert many == pytest.approx(some, rel=1e-3)
    assert min(many) > 0.05
