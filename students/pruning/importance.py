"""Importance of heads, neurons and channels on calibration text, from one forward over it.

A head or a neuron scores the root mean square of what it adds to the residual stream, measured
behind the output projection. (Minitron, arXiv 2407.14679, section 2.2, takes the activation before
the projection.) A channel scores the mean size of the norms' outputs at it, summed over all norms,
as in Minitron.

Legend: B rows, T tokens, N tokens together, L blocks, G key-value heads, I neurons, H channels,
Q channels of all query heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attar.models.structure import run_body
from attar.progress import tracked
from students.layer_inputs import BATCH_ROWS
from students.pruning.architectures import (
    block_number,
    modules_with,
    prunable_architecture,
    sizes_of,
)


@dataclass(frozen=True)
class ImportanceScores:
    """Importance of each part; only the order within a block, or among channels, is meaningful."""

    groups_LG: Tensor
    neurons_LI: Tensor
    channels_H: Tensor


def highest_scored(scores: Tensor, keep: int) -> list[int]:
    """Return the indices of the `keep` highest scores, in ascending order; ties go to the first."""
    order = scores.argsort(descending=True, stable=True)[:keep]
    return [int(number) for number in order.sort().values]


@torch.inference_mode()
def measure_importance(model: Any, input_ids_BT: Tensor) -> ImportanceScores:
    """Score every part of a model on calibration ids; every token counts."""
    family, sizes = prunable_architecture(model), sizes_of(model.config)
    watched = _ImportanceSums(
        attention=modules_with(model, family, "HQ"),
        feed_forward=modules_with(model, family, "HI"),
        norms=modules_with(model, family, "H"),
        head_channels=sizes.head_size * sizes.heads_per_group,
        channels=sizes.channels,
    )
    device = next(model.parameters()).device
    try:
        batches = input_ids_BT.to(device).split(BATCH_ROWS)
        for ids_BT in tracked(batches, "importance of parts", "batches"):
            run_body(model, {"input_ids": ids_BT, "attention_mask": None})
    finally:
        watched.stop()
    return watched.scores()


class _ImportanceSums:
    """Sums over tokens that hooks collect: squares behind each part, sizes behind norms."""

    def __init__(
        self,
        attention: dict[str, nn.Module],
        feed_forward: dict[str, nn.Module],
        norms: dict[str, nn.Module],
        head_channels: int,
        channels: int,
    ) -> None:
        self.head_channels = head_channels
        self.groups: dict[int, Tensor] = {}
        self.neurons: dict[int, Tensor] = {}
        self.channels_H = torch.zeros(channels, dtype=torch.float64)
        self.handles = []
        for watch, modules in ((self._heads, attention), (self._neurons, feed_forward)):
            for name, module in modules.items():
                block = block_number(name)
                if block is not None:
                    hook = _before(watch, block)
                    self.handles.append(module.register_forward_pre_hook(hook))
        for name, module in norms.items():
            if block_number(name) is not None:
                self.handles.append(module.register_forward_hook(self._norm))

    def _heads(self, block: int, module: Any, inputs_NQ: Tensor) -> None:
        parts = []
        for start in range(0, inputs_NQ.shape[1], self.head_channels):
            part = slice(start, start + self.head_channels)
            moments = inputs_NQ[:, part].T @ inputs_NQ[:, part]
            weight_HP = module.weight[:, part].float()
            parts.append(((weight_HP @ moments) * weight_HP).sum())
        self.groups[block] = self.groups.get(block, 0.0) + torch.stack(parts).double().cpu()

    def _neurons(self, block: int, module: Any, inputs_NI: Tensor) -> None:
        power_I = inputs_NI.square().sum(0) * module.weight.float().square().sum(0)
        self.neurons[block] = self.neurons.get(block, 0.0) + power_I.double().cpu()

    def _norm(self, _module: nn.Module, _args: Any, output_BTH: Tensor) -> None:
        self.channels_H += output_BTH.float().abs().flatten(0, -2).sum(0).double().cpu()

    def stop(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()

    def scores(self) -> ImportanceScores:
        """Return the scores: the square roots of the sums, block by block."""
        stacked = (
            torch.stack([one[b] for b in sorted(one)]) for one in (self.groups, self.neurons)
        )
        groups_LG, neurons_LI = (sums.clamp(min=0).sqrt() for sums in stacked)
        return ImportanceScores(groups_LG, neurons_LI, self.channels_H)


def _before(watch: Any, block: int) -> Any:
    """Return a hook that passes the inputs of a module on as float32 rows, one per token."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        watch(block, module, args[0].flatten(0, -2).float())

    return hook
