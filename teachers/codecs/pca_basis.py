"""`basis`: hidden states in a learned orthogonal basis, with only as many bits as they need.

The directions in which a layer's states vary most come first (principal components of a sample of
tokens). Every coefficient is rounded to a multiple of one step, the same for all directions, which
minimises squared error when the codes are entropy-coded afterwards. The shards' zstd does that:
codes are stored in eight bands of similar variance, one column each, and most codes are near zero.

Legend: N tokens, H width.
"""

from __future__ import annotations

from math import log2
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from attar.config import Section
from teachers.codecs.codec import LAYER_CODECS, Assets, SignalColumns

BANDS = 8
MAX_CODE = 32767


@LAYER_CODECS.add("basis")
class Basis(Section):
    """A learned basis and entropy-coded codes: 2.5 bits a channel at a cosine of 0.99."""

    learns: ClassVar[bool] = True
    name: Literal["basis"] = "basis"
    step: float = Field(0.4, gt=0, description="of the codes, in root mean squares of a state")

    def learn(self, hidden_NH: Tensor) -> Assets:
        """Learn mean and principal directions of states scaled to a root mean square of one."""
        unit_NH = hidden_NH.float() / _rms(hidden_NH)
        mean_H = unit_NH.mean(0)
        centred_NH = (unit_NH - mean_H).double()
        forward_HH = principal(centred_NH).float().cpu()
        return {"mean": mean_H.cpu(), "forward": forward_HH}

    def encode(self, hidden_NH: Tensor, assets: Assets) -> SignalColumns:
        """Codes in bands, and the scale of each token."""
        scale_N1 = _rms(hidden_NH)
        unit_NH = hidden_NH.float() / scale_N1 - assets["mean"].to(hidden_NH.device)
        codes_NH = unit_NH @ assets["forward"].to(hidden_NH.device) / self.step
        columns = {f"_{name}": column for name, column in to_bands(codes_NH).items()}
        return {**columns, "_scale": scale_N1.squeeze(-1).cpu().numpy()}

    def decode(self, columns: SignalColumns, num_tokens: int, assets: Assets) -> Tensor:
        """States from codes, through the transposed basis."""
        bands = {name.removeprefix("_"): column for name, column in columns.items()}
        codes_NH = from_bands(bands, num_tokens, assets["mean"].device)
        unit_NH = codes_NH * self.step @ assets["forward"].T + assets["mean"]
        return unit_NH * torch.from_numpy(columns["_scale"].copy()).to(unit_NH.device)[:, None]

    def bytes_per_token(self, width: int) -> float:
        """As measured (benchmarks/codecs.md); the true number depends on the layer."""
        return 4 + width * max(0.5, 2.8 - 0.95 * log2(self.step / 0.4)) / 8


def principal(centred_NH: Tensor) -> Tensor:
    """Orthogonal (H, H): columns are directions by falling variance."""
    _, vectors_HH = torch.linalg.eigh(centred_NH.T @ centred_NH)
    falling_HH: Tensor = vectors_HH.flip(-1)
    largest_H = falling_HH.abs().argmax(0)  # the sign is arbitrary: fix it, so that files agree
    return falling_HH * falling_HH.gather(0, largest_H[None]).sign()


def to_bands(codes_NH: Tensor) -> SignalColumns:
    """Rounded codes as bytes: `0` .. `7`, low bytes of consecutive channels; `high`, high bytes.

    Codes 0, -1, 1, -2, 2 become 0, 1, 2, 3, 4, so that small codes of both signs are small bytes.
    """
    whole_NH = codes_NH.round().clamp(-MAX_CODE, MAX_CODE).to(torch.int32).cpu().numpy()
    folded_NH = np.where(whole_NH < 0, -2 * whole_NH - 1, 2 * whole_NH)
    low_NH = (folded_NH & 255).astype(np.uint8)
    bands = np.array_split(low_NH, BANDS, axis=1)
    columns = {str(i): np.ascontiguousarray(band) for i, band in enumerate(bands)}
    return {**columns, "high": (folded_NH >> 8).astype(np.uint8)}


def codes_at_the_limit(columns: SignalColumns) -> int:
    """How many codes among an example's columns are the largest there is: their states were cut."""
    number = 0
    for name, high in columns.items():
        if name.endswith("high") and (high == 255).any():
            stem = name.removesuffix("high")
            low = np.concatenate([columns[f"{stem}{i}"] for i in range(BANDS)], axis=1)
            number += int(((high.astype(np.uint16) << 8) + low >= 2 * MAX_CODE - 1).sum())
    return number


def from_bands(columns: SignalColumns, num_tokens: int, device: torch.device) -> Tensor:
    """The codes of `to_bands`, float32 (N, H)."""
    high_NH = columns["high"].reshape(num_tokens, -1)
    bands = [columns[str(i)].reshape(num_tokens, -1) for i in range(BANDS)]
    folded_NH = torch.from_numpy(np.concatenate(bands, axis=1)).to(device).int()
    folded_NH += torch.from_numpy(high_NH.astype(np.uint8)).to(device).int() << 8
    return torch.where(folded_NH % 2 == 1, -(folded_NH + 1) // 2, folded_NH // 2).float()


def _rms(hidden_NH: Tensor) -> Tensor:
    return hidden_NH.float().square().mean(-1, keepdim=True).sqrt().clamp(min=1e-12)
