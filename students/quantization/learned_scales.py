"""Rounded weights with trainable scales, to recover by distillation what rounding lost.

Codes stay as compensated rounding chose them. The scale of every block and the norms, which no
format quantises, are trained on the teacher's signals like any student. (DWQ of MLX also trains
scales and keeps codes.)

Legend: O outputs and I inputs of a linear layer, K blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from students.quantization.formats import Scales
from students.quantization.gptq import RoundedWeight


class RoundedLinear(nn.Module):
    """A linear layer with rounded weights; trains `factor_K`, one per block, which starts at 1."""

    codes_OI: Tensor
    scale_K: Tensor
    shift_K: Tensor | None

    def __init__(self, rounded: RoundedWeight, bias_O: nn.Parameter | None) -> None:
        super().__init__()
        self.number_format, self.bias = rounded.number_format, bias_O
        self.out_features, self.in_features = rounded.codes_OI.shape
        self.factor_K = nn.Parameter(torch.ones_like(rounded.scales.scale_K))
        self.register_buffer("codes_OI", rounded.codes_OI, persistent=False)
        self.register_buffer("scale_K", rounded.scales.scale_K, persistent=False)
        self.register_buffer("shift_K", rounded.scales.shift_K, persistent=False)

    def scales(self) -> Scales:
        """Return the current scales, not yet rounded for storage; shifts scale with them."""
        shift_K = None if self.shift_K is None else self.shift_K * self.factor_K
        return Scales(self.scale_K * self.factor_K, shift_K)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., I) to (..., O)."""
        weight_OI = self.number_format.values(
            self.codes_OI, *self.number_format.per_weight(self.scales(), self.codes_OI)
        )
        return nn.functional.linear(x, weight_OI, self.bias)


def make_scales_trainable(model: Any, rounded: Mapping[str, RoundedWeight]) -> list[nn.Parameter]:
    """Replace the layers that `round_model` rounded by trainable ones; return what trains.

    Scales and every other parameter of one dimension (norms, biases) train; all else is frozen.
    """
    for name, found in rounded.items():
        bias_O = model.get_submodule(name).bias
        model.set_submodule(name, RoundedLinear(found, bias_O))
    learning = []
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.ndim == 1)
        if parameter.ndim == 1:
            learning.append(parameter)
    return learning


@torch.no_grad()
def store_learned_scales(model: Any) -> dict[str, RoundedWeight]:
    """Put plain linear layers back, in place, with trained scales rounded as they are stored.

    Returns the rounded weights by name.
    """
    settled = {}
    learned = [(n, m) for n, m in model.named_modules() if isinstance(m, RoundedLinear)]
    for name, module in learned:
        found = RoundedWeight(
            module.number_format, module.codes_OI, module.number_format.store(module.scales())
        )
        plain = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(found.weight())
        plain.register_parameter("bias", module.bias)
        model.set_submodule(name, plain)
        settled[name] = found
    return settled
