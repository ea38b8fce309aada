"""A teacher that runs within the training step and gives exact signals, without a codec.

Legend: B rows, T tokens, N tokens counted, V vocabulary, H width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from attar.errors import ModelError, RecipeError
from attar.models.attention import (
    attention_heads,
    attention_projections,
    capture_attention,
    check_blocks,
)
from attar.models.structure import (
    Head,
    capture_layers,
    head_of,
    label_logprobs,
    num_layers,
    run_body,
)
from teachers.signals import Attention, DenseDistribution


@dataclass
class OnlineSignals:
    """A teacher's signals at the counted tokens of one batch, all without gradients."""

    final_NH: Tensor
    head: Head
    layers: dict[int, Tensor]
    blocks: dict[int, Attention]
    _distributions: dict[float, DenseDistribution] = field(default_factory=dict)
    _label_logprobs: tuple[Tensor, Tensor] | None = None

    def distribution(self, temperature: float) -> DenseDistribution:
        """Full next-token distributions at a temperature."""
        if temperature not in self._distributions:
            found = DenseDistribution(self.final_NH, self.head, temperature)
            self._distributions[temperature] = found
        return self._distributions[temperature]

    def label_logprobs(self, labels_N: Tensor) -> Tensor:
        """Log-probability of the tokens' labels, float32 (N,)."""
        if self._label_logprobs is None or not torch.equal(self._label_logprobs[0], labels_N):
            found_N = label_logprobs(self.final_NH, self.head, labels_N).to(labels_N.device)
            self._label_logprobs = labels_N, found_N
        return self._label_logprobs[1]

    def hidden(self, layer: int) -> Tensor:
        """Float32 hidden states (N, H) of one of the teacher's chosen layers."""
        if layer not in self.layers:
            raise RecipeError(
                f"Layer {layer} was not requested from the teacher; requested are "
                f"{list(self.layers)}."
            )
        return self.layers[layer]

    def attention(self, block: int) -> Attention:
        """Queries, keys and values of one of the teacher's chosen blocks."""
        if block not in self.blocks:
            raise RecipeError(
                f"The attention of block {block} was not requested from the teacher; requested "
                f"are {list(self.blocks)}."
            )
        return self.blocks[block]


class OnlineTeacher:
    """A frozen model in eval mode that is run on the student's batches, one pass a batch."""

    def __init__(
        self, model: nn.Module, vocabulary: int, layers: list[int], attention: list[int]
    ) -> None:
        """layers, attention: the layers and blocks whose states are kept.

        vocabulary: number of ids of the head. Raises `ModelError` for a missing layer or block.
        """
        check_blocks(attention, num_layers(model))
        for block in attention:
            attention_projections(model, block)
        with capture_layers(model, layers):
            pass  # an invalid layer fails now, not in the first step
        self.model, self.layers, self.blocks = model.eval(), layers, attention
        self.heads = attention_heads(model) if attention else (1, 1)
        self.device = next(model.parameters()).device
        self.head = _frozen_head(model, vocabulary, self.device)

    @torch.no_grad()
    def signals(self, inputs: dict[str, Tensor | None], where_BT: Tensor) -> OnlineSignals:
        """Signals at the tokens where `where_BT` is true, row by row; inputs: those of the body.

        Rows may be packed: restarting position ids separate their examples. The pass is in the
        teacher's own dtype, even under autocast.
        """
        with (
            torch.autocast(self.device.type, enabled=False),
            capture_layers(self.model, self.layers) as states,
            capture_attention(self.model, self.blocks) as attention,
        ):
            hidden_BTH = run_body(self.model, inputs)
        final_NH = hidden_BTH[where_BT]
        layers = {layer: states.layers[layer][where_BT].float() for layer in self.layers}
        blocks = {}
        for block in self.blocks:
            query, key, value = (one[where_BT].float() for one in attention.blocks[block])
            blocks[block] = Attention(query, key, value, *self.heads)
        _check_finite_step([final_NH, *layers.values()])
        return OnlineSignals(final_NH, self.head, layers, blocks)


def _frozen_head(model: nn.Module, vocabulary: int, device: torch.device) -> Head:
    """The head without gradients; on a CPU in float32, as a head from the cache."""
    head = head_of(model, vocabulary, torch.float32 if device.type == "cpu" else None)
    bias_V = None if head.bias_V is None else head.bias_V.detach()
    return replace(head, weight_VH=head.weight_VH.detach(), bias_V=bias_V)


def _check_finite_step(states: list[Tensor]) -> None:
    if not torch.stack([one.isfinite().all() for one in states]).all():
        raise ModelError(
            "The teacher gave NaN or infinite values for an example of this step; set "
            "`teacher.dtype: float32`, or look at the data."
        )
