"""Wrong inputs as newcomers give them, with what each prints: the table of `mistakes.yaml`.

`python -m tests.helpers.mistakes` prints it as it is now.
"""

import contextlib
import gzip
import json
import os
import shlex
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from click.testing import CliRunner
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from distill.commands.main import main

TABLE = Path(__file__).with_name("mistakes.yaml")
RECIPE = {
    "data": {"train": "text.jsonl", "held_out": 0.2, "max_length": 32},
    "teacher": {"model": "teacher"},
    "student": {"from": "teacher", "layers": {"keep": 1}},
    "export": {"artifacts": ["bf16"]},
}
CLASSES = {**RECIPE, "task": "sequence-classification"}


def rows():
    """The table: what is wrong, files written first, a command, its exit and its sentence."""
    return yaml.safe_load(TABLE.read_text(encoding="utf8"))


def tokenizer_of(words):
    """One token a word."""
    ids = {word: i for i, word in enumerate(["<unk>", "<eos>", "<pad>", "<mask>", *words])}
    raw = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        eos_token="<eos>",
        pad_token="<pad>",
        mask_token="<mask>",
    )


def write_bench(folder):
    """A recipe that is right, with its models and data, beside which a row makes its mistake."""
    torch.manual_seed(0)
    words = ["light", "falls", "on", "water", "many", "times", "and", "rests"]
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 12}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
    decoder = LlamaForCausalLM(LlamaConfig(**sizes, **heads, eos_token_id=1, bos_token_id=None))
    del heads["num_key_value_heads"]
    encoder = BertForMaskedLM(BertConfig(**sizes, **heads, pad_token_id=2))
    for name, model, order in (
        ("teacher", decoder, words),
        ("other", decoder, words[::-1]),
        ("encoder", encoder, words),
    ):
        model.save_pretrained(folder / name)
        tokenizer_of(order).save_pretrained(folder / name)
    decoder.save_pretrained(folder / "no_tokenizer")
    for name in ("empty_folder", "adapter", "no_weights"):
        (folder / name).mkdir()
    (folder / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    for file in (folder / "teacher").iterdir():
        if file.suffix == ".json":
            (folder / "no_weights" / file.name).write_bytes(file.read_bytes())
    texts = [" ".join(words[i % 8 :] + words) + f" {i}" for i in range(20)]
    write_rows(folder / "text.jsonl", [{"text": text} for text in texts])
    labelled = [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(texts)]
    write_rows(folder / "labelled.jsonl", labelled)
    (folder / "array.json").write_text(json.dumps(labelled))
    with gzip.open(folder / "cut.jsonl.gz", "wb") as file:
        file.write((folder / "text.jsonl").read_bytes())
    whole = (folder / "cut.jsonl.gz").read_bytes()
    (folder / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (folder / "classes.yaml").write_text(
        yaml.safe_dump({**CLASSES, "data": {**RECIPE["data"], "train": "labelled.jsonl"}})
    )


def write_rows(file, found):
    """Rows as JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in found))


def outcome(row):
    """What a row's command prints in the current folder: (exit status, output, exception)."""
    for name, text in row.get("files", {}).items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf8")
    result = CliRunner().invoke(main, shlex.split(row["command"]))
    for name in row.get("files", {}):
        Path(name).unlink()  # "did you mean" of another row would find it
    bug = None if isinstance(result.exception, SystemExit) else result.exception
    return result.exit_code, result.output.strip(), bug


def report():
    """Print every row with what it prints now."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_bench(Path(folder))
        for number, row in enumerate(rows(), start=1):
            status, output, bug = outcome(row)
            print(f"{number:3} {row['wrong']}\n    $ distill {row['command']}")
            print(f"    exit {status}: {bug!r}" if bug else f"    exit {status}: {output}")
            sys.stdout.flush()


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    report()
