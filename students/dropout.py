"""Set the dropout of a model for training only; its saved config keeps the original rates."""

from __future__ import annotations

from torch import nn

RATES = ("attention_dropout", "dropout", "activation_dropout")  # attributes that are numbers


def set_dropout(model: nn.Module, rate: float) -> None:
    """Set every dropout rate of a model to `rate`; adapters keep their own."""
    for name, module in model.named_modules():
        if "lora_" in name:
            continue
        if isinstance(module, nn.Dropout):
            module.p = rate
        for attribute in RATES:
            if type(getattr(module, attribute, None)) in (int, float):  # not bool
                setattr(module, attribute, rate)
