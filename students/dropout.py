"""Dropout of a model that learns, set for the training alone: its config keeps what it says."""

from __future__ import annotations

from torch import nn

RATES = ("attention_dropout", "dropout", "activation_dropout")  # numbers on blocks' modules


def set_dropout(model: nn.Module, rate: float) -> None:
    """Let every dropout of a model be `rate` while it learns; adapters keep their own."""
    for name, module in model.named_modules():
        if "lora_" in name:
            continue
        if isinstance(module, nn.Dropout):
            module.p = rate
        for attribute in RATES:
            if type(getattr(module, attribute, None)) in (int, float):  # and no bool
                setattr(module, attribute, rate)
