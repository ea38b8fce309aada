"""Entries of a sparse distribution as bytes that a general-purpose compressor shrinks well.

Ids take most of a sparse cache. Here a token's entries are sorted by the *rank* of their id (how
often the teacher predicts it, learned from a sample; rank 0 is the most frequent), and the gap to
the previous entry's rank is stored: sorting saves log2(n!) bits a token, and common ids have short
gaps. Gaps and codes are split into byte planes (`entry_gap_0` is the low byte), which the shards'
zstd then codes by their frequencies. benchmarks/codecs.md says how much each step saves.

Legend: N tokens, E entries of all tokens, V vocabulary, K entries of the longest token.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from teachers.codecs.codec import Assets, SignalColumns
from teachers.signals import HasLogits

CPU_CACHE_BYTES = 6 << 20


def logits_in_pieces(chunk: HasLogits) -> Iterator[tuple[Tensor, np.ndarray]]:
    """(logits, seeds) of a few tokens at a time: on a CPU as many as fit in its cache."""
    logits_NV = chunk.logits()
    rows = len(logits_NV)
    if logits_NV.device.type == "cpu":
        rows = max(8, CPU_CACHE_BYTES // (4 * logits_NV.shape[1]))
    for start in range(0, len(logits_NV), max(1, rows)):
        yield logits_NV[start : start + rows], chunk.seeds_N[start : start + rows]


def learn_ranks(chunk: HasLogits, cap: float) -> Assets:
    """Learn `id_of_rank` (V,) int32: ids by falling chance of being an entry, min(1, p / cap)."""
    chance_V = torch.tensor(0.0)
    for start in range(0, len(chunk.seeds_N), 256):
        p_NV = chunk.rows(start, start + 256).logits().softmax(-1)
        chance_V = p_NV.clamp_(max=cap).sum(0) + chance_V.to(p_NV.device)
    return {"id_of_rank": chance_V.argsort(descending=True, stable=True).int().cpu()}


def pack_entries(
    tokens_E: np.ndarray,
    ids_E: np.ndarray,
    codes_E: np.ndarray,
    num_tokens: int,
    highest_code: int,
    assets: Assets,
) -> SignalColumns:
    """Columns of entries in any order; codes of an id that a token has twice are summed."""
    id_of_rank = assets["id_of_rank"].numpy()
    rank_of_id = np.empty(len(id_of_rank), np.int64)
    rank_of_id[id_of_rank] = np.arange(len(id_of_rank))
    position_E = tokens_E.astype(np.int64) * len(id_of_rank) + rank_of_id[ids_E]
    order = np.argsort(position_E, kind="stable")
    position_E, codes_E = position_E[order], codes_E[order]
    first_E = np.diff(position_E, prepend=-1) != 0
    if len(codes_E):
        codes_E = np.add.reduceat(codes_E.astype(np.int64), np.flatnonzero(first_E))
    position_E = position_E[first_E]
    tokens_E, ranks_E = np.divmod(position_E, len(id_of_rank))
    starts_E = np.diff(tokens_E, prepend=-1) != 0
    gaps_E = np.where(starts_E, ranks_E, np.diff(ranks_E, prepend=0) - 1)
    columns = {"entries": np.bincount(tokens_E, minlength=num_tokens).astype(np.uint16)}
    _add_planes(columns, "entry_gap", gaps_E, len(id_of_rank) - 1)
    _add_planes(columns, "entry_code", codes_E, highest_code)
    return columns


def unpack_entries(columns: SignalColumns, assets: Assets) -> tuple[Tensor, Tensor, Tensor]:
    """(ids_NK int64, codes_NK float32, used_NK bool); unused slots repeat their row's first id."""
    counts_N = columns["entries"].astype(np.int64)
    tokens_E, ids_E, codes_E = flat_entries(columns, assets)
    slots_E = np.arange(len(ids_E)) - np.repeat(np.cumsum(counts_N) - counts_N, counts_N)
    longest = int(counts_N.max(initial=0))
    used_NK = np.arange(longest) < counts_N[:, None]
    first_N = np.zeros(len(counts_N), np.int64)
    first_N[counts_N > 0] = ids_E[slots_E == 0]
    ids_NK = np.repeat(first_N[:, None], longest, axis=1)
    ids_NK[tokens_E, slots_E] = ids_E
    codes_NK = np.zeros((len(counts_N), longest), np.float32)
    codes_NK[tokens_E, slots_E] = codes_E
    return torch.from_numpy(ids_NK), torch.from_numpy(codes_NK), torch.from_numpy(used_NK)


def flat_entries(
    columns: SignalColumns, assets: Assets
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(token, id, code) of every entry that `pack_entries` was given, by token and rank."""
    counts_N = columns["entries"].astype(np.int64)
    starts_N = np.cumsum(counts_N) - counts_N
    summed_E = np.cumsum(_join_planes(columns, "entry_gap") + 1)
    before_N = np.concatenate([[0], summed_E])[starts_N]
    tokens_E = np.repeat(np.arange(len(counts_N)), counts_N)
    ids_E = assets["id_of_rank"].cpu().numpy()[summed_E - before_N[tokens_E] - 1]
    return tokens_E, ids_E, _join_planes(columns, "entry_code")


def repack_entries(columns: SignalColumns, old: Assets, new: Assets) -> SignalColumns:
    """Repack entries for another order of the ids; columns with one row a token are unchanged."""
    tokens_E, ids_E, codes_E = flat_entries(columns, old)
    highest_code = (1 << 8 * sum(name.startswith("entry_code_") for name in columns)) - 1
    packed = pack_entries(tokens_E, ids_E, codes_E, len(columns["entries"]), highest_code, new)
    return {name: packed.get(name, column) for name, column in columns.items()}


def slots_of(tokens_E: np.ndarray) -> np.ndarray:
    """Position of each entry within its token; `tokens_E` must be rising."""
    starts = np.flatnonzero(np.diff(tokens_E, prepend=-1) != 0)
    return np.arange(len(tokens_E)) - np.repeat(starts, np.diff([*starts, len(tokens_E)]))


def _add_planes(columns: SignalColumns, name: str, values: np.ndarray, highest: int) -> None:
    for i in range(max(1, (int(highest).bit_length() + 7) // 8)):
        columns[f"{name}_{i}"] = (values >> (8 * i) & 255).astype(np.uint8)


def _join_planes(columns: SignalColumns, name: str) -> np.ndarray:
    planes = sorted(column for column in columns if column.startswith(f"{name}_"))
    total = np.zeros(len(columns[planes[0]]), np.int64)
    for i, plane in enumerate(planes):
        total |= columns[plane].astype(np.int64) << (8 * i)
    return total
