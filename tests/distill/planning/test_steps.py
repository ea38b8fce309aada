"""Forwards that a training costs: more for preferences, and more again for rated answers."""

import pytest

from distill.planning.steps import forward_passes
from distill.training.config import LoopConfig


@pytest.mark.parametrize(
    ("term", "passes"),
    [
        ({"loss": "cross_entropy"}, 3 * 200 + 30),
        ({"loss": "preference", "form": "cpo"}, 3 * 200 + 30),
        ({"loss": "preference", "form": "sigmoid"}, 3 * 200 + 30 + 110),
        ({"loss": "preference", "form": "kto"}, 4 * 200 + 2 * 30 + 2 * 110),
        ({"loss": "preference", "form": "kto", "source": "online"}, 4 * 200 + 2 * 30),
    ],
)
def test_forwards_of_a_training(term, passes):
    config = LoopConfig.model_validate({"objective": [term]})
    assert forward_passes(config, 200, 30, 110) == passes
