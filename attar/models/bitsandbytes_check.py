"""Whether bitsandbytes dequantises its 4-bit weights correctly on this machine.

Seen in bitsandbytes 0.50.2 on CPUs with AVX-512: where the length of a row is not a multiple of the
block of 64, so that a block reaches into the next row, `dequantize_4bit` gives wrong weights, with
errors as large as the block's largest weight. The stored weights are correct, and a GPU reads them
correctly.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from attar.device import default_device
from attar.errors import ModelError
from attar.models.quantizable import body_matrices

WEIGHTS_PER_BLOCK = 64


@cache
def dequantizes_partial_blocks() -> bool:
    """Whether blocks that reach into the next row are dequantised correctly on this CPU."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.linspace(-1, 1, 8 * 96).sin()
    found = [
        dequantize_4bit(*quantize_4bit(weight.view(shape), quant_type="nf4")).flatten()
        for shape in ((8, 96), (2, 384))  # the second has whole blocks
    ]
    return torch.equal(*found)


def check_4bit_widths(
    model: Any, what: str, instead: str, narrower: Callable[[int], str] = lambda _: ""
) -> None:
    """Raise `ModelError` where a model would be read wrongly in 4 bits on this CPU.

    model: the same without quantisation, on the meta device. what: the start of the sentence.
    instead: what to use, as a list of choices before "or a GPU". narrower: a further choice, for
    the length of the row that does not fit.
    """
    if default_device().type != "cpu":
        return
    for name, weight in body_matrices(model).items():
        layer = model.get_submodule(name.rpartition(".")[0])
        inputs = weight.shape[1] if isinstance(layer, nn.Linear) else weight.shape[0]
        if weight.ndim == 2 and inputs % WEIGHTS_PER_BLOCK and not dequantizes_partial_blocks():
            raise ModelError(
                f"{what}: bitsandbytes reads 4-bit weights wrongly on this CPU where rows are not "
                f"a multiple of {WEIGHTS_PER_BLOCK}, and `{name}` has rows of {inputs}; use "
                f"{instead}, {narrower(inputs)}or a GPU."
            )


def check_4bit_rows(model: nn.Module, source: str) -> None:
    """Raise `ModelError` for a 4-bit model on a CPU that would compute with wrong weights."""
    for name, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is None or module.weight.device.type != "cpu" or len(state.shape) < 2:
            continue
        inputs = int(state.shape[1])
        if inputs % WEIGHTS_PER_BLOCK and not dequantizes_partial_blocks():
            raise ModelError(
                "bitsandbytes reads 4-bit weights wrongly on this CPU where rows are not a "
                f"multiple of {WEIGHTS_PER_BLOCK}: `{name}` of {source} has rows of {inputs}; use "
                "int8, a gguf artifact, or a GPU."
            )
