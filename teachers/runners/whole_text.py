"""Run a model over whole texts for a cache: one outcome a text, and hidden states of its tokens.

A text has one distribution, over the classes, or one vector. Hidden states and attention inputs of
chosen layers are kept for all tokens of a text, since students that learn from layers compare every
token (TinyBERT, 1909.10351; MiniLM, 2002.10957). Where no layer is requested, a text is one row of
the cache.

Legend: B texts, T tokens, N tokens kept, C classes (or entries of a vector), H width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attar.models.task_heads import class_logits, padded_texts
from teachers.cache.config import CacheConfig
from teachers.codecs.codec import Assets, SignalColumns, is_text_codec, split_columns
from teachers.runners.hidden_states import (
    HiddenStates,
    check_finite_states,
    merge_assets,
    positions_of,
)
from teachers.runners.request import Request, batch_requests, run_in_batches

TextOutcome = Callable[[Any, dict[str, Tensor | None]], Tensor]


class TextRunner:
    """A frozen model that turns texts into columns."""

    def __init__(
        self, model: nn.Module, config: CacheConfig, outcome: TextOutcome = class_logits
    ) -> None:
        """outcome: what the model gives for each text, (B, C)."""
        assert is_text_codec(config.codec)
        self.model, self.config, self.outcome = model, config, outcome
        self.codec, self.states = config.codec, HiddenStates(model, config.hidden)
        self.device = self.states.device
        self.padding_mass: float | None = None  # classes have no padded columns

    @torch.inference_mode()
    def run(
        self,
        requests: Sequence[Request],
        assets: dict[str, Assets],
        on_done: Callable[[Sequence[Request]], None] = lambda done: None,
    ) -> list[SignalColumns]:
        """Columns of each text, in order. `on_done` is called with those of a batch."""
        return run_in_batches(
            requests,
            self.config.batch_tokens,
            lambda group: self._run_batch(group, assets),
            on_done,
        )

    @torch.inference_mode()
    def learn(self, requests: Sequence[Request]) -> dict[str, Assets]:
        """Maps of attention, and what the codec of hidden states learns from a sample of texts."""
        learned: dict[str, Assets] = {}
        if self.states.learns:
            samples: dict[str, list[Tensor]] = {part: [] for part in self.config.hidden.parts}
            for batch in batch_requests(requests, self.config.batch_tokens):
                _, parts = self._forward([requests[i] for i in batch])
                for part, part_NH in parts.items():
                    samples[part].append(part_NH)
            learned = self.states.learn(samples)
        return merge_assets(self.states.projections(), learned)

    def _forward(self, group: list[Request]) -> tuple[Tensor, dict[str, Tensor]]:
        """Outcomes (B, C) of some texts, and chosen states (N, H) of their tokens by part."""
        inputs = padded_texts([r.input_ids for r in group], [r.token_types for r in group])
        on_device = {n: None if t is None else t.to(self.device) for n, t in inputs.items()}
        outcomes_BC, parts = self.states.capture(lambda: self.outcome(self.model, on_device), group)
        rows, _ = positions_of(group, self.device)
        check_finite_states([outcomes_BC[rows], *parts.values()], group)
        return outcomes_BC, parts

    def _run_batch(self, group: list[Request], assets: dict[str, Assets]) -> list[SignalColumns]:
        outcomes_BC, parts = self._forward(group)
        tokens = [len(request.counted) for request in group]
        columns = self.codec.encode_texts(outcomes_BC, tokens)
        return split_columns({**columns, **self.states.encode(parts, assets)}, tokens)
