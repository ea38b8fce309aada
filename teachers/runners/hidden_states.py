"""The hidden states that a cache keeps: captured in a forward pass, checked, learned, encoded.

Both runners use this: the one for next tokens and the one for whole texts.

Legend: N tokens counted, H width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from attar.errors import CacheError
from attar.models.attention import attention_projections, capture_attention_inputs
from attar.models.structure import capture_layers, check_layers, num_layers
from teachers.cache.attention_inputs import projection_assets
from teachers.cache.config import HiddenStatesConfig
from teachers.codecs.codec import Assets, SignalColumns
from teachers.runners.request import Request


class HiddenStates:
    """Layers and attention inputs of a model that go through the codec of hidden states.

    They are named by part, as in the cache's columns: `layer_4`, `attention_7`.
    """

    def __init__(self, model: nn.Module, config: HiddenStatesConfig) -> None:
        """Raises `ModelError` for a layer or block that the model does not have."""
        if config.layers:
            check_layers(config.layers, num_layers(model))
        for block in config.attention:
            attention_projections(model, block)  # an unsupported one fails before the first shard
        self.model, self.config = model, config
        self.device = next(model.parameters()).device

    def capture(
        self, forward: Callable[[], Tensor], group: Sequence[Request]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What `forward` returns for a batch, and by part the states (N, H) at counted tokens."""
        with (
            capture_layers(self.model, self.config.layers) as captured,
            capture_attention_inputs(self.model, self.config.attention) as inputs,
        ):
            output = forward()
        rows, columns = positions_of(group, self.device)
        states = {f"layer_{layer}": captured.layers[layer] for layer in self.config.layers}
        states |= {f"attention_{block}": inputs[block] for block in self.config.attention}
        return output, {part: states_BTH[rows, columns] for part, states_BTH in states.items()}

    def projections(self) -> dict[str, Assets]:
        """By part, the maps from attention inputs to queries, keys and values."""
        return {
            f"attention_{block}": projection_assets(self.model, block)
            for block in self.config.attention
        }

    @property
    def learns(self) -> bool:
        """Whether the codec must see a sample of states before the first shard."""
        return bool(self.config.parts) and self.config.codec.learns

    def learn(self, samples: Mapping[str, Sequence[Tensor]]) -> dict[str, Assets]:
        """What the codec learns from states by part, given batch by batch."""
        return {
            part: self.config.codec.learn(torch.cat(list(states)))
            for part, states in samples.items()
        }

    def encode(self, parts: dict[str, Tensor], assets: dict[str, Assets]) -> SignalColumns:
        """The columns of states by part."""
        columns = {}
        for part, part_NH in parts.items():
            for suffix, column in self.config.codec.encode(part_NH, assets.get(part, {})).items():
                columns[f"{part}{suffix}"] = column
        return columns


def merge_assets(*assets: Mapping[str, Assets]) -> dict[str, Assets]:
    """Assets of several origins by part; parts without any are left out."""
    merged: dict[str, Assets] = {}
    for one in assets:
        for part, own in one.items():
            merged[part] = {**merged.get(part, {}), **own}
    return {part: own for part, own in merged.items() if own}


def positions_of(group: Sequence[Request], device: torch.device) -> tuple[Tensor, Tensor]:
    """(row, column) of every counted token of a batch, example by example."""
    rows = np.concatenate([np.full(len(r.counted), b) for b, r in enumerate(group)])
    columns = np.concatenate([r.counted for r in group])
    return torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device)


def check_finite(finite_N: np.ndarray, group: Sequence[Request]) -> None:
    """Raise `CacheError` naming the first example with a counted token that is not finite."""
    if not finite_N.all():
        token = int(np.argmin(finite_N))
        ends = np.cumsum([len(request.counted) for request in group])
        key = group[int(np.searchsorted(ends, token, side="right"))].key
        raise CacheError(
            f"The teacher gave NaN or infinite values for example {key}; set `teacher.dtype: "
            "float32`, or look at that example. Finished shards are kept."
        )


def check_finite_states(states: Sequence[Tensor], group: Sequence[Request]) -> None:
    """`check_finite` for tensors whose first axis is the counted tokens of a batch."""
    finite = [torch.isfinite(one).all(-1) for one in states]
    check_finite(torch.stack(finite).all(0).cpu().numpy(), group)
