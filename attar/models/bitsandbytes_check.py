"""Whether bitsandbytes reads its 4-bit weights right here.

Seen in bitsandbytes 0.50.2 on CPUs with AVX-512: where a row is no whole number of blocks of 64, so
that a block reaches into the next row, `dequantize_4bit` gives wrong weights, by up to the largest
of a block. What is stored is right, and right is what a GPU reads.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from attar.errors import ModelError

BLOCK = 64


@cache
def dequantizes_partial_blocks() -> bool:
    """Whether blocks that reach into the next row are read right on this CPU."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.linspace(-1, 1, 8 * 96).sin()
    found = [
        dequantize_4bit(*quantize_4bit(weight.view(shape), quant_type="nf4")).flatten()
        for shape in ((8, 96), (2, 384))  # the second has whole blocks
    ]
    return torch.equal(*found)


def check_rows(model: nn.Module, source: str) -> None:
    """Raise `ModelError` for a 4-bit model on a CPU that would compute with wrong weights."""
    for name, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is None or module.weight.device.type != "cpu" or len(state.shape) < 2:
            continue
        inputs = int(state.shape[1])
        if inputs % BLOCK and not dequantizes_partial_blocks():
            raise ModelError(
                f"bitsandbytes reads 4-bit weights wrongly on this CPU where rows are no multiple "
                f"of {BLOCK}: `{name}` of {source} has rows of {inputs}; use int8, a gguf "
                "artifact, or a GPU."
            )
