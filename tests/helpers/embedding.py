"""A folder with a tiny sentence encoder, texts, scored pairs and a recipe that takes seconds."""

from pathlib import Path

import torch
import yaml

from attar.models.pooling import Pooling, write_pooling
from tests.conftest import put_over
from tests.helpers.classifying import sentences, tiny_bert, word_tokenizer, write_rows


def encoder(layers=3, width=32):
    """An encoder of random weights, whose vectors differ."""
    model = tiny_bert(layers, width=width).base_model
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:  # else every block, and every text, would be nearly the same
                parameter.mul_(10)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.eval()


def embedding_recipe(**changes):
    """The recipe's values; sections given are put over its own."""
    recipe = {
        "task": "embedding",
        "data": {"train": "texts.jsonl", "held_out": "held.jsonl", "max_length": 24},
        "teacher": {"model": "teacher", "dtype": "float32"},
        "cache": {"hidden": {"layers": [3]}},
        "student": {"layers": {"keep": 1}},
        "train": {
            "objective": [
                {"loss": "vector_mse"},
                {"loss": "similarity"},
                {"loss": "hidden_mse", "weight": 0.1},
            ],
            "lr": 2e-3, "epochs": 6, "batch_size": 16, "precision": "float32", "keep": "last",
        },
        "export": {"artifacts": ["bf16"]},
        "evaluate": {"batch_size": 16, "pairs": {"source": "pairs.jsonl"}, "bootstrap": 100},
    }  # fmt: skip
    return put_over(recipe, changes)


def write_recipe(**changes):
    """The recipe as recipe.yaml in the current folder."""
    Path("recipe.yaml").write_text(yaml.safe_dump(embedding_recipe(**changes)))


def fill_workshop():
    """A teacher, texts, pairs and recipe.yaml in the current folder."""
    encoder().save_pretrained("teacher")
    word_tokenizer().save_pretrained("teacher")
    write_pooling(Path("teacher"), Pooling("mean", True), 32, 24)
    for name, number, seed in (("texts", 200, 0), ("held", 40, 1)):
        write_rows(f"{name}.jsonl", [{"text": text} for text, _ in sentences(number, seed)])
    first, second = sentences(40, 2), sentences(40, 3)
    rows = [
        {"sentence1": a, "sentence2": b, "score": len(set(a.split()) & set(b.split()))}
        for (a, _), (b, _) in zip(first, second, strict=True)
    ]
    write_rows("pairs.jsonl", rows)
    write_recipe()
