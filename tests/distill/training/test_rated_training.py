"""A training on rated answers: it learns them, and one that was stopped ends as if it were not."""

import pytest
import torch

from distill.training.loop import train
from distill.training.teacher_signals import TeacherSignals
from students.save import save_student
from teachers.cache.config import CacheConfig
from tests.helpers.judging import preferences, prepare_parts, ratings
from tests.helpers.preparing import write_jsonl
from tests.helpers.training import VOCABULARY, attached, job_of, learned, train_until

LABEL = CacheConfig.model_validate({"codec": {"name": "label"}})
OBJECTIVE = [
    {"loss": "preference", "form": "kto", "beta": 0.5},
    {"loss": "cross_entropy", "weight": 0.1},
]


@pytest.fixture
def work(make_model, make_cache, tokenizer, tmp_path, training_loop):
    """`work(name, **keys)`: a job on pairs and rated answers from the reference's weights on."""
    start = make_model(1, vocabulary=VOCABULARY)
    save_student(start, tokenizer, tmp_path / "student")
    files = [
        write_jsonl(tmp_path / "pairs.jsonl", preferences(10)),
        write_jsonl(
            tmp_path / "ratings.jsonl",
            [{**row, "prompt": f"so {row['prompt']}"} for row in ratings(30)],
        ),
    ]
    parts, _ = prepare_parts(tokenizer, tmp_path, None, train=files)
    examples = [parts[part].with_mismatched(64) for part in ("train", "validation")]
    wanted = {
        one.key: one
        for part in examples
        for example in part
        for text in example.texts
        for one in (text, text.mismatched)
    }
    cache = make_cache(
        tmp_path / "cache", start, list(wanted.values()), LABEL, vocabulary=VOCABULARY
    )

    def make(name, **keys):
        keys = {"evaluate_every": 2, "checkpoint_every": 2, "max_steps": 8, "epochs": 9, **keys}
        return job_of(
            attached(tmp_path / "student", "full"), examples, tmp_path / name,
            signals=TeacherSignals(reference=cache), objective=OBJECTIVE, **keys,
        )  # fmt: skip

    return make


def test_it_begins_at_the_reference_and_learns_what_is_good(work):
    history = train(work("run", max_steps=24, evaluate_every=12)).history
    first, last = history[0], history[-1]
    assert first["0:preference"] == pytest.approx(0.5, abs=1e-4)
    assert first["margin"] == pytest.approx(0, abs=1e-4)
    assert last["0:preference"] < 0.48
    assert [one["margin"] for one in history if "margin" in one][-1] > 0.1
    assert {
        "accuracy", "nll", "validation_0:preference", "validation_accuracy", "validation_margin",
    } <= last.keys()  # fmt: skip


def test_a_training_that_was_stopped_ends_as_if_it_were_not(work):
    whole = work("whole")
    result = train(whole)
    train_until(work("stopped"), 11)
    again = work("stopped")
    history = train(again).history
    assert history == result.history
    assert len(history) == 8
    for name, tensor in learned(whole).items():
        assert torch.equal(learned(again)[name], tensor), name
