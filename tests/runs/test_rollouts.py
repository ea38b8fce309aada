"""Whole runs whose student writes its own text in rounds, and learns from it."""

import json
import random
from pathlib import Path

import pytest
import yaml

SETTINGS = {
    "data": {"train": "rows.jsonl", "held_out": 0.2, "max_length": 40},
    "cache": {"codec": {"name": "final_hidden"}},
    "student": {"from": "teacher", "layers": {"keep": 1}},
    "train": {
        "objective": [{"loss": "reverse_kl"}],
        "source": "online",
        "rollouts": {"new_tokens": 8},
        "lr": 1e-3,
        "batch_size": 4,
        "max_steps": 6,
        "precision": "float32",
        "arms": [],
    },
    "export": {"artifacts": ["bf16"]},
    "evaluate": {
        "tokens": 400, "prefill_tokens": 32, "generate_tokens": 4, "agreement_prompts": 0
    },
}  # fmt: skip


@pytest.fixture
def rows(workshop):
    """A recipe on prompts and answers whose student answers the prompts itself."""
    dice = random.Random(0)
    rows = [
        {
            "prompt": f"the teacher says {dice.choice('abcdefgh')}{number}",
            "answer": f"{dice.choice('light water'.split())} {number % 7}",
        }
        for number in range(60)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {"teacher": {"model": "teacher", "dtype": "float32"}, **SETTINGS}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    return workshop


def result_of(folder, arm="distill"):
    return json.loads(Path(folder, "arms", arm, "result.json").read_text())


def train(rows, folder, *settings):
    options = [word for setting in settings for word in ("--set", setting)]
    for stage in (["cache", "build"], ["build"], ["train"]):
        rows(*stage, "recipe.yaml", "--run-dir", folder, *options)
    return result_of(folder)


def test_a_student_learns_from_its_own_text(rows):
    result = train(rows, "out")
    assert [one["round"] for one in result["rounds"]] == list(range(6))
    assert all(one["answers"] == 4 for one in result["rounds"])
    assert {"reverse_kl", "top1", "teacher_nll", "kept"} <= result["rounds"][0].keys()
