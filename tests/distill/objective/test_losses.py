"""Every registered loss against its definition in float64, and against what it promises.

A new loss is enrolled by being registered, and by its line in `definitions.py`.
"""

import math

import pytest
import torch
from torch.nn import functional

from distill.objective.losses import LEAST, LOSSES
from tests.helpers.definitions import (
    DEFINITIONS,
    DIVERGENCES,
    KINKED,
    OUTCOME_LOSSES,
    RAW_LOSSES,
    STATE_LOSSES,
    TOKEN_LOSSES,
    VOCABULARY_LOSSES,
    N,
    V,
    defined,
    normal,
    sample,
    values_of,
    variants,
)

every_loss = pytest.mark.parametrize("name", TOKEN_LOSSES)
every_variant = pytest.mark.parametrize(("name", "parameters"), variants(TOKEN_LOSSES))


def tokens(name, sides):
    """How many values a loss gives."""
    return sides[0].shape[1 if LOSSES[name].reads == "relation" else 0]


def raw(name, seed=0, scale=3.0):
    """A leaf and the loss as a function of it: of logits, or of the states themselves."""
    states = name in RAW_LOSSES
    student, teacher = sample(name, seed, torch.float32, scale)
    leaf = student.clone().requires_grad_()
    return leaf, (lambda: values_of(name, (leaf if states else leaf.log_softmax(-1), teacher)))


def test_every_loss_has_a_definition_and_every_definition_a_loss():
    assert set(TOKEN_LOSSES) == set(DEFINITIONS)
    assert set(LOSSES) >= KINKED


@every_variant
def test_value_is_its_definition_one_value_a_token(name, parameters):
    sides = sample(name, dtype=torch.float32)
    value = values_of(name, sides, **parameters)
    assert value.shape == (tokens(name, sides),)
    assert value.dtype == torch.float32
    want = defined(name, sides, **parameters)
    torch.testing.assert_close(value.double(), want, rtol=2e-5, atol=1e-6)


@every_variant
@pytest.mark.parametrize("seed", [2, 4])
def test_float64_inputs_give_the_definition_to_many_digits(name, parameters, seed):
    sides = sample(name, seed)
    value, want = values_of(name, sides, **parameters), defined(name, sides, **parameters)
    rtol = 1e-9 if value.dtype == torch.float64 else 1e-4  # losses of states work in float32
    torch.testing.assert_close(value.double(), want, rtol=rtol, atol=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_label_smoothing_is_that_of_torch(smoothing):
    logits, labels = normal(N, V, seed=0), torch.arange(N) * 3 % V
    want = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    got = values_of("cross_entropy", (logits.log_softmax(-1), labels), label_smoothing=smoothing)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("name", "parameters"), variants(DIVERGENCES))
def test_divergence_is_zero_at_the_teacher_and_positive_elsewhere(name, parameters):
    _, teacher = sample(name)
    zero = values_of(name, (teacher, teacher), **parameters)
    torch.testing.assert_close(zero.double(), zero.double() * 0, atol=1e-6, rtol=0)
    for seed in range(0, 20, 2):
        value = values_of(name, sample(name, seed), **parameters)
        if LOSSES[name].reads == "relation":
            assert abs(value[0]) < 1e-6, "a first token relates to itself alone"
            value = value[1:]
        least = 0 if LOSSES[name].reads == "rewards" else 1e-4  # both may be sure of one answer
        assert (value > least).all()


def relative_gradients(name, step):
    """Norm of the gradient a step away from the teacher over that at another student."""
    leaf, value = raw(name)
    (elsewhere,) = torch.autograd.grad(value().sum(), leaf)
    teacher = sample(name, dtype=torch.float32)[1]
    away = (step * normal(*teacher.shape, seed=9, scale=1.0)).float()
    near = (teacher + away).requires_grad_()
    states = name in RAW_LOSSES
    values_of(name, (near if states else near.log_softmax(-1), teacher)).sum().backward()
    return (near.grad.norm() / elsewhere.norm()).item()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradient_vanishes_towards_the_teacher_unless_there_is_a_kink(name):
    """Ten times nearer, ten times less; where there is a kink it stays, and stays bounded."""
    at, near, nearer = (relative_gradients(name, step) for step in (0.0, 1e-3, 1e-2))
    if name in KINKED:
        assert at < 3
        assert near == pytest.approx(nearer, rel=0.2)
    else:
        assert at < 1e-4
        assert near < 0.2 * nearer


@pytest.mark.parametrize("name", VOCABULARY_LOSSES)
def test_permuting_the_vocabulary_changes_nothing(name):
    student, teacher = sample(name)
    order = torch.randperm(V, generator=torch.Generator().manual_seed(5))
    moved = order.argsort()[teacher] if LOSSES[name].reads == "labels" else teacher[:, order]
    torch.testing.assert_close(
        values_of(name, (student[:, order], moved)), values_of(name, (student, teacher))
    )


# Bounds that the papers give: an upper limit whatever the two distributions.
BOUNDS = {
    "jsd": lambda beta: -beta * math.log(beta) - (1 - beta) * math.log(1 - beta),
    "skew_kl": lambda alpha: -math.log(alpha),
    "skew_reverse_kl": lambda alpha: -math.log(alpha),
    "tvd": lambda: 1.0,
}


@pytest.mark.parametrize(("name", "parameters"), variants(BOUNDS))
def test_bounded_losses_keep_their_bound_and_come_near_it(name, parameters):
    defaults = {key: default for key, (_, default) in LOSSES[name].parameters().items()}
    bound = BOUNDS[name](**{**defaults, **parameters})
    apart = torch.full((1, V), -60.0, dtype=torch.float64)
    sides = [apart.clone(), apart.clone()]
    sides[0][0, 0], sides[1][0, 1] = 0.0, 0.0
    far = values_of(name, [side.log_softmax(-1) for side in sides], **parameters)
    assert bound * (1 - 1e-6) < far.item() <= bound * (1 + 1e-9)
    for seed in range(0, 20, 2):
        assert (values_of(name, sample(name, seed, scale=20.0), **parameters) <= bound + 1e-9).all()


@pytest.mark.parametrize(
    ("end", "value", "limit"), [(1e-4, 1e-4, "forward_kl"), (1 - 1e-4, 1e-4, "reverse_kl")]
)
def test_jsd_over_its_share_tends_to_the_two_kls(end, value, limit):
    sides = sample("jsd", scale=1.0)
    torch.testing.assert_close(
        values_of("jsd", sides, beta=end) / value, values_of(limit, sides), rtol=5e-3, atol=0
    )


def test_jsd_of_one_half_is_symmetric():
    student, teacher = sample("jsd")
    torch.testing.assert_close(
        values_of("jsd", (student, teacher)), values_of("jsd", (teacher, student))
    )


def test_adaptive_kl_weighs_the_head_by_its_share_of_the_gap():
    """By hand: t = (.6, .3, .1), s = (.3, .3, .4); the head is id 0, which has half of the gap."""
    t, s = torch.tensor([[0.6, 0.3, 0.1]]).double(), torch.tensor([[0.3, 0.3, 0.4]]).double()
    ahead = 0.6 * math.log(2) + 0.1 * math.log(0.25)
    back = 0.3 * math.log(0.5) + 0.4 * math.log(4)
    for head, share in ((0.5, 0.5), (0.7, 0.5), (0.95, 1.0)):
        got = values_of("adaptive_kl", (s.log(), t.log()), head=head).item()
        assert got == pytest.approx(share * ahead + (1 - share) * back)


def test_adaptive_kl_counts_the_rest_as_tail_however_heavy():
    """The rest is first by mass here; were it an id, it would be the head."""
    t = torch.tensor([[0.3, 0.1, 0.6]], dtype=torch.float64).log()
    s = torch.tensor([[0.1, 0.4, 0.5]], dtype=torch.float64).log()
    for rest in (False, True):
        want = defined("adaptive_kl", (s, t), rest)
        torch.testing.assert_close(values_of("adaptive_kl", (s, t), rest), want)
    assert values_of("adaptive_kl", (s, t), True) != values_of("adaptive_kl", (s, t), False)


def test_logit_mse_is_that_of_logits_less_their_means():
    one, other = normal(N, V, seed=0), normal(N, V, seed=1)
    want = ((one - one.mean(-1, True)) - (other - other.mean(-1, True))).square().mean(-1)
    got = values_of("logit_mse", (one.log_softmax(-1), other.log_softmax(-1)))
    torch.testing.assert_close(got, want)


# Hidden states and relations ---------------------------------------------------------------------


@pytest.mark.parametrize("name", STATE_LOSSES)
def test_state_loss_does_not_grow_with_width(name):
    """Eight times the channels. (Scores of a relation are divided by the root of the width.)"""
    student, teacher = sample(name)
    shrink = 8**-0.25 if LOSSES[name].reads == "relation" else 1.0
    wider = [x.repeat(*[1] * (x.ndim - 1), 8) * shrink for x in (student, teacher)]
    torch.testing.assert_close(
        values_of(name, wider), values_of(name, (student, teacher)), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", STATE_LOSSES)
def test_state_loss_rotates_with_its_space(name):
    student, teacher = sample(name)
    width = student.shape[-1]
    rotation = torch.linalg.qr(normal(width, width, seed=9)).Q
    scale = 1 if LOSSES[name].reads == "relation" else 7
    torch.testing.assert_close(
        values_of(name, (scale * student @ rotation, scale * teacher @ rotation)),
        values_of(name, (student, teacher)),
        rtol=1e-4,
        atol=1e-6,
    )


# Numerics ----------------------------------------------------------------------------------------


@every_variant
def test_bfloat16_inputs_are_close_to_float64(name, parameters):
    """As the objective does it: what came in 16 bits is made float32 before a log-softmax."""
    student, teacher = sample(name)
    if LOSSES[name].reads == "labels":
        rounded = [student.bfloat16().float().log_softmax(-1), teacher]
    elif LOSSES[name].reads == "distribution":
        rounded = [x.bfloat16().float().log_softmax(-1) for x in (student, teacher)]
    elif LOSSES[name].reads in ("relation", "order", "rewards"):
        rounded = [x.bfloat16().float() for x in (student, teacher)]
    else:
        rounded = [x.bfloat16() for x in (student, teacher)]
    value = values_of(name, rounded, **parameters)
    assert value.dtype == torch.float32
    want = defined(name, rounded, **parameters)
    torch.testing.assert_close(value.double(), want, rtol=2e-5, atol=2e-6)


@every_loss
@pytest.mark.parametrize("scale", [0.0, 1.0, 60.0])
def test_gradient_is_finite_for_flat_and_for_peaked_inputs(name, scale):
    leaf, value = raw(name, scale=scale)
    value().sum().backward()
    assert value().isfinite().all()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize(("name", "parameters"), variants(OUTCOME_LOSSES))
def test_outcomes_that_neither_side_has_do_not_count(name, parameters):
    student, teacher = sample(name)
    nowhere = torch.full((N, 4), LEAST, dtype=torch.float64)
    leaf = student.clone().requires_grad_()
    sides = torch.cat([leaf, nowhere], -1), torch.cat([teacher, nowhere], -1)
    value = values_of(name, sides, **parameters)
    torch.testing.assert_close(value, values_of(name, (student, teacher), **parameters))
    value.sum().backward()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", OUTCOME_LOSSES)
def test_outcomes_that_only_the_student_has_are_all_that_counts_if_the_flag_says_so(name):
    """`needs_mass`: log 0 is LEAST, so the value is enormous; the others stay of the usual size."""
    student, teacher = sample(name)
    teacher[:, student[0].argmax()] = LEAST
    leaf = student.clone().requires_grad_()
    value = values_of(name, (leaf, teacher.log_softmax(-1)))
    assert (value[0] > 100) == LOSSES[name].needs_mass
    if not LOSSES[name].needs_mass:
        value.sum().backward()
        assert leaf.grad.abs().max() < 3
