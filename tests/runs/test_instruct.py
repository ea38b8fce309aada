"""The shipped recipe of instruction tuning, and what fetches its data."""

import importlib.util
import json
import random
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SMALL = {
    "data": {"max_length": 96, "train_tokens": 600, "held_out_tokens": 600},
    "teacher": {"model": "teacher", "dtype": "float32"},
    "train": {"lr": 3e-3, "batch_size": 4, "precision": "float32"},
    "evaluate": {"tokens": 600, "prefill_tokens": 32, "generate_tokens": 4},
}


@pytest.fixture
def fetching(monkeypatch):
    """The module examples/get_instruct_demo.py."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    spec = importlib.util.spec_from_file_location(
        "get_instruct_demo", EXAMPLES / "get_instruct_demo.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_of_the_hub_become_the_recipes_rows(fetching):
    answer = "He has 48/2 = <<48/2=24>>24 left.\nWith 1 it is <<24+1=25>>25.\n#### 25"
    assert fetching.worked_sum({"question": "How many? ", "answer": answer}) == {
        "prompt": "How many?",
        "response": "He has 48/2 = 24 left.\nWith 1 it is 25.\nThe answer is 25.",
    }
    dolly = {"instruction": "When?", "context": "", "response": "Now."}
    assert fetching.instruction(dolly) == {"prompt": "When?", "response": "Now."}
    about = fetching.instruction({**dolly, "context": "A text."})
    assert about["prompt"] == "When?\n\nA text."
    choices = {"text": ["red", "blue"], "label": ["A", "B"]}
    expected = {"query": "Which?", "choices": ["red", "blue"], "gold": 1}
    assert fetching.choice({"question": "Which?", "choices": choices, "answerKey": "B"}) == expected
    books = {"question_stem": "Which?", "choices": choices, "answerKey": " B"}
    assert fetching.choice(books) == expected
    copa = {"premise": "It rained.", "choice1": "It got wet.", "choice2": "I slept.",
            "question": "effect", "label": 0}  # fmt: skip
    assert fetching.cause(copa) == {
        "query": "It rained therefore", "choices": ["it got wet.", "i slept."], "gold": 0
    }  # fmt: skip


def test_without_the_hub_it_is_said_what_to_put_where(fetching, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["get_instruct_demo.py", str(tmp_path)])
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(SystemExit) as stopped:
        fetching.main()
    assert f"{tmp_path} lacks held_out.jsonl, arc_easy.jsonl" in stopped.value.code
    assert "rows of `prompt` and `response`" in stopped.value.code
    for name in fetching.FILES:
        (tmp_path / name).write_text("")
    fetching.main()  # all is there


def worked(dice):
    a, b = dice.randint(1, 9), dice.randint(1, 9)
    solution = f"{a} and {b} are {a}+{b} = {a + b}.\nThe answer is {a + b}."
    return {"prompt": f"the student has {a} and {b}", "response": solution}


def write(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_shipped_recipe_compares_tasks_before_and_after(workshop):
    recipe = yaml.safe_load((EXAMPLES / "instruct.yaml").read_text("utf8"))
    for section, keys in SMALL.items():
        recipe[section] |= keys
    Path("instruct.yaml").write_text(yaml.safe_dump(recipe))
    dice = random.Random(0)
    write(Path(recipe["data"]["train"]), [worked(dice) for _ in range(60)])
    write(Path(recipe["data"]["held_out"]), [worked(random.Random(9 + i)) for i in range(12)])
    for task in recipe["evaluate"]["tasks"]:
        rows = [{"query": f"what falls {i}", "choices": ["light", "water"], "gold": i % 2}
                for i in range(8)]  # fmt: skip
        write(Path(task["data"]), rows)
    shown = workshop("run", "instruct.yaml", "--run-dir", "out").output
    report = workshop.report("out")
    found, names = report["verdict"]["since_start"], {"science", "facts", "causes"}
    assert found["nll"]["interval"][1] < 0
    assert set(found["tasks"]) == names
    assert report["verdict"]["sentence"] in shown
    (header,) = (line for line in shown.splitlines() if line.strip().startswith("nll"))
    assert names <= set(header.split())
    assert not Path("out/cache").exists()  # no teacher runs over the texts
