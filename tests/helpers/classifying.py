"""A folder with a tiny teacher to classify, labelled texts and a recipe that takes seconds."""

import json
import random
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from tests.conftest import put_over

GOOD = ["fine", "lovely", "bright", "warm", "kind"]
BAD = ["dull", "awful", "cold", "broken", "grim"]
PLAIN = ["the", "film", "was", "and", "story", "a", "with", "music", "very", "on", "water", "light"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *PLAIN, *GOOD, *BAD]


def word_tokenizer(pairs=True):
    """One id a word; [CLS] text [SEP], and a second text with token types 1."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = ["input_ids", "attention_mask"] + (["token_type_ids"] if pairs else [])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", model_input_names=names,
    )  # fmt: skip


def spread(model, head):
    """The model with its head scaled up: a uniform teacher would hide mistakes."""
    with torch.no_grad():
        getattr(model, head).weight.mul_(20)
    return model.eval()


def tiny_bert(layers=3, *, classes=2, width=32, **more):
    """A classifier of random weights that reads both ways."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=2 * width, max_position_embeddings=40, num_labels=classes,
        pad_token_id=0, **more,
    )  # fmt: skip
    return spread(BertForSequenceClassification(config), "classifier")


def tiny_llama(layers=3, *, classes=2):
    """A classifier of random weights that reads forwards."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=40,
        num_labels=classes, pad_token_id=0,
    )  # fmt: skip
    return spread(LlamaForSequenceClassification(config), "score")


def sentences(number, seed=0):
    """(text, whether it is good): one telling word among plain ones."""
    dice = random.Random(seed)
    rows = []
    for _ in range(number):
        good = dice.random() < 0.5
        words = dice.choices(PLAIN, k=dice.randint(3, 12))
        words.insert(dice.randint(0, len(words)), dice.choice(GOOD if good else BAD))
        rows.append((" ".join(words), good))
    return rows


def write_rows(path, rows):
    """Rows as lines of JSON."""
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def classification_recipe(**changes):
    """The recipe's values; sections given are put over its own."""
    loop = {"batch_size": 16, "precision": "float32", "keep": "last"}
    recipe = {
        "task": "sequence-classification",
        "data": {"train": "train.jsonl", "held_out": "test.jsonl", "max_length": 24},
        "teacher": {
            "model": "teacher", "dtype": "float32",
            "adapt": {"lr": 3e-3, "epochs": 3, "schedule": "constant", **loop},
        },
        "cache": {"hidden": {"layers": [1, 3]}},
        "student": {"from": "teacher", "layers": {"keep": 1}},
        "train": {
            "objective": [
                {"loss": "forward_kl", "temperature": 2.0},
                {"loss": "cross_entropy", "weight": 0.5},
                {"loss": "hidden_mse", "weight": 0.1},
            ],
            "lr": 2e-3, "epochs": 2, **loop,
        },
        "export": {"artifacts": ["bf16"]},
        "evaluate": {"batch_size": 16},
    }  # fmt: skip
    return put_over(recipe, changes)


def write_recipe(**changes):
    """The recipe as recipe.yaml in the current folder."""
    Path("recipe.yaml").write_text(yaml.safe_dump(classification_recipe(**changes)))


def fill_workshop(model=None):
    """A teacher, labelled texts and recipe.yaml in the current folder."""
    (model or tiny_bert()).base_model.save_pretrained("teacher")
    word_tokenizer().save_pretrained("teacher")
    for name, number, seed in (("train", 320, 0), ("test", 96, 1)):
        rows = [{"text": t, "label": "good" if g else "bad"} for t, g in sentences(number, seed)]
        write_rows(f"{name}.jsonl", rows)
    write_recipe()
