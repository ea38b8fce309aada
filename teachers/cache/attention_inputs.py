"""Queries, keys and values of a block, computed from its stored attention inputs.

A token's input (H) is smaller than its queries, keys and values together, so the input is stored,
through the codec of hidden states. The frozen linear maps from inputs to queries, keys and values
are stored once in the assets, beside what that codec learned.

Legend: N tokens, H width, C channels of all query heads, D of all key-value heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attar.models.attention import attention_heads, attention_projections, linear_map
from attar.models.structure import matmul_float32
from teachers.codecs.codec import Assets
from teachers.signals import Attention

STORED_PROJECTIONS = ("query", "key", "value")
PROJECTION_ASSETS = {
    "heads",
    *(f"{name}_{part}" for name in STORED_PROJECTIONS for part in ("weight", "bias")),
}


def projection_assets(model: Any, block: int) -> Assets:
    """The maps of a block in the teacher's dtype, and its numbers of query and key-value heads."""
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    assets: Assets = {"heads": torch.tensor(attention_heads(model))}
    for name, module in zip(STORED_PROJECTIONS, attention_projections(model, block), strict=True):
        weight_CH, bias_C = linear_map(module, dtype)
        assets[f"{name}_weight"] = weight_CH.cpu()
        if bias_C is not None:
            assets[f"{name}_bias"] = bias_C.cpu()
    return assets


def projection_assets_among(assets: Assets) -> Assets:
    """The maps among a block's assets; they do not depend on the codec."""
    return {name: tensor for name, tensor in assets.items() if name in PROJECTION_ASSETS}


@torch.no_grad()
def attention_from_inputs(inputs_NH: Tensor, assets: Assets) -> Attention:
    """Apply the maps to inputs (N, H). Raises `ValueError` where shapes do not fit."""
    states = []
    for name in STORED_PROJECTIONS:
        weight_CH, bias_C = assets[f"{name}_weight"], assets.get(f"{name}_bias")
        if weight_CH.dim() != 2 or (bias_C is not None and bias_C.shape != weight_CH.shape[:1]):
            raise ValueError(f"`{name}` is not a linear map")
        states_NC = matmul_float32(inputs_NH.to(weight_CH.device, weight_CH.dtype), weight_CH.T)
        states.append(states_NC if bias_C is None else states_NC + bias_C.float())
    num_heads, num_kv_heads = assets["heads"].int().tolist()
    for states_NC, heads in zip(states, (num_heads, num_kv_heads, num_kv_heads), strict=True):
        if heads < 1 or states_NC.shape[1] % heads:
            raise ValueError(f"{states_NC.shape[1]} channels in {heads} heads")
    query, key, value = states
    return Attention(query, key, value, num_heads, num_kv_heads)
