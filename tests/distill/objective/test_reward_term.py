"""Terms on rewards in a step: against float64 definitions, and however pairs are batched."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from distill.data.batching import collate_texts
from distill.data.examples import CHOSEN, example_of
from distill.data.tokenize import IGNORE
from distill.objective.model_outputs import RewardReadout
from distill.objective.objective import Learner
from distill.objective.terms import TERM_MODELS
from teachers.signals import KnownLogits
from tests.helpers.classifying import WORDS, tiny_bert, tiny_llama
from tests.helpers.definitions import bradley_terry, reward_kl


def wide_bert(layers, classes=1):
    """Weights large enough that a text's first position tells of its others."""
    return tiny_bert(layers, classes=classes, initializer_range=0.3)


MODELS = {"bert": wide_bert, "llama": tiny_llama}
every_model = pytest.mark.parametrize("family", list(MODELS))


class Scores:
    """The signals of a teacher that runs in the test."""

    def __init__(self, teacher, batch):
        self.rewards_S1 = rewards_of(teacher, batch).detach()

    def distribution(self, temperature):
        return KnownLogits(self.rewards_S1, temperature)


def rewards_of(model, batch):
    inputs = {"input_ids": batch.input_ids_BT, "attention_mask": batch.mask_BT}
    return model(**inputs).logits


@pytest.fixture(scope="module")
def examples():
    dice = np.random.default_rng(0)

    def text(prompt, length):
        ids = [2, *prompt, *dice.integers(4, len(WORDS), length), 3]
        return ids, [0, *[IGNORE] * (len(ids) - 1)]

    found = []
    for i, (chosen, rejected) in enumerate([(4, 9), (2, 2), (7, 1), (5, 6), (1, 8)]):
        prompt = list(dice.integers(4, len(WORDS), 3))
        pair = text(prompt, chosen), text(prompt, rejected)
        found.append(example_of(*pair[0], None, CHOSEN, pair[1], i / 4))
    return found


def learner_of(model, *terms, **options):
    made = [TERM_MODELS[term["loss"]].model_validate(term) for term in terms]
    return Learner(
        model.eval(), made, vocabulary=len(WORDS), dtype=torch.float32, chunk=8,
        readout=RewardReadout(), **options,
    )  # fmt: skip


def step(learner, batches, teacher=None):
    """(loss, means, gradients) of one optimiser step over micro-batches."""
    learner.zero_grad()
    counted = batches[0].counted
    for batch in batches[1:]:
        counted = counted + batch.counted
    total, sums = 0.0, None
    for batch in batches:
        sources = {} if teacher is None else {"cache": Scores(teacher, batch)}
        loss, found = learner(batch, sources, counted.scales(1.0))
        loss.backward()
        total += loss.item()
        sums = found if sums is None else sums + found
    gradients = {n: p.grad.clone() for n, p in learner.named_parameters() if p.grad is not None}
    return total, sums.means(counted), gradients


def swapped(example):
    """The pair with its answers in the other order."""
    chosen, rejected = ((t.input_ids.tolist(), t.labels.tolist()) for t in example.texts)
    return example_of(*rejected, None, CHOSEN, chosen, example.margin)


def batch_of(examples):
    return collate_texts([[example] for example in examples])


def largest(gradients):
    """The largest number in any of them."""
    return max(gradient.abs().max().item() for gradient in gradients.values())


def assert_close(want, got):
    """Gradients by name; some are 0 but for rounding, as that of a bias of keys is."""
    atol = 1e-5 * largest(want)
    assert atol > 0
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-3, atol=atol)


def assert_same(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-5, abs=1e-7)
    assert_close(one[2], other[2])


@every_model
def test_value_and_gradient_are_those_of_the_definitions(examples, family):
    """Mean over pairs, temperature and weights included, from rewards of the plain model."""
    make = MODELS[family]
    model, teacher = make(2, classes=1), make(3, classes=1)
    batch = batch_of(examples)
    learner = learner_of(
        model,
        {"loss": "reward_kl", "temperature": 2.0, "weight": 0.7},
        {"loss": "bradley_terry", "center": 0.05, "weight": 0.3},
    )
    loss, means, gradients = step(learner, [batch], teacher)
    model.zero_grad()
    student, other = (rewards_of(m, batch).double().reshape(-1, 2) for m in (model, teacher))
    margins = torch.tensor([example.margin for example in examples], dtype=torch.float64)
    kl = 4 * reward_kl(student / 2, other.detach() / 2).mean()
    order = bradley_terry(student, margins, center=0.05).mean()
    (0.7 * kl + 0.3 * order).backward()
    assert loss == pytest.approx((0.7 * kl + 0.3 * order).item(), rel=1e-5)
    assert list(means.terms.values()) == pytest.approx([kl.item(), order.item()], rel=1e-5)
    assert means.nll == pytest.approx(bradley_terry(student, 0 * margins).mean().item(), rel=1e-5)
    want = {f"student.{name}": parameter.grad for name, parameter in model.named_parameters()}
    assert_close(want, gradients)


@every_model
def test_splitting_and_order_change_nothing(examples, family):
    make = MODELS[family]
    learner = learner_of(
        make(2, classes=1), {"loss": "reward_kl"}, {"loss": "bradley_terry", "center": 0.1}
    )
    teacher = make(3, classes=1)
    whole = step(learner, [batch_of(examples)], teacher)
    assert_same(whole, step(learner, [batch_of([one]) for one in examples], teacher))
    assert_same(whole, step(learner, [batch_of(examples[::-1])], teacher))


def test_swapping_the_answers_flips_the_gradient(examples):
    """Of a pair whose rewards are equal: what one order raises, the other lowers."""
    model = wide_bert(2)
    with torch.no_grad():
        model.classifier.weight.zero_()
    learner = learner_of(model, {"loss": "bradley_terry"})
    plain = [replace(example, margin=0.0) for example in examples]
    one = step(learner, [batch_of(plain)])
    other = step(learner, [batch_of([swapped(example) for example in plain])])
    assert one[0] == pytest.approx(math.log(2))
    assert one[2]["student.classifier.weight"].abs().max() > 1e-3
    for name, gradient in one[2].items():
        torch.testing.assert_close(other[2][name], -gradient, rtol=1e-4, atol=1e-7)


def test_equal_texts_give_log_2_and_no_gradient(examples):
    learner = learner_of(wide_bert(2), {"loss": "bradley_terry"})
    text = (examples[0].input_ids.tolist(), examples[0].labels.tolist())
    loss, means, gradients = step(learner, [batch_of([example_of(*text, None, CHOSEN, text)])])
    assert loss == pytest.approx(math.log(2), abs=1e-6)
    assert means.nll == pytest.approx(math.log(2), abs=1e-6)
    elsewhere = step(learner, [batch_of(examples)])[2]
    assert largest(gradients) < 1e-5 * largest(elsewhere)


def test_a_student_that_is_its_teacher_has_no_kl_and_no_gradient(examples):
    model = wide_bert(2)
    learner = learner_of(model, {"loss": "reward_kl"})
    loss, _, gradients = step(learner, [batch_of(examples)], wide_bert(2))
    assert loss == pytest.approx(0, abs=1e-6)
    elsewhere = step(learner, [batch_of(examples)], wide_bert(3))[2]
    assert largest(gradients) < 1e-4 * largest(elsewhere)


def test_the_level_of_rewards_counts_for_the_center_alone(examples):
    model, batch = wide_bert(2), batch_of(examples)
    plain, centred = {"loss": "bradley_terry"}, {"loss": "bradley_terry", "center": 0.1}
    before = [step(learner_of(model, term), [batch])[0] for term in (plain, centred)]
    with torch.no_grad():
        model.classifier.bias += 3
    after = [step(learner_of(model, term), [batch])[0] for term in (plain, centred)]
    assert after[0] == pytest.approx(before[0], rel=1e-5)
    assert after[1] > before[1] + 1


def test_an_evaluation_counts_the_pairs_that_are_ranked_right(examples):
    model, batch = wide_bert(2), batch_of(examples)
    learner = learner_of(model, {"loss": "bradley_terry"}).eval()
    with torch.no_grad():
        _, sums = learner(batch, {}, batch.counted.scales(1.0))
        rewards = rewards_of(model, batch).reshape(-1, 2)
    right = (rewards[:, 0] > rewards[:, 1]).double().mean().item()
    assert 0 < right < 1
    assert sums.means(batch.counted).accuracy == pytest.approx(right)


def test_a_head_has_a_gradient_where_hidden_states_alone_are_learned(examples):
    """It is zero; processes that train together wait for every parameter's."""
    model, batch = wide_bert(2), batch_of(examples)
    tokens, width = int(batch.mask_BT.sum()), model.config.hidden_size
    states = SimpleNamespace(hidden=lambda layer: torch.zeros(tokens, width))
    learner = learner_of(model, {"loss": "hidden_mse"}, pairs={0: [(1, 1)]})
    loss, sums = learner(batch, {"cache": states}, batch.counted.scales(1.0))
    loss.backward()
    assert sums.nll > 0
    assert all(one.grad is not None for one in model.classifier.parameters())
    assert not any(one.grad.any() for one in model.classifier.parameters())
