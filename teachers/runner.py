"""Run the teacher once over all examples and leave its signals in the cache, shard by shard.

Legend: B sequences, T tokens, N tokens counted, V vocabulary, H width.

Shards are fixed parts of the examples in their order, and batches never cross a shard, so a build
that was killed and continued writes the same bytes as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attar.anatomy import (
    capture_layers,
    check_layers,
    head_of,
    num_layers,
    run_body,
    unwrap,
)
from attar.errors import CacheError
from teachers.cache import CacheConfig
from teachers.codecs import LAYER_CODECS, Columns
from teachers.signals import TeacherChunk
from teachers.store import SignalStore


@dataclass(frozen=True)
class Request:
    """One example: its key, its ids (T,), and the positions whose prediction counts."""

    key: str
    input_ids: np.ndarray
    counted: np.ndarray


def plan_shards(tokens: Sequence[int], shard_tokens: int) -> list[range]:
    """Split examples, in order, into shards of about `shard_tokens` counted tokens."""
    shards, start, held = [], 0, 0
    for i, count in enumerate(tokens):
        held += count
        if held >= shard_tokens:
            shards.append(range(start, i + 1))
            start, held = i + 1, 0
    if start < len(tokens):
        shards.append(range(start, len(tokens)))
    return shards


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Group examples of like length: B x T stays within `batch_tokens`, with little padding."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and longest * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def rows_per_chunk(vocabulary: int, device: torch.device) -> int:
    """Tokens whose logits are held at once: small enough for a CPU's cache, large for a GPU."""
    budget = (64 << 20) if device.type == "cpu" else (512 << 20)
    return max(16, budget // (4 * vocabulary))


class TeacherRunner:
    """A frozen teacher with its head over the tokenizer's ids: examples in, columns out."""

    def __init__(self, model: nn.Module, vocabulary: int, config: CacheConfig) -> None:
        check_layers(config.hidden.layers, num_layers(model))
        self.model, self.config = model, config
        self.device = next(model.parameters()).device
        self.head = head_of(model, vocabulary)
        self.padding_mass: float | None = None  # of the first tokens of a shard
        self.chunk = rows_per_chunk(vocabulary, self.device)

    @torch.inference_mode()
    def run(
        self, requests: Sequence[Request], on_tokens: Callable[[int], None] = lambda n: None
    ) -> list[Columns]:
        """Columns of each request, in order. `on_tokens` is told of tokens as they are done."""
        self.padding_mass = None
        results: list[Columns] = [{} for _ in requests]
        lengths = [len(request.input_ids) for request in requests]
        for batch in plan_batches(lengths, self.config.batch_tokens):
            group = [requests[i] for i in batch]
            for i, columns in zip(batch, self._run_batch(group), strict=True):
                results[i] = columns
            on_tokens(sum(lengths[i] for i in batch))
        return results

    def _run_batch(self, group: list[Request]) -> list[Columns]:
        with capture_layers(self.model, self.config.hidden.layers) as captured:
            hidden_BTH = run_body(self.model, self._collate(group))
        rows, columns_of = _positions(group, self.device)
        if self.padding_mass is None:
            self.padding_mass = self._measure_padding(hidden_BTH[rows, columns_of][: self.chunk])
        columns = self._encode(hidden_BTH[rows, columns_of], group)
        for layer, layer_BTH in captured.layers.items():
            codec = LAYER_CODECS[self.config.hidden.codec]
            for suffix, column in codec.encode(layer_BTH[rows, columns_of]).items():
                columns[f"layer_{layer}{suffix}"] = column
        ends = np.cumsum([len(request.counted) for request in group])[:-1]
        split = {name: np.split(column, ends) for name, column in columns.items()}
        return [{name: parts[i] for name, parts in split.items()} for i in range(len(group))]

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

    def _encode(self, hidden_NH: Tensor, group: list[Request]) -> Columns:
        parts = []
        for piece_NH in hidden_NH.split(self.chunk):
            parts.append(self.config.codec.encode(TeacherChunk(piece_NH, self.head)))
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        finite = torch.isfinite(hidden_NH).all(-1).cpu().numpy()
        finite &= ~np.isnan(columns["logprobs"]).any(-1) if "logprobs" in columns else True
        if not finite.all():
            token = int(np.argmin(finite))
            ends = np.cumsum([len(request.counted) for request in group])
            key = group[int(np.searchsorted(ends, token, side="right"))].key
            raise CacheError(
                f"The teacher gave NaN or infinite values for example {key}; set `teacher.dtype: "
                "float32`, or look at that example. Finished shards are kept."
            )
        return columns


def _positions(group: list[Request], device: torch.device) -> tuple[Tensor, Tensor]:
    """(row, column) of every counted token, example by example."""
    rows = np.concatenate([np.full(len(r.counted), b) for b, r in enumerate(group)])
    columns = np.concatenate([r.counted for r in group])
    return torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device)


def build_cache(
    store: SignalStore,
    manifest: dict[str, Any],
    requests: Sequence[Request],
    make_runner: Callable[[], TeacherRunner],
    *,
    rank: int = 0,
    world: int = 1,
    on_tokens: Callable[[int], None] = lambda n: None,
    on_skip: Callable[[int], None] = lambda n: None,
) -> dict[str, float]:
    """Make what is missing of a cache; the teacher is loaded only if something is.

    Each of `world` processes makes every world-th shard. Returns the numbers of examples and
    tokens, the bytes of the whole cache, and the probability mass on padded vocabulary columns.
    """
    if rank == 0:
        store.begin(manifest)
    else:
        store.check_fits(manifest)
    requests = sorted(requests, key=lambda request: request.key)  # nothing depends on order
    counts = [len(request.counted) for request in requests]
    shards = plan_shards(counts, manifest["shard_tokens"])
    done = store.entries()
    runner = None
    for number, part in enumerate(shards):
        group = [requests[i] for i in part]
        if number in done:
            on_skip(sum(len(request.input_ids) for request in group))
        elif number % world == rank:
            runner = runner or make_runner()
            rows = runner.run(group, on_tokens)
            keys = [request.key for request in group]
            store.write_shard(number, keys, rows, manifest, runner.padding_mass)
    return store.totals()
