"""Run a model once over whole texts and leave its signals: one outcome a text, hidden states.

Legend: B texts, T tokens, N tokens kept, C classes (or entries of a vector), H width.

A text has one distribution, over the classes, or one vector; hidden states and attention inputs of
chosen layers are kept of all its tokens, since students that learn from layers compare every one
(TinyBERT, 1909.10351; MiniLM, 2002.10957). Where no layer is asked for, a text is one row of the
cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attar.models.attention import attention_projections, capture_attention_inputs
from attar.models.structure import capture_layers, check_layers, num_layers
from attar.models.task_heads import class_logits, padded_texts
from teachers.cache.attention_inputs import attention_maps
from teachers.cache.config import CacheConfig
from teachers.codecs.codec import Assets, Columns, split_columns
from teachers.runners.next_token import positions_of
from teachers.runners.request import Request, plan_batches, refuse_bad

Outcome = Callable[[Any, dict[str, Tensor | None]], Tensor]


class TextRunner:
    """A frozen model: texts in, columns out. `outcome`: what it gives of each text, (B, C)."""

    def __init__(
        self, model: nn.Module, config: CacheConfig, outcome: Outcome = class_logits
    ) -> None:
        check_layers(config.hidden.layers, num_layers(model) if config.hidden.layers else 0)
        for block in config.hidden.attention:
            attention_projections(model, block)  # refused before the first shard
        self.model, self.config, self.outcome = model, config, outcome
        self.device = next(model.parameters()).device
        self.padding_mass: float | None = None  # texts have none

    @torch.inference_mode()
    def run(
        self,
        requests: Sequence[Request],
        assets: dict[str, Assets],
        on_tokens: Callable[[int], None] = lambda n: None,
    ) -> list[Columns]:
        """Columns of each text, in order. `on_tokens` is told of tokens as they are done."""
        results: list[Columns] = [{} for _ in requests]
        for batch in self._batches(requests):
            group = [requests[i] for i in batch]
            for i, columns in zip(batch, self._encode(group, assets), strict=True):
                results[i] = columns
            on_tokens(sum(len(request.input_ids) for request in group))
        return results

    @torch.inference_mode()
    def learn(self, requests: Sequence[Request]) -> dict[str, Assets]:
        """Maps of attention, and what the codec of hidden states learns from some texts."""
        hidden = self.config.hidden
        learned = {
            f"attention_{block}": attention_maps(self.model, block) for block in hidden.attention
        }
        if hidden.parts and hidden.codec.learns:
            parts: dict[str, list[Tensor]] = {part: [] for part in hidden.parts}
            for batch in self._batches(requests):
                _, states = self._states([requests[i] for i in batch])
                for part, part_NH in states.items():
                    parts[part].append(part_NH)
            for part, found in parts.items():
                own = hidden.codec.learn(torch.cat(found))
                learned[part] = {**learned.get(part, {}), **own}
        return {part: assets for part, assets in learned.items() if assets}

    def _batches(self, requests: Sequence[Request]) -> list[list[int]]:
        lengths = [len(request.input_ids) for request in requests]
        return plan_batches(lengths, self.config.batch_tokens)

    def _states(self, group: list[Request]) -> tuple[Tensor, dict[str, Tensor]]:
        """Outcomes (B, C) of some texts, and chosen states (N, H) of their tokens by part."""
        hidden = self.config.hidden
        inputs = padded_texts([r.input_ids for r in group], [r.token_types for r in group])
        on_device = {n: None if t is None else t.to(self.device) for n, t in inputs.items()}
        with (
            capture_layers(self.model, hidden.layers) as captured,
            capture_attention_inputs(self.model, hidden.attention) as attended,
        ):
            logits_BC = self.outcome(self.model, on_device)
        found = {f"layer_{layer}": captured.layers[layer] for layer in hidden.layers}
        found |= {f"attention_{block}": attended[block] for block in hidden.attention}
        rows, columns = positions_of(group, self.device)
        parts = {part: states[rows, columns] for part, states in found.items()}
        finite_N = torch.isfinite(logits_BC).all(-1)[rows]
        for states in parts.values():
            finite_N &= torch.isfinite(states).all(-1)
        refuse_bad(finite_N.cpu().numpy(), group)
        return logits_BC, parts

    def _encode(self, group: list[Request], assets: dict[str, Assets]) -> list[Columns]:
        logits_BC, parts = self._states(group)
        tokens = [len(request.counted) for request in group]
        codec: Any = self.config.codec
        columns: Columns = codec.encode_texts(logits_BC, tokens)
        for part, part_NH in parts.items():
            own = assets.get(part, {})
            for suffix, column in self.config.hidden.codec.encode(part_NH, own).items():
                columns[f"{part}{suffix}"] = column
        return split_columns(columns, tokens)
