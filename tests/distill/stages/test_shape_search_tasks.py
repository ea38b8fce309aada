"""`student.target` for encoders: each task has its divergence, and the shape found is built."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from transformers import AutoConfig

from distill.commands.main import main
from students.pruning.architectures import sizes_of
from tests.helpers import classifying, embedding, rewarding
from tests.helpers.masking import fill_workshop as fill_masked
from tests.helpers.masking import masked_recipe

SECTION = {
    "target": {"parameters": "75%", "candidates": 3, "tokens": 300},
    "calibration_tokens": 300,
}


def fill_rewards():
    """Of a teacher with large weights: one that is sure of all pairs does not show what is cut."""
    rewarding.fill_workshop(classifying.tiny_bert(initializer_range=0.2))


TASKS = {
    "sequence-classification": (classifying.fill_workshop, classifying.classification_recipe),
    "masked-lm": (fill_masked, masked_recipe),
    "embedding": (embedding.fill_workshop, embedding.embedding_recipe),
    "reward": (fill_rewards, rewarding.reward_recipe),
}


@pytest.mark.parametrize("heal_steps", [0, 2])
@pytest.mark.parametrize("task", TASKS)
def test_an_encoder_is_searched(task, heal_steps, tmp_path, monkeypatch, whole_stages):
    monkeypatch.chdir(tmp_path)
    fill, recipe_of = TASKS[task]
    torch.manual_seed(0)
    fill()
    recipe = recipe_of()
    heals = {"heal_steps": heal_steps, "finalists": 1} if heal_steps else {}
    target = {**SECTION["target"], **heals}
    recipe["student"] = {**SECTION, "target": target}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    stages = ["adapt-teacher"] if recipe["teacher"].get("adapt") else []
    for stage in [*stages, "build"]:
        result = CliRunner().invoke(main, [stage, "recipe.yaml", "--run-dir", "out"])
        assert result.exit_code == 0, result.output
    pruning = json.loads(Path("out/student/pruning.json").read_text())
    best = pruning["candidates"][0]
    assert pruning["divergence"] == ("similarity error" if task == "embedding" else "KL")
    assert best["sizes"] == vars(sizes_of(AutoConfig.from_pretrained("out/student")))
    assert best["parameters"] <= pruning["limit"]
    assert all(one["divergence"] > 0 for one in pruning["candidates"])
    assert (best["healed"] is not None) == bool(heal_steps)
