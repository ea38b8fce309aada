"""Codecs of hidden states of chosen layers: `bf16` (as computed) and `int8` (a scale a token).

Legend: N tokens counted, H width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from teachers.codecs import LAYER_CODECS, Columns


class Bfloat16:
    """The upper 16 bits of each float32, stored as uint16: two bytes a channel."""

    def encode(self, hidden_NH: Tensor) -> Columns:
        """Rounded to nearest."""
        bits = hidden_NH.to(torch.bfloat16).contiguous().view(torch.int16)
        return {"": bits.cpu().numpy().view(np.uint16)}

    def decode(self, columns: Columns, width: int) -> Tensor:
        """Exactly what was stored, as float32."""
        codes = torch.from_numpy(columns[""].reshape(-1, width).view(np.int16).copy())
        return codes.view(torch.bfloat16).float()

    def bytes_per_token(self, width: int) -> float:
        """Two bytes a channel."""
        return 2.0 * width


class Int8:
    """Symmetric 8-bit codes with one float32 scale a token: max |h| / 127."""

    def encode(self, hidden_NH: Tensor) -> Columns:
        """Codes and scales."""
        hidden_NH = hidden_NH.float()
        scale_N1 = hidden_NH.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
        codes_NH = (hidden_NH / scale_N1).round().to(torch.int8)
        return {"": codes_NH.cpu().numpy(), "_scale": scale_N1.squeeze(-1).cpu().numpy()}

    def decode(self, columns: Columns, width: int) -> Tensor:
        """Codes times scales."""
        codes_NH = torch.from_numpy(columns[""].reshape(-1, width).astype(np.float32))
        return codes_NH * torch.from_numpy(np.array(columns["_scale"])).unsqueeze(-1)

    def bytes_per_token(self, width: int) -> float:
        """One byte a channel and the scale."""
        return width + 4.0


LAYER_CODECS.add("bf16")(Bfloat16())
LAYER_CODECS.add("int8")(Int8())
