"""lm-eval on a tiny model: run as one of our tasks, it finds what our own scorer finds."""

import json
from types import SimpleNamespace

import pytest
import yaml

from attar.errors import RecipeError, RunError
from distill.evaluation.downstream.questions import check_tasks
from distill.evaluation.downstream.scoring import refusal, score_task
from tests.helpers.asking import Runtime, task_of

pytest.importorskip("lm_eval", reason="lm-eval is not installed (attar[eval])")

WORDS = ["teacher", "student", "light", "water", "nobody", "what the student says", "four"]


@pytest.fixture
def harness(tmp_path):
    """`harness(rows)`: (a file of questions, a folder with a task of lm-eval that asks them)."""

    def make(rows):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = {
            "task": "ours",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file)}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{query}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "gold",
            "metric_list": [
                {"metric": metric, "aggregation": "mean", "higher_is_better": True}
                for metric in ("acc", "acc_norm")
            ],
        }
        folder = tmp_path / "tasks"
        folder.mkdir()
        (folder / "ours.yaml").write_text(yaml.safe_dump(task))
        return str(file), str(folder)

    return make


@pytest.mark.filterwarnings("default")
def test_both_scorers_find_the_same(make_model, tokenizer, harness):
    rows = [
        {"query": f"{WORDS[i % 5]} says {i}", "choices": WORDS[i % 3 : i % 3 + 4], "gold": i % 4}
        for i in range(24)
    ]
    file, folder = harness(rows)
    runtime = Runtime(make_model(2, width=64, vocabulary=320), tokenizer)
    theirs = task_of(kind="lm_eval", tasks=["ours"], include_path=folder)
    check_tasks([theirs], True)
    found = score_task(theirs, runtime)
    ours = score_task(task_of(kind="multiple_choice", data=file), runtime)
    assert found.correct.tolist() == ours.correct.tolist()
    assert found.parts == {"ours": pytest.approx(ours.accuracy)}
    assert found.accuracy_norm == pytest.approx(ours.accuracy_norm)
    assert 0 < ours.accuracy < 1


@pytest.mark.filterwarnings("default")
def test_tasks_and_runtimes_it_cannot_take_are_refused(harness):
    folder = harness([{"query": "a", "choices": ["b", "c"], "gold": 0}])[1]
    with pytest.raises(RecipeError, match="Did you mean `ours`"):
        check_tasks([task_of(kind="lm_eval", tasks=["our"], include_path=folder)], True)
    with pytest.raises(RecipeError, match="no folder"):
        check_tasks([task_of(kind="lm_eval", tasks=["ours"], include_path="nowhere")], True)
    task = task_of(kind="lm_eval", tasks=["ours"], include_path=folder)
    other = SimpleNamespace(can_generate=True)
    assert "transformers only" in refusal(task, other)
    with pytest.raises(RunError, match="transformers only"):
        score_task(task, other)
