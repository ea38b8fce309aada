"""Run the teacher once over all examples and leave its signals in the cache, shard by shard.

Legend: B sequences, T tokens, N tokens counted, V vocabulary, H width.

Shards are fixed parts of the examples in their order, and batches never cross a shard, so a build
that was killed and continued writes the same bytes as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attar.errors import CacheError
from attar.models.attention import attention_projections, capture_attention_inputs
from attar.models.structure import (
    capture_layers,
    check_layers,
    head_of,
    num_layers,
    run_body,
    unwrap,
)
from teachers.cache.attention_inputs import attention_maps
from teachers.cache.config import CacheConfig
from teachers.codecs.codec import Assets, Columns, split_columns
from teachers.codecs.packed_entries import joined
from teachers.runners.request import Request, plan_batches, refuse_bad
from teachers.signals import HasLogits, TeacherChunk, seeds_of


def rows_per_chunk(vocabulary: int, device: torch.device) -> int:
    """Tokens whose logits are held at once: small enough for a CPU's cache, large for a GPU."""
    budget = (64 << 20) if device.type == "cpu" else (512 << 20)
    return max(16, budget // (4 * vocabulary))


def encode_by_chunks(codec: Any, chunk: HasLogits, assets: Assets, size: int) -> Columns:
    """What the codec stores of many tokens, the logits of `size` of them being held at once."""
    starts = range(0, len(chunk.seeds_N), size)
    return joined([codec.encode(chunk.rows(start, start + size), assets) for start in starts])


class TeacherRunner:
    """A frozen teacher with its head over the tokenizer's ids: examples in, columns out."""

    def __init__(self, model: nn.Module, vocabulary: int, config: CacheConfig) -> None:
        check_layers(config.hidden.layers, num_layers(model))
        for block in config.hidden.attention:
            attention_projections(model, block)  # refused before the first shard
        self.model, self.config = model, config
        self.device = next(model.parameters()).device
        self.head = head_of(model, vocabulary)
        self.padding_mass: float | None = None  # of the first tokens of a shard
        self.chunk = rows_per_chunk(vocabulary, self.device)

    @torch.inference_mode()
    def run(
        self,
        requests: Sequence[Request],
        assets: dict[str, Assets],
        on_tokens: Callable[[int], None] = lambda n: None,
    ) -> list[Columns]:
        """Columns of each request, in order. `on_tokens` is told of tokens as they are done."""
        self.padding_mass = None
        results: list[Columns] = [{} for _ in requests]
        lengths = [len(request.input_ids) for request in requests]
        for batch in plan_batches(lengths, self.config.batch_tokens):
            group = [requests[i] for i in batch]
            for i, columns in zip(batch, self._run_batch(group, assets), strict=True):
                results[i] = columns
            on_tokens(sum(lengths[i] for i in batch))
        return results

    @torch.inference_mode()
    def learn(self, requests: Sequence[Request]) -> dict[str, Assets]:
        """What a cache has of this teacher beside its shards: maps, and what the codecs learn."""
        hidden = self.config.hidden
        learned = {
            f"attention_{block}": attention_maps(self.model, block) for block in hidden.attention
        }
        if self.config.codec.learns or (hidden.parts and hidden.codec.learns):
            for part, own in self._learn_codecs(requests).items():
                learned[part] = {**learned.get(part, {}), **own}
        if any(tensor.isnan().any() for own in learned.values() for tensor in own.values()):
            raise CacheError(
                "The teacher gave NaN or infinite logits for finite hidden states: its head is "
                "damaged or overflows; set `teacher.dtype: float32`, or fetch the model again."
            )
        return {part: assets for part, assets in learned.items() if assets}

    def _learn_codecs(self, requests: Sequence[Request]) -> dict[str, Assets]:
        codec, layer_codec = self.config.codec, self.config.hidden.codec
        finals: list[Tensor] = []
        seeds: list[np.ndarray] = []
        parts: dict[str, list[Tensor]] = {part: [] for part in self.config.hidden.parts}
        lengths = [len(request.input_ids) for request in requests]
        for batch in plan_batches(lengths, self.config.batch_tokens):
            group = [requests[i] for i in batch]
            final_NH, captured = self._states(group)
            finals.append(final_NH)
            for part, part_NH in captured.items():
                parts[part].append(part_NH)
            seeds += [seeds_of(request.key, len(request.counted)) for request in group]
        chunk = TeacherChunk(torch.cat(finals), self.head, np.concatenate(seeds))
        learned = {"distribution": codec.learn(chunk)}
        for part, states in parts.items():
            learned[part] = layer_codec.learn(torch.cat(states))
        return learned

    @torch.inference_mode()
    def final_states(self, requests: Sequence[Request]) -> Tensor:
        """Final hidden states (N, H) of the counted tokens of the requests, in their order."""
        found: list[Tensor] = [torch.empty(0)] * len(requests)
        lengths = [len(request.input_ids) for request in requests]
        for batch in plan_batches(lengths, self.config.batch_tokens):
            group = [requests[i] for i in batch]
            states_NH, _ = self._states(group)
            parts = states_NH.split([len(request.counted) for request in group])
            for i, part in zip(batch, parts, strict=True):
                found[i] = part
        return torch.cat(found)

    def _states(self, group: list[Request]) -> tuple[Tensor, dict[str, Tensor]]:
        """Final hidden states (N, H) of the counted tokens of a batch, and chosen ones by part."""
        hidden = self.config.hidden
        with (
            capture_layers(self.model, hidden.layers) as captured,
            capture_attention_inputs(self.model, hidden.attention) as inputs,
        ):
            hidden_BTH = run_body(self.model, self._collate(group))
        rows, columns = positions_of(group, self.device)
        found = {f"layer_{layer}": captured.layers[layer] for layer in hidden.layers}
        found |= {f"attention_{block}": inputs[block] for block in hidden.attention}
        parts = {part: states[rows, columns] for part, states in found.items()}
        final_NH = hidden_BTH[rows, columns]
        finite = [torch.isfinite(states).all(-1) for states in (final_NH, *parts.values())]
        refuse_bad(torch.stack(finite).all(0).cpu().numpy(), group)
        return final_NH, parts

    def _run_batch(self, group: list[Request], assets: dict[str, Assets]) -> list[Columns]:
        hidden_NH, parts = self._states(group)
        if self.padding_mass is None:
            self.padding_mass = self._measure_padding(hidden_NH[: self.chunk])
        columns = self._encode(hidden_NH, group, assets.get("distribution", {}))
        for part, part_NH in parts.items():
            own = assets.get(part, {})
            for suffix, column in self.config.hidden.codec.encode(part_NH, own).items():
                columns[f"{part}{suffix}"] = column
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
        full = bool(mask_BT.all())  # no mask at all lets attention take its fastest path
        return {
            "input_ids": ids_BT.to(self.device),
            "attention_mask": None if full else mask_BT.to(self.device),
        }

    def _encode(self, hidden_NH: Tensor, group: list[Request], assets: Assets) -> Columns:
        seeds_N = np.concatenate([seeds_of(r.key, len(r.counted)) for r in group])
        chunk = TeacherChunk(hidden_NH, self.head, seeds_N)
        columns = encode_by_chunks(self.config.codec, chunk, assets, self.chunk)
        finite = np.ones(len(hidden_NH), bool)
        for column in columns.values():
            if column.dtype.kind == "f" and len(column) == len(finite):
                finite &= ~np.isnan(column.reshape(len(finite), -1)).any(-1)
        finite &= columns.get("entries", 1) != 0
        refuse_bad(finite, group)
        return columns


def positions_of(group: list[Request], device: torch.device) -> tuple[Tensor, Tensor]:
    """(row, column) of every counted token, example by example."""
    rows = np.concatenate([np.full(len(r.counted), b) for b, r in enumerate(group)])
    columns = np.concatenate([r.counted for r in group])
    return torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device)
