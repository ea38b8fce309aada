"""Which linear maps of a student a method acts on: names, checked against what the student has."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from attar.errors import RecipeError, nearest

EVERY_LINEAR = "all-linear"


def adaptable_linears(model: Any) -> dict[str, nn.Module]:
    """Every linear map of a model by its full name, the head among them."""
    from transformers.pytorch_utils import Conv1D

    kinds = (nn.Linear, Conv1D)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def target_linears(model: Any, targets: str | list[str]) -> dict[str, nn.Module]:
    """The linear maps that `targets` means: all but the head, a regular expression, or names.

    A name fits the end of a full one: `q_proj`, `mlp.down_proj`.
    Raises `RecipeError` for a name or an expression that fits none, listing what there is.
    """
    maps = adaptable_linears(model)
    if targets == EVERY_LINEAR:
        head = model.get_output_embeddings()
        return {name: module for name, module in maps.items() if module is not head}
    chosen: dict[str, nn.Module] = {}
    for target in [targets] if isinstance(targets, str) else targets:
        found = {name: m for name, m in maps.items() if _matches(name, target, targets)}
        if not found:
            ends = sorted({name.rsplit(".", 1)[-1] for name in maps})
            raise RecipeError(
                f"`specialize.targets`: `{target}` fits no linear map of the student; it has "
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
                f"`specialize.targets: {targets}` is no regular expression: {error}; write "
                f"`{EVERY_LINEAR}`, names of linear maps, or one expression for whole names."
            ) from None
    return name == target or name.endswith(f".{target}")


@contextmanager
def silence_peft_warnings() -> Iterator[None]:
    """Silence where peft warns of what is taken care of: a head that is tied to the embedding
    (merging unties it first, `students/tuning/adapters.py`), and GPT-2's maps, which lie transposed.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings")
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set")
        yield


def trainable_to_float32(model: nn.Module) -> nn.Module:
    """The same model, whatever learns in it made float32."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model
