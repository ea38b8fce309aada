"""What a training costs: more for preferences, and a forward on mismatched texts for ratings."""

from types import SimpleNamespace

import pytest

from distill.data.config import DataConfig
from distill.data.prepare import prepare
from distill.data.reader import NextTokenTexts
from distill.data.teacher_prompts import TeacherPrompts
from distill.planning.data_counts import estimated_counts, prepared_counts
from distill.planning.quantities import EVALUATIONS, WRITING, Quantities
from distill.training.config import LoopConfig
from tests.helpers.preparing import write_jsonl

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


def test_a_teacher_with_prompts_of_its_own_reads_more_tokens(tokenizer, tmp_path):
    rows = [{"prompt": f"ask {i}", "answer": "says", "hint": "x" * 30} for i in range(40)]
    config = DataConfig(train=write_jsonl(tmp_path / "rows.jsonl", rows), max_length=64)
    found = []
    for template in (None, "{prompt}", "{prompt} {hint}"):
        prompts = None if template is None else TeacherPrompts(template)
        reader = NextTokenTexts(prompts)
        counts = estimated_counts(config, reader, tokenizer, lambda examples: examples.counts)
        prepare(config, tokenizer, "id", 0, tmp_path / "data", reader)
        read = prepared_counts(tmp_path / "data", lambda examples: examples.counts)
        assert read.teacher_length == pytest.approx(counts.teacher_length, abs=0.5)
        found.append((counts.teacher_length, counts.length))
    assert found[0] == found[1] == (found[0][1], found[0][1])
    assert found[2] == (found[0][0] + 31, found[0][1])
