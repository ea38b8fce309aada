"""What a training does with numbers that are none."""

import math
from types import SimpleNamespace

import pytest

from attar.errors import RunError
from distill.training import state as training_state
from distill.training.job import Progress
from distill.training.state import TrainingState


@pytest.fixture
def training(monkeypatch, tmp_path):
    """`training(objective)`: a training that stands before an evaluation with this outcome."""

    def make(objective):
        means = SimpleNamespace(
            nll=objective,
            accuracy=None,
            margin=None,
            named=lambda prefix: {f"{prefix}nll": objective},
        )
        found = SimpleNamespace(objective=objective, means=means)
        monkeypatch.setattr(training_state, "evaluate_objective", lambda *a, **k: found)
        monkeypatch.setattr(training_state, "save_learned", lambda *a: None)
        made = TrainingState.__new__(TrainingState)
        made.job = SimpleNamespace(name="distill", section="train", folder=tmp_path, learner=None,
                                   validation=None, signals=None, collate=None)  # fmt: skip
        made.config = SimpleNamespace(batch_size=1, evaluate_tokens=None)
        made.accelerator, made.total = SimpleNamespace(is_main_process=True), 9
        made.progress = Progress(world=1)
        return made

    return make


def test_a_validation_that_is_not_a_number_is_an_error_and_not_the_last_weights(training):
    assert training(2.0)._validate(3)["validation"] == 2.0
    for value in (math.nan, math.inf):
        with pytest.raises(RunError, match=r"validation objective of `distill` is not finite.*3"):
            training(value)._validate(3)
