"""Forms of preference are refused where the data do not have what they read."""

from types import SimpleNamespace

import pytest

from attar.errors import RecipeError
from distill.data.config import DataConfig
from distill.stages.preference_checks import check_preferences
from distill.training.config import LoopConfig
from tests.helpers.judging import preferences, prepare_parts, ratings


@pytest.fixture
def check(tokenizer, tmp_path):
    """`check(rows, form)`: ask whether the rows serve a form."""

    def ask(rows, form):
        parts, _ = prepare_parts(tokenizer, tmp_path, rows)
        config = LoopConfig.model_validate({"objective": [{"loss": "preference", "form": form}]})
        recipe = SimpleNamespace(
            teacher=SimpleNamespace(adapt=None),
            learning=lambda: {"train": config},
            data_of=lambda _: DataConfig(train="rows.jsonl", held_out=0.2),
        )
        run = SimpleNamespace(recipe=recipe, data=lambda _: (parts["train"], parts["validation"]))
        check_preferences(run)

    return ask


def test_rated_answers_serve_kto_and_pairs_serve_all(check):
    check(ratings(120), "kto")
    check(preferences(30), "kto")
    check(preferences(30), "sigmoid")


def test_a_form_for_pairs_refuses_rated_answers(check):
    with pytest.raises(RecipeError, match=r"`form: sigmoid` compares the two.*use `form: kto`"):
        check(ratings(40), "sigmoid")


@pytest.mark.parametrize("good", [True, False])
def test_kto_refuses_answers_of_one_kind(check, good):
    with pytest.raises(RecipeError, match=r"`form: kto` needs answers .* has one kind alone"):
        check([{**row, "label": good} for row in ratings(40)], "kto")


def test_kto_refuses_one_prompt(check):
    rows = [{"prompt": "say", "completion": f"it {i}", "label": i % 2 > 0} for i in range(60)]
    with pytest.raises(RecipeError, match=r"`form: kto` compares .* one prompt alone; give more"):
        check(rows, "kto")
    check([{**row, "prompt": f"say {i // 4}"} for i, row in enumerate(rows)], "kto")


def test_data_without_judgements_are_refused(check):
    rows = [{"prompt": f"say {i}", "completion": "it"} for i in range(40)]
    with pytest.raises(RecipeError, match=r"reads preferences, and `data.train` .* has none"):
        check(rows, "kto")
