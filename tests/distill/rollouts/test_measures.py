"""What a teacher says of answers: by exact distributions, and only where it can be said."""

import pytest
import torch

from attar.errors import RecipeError
from attar.models.structure import head_of, run_body
from distill.data.batching import collate
from distill.objective.objective import Learner
from distill.objective.terms import TERM_MODELS
from distill.rollouts.measures import measurable, teacher_measures
from teachers.online import OnlineTeacher
from teachers.signals import KnownLogits, SparseDistribution

VOCABULARY = 97


class Gives:
    """Signals with one distribution."""

    def __init__(self, target):
        self.target = target

    def distribution(self, temperature):
        if isinstance(self.target, Exception):
            raise self.target
        return self.target


def entries(tail):
    rest = torch.zeros(2) if tail else None
    return SparseDistribution(torch.zeros(2, 3).long(), torch.zeros(2, 3), rest)


@pytest.mark.parametrize(
    ("target", "known"),
    [
        (KnownLogits(torch.zeros(2, 5)), True),
        (entries(tail=True), True),
        (entries(tail=False), False),
        (RecipeError("The cache holds temperatures [2.0]."), False),
    ],
)
def test_samples_and_other_temperatures_say_nothing_of_an_answer(target, known):
    assert measurable(Gives(target)) is known


def test_measures_are_means_over_all_logits(make_model, make_examples):
    student, teacher = make_model(0), make_model(1).requires_grad_(False)
    terms = [TERM_MODELS["reverse_kl"].model_validate({"loss": "reverse_kl"})]
    learner = Learner(student, terms, vocabulary=VOCABULARY, dtype=torch.float32, chunk=3)
    batch = collate([[x] for x in make_examples(3, seed=2)])
    where = batch.labels_BT != -100
    online = OnlineTeacher(teacher, VOCABULARY, [], [])
    signals = online.signals(batch.model_inputs(), where)
    found = teacher_measures(learner, batch, signals, VOCABULARY, 3)
    with torch.no_grad():
        mine, its = (
            head_of(model, VOCABULARY)
            .logits(run_body(model, batch.model_inputs())[where])
            .double()
            .log_softmax(-1)
            for model in (student, teacher)
        )
    labels = batch.labels_BT[where]
    assert found["reverse_kl"] == pytest.approx(
        float((mine.exp() * (mine - its)).sum(-1).mean()), rel=1e-4
    )
    assert found["teacher_nll"] == pytest.approx(
        -float(its.gather(-1, labels[:, None]).mean()), rel=1e-4
    )
    assert found["top1"] == float((mine.argmax(-1) == its.argmax(-1)).double().mean())
    assert found["kept"] == 1
