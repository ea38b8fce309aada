"""Number formats of quantised weights: their levels, blocks, and how scales are stored.

A weight is `scale x level + shift`, with one scale and one shift for each block of neighbours in a
row-major weight. The formats are those of bitsandbytes (nf4, fp4, int8) and llama.cpp (q4_0 ...).

Legend: O outputs and I inputs of a linear layer, K blocks, S weights of a block, L levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from attar.registry import Registry

SCALE_FACTORS = (1.05, 1.0, 0.95, 0.9, 0.85, 0.8)  # of the naive scale, that a search tries


@dataclass(frozen=True)
class Scales:
    """Scale and shift of every block, float32 (K,); `shift_K` is None for formats without shifts.

    parts: the tensors that a format stores instead, if scales are themselves quantised.
    """

    scale_K: Tensor
    shift_K: Tensor | None = None
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class NumberFormat:
    """A number format for quantised weights.

    block: weights that share a scale, along rows; None: a whole row. levels_L: float32, ascending;
    a code is an index into them. naive: from blocks (K, S) to the scales for rounding to nearest.
    store: rounds scales as the format stores them. scale_factors: multiples of the naive scale that
    a search tries.
    """

    name: str
    block: int | None
    levels_L: Tensor
    naive: Callable[[Tensor], Scales] = field(repr=False)
    store: Callable[[Scales], Scales] = field(repr=False)
    scale_factors: tuple[float, ...] = field(default=SCALE_FACTORS, repr=False)

    @property
    def evenly_spaced(self) -> bool:
        """Whether the levels are consecutive integers, so that codes need no search."""
        return len(self.levels_L) == int(self.levels_L[-1] - self.levels_L[0]) + 1

    def blocks(self, weight_OI: Tensor) -> Tensor:
        """Return the weight as blocks (K, S); the last block is padded with zeros."""
        size = weight_OI.shape[1] if self.block is None else self.block
        flat = weight_OI.flatten()
        return pad(flat, (0, -len(flat) % size)).view(-1, size)

    def per_weight(self, scales: Scales, weight_OI: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the scale and shift of every weight, (O, I)."""
        size = weight_OI.shape[1] if self.block is None else self.block

        def one(value_K: Tensor) -> Tensor:
            each = value_K.repeat_interleave(size)[: weight_OI.numel()]
            return each.view(weight_OI.shape)

        shift_K = scales.shift_K
        return one(scales.scale_K), None if shift_K is None else one(shift_K)

    def codes(self, weight: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
        """Return the code of the level nearest to each weight, int32; scales broadcast."""
        centred = weight if shift is None else weight - shift
        ratio = centred / torch.where(scale == 0, 1, scale)
        levels_L = self.levels_L.to(weight.device)
        if self.evenly_spaced:
            last = len(levels_L) - 1
            return (ratio - (levels_L[0] + 0.5)).ceil_().clamp_(0, last).int()
        middle = (levels_L[1:] + levels_L[:-1]) / 2
        return torch.bucketize(ratio.contiguous(), middle, out_int32=True)

    def values(self, codes: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
        """Return the dequantised weights of codes, float32; scales broadcast."""
        levels_L = self.levels_L.to(codes.device)
        levels = codes + levels_L[0] if self.evenly_spaced else levels_L[codes.int()]
        scaled = levels * scale
        return scaled if shift is None else scaled + shift

    def scaled(self, naive: Scales, factor: float) -> Scales:
        """Return naive scales times a factor; a shift moves so that the block's middle stays."""
        scale_K = naive.scale_K * factor
        if naive.shift_K is None:
            return Scales(scale_K)
        middle = float(self.levels_L[0] + self.levels_L[-1]) / 2
        return Scales(scale_K, naive.shift_K + (naive.scale_K - scale_K) * middle)


NUMBER_FORMATS: Registry[NumberFormat] = Registry("number format")


# How the formats find and store scales -----------------------------------------------------------


def _largest(blocks_KS: Tensor) -> Scales:
    return Scales(blocks_KS.abs().amax(-1))


def _largest_over(levels: float) -> Callable[[Tensor], Scales]:
    return lambda blocks_KS: Scales(blocks_KS.abs().amax(-1) / levels)


def _signed_largest_over(levels: float) -> Callable[[Tensor], Scales]:
    """Return a function for scales that put the weight of largest size on the lowest level."""

    def find(blocks_KS: Tensor) -> Scales:
        at_K1 = blocks_KS.abs().argmax(-1, keepdim=True)
        return Scales(blocks_KS.gather(-1, at_K1)[:, 0] / -levels)

    return find


def _range_over(levels: float) -> Callable[[Tensor], Scales]:
    def find(blocks_KS: Tensor) -> Scales:
        low_K, high_K = blocks_KS.amin(-1), blocks_KS.amax(-1)
        return Scales((high_K - low_K) / levels, low_K)

    return find


def _as_float32(scales: Scales) -> Scales:
    return Scales(scales.scale_K.float())


def _as_float16(scales: Scales) -> Scales:
    shift_K = None if scales.shift_K is None else scales.shift_K.half().float()
    return Scales(scales.scale_K.half().float(), shift_K)


def _double_quantized(scales: Scales) -> Scales:
    """Quantise scales to 8 bits as bitsandbytes does (arXiv 2305.14314, section 3)."""
    from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise

    scale_K = scales.scale_K.float()
    offset = scale_K.mean()
    codes_K, state = quantize_blockwise(scale_K - offset, blocksize=256)
    stored_K = dequantize_blockwise(codes_K, state) + offset
    parts = {"absmax": codes_K, "nested_absmax": state.absmax, "nested_quant_map": state.code,
             "nested_offset": offset}  # fmt: skip
    return Scales(stored_K, None, parts)


# The formats -------------------------------------------------------------------------------------

NORMAL_FLOAT = (  # quantiles of a normal distribution, appendix E of arXiv 2305.14314
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
FLOAT4_MAGNITUDES = tuple(value / 12 for value in (0, 0.0625, 2, 3, 4, 6, 8, 12))
SIGNED_SCALE_FACTORS = SCALE_FACTORS + tuple(-factor for factor in SCALE_FACTORS[1:5])


def _integers(first: int, last: int) -> Tensor:
    return torch.arange(first, last + 1, dtype=torch.float32)


def _register(number_format: NumberFormat) -> None:
    NUMBER_FORMATS.add(number_format.name)(number_format)


_FLOAT4_LEVELS_L = torch.tensor(
    [-value for value in reversed(FLOAT4_MAGNITUDES[1:])] + list(FLOAT4_MAGNITUDES)
)
_register(NumberFormat("nf4", 64, torch.tensor(NORMAL_FLOAT), _largest, _double_quantized))
_register(NumberFormat("fp4", 64, _FLOAT4_LEVELS_L, _largest, _double_quantized))
_register(NumberFormat("int8", None, _integers(-127, 127), _largest_over(127), _as_float32))
_register(
    NumberFormat(
        "q4_0", 32, _integers(-8, 7), _signed_largest_over(8), _as_float16, SIGNED_SCALE_FACTORS
    )
)
_register(NumberFormat("q4_1", 32, _integers(0, 15), _range_over(15), _as_float16))
_register(
    NumberFormat(
        "q5_0", 32, _integers(-16, 15), _signed_largest_over(16), _as_float16, SIGNED_SCALE_FACTORS
    )
)
_register(NumberFormat("q5_1", 32, _integers(0, 31), _range_over(31), _as_float16))
_register(NumberFormat("q8_0", 32, _integers(-127, 127), _largest_over(127), _as_float16))
