"""What a training costs: more for preferences, and a forward on mismatched texts for ratings."""

from types import SimpleNamespace

import pytest

from distill.planning.quantities import EVALUATIONS, WRITING, Quantities
from distill.training.config import LoopConfig

TRAIN, VALIDATED = 100, 10
EVALUATED = EVALUATIONS * VALIDATED


@pytest.mark.parametrize(
    ("term", "forwards"),
    [
        ({"loss": "cross_entropy"}, 3 * 2 * TRAIN + EVALUATED),
        ({"loss": "preference", "form": "cpo"}, 3 * 2 * TRAIN + EVALUATED),
        (
            {"loss": "preference", "form": "sigmoid"},
            3 * 2 * TRAIN + EVALUATED + TRAIN + VALIDATED,
        ),
        (
            {"loss": "preference", "form": "kto"},
            4 * 2 * TRAIN + 2 * EVALUATED + 2 * (TRAIN + VALIDATED),
        ),
        (
            {"loss": "preference", "form": "kto", "source": "online"},
            4 * 2 * TRAIN + 2 * EVALUATED,
        ),
    ],
)
def test_forwards_of_a_training_on_texts_of_one_token(term, forwards):
    counts = SimpleNamespace(train=TRAIN, validation=VALIDATED, counted=1, length=1)
    model = SimpleNamespace(forward=lambda tokens: tokens, head=0)
    known = Quantities("texts", model, model, counts, 0.0, 1.0, 1.0)
    config = LoopConfig.model_validate({"objective": [term], "epochs": 2})
    data = SimpleNamespace(packing=False, max_length=8)
    assert known.training_seconds(model, config, data) == forwards


@pytest.mark.parametrize(
    ("rollouts", "more"),
    [
        ({"share": 0.5, "new_tokens": 1}, WRITING * TRAIN),
        ({"new_tokens": 3}, WRITING * 2 * TRAIN * 3 + 3 * 2 * TRAIN * 2),
        ({"new_tokens": 1, "keep": 2}, WRITING * TRAIN),
        ({"new_tokens": 1, "samples": 4}, WRITING * 2 * TRAIN * 4 + 3 * 2 * TRAIN * 3),
    ],
)
def test_writing_answers_takes_forwards_of_its_own(rollouts, more):
    counts = SimpleNamespace(train=TRAIN, validation=VALIDATED, counted=1, length=1)
    model = SimpleNamespace(forward=lambda tokens: tokens, head=0)
    known = Quantities("texts", model, model, counts, 0.0, 1.0, 1.0)
    keys = {"objective": [{"loss": "reverse_kl"}], "source": "online", "epochs": 2}
    config = LoopConfig.model_validate({**keys, "rollouts": rollouts})
    data = SimpleNamespace(packing=False, max_length=8)
    assert known.training_seconds(model, config, data) == 3 * 2 * TRAIN + EVALUATED + more
