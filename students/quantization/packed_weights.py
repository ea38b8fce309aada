"""Pack rounded weights as bitsandbytes checkpoints and as GGUF blocks, and dequantise them.

Legend: O outputs and I inputs of a linear layer, K blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attar.errors import ModelError
from attar.models.loading import Quantization, load_causal_lm
from students.quantization.gptq import RoundedWeight

FLOAT4_CODES = (
    11,
    10,
    13,
    12,
    15,
    14,
    9,
    0,
    1,
    6,
    7,
    4,
    5,
    2,
    3,
)  # bitsandbytes' codes of the levels, ascending
COMPUTE_DTYPE = torch.bfloat16  # of the weights that are not quantised


def quantized_model(
    source: Path, rounded: Mapping[str, RoundedWeight], *, trust_remote_code: bool = False
) -> nn.Module:
    """Return the model of a folder, quantised by bitsandbytes, with the given rounded weights.

    rounded: every linear layer but the head by name, all in one of the formats nf4, fp4, int8; the
    other weights become bfloat16. After `save_pretrained`, `from_pretrained` alone loads it. Save
    it before any forward: on some CPUs the first forward rearranges 4-bit weights in place. Raises
    `ModelError` where bitsandbytes quantises other layers than were rounded.
    """
    formats = {found.number_format.name for found in rounded.values()}
    assert len(formats) == 1, formats
    (kind,) = formats
    quantization: Any = kind
    model: Any = load_causal_lm(
        str(source),
        dtype=COMPUTE_DTYPE,
        quantization=quantization,
        trust_remote_code=trust_remote_code,
    )
    left = dict(quantized_linears(model))
    for name, found in rounded.items():
        if name not in left:
            raise ModelError(
                f"bitsandbytes leaves `{name}` of {type(model).__name__} unquantised, so it cannot "
                "take rounded weights; export it in bfloat16."
            )
        put = _set_int8 if kind == "int8" else _set_4bit
        put(left.pop(name), found)
    if left:
        raise ModelError(
            f"bitsandbytes quantises `{next(iter(left))}` of {type(model).__name__}, which was not "
            "rounded; export `nf4` or `int8` of it."
        )
    return model  # type: ignore[no-any-return]


def dequantized_model(
    source: Path, quantization: Quantization, *, trust_remote_code: bool = False
) -> nn.Module:
    """Return the float32 model of a folder with linear layers dequantised from a quantised base.

    The base is the one that adapters are trained on, quantised from bfloat16. It is loaded here and
    read before any forward, which rearranges 4-bit weights in place on some CPUs.
    """
    model = load_causal_lm(str(source), dtype=torch.float32, trust_remote_code=trust_remote_code)
    if quantization == "none":
        return model
    base = load_causal_lm(
        str(source),
        dtype=COMPUTE_DTYPE,
        quantization=quantization,
        trust_remote_code=trust_remote_code,
    )
    with torch.no_grad():
        for name, module in quantized_linears(base).items():
            weight: Any = model.get_submodule(name).weight
            weight.copy_(dequantized_weight(module))
    return model


def quantized_linears(model: Any) -> dict[str, Any]:
    """Return the linear layers of a model that bitsandbytes quantised, by name."""
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    kinds = (Linear4bit, Linear8bitLt)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def dequantized_weight(module: Any) -> Tensor:
    """Return the dequantised weight (O, I) of a bitsandbytes layer; call it before any forward."""
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant

    weight = module.weight
    if hasattr(weight, "quant_state"):
        found: Tensor = dequantize_4bit(weight.data, weight.quant_state)
        return found
    scale_O = weight.SCB if weight.SCB is not None else module.state.SCB
    whole: Tensor = int8_vectorwise_dequant(weight.data, scale_O)
    return whole


def _set_4bit(module: Any, found: RoundedWeight) -> None:
    """Set 4-bit weights: two codes a byte, the first in the high half; double-quantised scales."""
    from bitsandbytes.functional import QuantState, get_4bit_type
    from bitsandbytes.nn.modules import Params4bit

    number_format, parts, device = found.number_format, found.scales.parts, module.weight.device
    codes = found.codes_OI.flatten()
    if number_format.name == "fp4":
        codes = torch.tensor(FLOAT4_CODES, dtype=torch.uint8, device=codes.device)[codes.int()]
    if len(codes) % 2:
        codes = nn.functional.pad(codes, (0, 1))
    packed = ((codes[::2] << 4) | codes[1::2])[:, None]
    state = QuantState(
        absmax=parts["absmax"].to(device),
        shape=found.codes_OI.shape,
        code=get_4bit_type(number_format.name, device=device),
        blocksize=number_format.block,
        quant_type=number_format.name,
        dtype=COMPUTE_DTYPE,
        offset=parts["nested_offset"].to(device),
        state2=QuantState(
            absmax=parts["nested_absmax"].to(device),
            code=parts["nested_quant_map"].to(device),
            blocksize=256,
            dtype=torch.float32,
        ),
    )
    module.weight = Params4bit(
        packed.to(device),
        quant_state=state,
        blocksize=number_format.block,
        compress_statistics=True,
        quant_type=number_format.name,
        module=module,
        bnb_quantized=True,
    )
    module.quant_state = state


def _set_int8(module: Any, found: RoundedWeight) -> None:
    """Set int8 weights with the largest absolute value of every row as its scale."""
    from bitsandbytes.nn.modules import Int8Params

    device = module.weight.device
    codes_OI = (found.codes_OI.short() - 127).to(torch.int8).to(device)
    scale_O = (found.scales.scale_K * 127).to(device)
    module.weight = Int8Params(
        codes_OI, requires_grad=False, has_fp16_weights=False, CB=codes_OI, SCB=scale_O
    )
    module.state.CB = module.state.SCB = None


# Blocks of GGUF ----------------------------------------------------------------------------------


def gguf_bytes(found: RoundedWeight) -> np.ndarray:
    """Return a weight in one of the formats q4_0 to q8_0 as GGUF bytes, (O, bytes of a row)."""
    number_format, rows = found.number_format, len(found.codes_OI)
    assert number_format.block == 32, number_format.name
    codes_KS = found.codes_OI.cpu().numpy().reshape(-1, 32)
    halves = [found.scales.scale_K, found.scales.shift_K]
    parts = [_float16_bytes(value_K) for value_K in halves if value_K is not None]
    if number_format.name == "q8_0":
        parts.append((codes_KS.astype(np.int16) - 127).astype(np.int8).view(np.uint8))
    else:
        if number_format.name.startswith("q5"):
            parts.append(np.packbits(codes_KS >> 4, axis=-1, bitorder="little"))
        low_KS = codes_KS & 15
        parts.append(low_KS[:, :16] | (low_KS[:, 16:] << 4))
    return np.concatenate(parts, axis=-1).reshape(rows, -1)


def _float16_bytes(value_K: Tensor) -> np.ndarray:
    return value_K.cpu().numpy().astype(np.float16)[:, None].view(np.uint8)
