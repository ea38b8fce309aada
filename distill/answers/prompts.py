"""The prompts of training examples, each once, with the answers that the data give to it.

Legend: T tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distill.data.examples import Example, Examples
from distill.data.held_out_prompts import last_prompt, prompt_digest, prompt_text
from distill.data.tokenize import IGNORE


@dataclass
class Prompt:
    """A prompt: ids (T,).

    targets: texts of the data's own answers to it, those that are whole. document, text: of the
    first row with this prompt, as its example has them. held_out: whether it also stands in the
    held-out part. asked: what the writer reads (T,), where that is not the prompt alone.
    """

    ids: np.ndarray
    document: int
    text: str
    held_out: bool
    targets: list[str] = field(default_factory=list)
    asked: np.ndarray | None = None


def prompts_of(
    examples: Examples, tokenizer: Any, held_out: frozenset[str], max_length: int
) -> list[Prompt]:
    """The prompts of examples, each once, in the order in which they first stand there.

    held_out: `prompt_digest` of the prompts of the held-out part. An answer that fills `max_length`
    may have been cut, so it is no target.
    """
    found: dict[bytes, Prompt] = {}
    for example, document, text in zip(
        examples, examples.documents.tolist(), examples.row_texts, strict=True
    ):
        ids = last_prompt(example)
        if ids.tobytes() not in found:
            also = prompt_digest(prompt_text(tokenizer, ids)) in held_out
            found[ids.tobytes()] = Prompt(ids, document, text, also)
        if len(example.input_ids) < max_length:
            found[ids.tobytes()].targets.append(answer_text(tokenizer, _answer_of(example, ids)))
    return list(found.values())


def _answer_of(example: Example, prompt: np.ndarray) -> list[int]:
    labels = example.labels[len(prompt) - 1 :]
    return [int(i) for i in labels if i != IGNORE]


def answer_text(tokenizer: Any, ids: Iterable[int]) -> str:
    """The text of an answer's ids, without what ends it."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))
