"""`nucleus`: as many of the largest entries as reach a mass, and the mass of the rest.

Ragged: a sure teacher costs an entry or two, an unsure one up to k. Log-probabilities are 8-bit
codes c with -log p = 16 (c / 255)^2: fine where p is large. The tail's mass is stored for each
temperature, as in `topk`; it is one outcome (`bucket`): least error on single tokens, but biased.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from attar.config import Section
from teachers.codecs.codec import CODECS, Assets, Columns
from teachers.codecs.packed_entries import joined, learn_ranks, pack, pieces, unpack
from teachers.codecs.top_entries import Largest, largest_of, sorted_largest, stored_tails
from teachers.codecs.topk import Temperatures, refuse_uncached
from teachers.signals import HasLogits, SparseDistribution

LOWEST = 16.0  # nats: probabilities below e^-16 are stored as that


@CODECS.add("nucleus")
class Nucleus(Section):
    """The largest entries up to a mass, and the tail's mass: best for single tokens."""

    tail: ClassVar[str] = "bucket"
    learns: ClassVar[bool] = True
    name: Literal["nucleus"] = "nucleus"
    mass: float = Field(0.95, gt=0, le=1, description="probability that the entries reach")
    k: int = Field(64, ge=1, le=4096, description="most entries a token")
    temperatures: Temperatures = Field(
        [1.0], description="temperatures at which losses may read the targets"
    )

    def learn(self, chunk: HasLogits) -> Assets:
        """The order of the ids."""
        return learn_ranks(chunk, 1 / self.k)

    def encode(self, chunk: HasLogits, assets: Assets) -> Columns:
        """Entries, codes and tails."""
        parts = []
        for logits_NV, _ in pieces(chunk):
            vocabulary = logits_NV.shape[1]
            largest = largest_of(logits_NV, self.k, self.temperatures)
            parts.append(self.encode_largest(largest, vocabulary, assets))
        return joined(parts)

    def encode_largest(self, largest: Largest, vocabulary: int, assets: Assets) -> Columns:
        """The same columns from more entries than these may be."""
        largest = largest.first(self.k)
        before_NK = largest.logprobs_NK.exp().cumsum(-1).roll(1, -1)
        before_NK[:, 0] = 0.0
        used_NK = (before_NK < self.mass) & (largest.logprobs_NK > -torch.inf)
        largest = largest.keep(used_NK)
        codes_NK = ((-largest.logprobs_NK).clamp(0, LOWEST) / LOWEST).sqrt() * 255
        tokens_E = used_NK.nonzero(as_tuple=True)[0].cpu().numpy()
        ids_E = largest.ids_NK[used_NK].cpu().numpy()
        codes_E = codes_NK[used_NK].round().long().cpu().numpy()
        columns = pack(tokens_E, ids_E, codes_E, len(used_NK), 255, assets)
        return {**columns, **largest.tail_columns(self.temperatures)}

    def decode_largest(self, columns: Columns, num_tokens: int, assets: Assets) -> Largest:
        """Entries by falling probability and every tail, as stored."""
        ids_NK, logprobs_NK = self._entries(columns, assets)
        return sorted_largest(ids_NK, logprobs_NK, stored_tails(columns, self.temperatures))

    def _entries(self, columns: Columns, assets: Assets) -> tuple[Tensor, Tensor]:
        ids_NK, codes_NK, used_NK = unpack(columns, assets)
        logprobs_NK = (codes_NK / 255).square() * -LOWEST
        return ids_NK, logprobs_NK.masked_fill(~used_NK, -torch.inf)

    def decode(
        self, columns: Columns, num_tokens: int, temperature: float, assets: Assets
    ) -> SparseDistribution:
        """Entries in the order of their ranks, and the tail, scaled together to sum to one."""
        self.check_temperature(temperature)
        tails = stored_tails(columns, [temperature])
        return Largest(*self._entries(columns, assets), tails).at(temperature)

    def check_temperature(self, temperature: float) -> None:
        """Only what was captured."""
        refuse_uncached(self.temperatures, temperature)

    def bytes_per_token(self, vocabulary: int, width: int) -> float:
        """As measured on English text (docs/cache.md), where the cap rules."""
        entries = float((min(self.k, vocabulary) * self.mass) ** 0.85)
        return 1.0 + 2.3 * entries + 2 * len(self.temperatures)
