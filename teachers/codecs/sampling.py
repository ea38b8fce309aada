"""Draws from many distributions at once without a cumulative sum over the whole vocabulary.

The vocabulary is cut into blocks of 256 ids. A draw is looked up in the cumulative sum of the
blocks' weights (V / 256 numbers a token), then within its block: one pass over V instead of the
several passes that a cumulative sum and a search over V cost.

Legend: N tokens, J draws a token, D draws looked up, V vocabulary, B blocks, I ids of a block, E
entries.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

IDS_PER_BLOCK = 256
# Weights that one look-up copies: more would not fit in memory, or in a CPU's cache.
MAX_GATHERED_WEIGHTS = {"cpu": 1 << 18, "other": 1 << 24}


class BlockedWeights:
    """Unnormalised probabilities (N, V) of some tokens, in blocks of ids."""

    def __init__(self, logits_NV: Tensor) -> None:
        """Make weights of logits, in place: `logits_NV` is overwritten."""
        peak_N1 = logits_NV.amax(-1, keepdim=True)
        weights_NV = logits_NV.sub_(peak_N1).exp_()
        missing = -weights_NV.shape[1] % IDS_PER_BLOCK
        if missing:
            weights_NV = functional.pad(weights_NV, (0, missing))
        self.blocks_NBI = weights_NV.view(len(weights_NV), -1, IDS_PER_BLOCK)
        self.sums_NB = self.blocks_NBI.sum(-1)
        self.total_N = self.sums_NB.sum(-1)

    def take_above(self, threshold_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take out every id whose weight reaches the threshold: (token, id, weight) of each.

        Their weights become 0 in this object.
        """
        flat_NV = self.blocks_NBI.view(len(self.total_N), -1)
        # Only blocks whose sum reaches the threshold can hold such an id, and these are few.
        tokens, blocks = (self.sums_NB >= threshold_N[:, None]).nonzero(as_tuple=True)
        found, inside = (self.blocks_NBI[tokens, blocks] >= threshold_N[tokens, None]).nonzero(
            as_tuple=True
        )
        tokens_E, ids_E = tokens[found], blocks[found] * IDS_PER_BLOCK + inside
        weights_E = flat_NV[tokens_E, ids_E]
        flat_NV[tokens_E, ids_E] = 0.0
        self.sums_NB[tokens, blocks] = self.blocks_NBI[tokens, blocks].sum(-1)
        return tokens_E, ids_E, weights_E

    def at(self, points_NJ: Tensor, wanted_NJ: Tensor | None = None) -> Tensor:
        """The ids (N, J) where the cumulative sum of the weights passes the points (float64).

        wanted_NJ: bool, which points to look up (None: all); the others give 0.
        """
        if wanted_NJ is None:
            wanted_NJ = torch.ones_like(points_NJ, dtype=torch.bool)
        ends_NB = self.sums_NB.double().cumsum(-1)
        highest_N1 = (ends_NB < ends_NB[:, -1:]).sum(-1, keepdim=True)  # last block with weight
        block_NJ = torch.searchsorted(ends_NB, points_NJ, right=True).minimum(highest_N1)
        left_NJ = points_NJ - functional.pad(ends_NB, (1, 0)).gather(-1, block_NJ)
        tokens_D, _ = wanted_NJ.nonzero(as_tuple=True)
        block_D, left_D = block_NJ[wanted_NJ], left_NJ[wanted_NJ]
        rows = max(
            1,
            MAX_GATHERED_WEIGHTS.get(points_NJ.device.type, MAX_GATHERED_WEIGHTS["other"])
            // IDS_PER_BLOCK,
        )
        inside = [
            self._inside(*piece)
            for piece in zip(
                tokens_D.split(rows), block_D.split(rows), left_D.split(rows), strict=True
            )
        ]
        ids_NJ = torch.zeros_like(block_NJ)
        ids_NJ[wanted_NJ] = block_D * IDS_PER_BLOCK + torch.cat(inside)
        return ids_NJ

    def _inside(self, tokens_D: Tensor, block_D: Tensor, left_D: Tensor) -> Tensor:
        """Positions within blocks (D,); never that of an id without weight."""
        inner_DI = self.blocks_NBI[tokens_D, block_D].double().cumsum(-1)
        inside_D = (inner_DI <= left_D.unsqueeze(-1)).sum(-1)
        return inside_D.minimum((inner_DI < inner_DI[:, -1:]).sum(-1))
