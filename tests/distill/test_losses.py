"""Every registered loss against its definition in float64, and against what it promises."""

import math

import pytest
import torch

from distill.losses import LOSSES, on_outcomes
from teachers.signals import SparseDistribution

N, V, H = 6, 23, 16


def expect(weights, values):
    return torch.where(weights > 0, weights * values, 0.0).sum(-1)


# The definitions, in float64, of losses over log-probabilities (s, t), labels or hidden states.
# A new loss gets its line here; without one the first test fails.
REFERENCES = {
    "forward_kl": lambda s, t: expect(t.exp(), t - s),
    "reverse_kl": lambda s, t: expect(s.exp(), s - t),
    "cross_entropy": lambda s, y: -s[torch.arange(len(y)), y],
    "hidden_mse": lambda s, t: ((s - t) ** 2).sum(-1) / (t**2).sum(-1),
    "hidden_cosine": lambda s, t: 1 - (s * t).sum(-1) / (s.norm(dim=-1) * t.norm(dim=-1)),
}

every_loss = pytest.mark.parametrize("name", list(LOSSES))
divergences = [name for name, loss in LOSSES.items() if loss.divergence]
vocabulary_losses = [name for name, loss in LOSSES.items() if loss.reads != "hidden"]
distribution_losses = [name for name, loss in LOSSES.items() if loss.reads == "distribution"]
hidden_losses = [name for name, loss in LOSSES.items() if loss.reads == "hidden"]


def normal(*shape, seed, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def sample(name, seed=0, dtype=torch.float64):
    """(student, teacher) as this loss reads them: log-probabilities, labels, hidden states."""
    reads = LOSSES[name].reads
    if reads == "hidden":
        return normal(N, H, seed=seed).to(dtype), normal(N, H, seed=seed + 1).to(dtype)
    student = normal(N, V, seed=seed).to(dtype).log_softmax(-1)
    if reads == "labels":
        return student, torch.arange(N) * 3 % V
    return student, normal(N, V, seed=seed + 1).to(dtype).log_softmax(-1)


def test_every_loss_has_a_reference():
    assert set(LOSSES) <= set(REFERENCES)


@every_loss
def test_value_is_its_definition_one_value_a_token(name):
    student, teacher = sample(name, dtype=torch.float32)
    value = LOSSES[name].function(student, teacher)
    assert value.shape == (N,)
    assert value.dtype == torch.float32
    wide = teacher.double() if teacher.is_floating_point() else teacher
    torch.testing.assert_close(
        value.double(), REFERENCES[name](student.double(), wide), rtol=2e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", divergences)
def test_divergence_is_zero_at_the_teacher_and_positive_elsewhere(name):
    student, teacher = sample(name)
    zero = LOSSES[name].function(teacher, teacher)
    torch.testing.assert_close(
        zero.double(), torch.zeros(N, dtype=torch.float64), atol=1e-6, rtol=0
    )
    assert (LOSSES[name].function(student, teacher) > 1e-3).all()
    for seed in range(2, 20):
        assert (LOSSES[name].function(*sample(name, seed)) >= 0).all()


@pytest.mark.parametrize("name", divergences)
def test_gradient_is_zero_at_the_teacher(name):
    teacher = sample(name)[1].float()
    student = teacher.clone().requires_grad_()
    outcomes = student.log_softmax(-1) if LOSSES[name].reads == "distribution" else student
    LOSSES[name].function(outcomes, teacher).sum().backward()
    assert student.grad.abs().max() < 1e-5


@pytest.mark.parametrize("name", vocabulary_losses)
def test_permuting_the_vocabulary_changes_nothing(name):
    student, teacher = sample(name)
    order = torch.randperm(V, generator=torch.Generator().manual_seed(5))
    moved = order.argsort()[teacher] if LOSSES[name].reads == "labels" else teacher[:, order]
    torch.testing.assert_close(
        LOSSES[name].function(student[:, order], moved), LOSSES[name].function(student, teacher)
    )


@pytest.mark.parametrize("name", hidden_losses)
def test_hidden_loss_does_not_grow_with_width(name):
    student, teacher = sample(name)
    once = LOSSES[name].function(student, teacher)
    wider = LOSSES[name].function(student.repeat(1, 8), teacher.repeat(1, 8))
    torch.testing.assert_close(wider, once)


@pytest.mark.parametrize("name", hidden_losses)
def test_hidden_loss_rotates_and_scales_with_its_space(name):
    student, teacher = sample(name)
    rotation = torch.linalg.qr(normal(H, H, seed=9)).Q
    torch.testing.assert_close(
        LOSSES[name].function(7 * student @ rotation, 7 * teacher @ rotation),
        LOSSES[name].function(student, teacher),
        rtol=1e-4,
        atol=1e-6,
    )


@every_loss
def test_bfloat16_inputs_are_close_to_float64(name):
    reads = LOSSES[name].reads
    student, teacher = normal(N, V, seed=0), normal(N, V, seed=1)
    rounded = [x.to(torch.bfloat16) for x in (student, teacher)]
    exact = [x.double() for x in rounded]
    if reads != "hidden":
        rounded = [x.float().log_softmax(-1) for x in rounded]
        exact = [x.log_softmax(-1) for x in exact]
    if reads == "labels":
        rounded[1] = exact[1] = torch.arange(N)
    value = LOSSES[name].function(*rounded)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), REFERENCES[name](*exact), rtol=2e-5, atol=2e-6)


@every_loss
@pytest.mark.parametrize("scale", [0.0, 1.0, 60.0])
def test_gradient_is_finite_for_flat_and_for_peaked_inputs(name, scale):
    reads = LOSSES[name].reads
    leaf = (normal(N, V, seed=0) * scale).float().requires_grad_()
    teacher = (normal(N, V, seed=1) * scale).float()
    student = leaf if reads == "hidden" else leaf.log_softmax(-1)
    if reads == "labels":
        teacher = torch.arange(N)
    elif reads == "distribution":
        teacher = teacher.log_softmax(-1)
    value = LOSSES[name].function(student, teacher)
    value.sum().backward()
    assert value.isfinite().all()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", distribution_losses)
def test_outcomes_that_neither_side_has_do_not_count(name):
    student, teacher = sample(name)
    nowhere = torch.full((N, 4), -math.inf, dtype=torch.float64)
    leaf = student.clone().requires_grad_()
    value = LOSSES[name].function(torch.cat([leaf, nowhere], -1), torch.cat([teacher, nowhere], -1))
    torch.testing.assert_close(value, LOSSES[name].function(student, teacher))
    value.sum().backward()
    assert leaf.grad.isfinite().all()


# Sparse targets ----------------------------------------------------------------------------------


def sparse(teacher_NV, k):
    """The k largest entries and, in float64, the rest."""
    top = teacher_NV.topk(k, -1)
    tail = teacher_NV.scatter(-1, top.indices, -math.inf).logsumexp(-1)
    return SparseDistribution(top.indices, top.values, tail)


@pytest.mark.parametrize("name", distribution_losses)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_all_entries_kept_equals_dense(name, temperature):
    logits, teacher = normal(N, V, seed=0), normal(N, V, seed=1).log_softmax(-1)
    outcomes = on_outcomes(logits, sparse(teacher, V), temperature)
    dense = REFERENCES[name]((logits / temperature).log_softmax(-1), teacher)
    torch.testing.assert_close(LOSSES[name].function(*outcomes), dense)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
def test_a_coarser_view_never_shows_more_divergence(name):
    """The data processing inequality: merging outcomes into a bucket can only lose divergence."""
    for seed in range(0, 20, 2):
        logits, teacher = normal(N, V, seed=seed), normal(N, V, seed=seed + 1).log_softmax(-1)
        dense = LOSSES[name].function(logits.log_softmax(-1), teacher)
        finer = dense
        for k in (20, 8, 3, 1):
            bucket = LOSSES[name].function(*on_outcomes(logits, sparse(teacher, k), 1.0))
            assert (bucket <= finer + 1e-9).all()
            assert (bucket >= 0).all()
            if k > 1:  # each set of entries contains the next, so the order is total
                finer = bucket


def test_both_sides_of_the_outcomes_sum_to_one():
    logits, teacher = normal(N, V, seed=0).float(), normal(N, V, seed=1).float().log_softmax(-1)
    for side in on_outcomes(logits, sparse(teacher, 5), 1.7):
        torch.testing.assert_close(side.exp().sum(-1), torch.ones(N))


def test_the_rest_is_right_where_the_entries_hold_nearly_everything():
    logits = torch.full((1, V), -30.0)
    logits[0, 4] = 0.0  # all but 22 e^-30 of the mass, far below what 1 - p can tell in float32
    target = SparseDistribution(torch.tensor([[4]]), torch.tensor([[-0.1]]), torch.tensor([-2.4]))
    student, _ = on_outcomes(logits, target, 1.0)
    assert student[0, 1].item() == pytest.approx(math.log(22) - 30, abs=1e-4)


def test_an_unused_slot_that_repeats_an_id_changes_nothing():
    logits, teacher = normal(N, V, seed=0), normal(N, V, seed=1).log_softmax(-1)
    target = sparse(teacher, 5)
    ragged = SparseDistribution(
        torch.cat([target.ids_NK, target.ids_NK[:, :2]], -1),
        torch.cat([target.logprobs_NK, torch.full((N, 2), -math.inf, dtype=torch.float64)], -1),
        target.tail_N,
    )
    for name in distribution_losses:
        leaf = logits.clone().requires_grad_()
        value = LOSSES[name].function(*on_outcomes(leaf, ragged, 1.0))
        torch.testing.assert_close(
            value, LOSSES[name].function(*on_outcomes(logits, target, 1.0)), msg=name
        )
        value.sum().backward()
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", distribution_losses)
def test_sparse_gradient_is_finite_where_student_probabilities_vanish(name):
    logits = torch.zeros(1, V)
    logits[0, :5] = torch.tensor([300.0, 0.0, -300.0, 20.0, -20.0])
    leaf = logits.requires_grad_()
    teacher = normal(1, V, seed=1).float().log_softmax(-1)
    value = LOSSES[name].function(*on_outcomes(leaf, sparse(teacher, 5), 1.0))
    value.sum().backward()
    assert value.isfinite().all()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", distribution_losses)
def test_a_token_of_every_id_leaves_the_others_their_rest(name):
    """Ragged entries in a small vocabulary: one token keeps all ids, so K = V for all tokens."""
    logits, teacher = normal(N, V, seed=0), normal(N, V, seed=1).log_softmax(-1)
    few = sparse(teacher, 5)
    ids, logprobs = few.ids_NK[:, :1].repeat(1, V), torch.full((N, V), -math.inf).double()
    ids[:, :5], logprobs[:, :5] = few.ids_NK, few.logprobs_NK
    ids[0], logprobs[0] = torch.arange(V), teacher[0]
    tail = few.tail_N.clone()
    tail[0] = -math.inf
    leaf = logits.clone().requires_grad_()
    value = LOSSES[name].function(*on_outcomes(leaf, SparseDistribution(ids, logprobs, tail), 1.0))
    torch.testing.assert_close(value[1:], LOSSES[name].function(*on_outcomes(logits, few, 1.0))[1:])
    dense = LOSSES[name].function(logits.log_softmax(-1), teacher)
    torch.testing.assert_close(value[:1], dense[:1])
    twin = logits.clone().requires_grad_()
    LOSSES[name].function(twin.log_softmax(-1), teacher).sum().backward()
    value.sum().backward()
    torch.testing.assert_close(leaf.grad[0], twin.grad[0])
    assert leaf.grad.isfinite().all()
