"""What tests of written answers share: rows with prompts, and a recipe that asks for them."""

import json
import random
from pathlib import Path

import yaml

WORDS = ["light", "water", "teacher", "student", "nobody"]
ANSWERS = {"samples": 3, "new_tokens": 12, "temperature": 1.0}


def rows(number=40, seed=0):
    """Prompts of a number and three words, of which the first is the answer."""
    dice = random.Random(seed)
    found = []
    for i in range(number):
        words = dice.choices(WORDS, k=3)
        found.append({"prompt": f"{i}: {' '.join(words)}", "completion": words[0]})
    return found


def write_recipe(answers, given=None, **sections):
    """Change the recipe of the current folder into one whose training answers a model writes."""
    lines = (json.dumps(row) + "\n" for row in given or rows())
    Path("rows.jsonl").write_text("".join(lines))
    recipe = yaml.safe_load(Path("recipe.yaml").read_text())
    recipe["data"] = {"train": "rows.jsonl", "held_out": 0.2, "validation": 0.2,
                      "max_length": 64, "answers": {**ANSWERS, **answers}}  # fmt: skip
    recipe["cache"] = {"codec": {"name": "topk", "k": 8}, "shard_tokens": 100}
    recipe["train"]["objective"] = [{"loss": "forward_kl"}]
    recipe |= sections
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
