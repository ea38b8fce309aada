"""A folder with a tiny model to score texts, pairs of answers and a recipe that takes seconds."""

import random
from pathlib import Path

import yaml

from tests.conftest import put_over
from tests.helpers.classifying import BAD, GOOD, PLAIN, tiny_bert, word_tokenizer, write_rows


def pairs(number, seed=0, each=1, margins=False):
    """Rows of `each` pairs of answers to every prompt; the better one has a good word."""
    dice = random.Random(seed)
    rows = []
    for i in range(number):
        prompt = " ".join(["the film", *dice.choices(PLAIN, k=3)]) + f" {i} "
        for _ in range(each):
            begins = dice.choices(PLAIN, k=dice.randint(1, 6))
            row = {
                "prompt": prompt,
                "chosen": " ".join([*begins, dice.choice(GOOD)]),
                "rejected": " ".join(
                    [*dice.choices(PLAIN, k=dice.randint(1, 6)), dice.choice(BAD)]
                ),
            }
            rows.append({**row, "margin": dice.randint(0, 2) / 2} if margins else row)
    return rows


def reward_recipe(**changes):
    """The recipe's values; sections given are put over its own."""
    loop = {"batch_size": 8, "precision": "float32", "keep": "last"}
    recipe = {
        "task": "reward",
        "data": {"train": "train.jsonl", "held_out": "test.jsonl", "max_length": 32},
        "teacher": {
            "model": "teacher", "dtype": "float32",
            "adapt": {"lr": 3e-3, "epochs": 3, "schedule": "constant", **loop},
        },
        "cache": {"hidden": {"layers": [1, 3]}},
        "student": {"from": "teacher", "layers": {"keep": 1}},
        "train": {
            "objective": [
                {"loss": "reward_kl", "temperature": 2.0},
                {"loss": "bradley_terry", "weight": 0.5},
                {"loss": "hidden_mse", "weight": 0.1, "on": "all"},
            ],
            "lr": 2e-3, "epochs": 2, **loop,
        },
        "export": {"artifacts": ["bf16"]},
        "evaluate": {"batch_size": 16},
    }  # fmt: skip
    return put_over(recipe, changes)


def write_recipe(**changes):
    """The recipe as recipe.yaml in the current folder."""
    Path("recipe.yaml").write_text(yaml.safe_dump(reward_recipe(**changes)))


def fill_workshop(model=None, tokenizer=None, **more):
    """A teacher without a head, pairs and recipe.yaml in the current folder."""
    (model or tiny_bert()).base_model.save_pretrained("teacher")
    (tokenizer or word_tokenizer()).save_pretrained("teacher")
    for name, number, seed in (("train", 160, 0), ("test", 48, 1)):
        write_rows(f"{name}.jsonl", pairs(number, seed, **more))
    write_recipe()
