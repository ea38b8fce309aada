"""`distill prompt` as a whole: classes, written answers, tasks, what it refuses, and its files."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import yaml

from attar.files import read_json
from distill.data.examples import Examples, example_key
from distill.prompt_search import measure_prompt, model_to_ask
from distill.prompting.config import PromptConfig
from distill.run.context import Run
from distill.run.load import load_recipe

KINDS = ["water", "light"]
FILES = {"prompt.json", "prompt.txt", "search.json", "numbers.json", "dev.npz", "held_out.npz"}


def write_rows(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def classes(workshop):
    """A recipe of classes whose teacher is a language model, as it is."""
    dice, rows = random.Random(0), []
    for i in range(70):
        words = dice.choices(["the", "teacher", "says", "what", "falls", "on"], k=5)
        words[dice.randrange(5)] = KINDS[i % 2]
        rows.append({"sentence": " ".join(words), "kind": i % 2})
    write_rows("classes.jsonl", rows)
    recipe = {
        "task": "sequence-classification",
        "data": {
            "train": "classes.jsonl", "held_out": 0.2, "validation": 0.2, "max_length": 48,
            "label_column": "kind", "label_names": KINDS,
        },
        "teacher": {"model": "teacher"},
        "student": {"from": "teacher"},
        "prompt": {
            "shots": [0, 1], "sets": 1, "candidates": 5, "dev": 9, "labels": {"light": "what"},
        },
    }  # fmt: skip
    Path("classes.yaml").write_text(yaml.safe_dump(recipe))
    return workshop


@pytest.fixture
def questions(workshop):
    """A recipe of prompts with answers, asked of the teacher."""
    dice = random.Random(0)
    words = ["light", "water", "student", "teacher"]
    rows = [
        {"question": f"what says {dice.choice(words)} {i}", "answer": dice.choice(words)}
        for i in range(40)
    ]
    write_rows("questions.jsonl", rows)
    recipe = {
        "data": {
            "train": "questions.jsonl", "held_out": 0.15, "validation": 0.15, "max_length": 64,
        },
        "teacher": {"model": "teacher", "dtype": "float32"},
        "student": {},
        "prompt": {"model": "teacher", "shots": [0, 1], "candidates": 3, "new_tokens": 4},
    }  # fmt: skip
    Path("questions.yaml").write_text(yaml.safe_dump(recipe))
    return workshop


def prompted(folder="out"):
    return read_json(Path(folder, "prompt", "prompt.json"))


def arrays_in(file):
    with np.load(file) as found:
        return dict(found)


def test_a_prompt_is_found_measured_and_kept(classes):
    arguments = ("prompt", "classes.yaml", "--run-dir", "out")
    output = classes(*arguments).output
    assert {path.name for path in Path("out/prompt").iterdir()} == FILES
    assert "Unseen questions: accuracy" in output
    found, numbers = prompted(), read_json(Path("out/prompt/numbers.json"))["numbers"]
    assert found["labels"] == {"water": "water", "light": "what"}
    assert found["numbers"] == numbers
    assert {"accuracy", "accuracy_interval", "nll", "dev_accuracy", "texts", "model_tokens",
            "query_tokens", "seconds", "peak_memory_bytes", "prompt"} <= numbers.keys()  # fmt: skip
    search = read_json(Path("out/prompt/search.json"))
    assert search["candidates"][0]["shots"] == 0
    assert numbers["candidates"] == len(search["candidates"])
    examples = Examples(Path("out/data/held_out.arrow"))
    arrays = arrays_in("out/prompt/held_out.npz")
    assert arrays["example"].tolist() == list(range(len(examples)))
    assert arrays["document"].tolist() == examples.documents.tolist()
    assert arrays["label"].tolist() == [int(one.labels[0]) for one in examples]
    np.testing.assert_array_equal(arrays["predicted"] == arrays["label"], arrays["correct"])
    assert numbers["accuracy"] == pytest.approx(arrays["correct"].mean())
    before = Path("out/prompt/prompt.json").read_bytes()
    assert "Nothing to do" in classes(*arguments).output
    Path("out/prompt/held_out.npz").unlink()  # as a killed process could leave it
    assert "Nothing to do" not in classes(*arguments).output
    again = json.loads(before)
    for found in (again, now := prompted()):
        for key in ("seconds", "texts_per_second", "peak_memory_bytes"):
            found["numbers"].pop(key)
        found.pop("checksum")
    assert now == again


def test_rows_shown_are_of_the_training_part(classes):
    classes("prompt", "classes.yaml", "--run-dir", "out", "--set",
            "prompt.demonstrations=[nearest]", "--set", "prompt.shots=[1]",
            "--set", "prompt.instructions=[Say it.]", "--set", "prompt.candidates=2")  # fmt: skip
    run = Run(load_recipe("classes.yaml"), Path("out"))
    parts = {part: set(Examples(Path("out/data") / f"{part}.arrow").keys)
             for part in ("train", "validation", "held_out")}  # fmt: skip
    config = PromptConfig(model="teacher", shots=[1], demonstrations=["nearest"])
    model = model_to_ask(run, config)
    numbers = measure_prompt(run, config, model, Path("alone"), search=False)
    assert numbers["prompt"].startswith("1 shots, nearest")
    shown = [text for text, _ in read_json(Path("alone/prompt.json"))["demonstrations"]]
    assert shown
    for text in shown:
        ids = run.tokenizer(text)["input_ids"]
        key = example_key(ids, [0, *[-100] * (len(ids) - 1)])
        assert key in parts["train"]
        assert key not in parts["validation"] | parts["held_out"]


def test_answers_are_written_and_verified(questions):
    questions("prompt", "questions.yaml", "--run-dir", "out")
    found, arrays = prompted(), arrays_in("out/prompt/held_out.npz")
    assert found["kind"] == "generation"
    assert sorted(arrays) == ["correct", "document", "example", "nll"]
    assert np.isfinite(arrays["nll"]).all()
    assert len(arrays["nll"]) == len(Examples(Path("out/data/held_out.arrow")))


def test_a_task_is_asked_and_its_questions_are_divided(questions):
    rows = [
        {"q": f"what {i}", "choices": ["light", "water", "l"], "gold": i % 3} for i in range(24)
    ]
    write_rows("choices.jsonl", rows)
    task = "{name: picks, kind: multiple_choice, data: choices.jsonl, prompt: 'Q: {q}'}"
    questions("prompt", "questions.yaml", "--run-dir", "out", "--set", "prompt.task=picks",
              "--set", f"evaluate.tasks=[{task}]")  # fmt: skip
    arrays = [arrays_in(f"out/prompt/{name}.npz") for name in ("dev", "held_out")]
    dev, unseen = (set(one["example"].tolist()) for one in arrays)
    assert len(dev) == 6
    assert len(unseen) == 12
    assert not dev & unseen


def test_the_teacher_writes_instructions(questions):
    questions("prompt", "questions.yaml", "--run-dir", "out", "--set", "prompt.written=2",
              "--set", "prompt.shots=[0]", "--set", "prompt.candidates=8")  # fmt: skip
    written = read_json(Path("out/prompt/written.json"))["instructions"]
    search = read_json(Path("out/prompt/search.json"))
    assert set(written) <= {one["instruction"] for one in search["candidates"]}


def test_a_prompt_is_used_in_chat(classes, questions):
    classes("prompt", "classes.yaml", "--run-dir", "classes")
    said = classes("chat", "teacher", "--prompt-file", "classes/prompt/prompt.json",
                   "--prompt", "the teacher says water").output  # fmt: skip
    assert said.strip().splitlines()[-1] in KINDS
    questions("prompt", "questions.yaml", "--run-dir", "out")
    said = questions("chat", "teacher", "--prompt-file", "out/prompt/prompt.json",
                     "--prompt", "what says light 3")  # fmt: skip
    assert said.exit_code == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("prompt=null", "has no section `prompt`"),
        ("prompt.shots=[0, 60]", "`prompt.shots` asks for 60 demonstrations"),
        ("prompt.template='Sentiment:{kind}'", "`prompt.template` does not hold the question"),
        ("prompt.template='{text} {kid}'", "Did you mean `kind`"),
        ("prompt.labels={lihgt: x}", "Did you mean `light`"),
        ("prompt.labels={light: water}", "gives two classes one word"),
        ("prompt.task=picks", "`labels` are words of classes"),
        ("prompt.shots=[2, 2]", "each once"),
        ("data.label_column=kid", "Did you mean `kind`"),
        ("student.from={num_hidden_layers: 1}", "random weights"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(classes, change, says):
    result = classes("prompt", "classes.yaml", "--run-dir", "out", "--set", change, ok=False)
    assert result.exit_code == 1
    assert says in result.output


def test_a_task_is_one_of_the_evaluation(questions):
    change = ("--set", "prompt.task=picks")
    result = questions("prompt", "questions.yaml", "--run-dir", "out", *change, ok=False)
    assert "`prompt.task: picks` is not in `evaluate.tasks`; it has none" in result.output


def test_the_card_says_how_to_ask_and_publishes_no_row(workshop):
    rows = [{"prompt": f"what says {i}", "completion": "water"} for i in range(40)]
    write_rows("asked.jsonl", rows)
    recipe = yaml.safe_load(Path("recipe.yaml").read_text())
    recipe["data"] = {"train": "asked.jsonl", "held_out": 0.1, "validation": 0.1, "max_length": 48}
    recipe["cache"]["hidden"]["layers"], recipe["train"]["objective"] = [], [{"loss": "forward_kl"}]
    recipe["train"] |= {"max_steps": 1, "arms": []}
    recipe["prompt"] = {"shots": [2], "candidates": 2, "new_tokens": 2, "instructions": ["Say it."]}
    Path("asked.yaml").write_text(yaml.safe_dump(recipe))
    for stage in ("cache build", "build", "train", "prompt", "export"):
        workshop(*stage.split(), "asked.yaml", "--run-dir", "out")
    card = Path("out/artifacts/bf16/README.md").read_text()
    assert "## Prompt" in card
    assert "{text}" in card
    assert not any(row["prompt"] in card for row in rows)
    assert "prompt " in workshop("verify", "out").output


def test_a_trained_student_is_asked_for_by_name(questions):
    change = ("--set", "prompt.model=student")
    result = questions("prompt", "questions.yaml", "--run-dir", "out", *change, ok=False)
    assert "`prompt.model` is the trained student, which is not in out yet" in result.output
