"""Relation terms: how tokens relate by their queries, keys and values, chunk by chunk.

Legend: N tokens counted, A relation heads, R rows of a chunk, D channels of a relation head.

The vectors of all attention heads are joined and split into A relation heads on both sides, so that
students with other heads, fewer key-value heads or another width learn too. Tokens relate to
earlier counted tokens of their own example and to themselves, in encoders to later ones too. Only
A x R x N numbers of one example exist at once; the backward pass recomputes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attar.errors import RecipeError
from distill.objective.losses import LOSSES
from teachers.signals import Attention

CHUNK_NUMBERS = 4 << 20  # at most this many numbers (A x R x N) of one relation exist at once


def relation_heads(wanted: int | None, student: Sequence[int], teacher: Sequence[int]) -> int:
    """Return how many heads both sides are split into; a side is (key-value heads, widths ...).

    Raises `RecipeError` where the number that the recipe wants does not divide all widths.
    """
    if wanted is None:
        return gcd(student[0], teacher[0])
    widths = [*student[1:], *teacher[1:]]
    if any(width % wanted for width in widths):
        most = gcd(*widths)
        raise RecipeError(
            f"{wanted} relation heads do not divide the widths {sorted(set(widths))} of queries, "
            f"keys and values; use a divisor of {most}"
        )
    return wanted


def check_relations(path: str, terms: list[Any], student: Any, teacher: Any) -> None:
    """Raise `RecipeError`, naming the term, where its heads do not fit both models' configs."""
    for i, term in enumerate(terms):
        if LOSSES[term.loss].reads == "relation":
            try:
                relation_heads(term.heads, _sizes(student), _sizes(teacher))
            except RecipeError as error:
                raise RecipeError(f"`{path}[{i}].heads`: {error}.") from None


def _sizes(config: Any) -> tuple[int, int, int]:
    """Return (key-value heads, width of queries, width of keys and values) of a config."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    key_value = getattr(text, "num_key_value_heads", None) or heads
    channels = getattr(text, "head_dim", None) or text.hidden_size // heads
    return key_value, heads * channels, key_value * channels


def relation_values(
    student: tuple[Tensor, Tensor, Tensor],
    teacher: Attention,
    counts: Sequence[int],
    term: Any,
    function: Callable[..., Tensor],
    num_kv_heads: int,
    both_ways: bool = False,
) -> Tensor:
    """Return the term's value at each token (N,): the mean over its relations.

    student: queries, keys and values (N, D) of the tokens. counts: tokens of each example.
    both_ways: tokens relate to every token of their example.
    """
    sides = dict(zip(("query", "key", "value"), student, strict=True))
    theirs = {"query": teacher.queries_NC, "key": teacher.keys_ND, "value": teacher.values_ND}
    heads = relation_heads(
        term.heads,
        (num_kv_heads, *(side.shape[-1] for side in student)),
        (teacher.num_kv_heads, *(side.shape[-1] for side in theirs.values())),
    )
    values = []
    start = 0
    for count in counts:
        part = slice(start, start + count)
        parts = [
            _one_example(
                _split(sides[name][part], heads),
                _split(theirs[name][part], heads),
                function,
                both_ways,
            )
            for name in term.relations
        ]
        values.append(torch.stack(parts).mean(0))
        start += count
    return torch.cat(values)


def _split(vectors_ND: Tensor, heads: int) -> Tensor:
    """Return vectors (N, D) as (A, N, D/A), in float32."""
    return vectors_ND.float().reshape(len(vectors_ND), heads, -1).transpose(0, 1)


def _one_example(
    student: Tensor, teacher: Tensor, function: Callable[..., Tensor], both_ways: bool
) -> Tensor:
    heads, tokens, _ = student.shape
    rows = max(16, CHUNK_NUMBERS // max(1, heads * tokens))
    parts: list[Tensor] = []
    for first in range(0, tokens, rows):
        last = min(first + rows, tokens)
        part = first, last, both_ways
        parts.append(checkpoint(function, student, teacher, *part, use_reentrant=False))
    return torch.cat(parts)
