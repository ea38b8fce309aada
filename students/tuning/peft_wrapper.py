"""Wrap a student by a peft config, with one error for models that the config does not fit."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from attar.errors import ModelError


@contextmanager
def silence_peft_warnings() -> Iterator[None]:
    """Ignore two warnings of peft about cases that are handled: a head tied to the embedding
    (merging unties it, see `students/tuning/adapters.py`), and GPT-2's transposed layers.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings")
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set")
        yield


def wrap_with_peft(model: Any, config: Any, seed: int, failure: str) -> nn.Module:
    """Freeze a model and add what a peft config describes, drawn from the seed, in float32.

    failure: the start of the `ModelError` that is raised if the config does not fit the model.
    """
    from peft import get_peft_model

    torch.manual_seed(seed)
    model.requires_grad_(False)
    try:
        with silence_peft_warnings():
            wrapped: nn.Module = get_peft_model(model, config)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{failure}: {reason}") from None
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return wrapped
