"""`sampled`: random sampling knowledge distillation (Anshumann et al. 2025, 2503.16870).

For each token, `draws` ids are drawn from the teacher's distribution with replacement; an id's
weight is its share of the draws. The target is unbiased; `hybrid` has less variance for the same
bytes.

Legend: N tokens counted, J draws a token, E entries of all tokens.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from attar.config import Section
from attar.counter_random import uniforms
from teachers.codecs.codec import CODECS, Assets, Gives, SignalColumns, join_columns
from teachers.codecs.packed_entries import learn_ranks, logits_in_pieces, pack_entries
from teachers.codecs.sampling import BlockedWeights
from teachers.codecs.unbiased_entries import (
    check_drawn_temperature,
    decode_weights,
    with_seed,
)
from teachers.signals import HasLogits, SparseDistribution


@CODECS.add("sampled")
class Sampled(Section):
    """Ids drawn with replacement, weight = share of the draws: unbiased, simple, noisier."""

    gives: ClassVar[Gives] = "distribution"
    tail: ClassVar[str] = "sampled"
    learns: ClassVar[bool] = True
    name: Literal["sampled"] = "sampled"
    draws: int = Field(50, ge=1, le=65535, description="draws a token, with replacement")
    seed: int = Field(0, description="of the draws")

    @property
    def unit(self) -> float:
        """Weights are multiples of this."""
        return 1 / self.draws

    def learn(self, chunk: HasLogits) -> Assets:
        """Learn the order of the ids."""
        return learn_ranks(chunk, self.unit)

    def encode(self, chunk: HasLogits, assets: Assets) -> SignalColumns:
        """Ids, and how often each was drawn."""
        parts = []
        for logits_NV, seeds_N in logits_in_pieces(chunk):
            weights = BlockedWeights(logits_NV)
            draws_NJ = torch.from_numpy(uniforms(with_seed(seeds_N, self.seed), self.draws, 0))
            points_NJ = draws_NJ.to(weights.total_N.device) * weights.total_N.double()[:, None]
            drawn_NJ = points_NJ.isfinite()  # a token without entries where the teacher gave NaN
            ids_E = weights.at(points_NJ, drawn_NJ)[drawn_NJ].cpu().numpy()
            tokens_E = drawn_NJ.nonzero(as_tuple=True)[0].cpu().numpy()
            ones_E = np.ones(len(ids_E), np.int64)
            parts.append(pack_entries(tokens_E, ids_E, ones_E, len(seeds_N), self.draws, assets))
        return join_columns(parts)

    def decode(
        self, columns: SignalColumns, num_tokens: int, temperature: float, assets: Assets
    ) -> SparseDistribution:
        """Entries with their share of the draws."""
        return decode_weights(self, columns, temperature, assets)

    def check_temperature(self, temperature: float) -> None:
        """Ids are drawn at temperature 1 and serve no other."""
        check_drawn_temperature(self.name, temperature)

    def bytes_per_token(self, vocabulary: int, width: int) -> float:
        """As measured on English text (benchmarks/codecs.md)."""
        return 1.0 + 1.35 * float(self.draws**0.83)
