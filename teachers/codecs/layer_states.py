"""Simple codecs for hidden states of chosen layers: `bf16`, and `int8` after a rotation.

Legend: N tokens counted, H width.
"""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from attar.config import Section
from attar.counter_random import uniforms
from teachers.codecs.codec import LAYER_CODECS, Assets, SignalColumns


@LAYER_CODECS.add("bf16")
class Bfloat16(Section):
    """The upper 16 bits of each float32, stored as uint16: two bytes a channel."""

    learns: ClassVar[bool] = False
    name: Literal["bf16"] = "bf16"

    def learn(self, hidden_NH: Tensor) -> Assets:
        """Learn nothing."""
        return {}

    def encode(self, hidden_NH: Tensor, assets: Assets) -> SignalColumns:
        """States rounded to the nearest bfloat16."""
        bits = hidden_NH.to(torch.bfloat16).contiguous().view(torch.int16)
        return {"": bits.cpu().numpy().view(np.uint16)}

    def decode(self, columns: SignalColumns, num_tokens: int, assets: Assets) -> Tensor:
        """The stored bfloat16 values as float32."""
        codes = torch.from_numpy(columns[""].reshape(num_tokens, -1).view(np.int16).copy())
        return codes.view(torch.bfloat16).float()

    def bytes_per_token(self, width: int) -> float:
        """Two bytes a channel."""
        return 2.0 * width


@LAYER_CODECS.add("int8")
class Int8(Section):
    """Rotated, then symmetric 8-bit codes with one float32 scale a token: max |h| / 127.

    A few channels of a residual stream are tens of times larger than the others and would set the
    scale for the whole token; the rotation spreads them over all channels.
    """

    learns: ClassVar[bool] = False
    name: Literal["int8"] = "int8"

    def learn(self, hidden_NH: Tensor) -> Assets:
        """Learn nothing."""
        return {}

    def encode(self, hidden_NH: Tensor, assets: Assets) -> SignalColumns:
        """Codes and scales."""
        rotated_NH = hidden_NH.float() @ rotation(hidden_NH.shape[-1]).to(hidden_NH.device)
        scale_N1 = rotated_NH.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
        codes_NH = (rotated_NH / scale_N1).round().to(torch.int8)
        return {"": codes_NH.cpu().numpy(), "_scale": scale_N1.squeeze(-1).cpu().numpy()}

    def decode(self, columns: SignalColumns, num_tokens: int, assets: Assets) -> Tensor:
        """Codes times scales, rotated back."""
        codes_NH = torch.from_numpy(columns[""].reshape(num_tokens, -1).astype(np.float32))
        rotated_NH = codes_NH * torch.from_numpy(np.array(columns["_scale"])).unsqueeze(-1)
        return rotated_NH @ rotation(rotated_NH.shape[-1]).T

    def bytes_per_token(self, width: int) -> float:
        """One byte a channel and the scale."""
        return width + 4.0


@lru_cache(maxsize=4)
def rotation(width: int) -> Tensor:
    """Orthogonal (H, H) that depends on H alone: random signs, then Hadamard (x) discrete cosine.

    H = 2^a m with m odd: the Kronecker product of the 2^a Hadamard matrix (Sylvester's) and the
    orthonormal DCT-II of size m, each row times a sign (the first bit of splitmix64 of the row).
    """
    odd = width
    while odd % 2 == 0:
        odd //= 2
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while len(hadamard) * odd < width:
        top, bottom = torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)
        hadamard = torch.cat([top, bottom]) / 2**0.5
    row, column = torch.arange(odd)[:, None], torch.arange(odd)[None]
    cosine = torch.cos(torch.pi * (column + 0.5).double() * row / odd) * (2 / odd) ** 0.5
    cosine[0] /= 2**0.5
    signs_H1 = np.where(uniforms(np.arange(width, dtype=np.uint64), 1, 0) < 0.5, -1.0, 1.0)
    return (torch.kron(hadamard, cosine) * torch.from_numpy(signs_H1)).float()
