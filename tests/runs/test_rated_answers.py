"""A whole run on rated answers: the reference's cache holds the mismatched texts too."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from attar.files import read_json
from distill.data.examples import Examples
from distill.data.placed import part_file
from teachers.cache.growing import held_tokens
from teachers.cache.store import SignalStore
from tests.helpers.judging import preferences, ratings
from tests.helpers.preparing import write_jsonl

OBJECTIVE = [
    {"loss": "preference", "form": "kto", "beta": 0.5},
    {"loss": "cross_entropy", "weight": 0.1},
]


@pytest.fixture
def recipe(workshop):
    """The workshop's recipe on pairs and rated answers, without a teacher's cache."""
    write_jsonl(Path("pairs.jsonl"), preferences(12))
    rows = [{**row, "prompt": f"so {row['prompt']}"} for row in ratings(40)]
    write_jsonl(Path("ratings.jsonl"), rows)
    found = yaml.safe_load(Path("recipe.yaml").read_text())
    found["data"] = {"train": ["pairs.jsonl", "ratings.jsonl"], "max_length": 48}
    found["data"] |= {"held_out": 0.2, "validation": 0.2}
    del found["cache"]
    found["train"] |= {"objective": OBJECTIVE, "epochs": 4}
    Path("recipe.yaml").write_text(yaml.safe_dump(found))
    return workshop


def test_rated_answers_are_learned_against_the_students_start(recipe):
    for stage in ("cache build", "build", "train"):
        recipe(*stage.split(), "recipe.yaml", "--run-dir", "run")
    found = read_json(Path("run/arms/distill/result.json"))["history"]
    assert found[0]["0:preference"] == pytest.approx(0.5, abs=1e-3)
    late = [one["0:preference"] for one in found[-10:]]  # of few answers each
    assert np.mean(late) < 0.9 * found[0]["0:preference"]
    assert {"accuracy", "validation_accuracy", "validation_margin"} <= found[-1].keys()
    held = held_tokens(SignalStore("run/reference/train").entries()).keys()
    for part in ("train", "validation"):
        for example in Examples(part_file(Path("run/data"), part)).with_mismatched(48):
            for text in example.texts:
                assert {text.key, text.mismatched.key} <= held
