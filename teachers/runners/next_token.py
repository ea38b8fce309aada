"""Run a teacher over examples for a cache: next-token distributions, and hidden states.

Shards are fixed parts of the examples in their order, and batches never cross a shard, so a build
that was killed and continued writes the same bytes as an uninterrupted one.

Legend: B sequences, T tokens, N tokens counted, V vocabulary, H width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from attar.errors import CacheError
from attar.models.structure import (
    head_of,
    logprobs_of_ids,
    rows_per_chunk,
    run_body,
    unwrap,
)
from teachers.cache.config import CacheConfig
from teachers.codecs.codec import (
    Assets,
    DistributionCodec,
    SignalColumns,
    SparseCodec,
    is_token_codec,
    join_columns,
    split_columns,
)
from teachers.codecs.label import label_columns
from teachers.runners.hidden_states import (
    HiddenStates,
    check_finite,
    check_finite_states,
    merge_assets,
    positions_of,
)
from teachers.runners.request import Request, batch_requests, run_in_batches
from teachers.signals import HasLogits, TeacherChunk, seeds_of


@overload
def encode_by_chunks(
    codec: SparseCodec, chunk: HasLogits, assets: Assets, size: int
) -> SignalColumns: ...
@overload
def encode_by_chunks(
    codec: DistributionCodec, chunk: TeacherChunk, assets: Assets, size: int
) -> SignalColumns: ...
def encode_by_chunks(
    codec: DistributionCodec, chunk: Any, assets: Assets, size: int
) -> SignalColumns:
    """Encode many tokens while the logits of only `size` of them are held at once."""
    starts = range(0, len(chunk.seeds_N), size)
    return join_columns([codec.encode(chunk.rows(start, start + size), assets) for start in starts])


def encode_with_labels(
    codec: DistributionCodec, chunk: TeacherChunk, assets: Assets, size: int
) -> SignalColumns:
    """`encode_by_chunks`, and column `label_logprob` from the same logits."""
    assert chunk.labels_N is not None, "`cache.labels` needs requests with labels"
    parts = []
    for start in range(0, len(chunk.seeds_N), size):
        part = chunk.rows(start, start + size)
        logits_NV, labels_N = part.logits(), chunk.labels_N[start : start + size]
        labels = label_columns(logprobs_of_ids(logits_NV, labels_N.to(logits_NV.device)))
        parts.append({**codec.encode(replace(part, known_NV=logits_NV), assets), **labels})
    return join_columns(parts)


def labels_of(requests: Sequence[Request]) -> Tensor | None:
    """The labels (N,) of requests, one after the other; None where any of them has none."""
    labels = [request.labels for request in requests if request.labels is not None]
    return torch.from_numpy(np.concatenate(labels)) if len(labels) == len(requests) else None


class TeacherRunner:
    """A frozen teacher with its head over the tokenizer's ids; it turns examples into columns."""

    def __init__(self, model: nn.Module, vocabulary: int, config: CacheConfig) -> None:
        """Raises `ModelError` for layers or blocks that the teacher does not have."""
        assert is_token_codec(config.codec)
        self.model, self.config = model, config
        self.codec, self.states = config.codec, HiddenStates(model, config.hidden)
        self.device = self.states.device
        self.head = head_of(model, vocabulary)
        self.padding_mass: float | None = None  # of the first tokens of a shard
        self.chunk = rows_per_chunk(vocabulary, self.device)

    @torch.inference_mode()
    def run(
        self,
        requests: Sequence[Request],
        assets: dict[str, Assets],
        on_done: Callable[[Sequence[Request]], None] = lambda done: None,
    ) -> list[SignalColumns]:
        """Columns of each request, in order. `on_done` is called with those of a batch."""
        self.padding_mass = None
        return run_in_batches(
            requests,
            self.config.batch_tokens,
            lambda group: self._run_batch(group, assets),
            on_done,
        )

    @torch.inference_mode()
    def learn(self, requests: Sequence[Request]) -> dict[str, Assets]:
        """What the cache stores once of this teacher: attention maps, and what the codecs learn."""
        learned: dict[str, Assets] = {}
        if self.codec.learns or self.states.learns:
            learned = self._learn_codecs(requests)
        assets = merge_assets(self.states.projections(), learned)
        if any(tensor.isnan().any() for own in assets.values() for tensor in own.values()):
            raise CacheError(
                "The teacher gave NaN or infinite logits for finite hidden states: its head is "
                "damaged or overflows; set `teacher.dtype: float32`, or fetch the model again."
            )
        return assets

    def _learn_codecs(self, requests: Sequence[Request]) -> dict[str, Assets]:
        finals: list[Tensor] = []
        seeds: list[np.ndarray] = []
        samples: dict[str, list[Tensor]] = {part: [] for part in self.config.hidden.parts}
        for batch in batch_requests(requests, self.config.batch_tokens):
            group = [requests[i] for i in batch]
            final_NH, parts = self._forward(group)
            finals.append(final_NH)
            for part, part_NH in parts.items():
                samples[part].append(part_NH)
            seeds += [seeds_of(request.key, len(request.counted)) for request in group]
        chunk = TeacherChunk(torch.cat(finals), self.head, np.concatenate(seeds))
        return {"distribution": self.codec.learn(chunk), **self.states.learn(samples)}

    @torch.inference_mode()
    def final_states(self, requests: Sequence[Request]) -> Tensor:
        """Final hidden states (N, H) of the counted tokens of the requests, in their order."""
        found: list[Tensor] = [torch.empty(0)] * len(requests)
        for batch in batch_requests(requests, self.config.batch_tokens):
            group = [requests[i] for i in batch]
            states_NH, _ = self._forward(group)
            parts = states_NH.split([len(request.counted) for request in group])
            for i, part in zip(batch, parts, strict=True):
                found[i] = part
        return torch.cat(found)

    def _forward(self, group: list[Request]) -> tuple[Tensor, dict[str, Tensor]]:
        """Final hidden states (N, H) at the counted tokens of a batch, and chosen ones by part."""
        inputs = self._collate(group)
        hidden_BTH, parts = self.states.capture(lambda: run_body(self.model, inputs), group)
        rows, columns = positions_of(group, self.device)
        final_NH = hidden_BTH[rows, columns]
        check_finite_states([final_NH, *parts.values()], group)
        return final_NH, parts

    def _run_batch(self, group: list[Request], assets: dict[str, Assets]) -> list[SignalColumns]:
        hidden_NH, parts = self._forward(group)
        if self.padding_mass is None:
            self.padding_mass = self._measure_padding(hidden_NH[: self.chunk])
        columns = self._encode(hidden_NH, group, assets.get("distribution", {}))
        columns |= self.states.encode(parts, assets)
        return split_columns(columns, [len(request.counted) for request in group])

    def _measure_padding(self, hidden_NH: Tensor) -> float:
        """Mean probability on columns beyond the tokenizer's ids, which are cut off: about 0."""
        kept = self.head.weight_VH.shape[0]
        rows = unwrap(self.model).get_output_embeddings().weight.shape[0]
        if rows == kept:
            return 0.0
        logits_NV = head_of(self.model, rows).logits(hidden_NH)
        return float(logits_NV.softmax(-1)[:, kept:].sum(-1).mean())

    def _collate(self, group: list[Request]) -> dict[str, Tensor | None]:
        longest = len(group[0].input_ids)
        ids_BT = torch.zeros(len(group), longest, dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        for b, request in enumerate(group):
            ids_BT[b, : len(request.input_ids)] = torch.from_numpy(request.input_ids)
            mask_BT[b, : len(request.input_ids)] = 1
        full = bool(mask_BT.all())  # without a mask attention takes its fastest path
        return {
            "input_ids": ids_BT.to(self.device),
            "attention_mask": None if full else mask_BT.to(self.device),
        }

    def _encode(self, hidden_NH: Tensor, group: list[Request], assets: Assets) -> SignalColumns:
        seeds_N = np.concatenate([seeds_of(r.key, len(r.counted)) for r in group])
        chunk = TeacherChunk(hidden_NH, self.head, seeds_N, labels_N=labels_of(group))
        encode = encode_with_labels if self.config.labels else encode_by_chunks
        columns = encode(self.codec, chunk, assets, self.chunk)
        finite_N = np.ones(len(hidden_NH), bool)
        for column in columns.values():
            if column.dtype.kind == "f" and len(column) == len(finite_N):
                finite_N &= ~np.isnan(column.reshape(len(finite_N), -1)).any(-1)
        finite_N &= columns.get("entries", 1) != 0
        check_finite(finite_N, group)
        return columns
