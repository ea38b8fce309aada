"""Draws from many distributions at once without a running sum over the whole vocabulary.

The vocabulary is cut into blocks of 256 ids. A draw is looked up in the running sum over the
blocks' weights (V / 256 numbers a token), then within its block: one pass over V instead of the
several that a running sum and a search over V cost.

Legend: N tokens, J draws a token, V vocabulary, B blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 256
# Weights that a look-up copies at once: many draws would fill the memory, or a CPU's cache.
GATHERED = {"cpu": 1 << 18, "other": 1 << 24}


class Weights:
    """Unnormalised probabilities (N, V) of a piece of tokens, in blocks; ours to change."""

    def __init__(self, logits_NV: Tensor) -> None:
        """Takes logits and uses them up."""
        peak_N1 = logits_NV.amax(-1, keepdim=True)
        weights_NV = logits_NV.sub_(peak_N1).exp_()
        missing = -weights_NV.shape[1] % BLOCK
        if missing:
            weights_NV = functional.pad(weights_NV, (0, missing))
        self.blocks_NBI = weights_NV.view(len(weights_NV), -1, BLOCK)
        self.sums_NB = self.blocks_NBI.sum(-1)
        self.total_N = self.sums_NB.sum(-1)

    def take_above(self, threshold_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(token, id, weight) of every id whose weight reaches the threshold, set to zero here."""
        flat_NV = self.blocks_NBI.view(len(self.total_N), -1)
        # Only blocks that hold enough can hold one: few of them, so that V is not read again.
        tokens, blocks = (self.sums_NB >= threshold_N[:, None]).nonzero(as_tuple=True)
        found, inside = (self.blocks_NBI[tokens, blocks] >= threshold_N[tokens, None]).nonzero(
            as_tuple=True
        )
        tokens_E, ids_E = tokens[found], blocks[found] * BLOCK + inside
        weights_E = flat_NV[tokens_E, ids_E]
        flat_NV[tokens_E, ids_E] = 0.0
        self.sums_NB[tokens, blocks] = self.blocks_NBI[tokens, blocks].sum(-1)
        return tokens_E, ids_E, weights_E

    def at(self, points_NJ: Tensor, wanted_NJ: Tensor | None = None) -> Tensor:
        """The ids (N, J) where the running sum of the weights passes the points (float64).

        Only `wanted_NJ` (bool) are looked up, where it is given; the others are 0.
        """
        if wanted_NJ is None:
            wanted_NJ = torch.ones_like(points_NJ, dtype=torch.bool)
        ends_NB = self.sums_NB.double().cumsum(-1)
        highest_N1 = (ends_NB < ends_NB[:, -1:]).sum(-1, keepdim=True)  # last block with weight
        block_NJ = torch.searchsorted(ends_NB, points_NJ, right=True).minimum(highest_N1)
        left_NJ = points_NJ - functional.pad(ends_NB, (1, 0)).gather(-1, block_NJ)
        tokens_D, _ = wanted_NJ.nonzero(as_tuple=True)
        block_D, left_D = block_NJ[wanted_NJ], left_NJ[wanted_NJ]
        rows = max(1, GATHERED.get(points_NJ.device.type, GATHERED["other"]) // BLOCK)
        inside = [
            self._inside(*piece)
            for piece in zip(
                tokens_D.split(rows), block_D.split(rows), left_D.split(rows), strict=True
            )
        ]
        ids_NJ = torch.zeros_like(block_NJ)
        ids_NJ[wanted_NJ] = block_D * BLOCK + torch.cat(inside)
        return ids_NJ

    def _inside(self, tokens_D: Tensor, block_D: Tensor, left_D: Tensor) -> Tensor:
        """Places within blocks (D,); never an id without weight."""
        inner_DI = self.blocks_NBI[tokens_D, block_D].double().cumsum(-1)
        inside_D = (inner_DI <= left_D.unsqueeze(-1)).sum(-1)
        return inside_D.minimum((inner_DI < inner_DI[:, -1:]).sum(-1))
