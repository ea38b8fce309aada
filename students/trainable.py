"""Which parameters learn: `all`, `head`, `last:N`, `re:PATTERN`, or a list (their union)."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator
from torch import nn

from attar.anatomy import blocks_of, num_layers, unwrap
from attar.errors import RecipeError


def _known_words(parts: str | list[str]) -> str | list[str]:
    for part in [parts] if isinstance(parts, str) else parts:
        if not re.fullmatch(r"all|head|last:[1-9]\d*|re:.+", part):
            raise ValueError(f"`{part}` is not known; write `all`, `head`, `last:N`, `re:PATTERN`")
    return parts


Trainable = Annotated[str | list[str], AfterValidator(_known_words)]


def choose_trainable(model: Any, parts: Trainable) -> int:
    """Let only the named parts learn; returns the number of trainable parameters.

    Raises `RecipeError` for a word that is not a part, or that matches nothing.
    """
    chosen: set[int] = set()
    for part in [parts] if isinstance(parts, str) else parts:
        found = _parameters_of(model, part)
        if not found:
            raise RecipeError(f"`trainable: {part}` matches no parameter of the model.")
        chosen |= {id(parameter) for parameter in found}
    total = 0
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
        total += parameter.numel() if parameter.requires_grad else 0
    return total


def _parameters_of(model: Any, part: str) -> list[nn.Parameter]:
    if part == "all":
        return list(model.parameters())
    if part == "head":  # the embedding too where they are tied
        return list(unwrap(model).get_output_embeddings().parameters())
    if match := re.fullmatch(r"last:(\d+)", part):
        count, depth = int(match[1]), num_layers(model)
        if not 1 <= count <= depth:
            raise RecipeError(f"`trainable: {part}`: the model has {depth} blocks.")
        return [p for block in list(blocks_of(model))[-count:] for p in block.parameters()]
    if part.startswith("re:"):
        try:
            pattern = re.compile(part[3:])
        except re.error as error:
            raise RecipeError(f"`trainable: {part}` is not a regular expression: {error}") from None
        return [p for name, p in model.named_parameters() if pattern.search(name)]
    raise RecipeError(f"`trainable: {part}` is not known.")
