"""A run whose training answers a model writes."""

import json
import random
from pathlib import Path

import pytest
import yaml

from attar.files import read_json

WORDS = ["light", "water", "teacher", "student", "nobody"]


def rows(number, seed=0):
    dice = random.Random(seed)
    found = []
    for i in range(number):
        words = dice.choices(WORDS, k=3)
        found.append({"prompt": f"{i}: {' '.join(words)}", "completion": words[0]})
    return found


@pytest.fixture
def asked(workshop):
    """`asked(answers, **sections)`: a workshop whose teacher writes the answers."""

    def make(answers, given=None, **sections):
        given = given or rows(40)
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
        recipe = yaml.safe_load(Path("recipe.yaml").read_text())
        recipe["data"] = {"train": "rows.jsonl", "held_out": 0.2, "validation": 0.2,
                          "max_length": 64, "answers": answers}  # fmt: skip
        recipe["cache"] = {"codec": {"name": "topk", "k": 8}, "shard_tokens": 200}
        recipe["train"]["objective"] = [{"loss": "forward_kl"}]
        recipe |= sections
        Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
        return workshop

    return make


def test_every_stage_runs_on_written_answers(asked):
    commands = asked({"samples": 2, "new_tokens": 12, "keep": {"ended": False}})
    out = commands("run", "recipe.yaml", "--run-dir", "out")
    print(out.output)
    print(Path("out/answers/answers.json").read_text())
    print(Path("out/answers/answers.jsonl").read_text()[:600])
