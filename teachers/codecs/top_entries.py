"""The likeliest ids of some tokens and the mass outside them: what `topk` and `nucleus` store.

Made from logits, or from what one of the two has stored before (with fewer entries): whatever is
no entry belongs to the tail, at every temperature.

Legend: N tokens, K entries, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from teachers.codecs.codec import Columns
from teachers.signals import SparseDistribution


@dataclass(frozen=True)
class Largest:
    """Entries by falling probability, and a tail for every temperature T.

    ids_NK: int64. logprobs_NK: float32, at temperature 1; -inf marks an unused slot. tails: by T,
    float32 (N,), the log of the sum of p^(1/T) over all other ids.
    """

    ids_NK: Tensor
    logprobs_NK: Tensor
    tails: dict[float, Tensor]

    def keep(self, kept_NK: Tensor) -> Largest:
        """Only these entries; the others join the tails."""
        dropped_NK = self.logprobs_NK.masked_fill(kept_NK, -torch.inf)
        tails = {
            temperature: torch.logaddexp(tail_N, (dropped_NK / temperature).logsumexp(-1))
            for temperature, tail_N in self.tails.items()
        }
        return Largest(self.ids_NK, self.logprobs_NK.masked_fill(~kept_NK, -torch.inf), tails)

    def first(self, k: int) -> Largest:
        """The k likeliest entries."""
        if self.ids_NK.shape[1] <= k:
            return self
        slots_K = torch.arange(self.ids_NK.shape[1], device=self.ids_NK.device)
        kept = self.keep((slots_K < k).expand_as(self.ids_NK))
        return Largest(kept.ids_NK[:, :k], kept.logprobs_NK[:, :k], kept.tails)

    def at(self, temperature: float) -> SparseDistribution:
        """Entries and tail at a temperature, scaled together to sum to one whatever was rounded."""
        logprobs_NK, tail_N = self.logprobs_NK / temperature, self.tails[temperature]
        total_N = torch.logaddexp(logprobs_NK.logsumexp(-1), tail_N)
        return SparseDistribution(
            self.ids_NK, logprobs_NK - total_N.unsqueeze(-1), tail_N - total_N
        )

    def tail_columns(self, temperatures: Sequence[float]) -> Columns:
        """`tail_T` for each T, float16."""
        return {
            tail_column(t): self.tails[t].cpu().numpy().astype(np.float16) for t in temperatures
        }


def largest_of(logits_NV: Tensor, k: int, temperatures: Sequence[float]) -> Largest:
    """The k likeliest ids of logits, which are used up."""
    top = logits_NV.topk(min(k, logits_NV.shape[1]), dim=-1)
    others_NV = logits_NV.scatter_(-1, top.indices, -torch.inf)
    rest_N = others_NV.logsumexp(-1)
    lse_N = torch.logaddexp(top.values.logsumexp(-1), rest_N)
    tails = {}
    for temperature in temperatures:
        warm_N = rest_N if temperature == 1.0 else (others_NV / temperature).logsumexp(-1)
        tails[temperature] = warm_N - lse_N / temperature
    return Largest(top.indices, top.values - lse_N.unsqueeze(-1), tails)


def sorted_largest(ids_NK: Tensor, logprobs_NK: Tensor, tails: dict[float, Tensor]) -> Largest:
    """From entries in any order; unused slots (-inf) come last."""
    order = logprobs_NK.sort(dim=-1, descending=True, stable=True)
    return Largest(ids_NK.gather(-1, order.indices), order.values, tails)


def tail_column(temperature: float) -> str:
    """The column that holds the tail at a temperature: `tail_1`, `tail_1.5`."""
    return f"tail_{temperature:g}"


def stored_tails(columns: Columns, temperatures: Sequence[float]) -> dict[float, Tensor]:
    """The tails by temperature, from their columns."""
    return {t: torch.from_numpy(columns[tail_column(t)].astype(np.float32)) for t in temperatures}
