"""Tiny masked language models of several families, a tokenizer with a mask, a recipe of seconds."""

from pathlib import Path

import torch
import yaml
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from tests.conftest import put_over
from tests.helpers.classifying import WORDS, sentences, word_tokenizer, write_rows

MASK = len(WORDS)
V = MASK + 1
SIZES = {
    "vocab_size": V, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 40, "pad_token_id": 0,
}  # fmt: skip
SPECIAL = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
DISTIL = {"dim": 32, "hidden_dim": 64, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 40}
FAMILIES = {
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZES)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SIZES)),
    "distilbert": lambda: DistilBertForMaskedLM(DistilBertConfig(vocab_size=V, **DISTIL)),
    "modernbert": lambda: ModernBertForMaskedLM(ModernBertConfig(**SIZES, **SPECIAL)),
}


def tiny(family="bert", seed=0):
    """A masked language model of random weights, far from uniform, without dropout."""
    torch.manual_seed(seed)
    model = FAMILIES[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.eval()


def tokenizer():
    """One id a word, and a mask."""
    made = word_tokenizer(pairs=False)
    made.add_special_tokens({"mask_token": "[MASK]"})
    assert made.mask_token_id == MASK
    return made


def masked_recipe(**changes):
    """The recipe's values; sections given are put over its own."""
    recipe = {
        "task": "masked-lm",
        "data": {
            "train": "texts.jsonl", "held_out": "held.jsonl", "max_length": 24,
            "masking": {"copies": 2},
        },
        "teacher": {"model": "teacher", "dtype": "float32"},
        "cache": {"codec": {"name": "topk", "k": 12}, "hidden": {"layers": [3]}},
        "student": {"layers": {"keep": 1}},
        "train": {
            "objective": [
                {"loss": "forward_kl"},
                {"loss": "cross_entropy", "weight": 0.1},
                {"loss": "hidden_cosine", "weight": 0.1},
            ],
            "lr": 3e-3, "epochs": 3, "batch_size": 16, "precision": "float32", "keep": "last",
        },
        "export": {"artifacts": ["bf16"]},
        "evaluate": {"batch_size": 16, "bootstrap": 100},
    }  # fmt: skip
    return put_over(recipe, changes)


def write_recipe(**changes):
    """The recipe as recipe.yaml in the current folder."""
    Path("recipe.yaml").write_text(yaml.safe_dump(masked_recipe(**changes)))


def fill_workshop():
    """A teacher, texts and recipe.yaml in the current folder."""
    tiny().save_pretrained("teacher")
    tokenizer().save_pretrained("teacher")
    for name, number, seed in (("texts", 200, 0), ("held", 40, 1)):
        write_rows(f"{name}.jsonl", [{"text": text} for text, _ in sentences(number, seed)])
    write_recipe()
