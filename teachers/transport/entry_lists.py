"""Entries of the student's ids, gathered by token and written as columns.

Legend: N wanted tokens, K entries kept, F some of the tokens, P gathered entries, G groups of equal
token and id.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from teachers.codecs.top_entries import TopEntries


@dataclass(frozen=True)
class Columns:
    """The arrays of `Transported` while they are filled."""

    ids_NK: np.ndarray
    logprobs_NK: np.ndarray
    tail_N: np.ndarray
    label_N: np.ndarray

    @classmethod
    def unserved(cls, tokens: int, k: int) -> Columns:
        """No entries, all mass in the tail."""
        return cls(
            np.zeros((tokens, k), np.int64),
            np.full((tokens, k), -np.inf, np.float32),
            np.zeros(tokens, np.float32),
            np.full(tokens, np.nan),
        )

    def put(
        self, rows_F: np.ndarray, ids_FK: np.ndarray, logprobs_FK: np.ndarray, tail_F: np.ndarray
    ) -> None:
        """Write entries by falling probability as they are; those beyond K join the tail."""
        k = self.ids_NK.shape[1]
        tails = {1.0: torch.from_numpy(tail_F)}
        found = TopEntries(torch.from_numpy(ids_FK), torch.from_numpy(logprobs_FK), tails).first(k)
        width = found.ids_NK.shape[1]
        used = found.logprobs_NK > -torch.inf
        self.ids_NK[rows_F, :width] = torch.where(used, found.ids_NK, found.ids_NK[:, :1]).numpy()
        self.logprobs_NK[rows_F, :width] = found.logprobs_NK.numpy()
        self.tail_N[rows_F] = found.tails[1.0].numpy()


class EntryLists:
    """Entries of some tokens, in which an id may stand several times."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._tails: list[tuple[np.ndarray, np.ndarray]] = []

    def add(
        self,
        rows_P: np.ndarray,
        ids_P: np.ndarray,
        weights_P: np.ndarray,
        rows_F: np.ndarray,
        tail_F: np.ndarray,
    ) -> None:
        """Add entries (their tokens, ids and probabilities), and the tails of the tokens."""
        self._parts.append((rows_P, ids_P, weights_P))
        self._tails.append((rows_F, tail_F))

    def write(self, columns: Columns) -> None:
        """Add up what has the same id, keep the likeliest of each token, and let all sum to one."""
        if not self._parts:
            return
        rows_P, ids_P, weights_P = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        rows_F, tail_F = (np.concatenate(part) for part in zip(*self._tails, strict=True))
        keys_P = rows_P * self._vocabulary + ids_P
        order = np.argsort(keys_P, kind="stable")
        begins = np.concatenate([[True], np.diff(keys_P[order]) > 0]) if len(order) else order
        starts = np.nonzero(begins)[0]
        sums_G = np.add.reduceat(weights_P[order], starts) if len(starts) else np.zeros(0)
        rows_G, ids_G = rows_P[order][starts], ids_P[order][starts]
        used = sums_G > 0.0
        rows_G, ids_G, sums_G, first_G = (
            rows_G[used],
            ids_G[used],
            sums_G[used],
            order[starts][used],
        )
        order = np.lexsort((first_G, -sums_G, rows_G))
        rows_G, ids_G, sums_G = rows_G[order], ids_G[order], sums_G[order]
        n, k = columns.ids_NK.shape
        tail_N = np.zeros(n)
        tail_N[rows_F] = tail_F
        total_N = tail_N + np.bincount(rows_G, sums_G, n)
        slots_G = np.arange(len(rows_G)) - np.searchsorted(rows_G, rows_G)
        kept = slots_G < k
        tail_N += np.bincount(rows_G[~kept], sums_G[~kept], n)
        rows_G, slots_G, ids_G, sums_G = rows_G[kept], slots_G[kept], ids_G[kept], sums_G[kept]
        columns.ids_NK[rows_G[slots_G == 0]] = ids_G[slots_G == 0][:, None]  # of unused slots
        columns.ids_NK[rows_G, slots_G] = ids_G
        columns.logprobs_NK[rows_G, slots_G] = np.log(sums_G / total_N[rows_G])
        with np.errstate(divide="ignore"):
            columns.tail_N[rows_F] = np.log(tail_N[rows_F] / total_N[rows_F])
