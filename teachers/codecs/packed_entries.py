"""Entries of a sparse distribution as bytes that a general compressor shrinks well.

Ids take most of a sparse cache. Here a token's entries are sorted by the *rank* of their id (how
often the teacher means it, learned from a sample: rank 0 the most), and what is stored is the gap
to the entry before: sorting saves log2(n!) bits a token, and common ids have short gaps. Gaps and
codes are split into byte planes (`entry_gap_0` the low byte), which the shards' zstd then codes by
their frequencies. docs/cache.md has what each step saves.

Legend: N tokens, E entries of all tokens, V vocabulary, K entries of the longest token.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from teachers.codecs.codec import Assets, Columns
from teachers.signals import HasLogits

CPU_CACHE_BYTES = 6 << 20


def pieces(chunk: HasLogits) -> Iterator[tuple[Tensor, np.ndarray]]:
    """(logits, seeds) of some tokens at a time: on a CPU as many as stay in its cache."""
    logits_NV = chunk.logits()
    rows = len(logits_NV)
    if logits_NV.device.type == "cpu":
        rows = max(8, CPU_CACHE_BYTES // (4 * logits_NV.shape[1]))
    for start in range(0, len(logits_NV), max(1, rows)):
        yield logits_NV[start : start + rows], chunk.seeds_N[start : start + rows]


def joined(parts: list[Columns]) -> Columns:
    """Columns of consecutive pieces as one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def learn_ranks(chunk: HasLogits, cap: float) -> Assets:
    """`id_of_rank` (V,) int32: ids by falling chance of being an entry, min(1, p / cap)."""
    chance_V = torch.tensor(0.0)
    for start in range(0, len(chunk.seeds_N), 256):
        p_NV = chunk.rows(start, start + 256).logits().softmax(-1)
        chance_V = p_NV.clamp_(max=cap).sum(0) + chance_V.to(p_NV.device)
    return {"id_of_rank": chance_V.argsort(descending=True, stable=True).int().cpu()}


def pack(
    tokens_E: np.ndarray,
    ids_E: np.ndarray,
    codes_E: np.ndarray,
    num_tokens: int,
    highest_code: int,
    assets: Assets,
) -> Columns:
    """Columns of entries in any order; codes of an id that a token has twice are added."""
    id_of_rank = assets["id_of_rank"].numpy()
    rank_of_id = np.empty(len(id_of_rank), np.int64)
    rank_of_id[id_of_rank] = np.arange(len(id_of_rank))
    place_E = tokens_E.astype(np.int64) * len(id_of_rank) + rank_of_id[ids_E]
    order = np.argsort(place_E, kind="stable")
    place_E, codes_E = place_E[order], codes_E[order]
    first_E = np.diff(place_E, prepend=-1) != 0
    if len(codes_E):
        codes_E = np.add.reduceat(codes_E.astype(np.int64), np.flatnonzero(first_E))
    place_E = place_E[first_E]
    tokens_E, ranks_E = np.divmod(place_E, len(id_of_rank))
    starts_E = np.diff(tokens_E, prepend=-1) != 0
    gaps_E = np.where(starts_E, ranks_E, np.diff(ranks_E, prepend=0) - 1)
    columns = {"entries": np.bincount(tokens_E, minlength=num_tokens).astype(np.uint16)}
    _add_planes(columns, "entry_gap", gaps_E, len(id_of_rank) - 1)
    _add_planes(columns, "entry_code", codes_E, highest_code)
    return columns


def unpack(columns: Columns, assets: Assets) -> tuple[Tensor, Tensor, Tensor]:
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


def flat_entries(columns: Columns, assets: Assets) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(token, id, code) of every entry, token by token, by rank: what `pack` was given."""
    counts_N = columns["entries"].astype(np.int64)
    starts_N = np.cumsum(counts_N) - counts_N
    walked_E = np.cumsum(_planes(columns, "entry_gap") + 1)
    before_N = np.concatenate([[0], walked_E])[starts_N]
    tokens_E = np.repeat(np.arange(len(counts_N)), counts_N)
    ids_E = assets["id_of_rank"].cpu().numpy()[walked_E - before_N[tokens_E] - 1]
    return tokens_E, ids_E, _planes(columns, "entry_code")


def repack(columns: Columns, old: Assets, new: Assets) -> Columns:
    """The same entries in another order of the ids; columns of tokens stay as they are."""
    tokens_E, ids_E, codes_E = flat_entries(columns, old)
    highest_code = (1 << 8 * sum(name.startswith("entry_code_") for name in columns)) - 1
    packed = pack(tokens_E, ids_E, codes_E, len(columns["entries"]), highest_code, new)
    return {name: packed.get(name, column) for name, column in columns.items()}


def slots(tokens_E: np.ndarray) -> np.ndarray:
    """Position of each entry within its token, for rising tokens."""
    starts = np.flatnonzero(np.diff(tokens_E, prepend=-1) != 0)
    return np.arange(len(tokens_E)) - np.repeat(starts, np.diff([*starts, len(tokens_E)]))


def _add_planes(columns: Columns, name: str, values: np.ndarray, highest: int) -> None:
    for i in range(max(1, (int(highest).bit_length() + 7) // 8)):
        columns[f"{name}_{i}"] = (values >> (8 * i) & 255).astype(np.uint8)


def _planes(columns: Columns, name: str) -> np.ndarray:
    planes = sorted(column for column in columns if column.startswith(f"{name}_"))
    total = np.zeros(len(columns[planes[0]]), np.int64)
    for i, plane in enumerate(planes):
        total |= columns[plane].astype(np.int64) << (8 * i)
    return total
