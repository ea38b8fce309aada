"""A folder with a tiny language model, labelled rows, and the comparison of ways to do them."""

import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from distill.comparison.cells import Comparison
from distill.run.load import check_recipe
from tests.conftest import put_over
from tests.helpers.classifying import BAD, GOOD, WORDS, sentences, word_tokenizer, write_rows

NAMES = {True: "good", False: "bad"}


def tiny_decoder(*, tied=False, seed=0):
    """A language model of random weights over the words of the labelled sentences."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0,
        eos_token_id=3, bos_token_id=2, tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def fill_folder(folder):
    """A model, labelled rows, rows of another source with other columns, and a general text."""
    folder = Path(folder)
    tiny_decoder().save_pretrained(folder / "model")
    word_tokenizer(pairs=False).save_pretrained(folder / "model")
    rows = [{"text": text, "label": NAMES[good]} for text, good in sentences(80)]
    write_rows(folder / "train.jsonl", rows)
    other = [{"review": text, "class": NAMES[good]} for text, good in sentences(30, seed=5)]
    write_rows(folder / "other.jsonl", other)
    texts = [" ".join(text for text, _ in sentences(4, seed=i)) for i in range(20)]
    write_rows(folder / "general.jsonl", [{"text": text} for text in texts])
    questions = [
        {"query": f"the film was {word}", "choices": ["good", "bad"], "gold": i % 2}
        for i, word in enumerate([*GOOD, *BAD])
    ]
    write_rows(folder / "questions.jsonl", questions)


def values(folder, **changes):
    """A recipe of classes in the folder; sections given are put over its own."""
    folder = Path(folder)
    recipe = {
        "task": "sequence-classification",
        "data": {"train": str(folder / "train.jsonl"), "max_length": 24},
        "teacher": {"model": str(folder / "model"), "dtype": "float32", "adapt": {"lr": 1e-3}},
        "student": {"from": str(folder / "model")},
        "train": {"objective": [{"loss": "cross_entropy"}], "precision": "float32"},
        "compare": {"labels": [8], "test": 16, "validation": 8},
    }
    return put_over(recipe, changes)


def open_comparison(folder, **changes):
    """The comparison of that recipe, below the folder."""
    return Comparison(check_recipe(values(folder, **changes)), Path(folder) / "compared")


def read_lines(path):
    """Rows of a file of JSON lines."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]
