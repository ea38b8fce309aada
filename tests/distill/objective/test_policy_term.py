"""The policy gradient: its value and gradient against full logits, and however it is batched."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.data.batching import collate
from distill.data.examples import WRITTEN, Rollout, counted_in, example_of
from distill.data.tokenize import IGNORE
from distill.objective.objective import Learner
from distill.objective.terms import TERM_MODELS

VOCABULARY = 97


def written_text(dice, prompt, length, rollout):
    ids = dice.integers(0, VOCABULARY, prompt + length).tolist()
    labels = [*([IGNORE] * (prompt - 1)), *ids[prompt:], IGNORE]
    return replace(example_of(ids, labels, role=WRITTEN), rollout=rollout)


@pytest.fixture
def texts():
    dice = np.random.default_rng(0)
    gains = [(1.0, -30.0), (-0.5, -20.0), (0.7, None), (-0.2, -9.0), (0.0, -5.0)]
    return [
        written_text(dice, 3 + i, 2 + 2 * i, Rollout(logprob, gain))
        for i, (gain, logprob) in enumerate(gains)
    ]


def learner_of(model, *terms):
    made = [TERM_MODELS[term["loss"]].model_validate(term) for term in terms]
    return Learner(model, made, vocabulary=VOCABULARY, dtype=torch.float32, chunk=5)


def sums_of(model, examples):
    """Log-probability of each answer, float64, differentiable."""
    found = []
    for example in examples:
        ids = torch.from_numpy(example.input_ids)[None]
        logprobs = model(ids).logits[0].double().log_softmax(-1)
        where = torch.from_numpy(example.counted)
        labels = torch.from_numpy(example.counted_labels)
        found.append(logprobs[where, labels].sum())
    return torch.stack(found)


def defined(sums, examples, clip):
    """The definition: the lower of the ratio and the clipped ratio times the advantage, negated."""
    total = 0
    for now, example in zip(sums, examples, strict=True):
        old = now.detach() if example.rollout.logprob is None else example.rollout.logprob
        ratio, gain = torch.exp(now - old), example.rollout.advantage
        total = total - min(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain)
    return total / len(examples)


def step(learner, batches, counted):
    learner.zero_grad()
    total = 0.0
    for rows in batches:
        loss, _ = learner(collate(rows), {}, counted.scales(1.0))
        loss.backward()
        total += float(loss.detach())
    return total, torch.cat([p.grad.flatten() for p in learner.parameters()])


def test_value_and_gradient_are_those_of_the_definition(make_model, texts):
    model, clip = make_model(0), 0.2
    # The first answers were written by students near this one, so that ratios differ from 1.
    near = sums_of(model, texts).detach()
    shifts = (0.1, 0.5, None, -0.5, 0.0)
    texts = [
        replace(x, rollout=replace(x.rollout, logprob=None if s is None else float(n) + s))
        for x, n, s in zip(texts, near, shifts, strict=True)
    ]
    wanted = defined(sums_of(model, texts), texts, clip)
    wanted.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    learner = learner_of(model, {"loss": "rloo", "clip": clip})
    value, found = step(learner, [[[x] for x in texts]], counted_in(texts))
    assert value == pytest.approx(float(wanted.detach()), rel=1e-5)
    torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)
    assert found.norm() > 0.01


def test_splitting_packing_and_order_change_nothing(make_model, texts):
    learner, counted = learner_of(make_model(0), {"loss": "rloo"}), counted_in(texts)
    texts = [replace(x, rollout=replace(x.rollout, logprob=None)) for x in texts]
    whole = step(learner, [[[x] for x in texts]], counted)
    for batches in (
        [[[x]] for x in texts], [[texts]], [[[x] for x in texts[::-1]]], [[texts[:3], texts[3:]]],
    ):  # fmt: skip
        value, gradient = step(learner, batches, counted)
        assert value == pytest.approx(whole[0], rel=1e-5)
        torch.testing.assert_close(gradient, whole[1], rtol=1e-4, atol=1e-6)


def test_equal_rewards_teach_nothing(make_model, texts):
    texts = [replace(x, rollout=Rollout(None, 0.0)) for x in texts]
    learner = learner_of(make_model(0), {"loss": "rloo"})
    value, gradient = step(learner, [[[x] for x in texts]], counted_in(texts))
    assert value == 0
    assert gradient.norm() == 0


def test_a_better_answer_becomes_likelier_and_a_worse_one_less(make_model, texts):
    model = make_model(0)
    texts = [
        replace(x, rollout=Rollout(None, gain)) for x, gain in zip(texts, (1, -1), strict=False)
    ]
    before = sums_of(model, texts).detach()
    learner = learner_of(model, {"loss": "rloo"})
    step(learner, [[[x] for x in texts]], counted_in(texts))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.01 * parameter.grad
    change = sums_of(model, texts).detach() - before
    assert change[0] > 0 > change[1]


def test_texts_of_the_data_take_no_part(make_model, make_examples, texts):
    learner = learner_of(make_model(0), {"loss": "rloo"})
    others, counted = make_examples(3, seed=5), counted_in(texts)
    alone = step(learner, [[[x] for x in texts]], counted)
    beside = step(learner, [[[x] for x in (*others, *texts)]], counted)
    assert alone[0] == pytest.approx(beside[0], rel=1e-5)
    torch.testing.assert_close(alone[1], beside[1], rtol=1e-4, atol=1e-6)
    value, _ = step(learner, [[[x] for x in others]], counted_in(others))
    assert value == 0


def test_a_term_on_whole_answers_and_one_on_tokens_stand_beside_each_other(
    make_model, make_examples, texts
):
    others = make_examples(3, seed=5)
    mixed = [*others, *texts]
    terms = {"loss": "rloo"}, {"loss": "cross_entropy", "on": "data", "weight": 0.5}
    model = make_model(0)
    both = step(learner_of(model, *terms), [[[x] for x in mixed]], counted_in(mixed))
    parts = [
        step(learner_of(model, term), [[[x] for x in mixed]], counted_in(mixed)) for term in terms
    ]
    assert both[0] == pytest.approx(parts[0][0] + parts[1][0], rel=1e-5)
    torch.testing.assert_close(both[1], parts[0][1] + parts[1][1], rtol=1e-4, atol=1e-6)
