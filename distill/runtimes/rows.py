"""Logits for runtimes that compute one text at a time: a row is run when its logits are asked for.

Legend: T tokens, n positions wanted, N tokens counted, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from distill.data.batching import Batch
from distill.data.tokenize import IGNORE


class ReadsText(Protocol):
    """A runtime that computes the logits of one text at a time."""

    vocabulary: int  # V

    def some_logits(self, ids: list[int], wanted_T: np.ndarray) -> Tensor:
        """Float32 logits (n, V) at the wanted positions of one text."""


class LogitsByRow:
    """Logits of N counted positions, a row computed when one of its positions is asked for.

    Only one row's logits are in memory at a time; pieces that go through the rows in order, as
    evaluation's do, compute each row once.
    """

    def __init__(self, runtime: ReadsText, batch: Batch) -> None:
        self._runtime = runtime
        self._ids: list[list[int]] = []
        self._counted: list[np.ndarray] = []
        for row, (ids_T, labels_T) in enumerate(
            zip(batch.input_ids_BT, batch.labels_BT, strict=True)
        ):
            counted = (labels_T != IGNORE).numpy()
            if batch.mask_BT is None:  # causal: no counted position sees later ones
                last = int(counted.nonzero()[0][-1]) + 1 if counted.any() else 0
            else:
                last = int(batch.mask_BT[row].sum())
            self._ids.append(ids_T[:last].tolist())
            self._counted.append(counted[:last])
        numbers = [int(counted.sum()) for counted in self._counted]
        self._starts = np.concatenate([[0], np.cumsum(numbers)])
        self._row_in_memory = -1, torch.zeros(0)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def piece(self, rows: slice) -> Tensor:
        """Float32 logits (n, V) of some of the positions."""
        start, stop, step = rows.indices(len(self))
        assert step == 1, "pieces are contiguous"
        pieces = [torch.zeros(0, self._runtime.vocabulary)]
        for row in range(len(self._ids)):
            first, end = int(self._starts[row]), int(self._starts[row + 1])
            if first < stop and start < end:
                logits_nV = self._row(row)
                pieces.append(logits_nV[max(0, start - first) : stop - first])
        return torch.cat(pieces)

    def _row(self, row: int) -> Tensor:
        if self._row_in_memory[0] != row:
            self._row_in_memory = -1, torch.zeros(0)  # free it before the next one is computed
            ids = self._ids[row]
            self._row_in_memory = row, self._runtime.some_logits(ids, self._counted[row])
        return self._row_in_memory[1]
