"""Every registered form of preference against its definition, and against what it promises.

A new form is enrolled by being registered, and by its line in `preference_definitions.py`.
Legend: S texts, P pairs, N tokens.
"""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from attar.errors import RecipeError
from distill.objective.preference_forms import FORMS, Answers
from tests.helpers.preference_definitions import (
    PAIRED,
    RATED,
    VARIANTS,
    defined,
    shown,
    some_answers,
)

every_form = pytest.mark.parametrize("name", list(FORMS))
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=shown)
BASELINES = [0.0, 0.7, -0.7]


def value_of(name, chosen, rejected, baseline=0.0, **parameters):
    more = () if FORMS[name].pairs else (baseline,)
    return FORMS[name].function(chosen, rejected, *more, **parameters)


def slopes(values, *sides):
    return torch.autograd.grad(values.sum(), [side.logprob_P for side in sides])


def test_every_form_has_a_definition_and_every_definition_a_form():
    assert set(FORMS) == set(PAIRED) | set(RATED)
    assert {name for name in FORMS if FORMS[name].pairs} == set(PAIRED)


def test_every_parameter_is_tried_at_another_value():
    tried = {(name, key) for name, parameters in VARIANTS for key in parameters}
    assert tried == {(name, key) for name in FORMS for key in FORMS[name].parameters()}


@every_variant
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("seed", range(3))
def test_value_is_its_definition(variant, seed, baseline):
    name, parameters = variant
    chosen, rejected = some_answers(name, seed), some_answers(name, seed + 100)
    values = value_of(name, chosen, rejected, baseline, **parameters)
    want = defined(name, chosen, rejected, baseline, **parameters)
    torch.testing.assert_close(values.detach(), want, rtol=1e-9, atol=1e-12)


@every_variant
def test_gradient_is_that_of_the_definition(variant):
    """By finite differences of the definition, which knows no autograd."""
    name, parameters = variant
    chosen, rejected = some_answers(name, 7), some_answers(name, 107)
    got = slopes(value_of(name, chosen, rejected, 0.4, **parameters), chosen, rejected)
    step = 1e-5
    for which, slope in enumerate(got):
        for p in range(len(slope)):
            ends = []
            for change in (step, -step):
                sides = [chosen, rejected]
                moved = sides[which].logprob_P.detach().clone()
                moved[p] += change
                sides[which] = replace(sides[which], logprob_P=moved)
                ends.append(defined(name, *sides, 0.4, **parameters).sum())
            want = (ends[0] - ends[1]) / (2 * step)
            torch.testing.assert_close(slope[p], want, rtol=1e-5, atol=1e-7)


@every_variant
def test_float32_is_close_to_float64(variant):
    name, parameters = variant

    def of(dtype):
        sides = []
        for seed in (3, 103):
            answers = some_answers(name, seed)
            values = {
                key: None if value is None else value.detach().to(dtype)
                for key, value in vars(answers).items()
            }
            sides.append(Answers(**values))
        return value_of(name, *sides, 0.4, **parameters)

    assert of(torch.float32).dtype == torch.float32
    torch.testing.assert_close(of(torch.float32).double(), of(torch.float64), rtol=1e-5, atol=1e-6)


@every_variant
def test_a_likelier_chosen_answer_is_never_worse_nor_a_likelier_rejected_one_better(variant):
    """`apo_down` lowers both; `ipo` has a target, above which the order turns."""
    name, parameters = variant
    chosen, rejected = some_answers(name, 5), some_answers(name, 105)
    on_chosen, on_rejected = slopes(
        value_of(name, chosen, rejected, 0.4, **parameters), chosen, rejected
    )
    if name != "apo_down" and not (name == "ipo" and parameters.get("beta", 0.1) > 1):
        assert (on_chosen <= 0).all()
        assert on_chosen.abs().max() > 0
    if name != "ipo" or parameters.get("beta", 0.1) < 1:
        if name != "apo_down":
            assert (on_rejected >= 0).all()
        assert on_rejected.abs().max() > 0


def like(answers, **changes):
    """A copy with leaves of its own."""
    changed = replace(answers, **changes)
    return replace(changed, logprob_P=changed.logprob_P.detach().clone().requires_grad_())


def at_reference(name, seed):
    answers = some_answers(name, seed)
    return like(answers, reference_P=answers.logprob_P.detach())


AT_REFERENCE = {
    "sigmoid": math.log(2),
    "hinge": 1.0,
    "ipo": 25.0,
    "robust": math.log(2),
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "kto": 0.5,
}


@pytest.mark.parametrize("name", [name for name in FORMS if FORMS[name].reference])
def test_value_where_the_policy_is_the_reference(name):
    values = value_of(name, at_reference(name, 1), at_reference(name, 2))
    torch.testing.assert_close(values.detach(), torch.full_like(values, AT_REFERENCE[name]))


@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo", "robust", "apo_zero"])
def test_swapping_turns_the_gradient_where_the_policy_is_the_reference(name):
    """At margin 0 a pair and its mirror image cancel; not in `apo_down`, which lowers both."""
    parameters = {"per_token": False} if name == "ipo" else {}
    one, other = at_reference(name, 1), at_reference(name, 2)
    forth = slopes(value_of(name, one, other, **parameters), one, other)
    back = slopes(value_of(name, other, one, **parameters), one, other)
    for a, b in zip(forth, back, strict=True):
        torch.testing.assert_close(a, -b, rtol=1e-12, atol=1e-12)


@every_variant
def test_identical_answers_teach_nothing(variant):
    """Both have the same tokens, so the two slopes meet in the same gradient; `apo_down` says in
    its description that it is otherwise."""
    name, parameters = variant
    chosen = some_answers(name, 9)
    rejected = like(chosen)
    on_chosen, on_rejected = slopes(
        value_of(name, chosen, rejected, 0.4, **parameters), chosen, rejected
    )
    weights = parameters.get("desirable", 1.0), parameters.get("undesirable", 1.0)
    if name == "apo_down" or weights[0] != weights[1]:
        assert (on_chosen + on_rejected).abs().max() > 1e-4
    else:
        torch.testing.assert_close(on_chosen, -on_rejected, rtol=1e-12, atol=1e-12)


@every_variant
def test_pairs_do_not_see_each_other(variant):
    name, parameters = variant
    chosen, rejected = some_answers(name, 11), some_answers(name, 111)
    order = torch.tensor([3, 0, 4, 1, 2])

    def part(answers, which):
        theirs = None if answers.reference_P is None else answers.reference_P[which]
        return Answers(answers.logprob_P[which], theirs, answers.tokens_P[which])

    whole = value_of(name, chosen, rejected, 0.4, **parameters)
    halves = whole.split(5) if not FORMS[name].pairs else (whole,)
    shuffled = value_of(name, part(chosen, order), part(rejected, order), 0.4, **parameters)
    expected = torch.cat([half[order] for half in halves])
    torch.testing.assert_close(shuffled, expected, rtol=1e-12, atol=1e-12)
    parts = [
        value_of(name, part(chosen, which), part(rejected, which), 0.4, **parameters)
        for which in (slice(0, 2), slice(2, 5))
    ]
    torch.testing.assert_close(sum(x.sum() for x in parts), whole.sum(), rtol=1e-12, atol=1e-12)


@every_form
@pytest.mark.parametrize("size", [1e3, 1e6])
def test_extreme_answers_have_finite_values_and_gradients(name, size):
    chosen = some_answers(name, 13)
    chosen = like(chosen, logprob_P=chosen.logprob_P * size)
    certain = like(chosen, logprob_P=torch.zeros(5, dtype=torch.float64))
    for sides in ((chosen, certain), (certain, chosen), (certain, like(certain))):
        values = value_of(name, *sides)
        assert values.isfinite().all()
        assert all(slope.isfinite().all() for slope in slopes(values, *sides))


@every_form
def test_an_answer_without_tokens_is_no_division_by_zero(name):
    nothing = torch.zeros(5, dtype=torch.float64)
    empty = like(some_answers(name, 1), logprob_P=nothing, tokens_P=nothing)
    assert value_of(name, empty, some_answers(name, 2)).isfinite().all()


# What forms have to do with each other -----------------------------------------------------------


def some_pairs(name="sigmoid"):
    return some_answers(name, 21), some_answers(name, 121)


def test_smoothed_labels_are_a_mixture_of_a_pair_and_its_mirror_image():
    chosen, rejected = some_pairs()
    right, wrong = value_of("sigmoid", chosen, rejected), value_of("sigmoid", rejected, chosen)
    smooth = value_of("sigmoid", chosen, rejected, label_smoothing=0.2)
    torch.testing.assert_close(smooth, 0.8 * right + 0.2 * wrong)


def test_robust_is_unbiased_where_labels_are_flipped_as_often_as_it_says():
    chosen, rejected = some_pairs()
    right, wrong = (
        value_of("robust", *pair, label_smoothing=0.3)
        for pair in ((chosen, rejected), (rejected, chosen))
    )
    torch.testing.assert_close(0.7 * right + 0.3 * wrong, value_of("sigmoid", chosen, rejected))


def test_cpo_is_dpo_with_a_uniform_reference():
    chosen, rejected = some_pairs("cpo")
    same = torch.zeros(5, dtype=torch.float64)
    uniform = [replace(side, reference_P=same) for side in (chosen, rejected)]
    torch.testing.assert_close(
        value_of("cpo", chosen, rejected), value_of("sigmoid", *uniform), rtol=1e-12, atol=0
    )


def test_kto_without_a_baseline_is_apo_zero_of_pairs_taken_apart():
    chosen, rejected = some_pairs("kto")
    good, bad = value_of("kto", chosen, rejected).split(5)
    torch.testing.assert_close(good + bad, value_of("apo_zero", chosen, rejected))


def test_no_gradient_goes_through_the_baseline():
    chosen, rejected = some_pairs("kto")
    baseline = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    values = value_of("kto", chosen, rejected, baseline)
    values.sum().backward()
    assert baseline.grad is None
    torch.testing.assert_close(values, value_of("kto", chosen, rejected, 0.4))


def test_good_and_bad_answers_need_not_be_as_many():
    chosen, rejected = some_answers("kto", 1, number=4), some_answers("kto", 2, number=1)
    assert value_of("kto", chosen, rejected).shape == (5,)
    want = defined("kto", chosen, rejected)
    torch.testing.assert_close(value_of("kto", chosen, rejected).detach(), want)


@given(st.floats(-20, 20), st.floats(0.01, 5), st.integers(1, 500))
def test_length_alone_changes_no_form_that_divides_it_out(score, beta, times):
    """A text said several times over has as many times the tokens and the log-probability."""
    for name, parameters in [
        ("simpo", {}),
        ("orpo", {}),
        ("ipo", {}),
        ("sigmoid", {"per_token": True}),
    ]:
        one, many = [], []
        for k, logprob in enumerate((-abs(score) - 0.1, -3.0)):
            for answers, factor in ((one, 1), (many, times)):
                numbers = torch.tensor([[logprob, -1.0 - k, 4.0]], dtype=torch.float64) * factor
                reference = numbers[:, 1] if FORMS[name].reference else None
                answers.append(Answers(numbers[:, 0], reference, numbers[:, 2]))
        keys = {**parameters, "beta": beta}
        torch.testing.assert_close(value_of(name, *one, **keys), value_of(name, *many, **keys))


# The registry ------------------------------------------------------------------------------------


@every_form
def test_registered_parameters_have_valid_defaults_and_a_source(name):
    form = FORMS[name]
    assert form.source
    assert "beta" in form.parameters()
    for annotation, default in form.parameters().values():
        assert TypeAdapter(annotation).validate_python(default) == default
    assert not (form.per_token and "per_token" in form.parameters())


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("sigmoid", "beta", 0.0),
        ("sigmoid", "label_smoothing", 0.5),
        ("robust", "label_smoothing", 0.0),
        ("robust", "label_smoothing", 0.5),
        ("simpo", "margin", -0.1),
        ("kto", "desirable", -1.0),
    ],
)
def test_values_that_mean_nothing_are_refused(name, key, value):
    annotation, _ = FORMS[name].parameters()[key]
    with pytest.raises(ValidationError):
        TypeAdapter(annotation).validate_python(value)


def test_an_unknown_form_is_named_with_the_nearest():
    with pytest.raises(RecipeError, match=r"no form of preference `sigmoit`.*sigmoid"):
        FORMS["sigmoit"]
