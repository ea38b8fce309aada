"""The linear layers that a tuning method acts on, chosen by name and checked on the student."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from attar.errors import RecipeError, nearest

EVERY_LINEAR = "all-linear"


def adaptable_linears(model: Any) -> dict[str, nn.Module]:
    """Return every linear layer of a model (`nn.Linear` or `Conv1D`) by name, with the head."""
    from transformers.pytorch_utils import Conv1D

    kinds = (nn.Linear, Conv1D)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def target_linears(model: Any, targets: str | list[str]) -> dict[str, nn.Module]:
    """Return the linear layers that `targets` chooses: all but the head, a pattern, or names.

    A name matches the end of a full name: `q_proj`, `mlp.down_proj`. Raises `RecipeError` for a
    name or pattern that matches none, and lists the names that exist.
    """
    linears = adaptable_linears(model)
    if targets == EVERY_LINEAR:
        head = model.get_output_embeddings()
        return {name: module for name, module in linears.items() if module is not head}
    chosen: dict[str, nn.Module] = {}
    for target in [targets] if isinstance(targets, str) else targets:
        found = {name: m for name, m in linears.items() if _matches(name, target, targets)}
        if not found:
            ends = sorted({name.rsplit(".", 1)[-1] for name in linears})
            raise RecipeError(
                f"`specialize.targets`: `{target}` fits no linear layer of the student; it has "
                f"{', '.join(ends)}.{nearest(target, ends)}"
            )
        chosen |= found
    return chosen


def _matches(name: str, target: str, targets: str | list[str]) -> bool:
    if isinstance(targets, str):
        try:
            return re.fullmatch(targets, name) is not None
        except re.error as error:
            raise RecipeError(
                f"`specialize.targets: {targets}` is not a regular expression: {error}; write "
                f"`{EVERY_LINEAR}`, names of linear layers, or one expression for whole names."
            ) from None
    return name == target or name.endswith(f".{target}")
