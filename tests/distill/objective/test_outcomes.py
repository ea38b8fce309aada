"""The outcomes of a target: entries and the rest, on both sides, for every loss over outcomes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.objective.losses import LOSSES, on_outcomes
from teachers.signals import KnownLogits, SparseDistribution
from tests.helpers.definitions import (
    DISTRIBUTION_LOSSES,
    OUTCOME_LOSSES,
    N,
    V,
    defined,
    defined_on,
    normal,
    ragged,
    sparse,
    values_of,
    variants,
)

every_loss = pytest.mark.parametrize("name", OUTCOME_LOSSES)
every_variant = pytest.mark.parametrize(("name", "parameters"), variants(OUTCOME_LOSSES))
LINEAR = [name for name in OUTCOME_LOSSES if LOSSES[name].linear]


def two_models(seed=0):
    """A student's logits and a teacher's log-probabilities."""
    return normal(N, V, seed=seed), normal(N, V, seed=seed + 1).log_softmax(-1)


def on(name, logits, target, temperature=1.0, **parameters):
    """The registered loss on a target, as the head computes it."""
    rest = isinstance(target, SparseDistribution) and target.tail_N is not None
    return values_of(name, on_outcomes(logits, target, temperature), rest, **parameters)


def gradient(name, logits, target, temperature=1.0):
    """At the logits, of the sum over tokens."""
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(on(name, leaf, target, temperature).sum(), leaf)[0]


@every_variant
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_all_entries_kept_equals_dense(name, parameters, temperature):
    logits, teacher = two_models()
    value = on(name, logits, sparse(teacher, V), temperature, **parameters)
    dense = defined(name, ((logits / temperature).log_softmax(-1), teacher), **parameters)
    torch.testing.assert_close(value, dense)


@pytest.mark.parametrize("name", DISTRIBUTION_LOSSES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_classes_are_a_small_vocabulary(name, temperature):
    logits, teacher = normal(N, V, seed=0).float(), normal(N, V, seed=1).float()
    sides = [(x / temperature).log_softmax(-1) for x in (logits, teacher)]
    value = on(name, logits, KnownLogits(teacher, temperature), temperature)
    torch.testing.assert_close(value.double(), defined(name, sides), rtol=2e-5, atol=1e-6)


def without(target, tail):
    """The target, its tail dealt with."""
    return target if tail is None else target.without_tail(tail)


@every_variant
@settings(max_examples=12)
@given(st.integers(0, 10_000), st.integers(1, V), st.sampled_from([1.0, 1.7, 4.0]))
def test_ragged_entries_and_a_rest_give_the_definition(name, parameters, seed, k, temperature):
    logits, teacher = two_models(2 * seed)
    target = ragged(sparse(teacher, k), seed)
    value = on(name, logits, target, temperature, **parameters)
    want = defined_on(name, logits, target, temperature, **parameters)
    torch.testing.assert_close(value, want, rtol=1e-7, atol=1e-9)


@every_loss
@settings(max_examples=12)
@given(st.integers(0, 10_000), st.integers(1, V - 1))
def test_entries_alone_on_both_sides_give_the_definition(name, seed, k):
    logits, teacher = two_models(2 * seed)
    target = ragged(sparse(teacher, k), seed).without_tail("renormalize_both")
    value, want = on(name, logits, target), defined_on(name, logits, target, 1.0)
    torch.testing.assert_close(value, want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("tail", ["drop", "renormalize"])
@settings(max_examples=12)
@given(st.integers(0, 10_000), st.integers(1, V - 1))
def test_a_tail_left_out_gives_the_definition_over_what_is_left(name, tail, seed, k):
    logits, teacher = two_models(2 * seed)
    whole = ragged(sparse(teacher, k), seed)
    value = on(name, logits, whole.without_tail(tail))
    entries, student = whole.logprobs_NK.exp(), logits.log_softmax(-1).gather(-1, whole.ids_NK)
    if tail == "renormalize":
        entries = entries / entries.sum(-1, keepdim=True)
    want = torch.where(entries > 0, entries * (entries.log() - student), 0.0).sum(-1)
    torch.testing.assert_close(value, want)


@pytest.mark.parametrize("name", [n for n in OUTCOME_LOSSES if not LOSSES[n].needs_mass])
def test_renormalized_entries_leave_the_students_rest_where_it_is(name):
    logits, teacher = two_models()
    target = sparse(teacher, 5).without_tail("renormalize")
    zeros = teacher.scatter(-1, target.ids_NK, target.logprobs_NK)
    kept = torch.zeros(N, V, dtype=torch.bool).scatter(-1, target.ids_NK, True)
    dense = defined(name, (logits.log_softmax(-1), zeros.masked_fill(~kept, -math.inf)))
    value = on(name, logits, target)
    if name == "tvd" or LOSSES[name].linear:  # where the teacher has nothing, ids just add up
        torch.testing.assert_close(value, dense)
    else:
        assert (value <= dense + 1e-9).all()
    assert value.isfinite().all()


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "skew_kl", "tvd"])
def test_a_coarser_view_never_shows_more_divergence(name):
    """The data processing inequality: merging outcomes into a bucket can only lose divergence."""
    for seed in range(0, 20, 2):
        logits, teacher = two_models(seed)
        finer = defined(name, (logits.log_softmax(-1), teacher))
        for k in (20, 8, 3, 1):
            bucket = on(name, logits, sparse(teacher, k))
            assert (bucket <= finer + 1e-9).all()
            assert (bucket >= 0).all()
            if k > 1:  # each set of entries contains the next, so the order is total
                finer = bucket


@pytest.mark.parametrize("kind", [None, "renormalize", "renormalize_both"])
def test_both_sides_of_the_outcomes_sum_to_one(kind):
    logits, teacher = (x.float() for x in two_models())
    for side in on_outcomes(logits, without(ragged(sparse(teacher, 5)), kind), 1.7):
        torch.testing.assert_close(side.exp().sum(-1), torch.ones(N))
        assert side.isfinite().all()


def test_the_rest_is_right_where_the_entries_hold_nearly_everything():
    logits = torch.full((1, V), -30.0)
    logits[0, 4] = 0.0  # all but 22 e^-30 of the mass, far below what 1 - p can tell in float32
    target = SparseDistribution(torch.tensor([[4]]), torch.tensor([[-0.1]]), torch.tensor([-2.4]))
    student, _ = on_outcomes(logits, target, 1.0)
    assert student[0, 1].item() == pytest.approx(math.log(22) - 30, abs=1e-4)


@every_loss
def test_an_unused_slot_that_repeats_an_id_changes_nothing(name):
    logits, teacher = two_models()
    target = sparse(teacher, 5)
    more = torch.full((N, 2), -math.inf, dtype=torch.float64)
    wider = SparseDistribution(
        torch.cat([target.ids_NK, target.ids_NK[:, :2]], -1),
        torch.cat([target.logprobs_NK, more], -1),
        target.tail_N,
    )
    torch.testing.assert_close(on(name, logits, wider), on(name, logits, target))
    torch.testing.assert_close(gradient(name, logits, wider), gradient(name, logits, target))


@every_loss
def test_sparse_gradient_is_finite_where_student_probabilities_vanish(name):
    logits = torch.zeros(1, V)
    logits[0, :5] = torch.tensor([300.0, 0.0, -300.0, 20.0, -20.0])
    target = sparse(normal(1, V, seed=1).float().log_softmax(-1), 5)
    assert on(name, logits, target).isfinite().all()
    assert gradient(name, logits, target).isfinite().all()


@every_loss
def test_a_token_of_every_id_leaves_the_others_their_rest(name):
    """Ragged entries in a small vocabulary: one token keeps all ids, so K = V for all tokens."""
    logits, teacher = two_models()
    few = sparse(teacher, 5)
    ids, logprobs = few.ids_NK[:, :1].repeat(1, V), torch.full((N, V), -math.inf).double()
    ids[:, :5], logprobs[:, :5] = few.ids_NK, few.logprobs_NK
    ids[0], logprobs[0] = torch.arange(V), teacher[0]
    tail = few.tail_N.clone()
    tail[0] = -math.inf
    mixed, full = SparseDistribution(ids, logprobs, tail), sparse(teacher, V)
    for got, small, whole in (
        [on(name, logits, target) for target in (mixed, few, full)],
        [gradient(name, logits, target) for target in (mixed, few, full)],
    ):
        torch.testing.assert_close(got[1:], small[1:])
        torch.testing.assert_close(got[:1], whole[:1])
        assert got.isfinite().all()
