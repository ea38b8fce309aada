"""`nucleus`: as many of the largest entries as reach a mass, and the mass of the rest.

The number of entries varies: a token of which the teacher is sure costs one or two, an unsure one
up to k. Log-probabilities are 8-bit codes c with -log p = 16 (c / 255)^2, fine where p is large.
The tail's mass is stored for each temperature, as in `topk`; it is one outcome (`bucket`), which
gives the least error on single tokens but is biased.

Legend: N tokens counted, K entries of the longest token, E entries of all tokens.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from attar.config import Section
from teachers.codecs.codec import CODECS, Assets, Gives, SignalColumns
from teachers.codecs.packed_entries import learn_ranks, pack_entries, unpack_entries
from teachers.codecs.top_entries import (
    Temperatures,
    TopEntries,
    check_stored_temperature,
    encode_top_entries,
    sort_entries,
    stored_tails,
)
from teachers.signals import HasLogits, SparseDistribution

MAX_SURPRISAL = 16.0  # nats: smaller probabilities are stored as e^-16


@CODECS.add("nucleus")
class Nucleus(Section):
    """The largest entries up to a mass, and the tail's mass: best for single tokens."""

    gives: ClassVar[Gives] = "distribution"
    tail: ClassVar[str] = "bucket"
    learns: ClassVar[bool] = True
    name: Literal["nucleus"] = "nucleus"
    mass: float = Field(0.95, gt=0, le=1, description="probability that the entries reach")
    k: int = Field(64, ge=1, le=4096, description="most entries a token")
    temperatures: Temperatures = Field(
        [1.0], description="temperatures at which losses may read the targets"
    )

    def learn(self, chunk: HasLogits) -> Assets:
        """Learn the order of the ids."""
        return learn_ranks(chunk, 1 / self.k)

    def encode(self, chunk: HasLogits, assets: Assets) -> SignalColumns:
        """Entries, their codes, and the tails."""
        return encode_top_entries(self, chunk, assets)

    def encode_top(self, entries: TopEntries, vocabulary: int, assets: Assets) -> SignalColumns:
        """The same columns from entries; those beyond the mass, or k, join the tail."""
        entries = entries.first(self.k)
        before_NK = entries.logprobs_NK.exp().cumsum(-1).roll(1, -1)
        before_NK[:, 0] = 0.0
        used_NK = (before_NK < self.mass) & (entries.logprobs_NK > -torch.inf)
        entries = entries.keep(used_NK)
        surprisal_NK = (-entries.logprobs_NK).clamp(0, MAX_SURPRISAL)
        codes_NK = (surprisal_NK / MAX_SURPRISAL).sqrt() * 255
        tokens_E = used_NK.nonzero(as_tuple=True)[0].cpu().numpy()
        ids_E = entries.ids_NK[used_NK].cpu().numpy()
        codes_E = codes_NK[used_NK].round().long().cpu().numpy()
        columns = pack_entries(tokens_E, ids_E, codes_E, len(used_NK), 255, assets)
        return {**columns, **entries.tail_columns(self.temperatures)}

    def decode_top(self, columns: SignalColumns, num_tokens: int, assets: Assets) -> TopEntries:
        """Entries by falling probability and every tail, as stored."""
        ids_NK, logprobs_NK = self._entries(columns, assets)
        return sort_entries(ids_NK, logprobs_NK, stored_tails(columns, self.temperatures))

    def _entries(self, columns: SignalColumns, assets: Assets) -> tuple[Tensor, Tensor]:
        ids_NK, codes_NK, used_NK = unpack_entries(columns, assets)
        logprobs_NK = (codes_NK / 255).square() * -MAX_SURPRISAL
        return ids_NK, logprobs_NK.masked_fill(~used_NK, -torch.inf)

    def decode(
        self, columns: SignalColumns, num_tokens: int, temperature: float, assets: Assets
    ) -> SparseDistribution:
        """Entries in the order of their ranks, and the tail, rescaled together to sum to one."""
        self.check_temperature(temperature)
        tails = stored_tails(columns, [temperature])
        return TopEntries(*self._entries(columns, assets), tails).at(temperature)

    def check_temperature(self, temperature: float) -> None:
        """Only the temperatures whose tails are stored can be read."""
        check_stored_temperature(self.temperatures, temperature)

    def bytes_per_token(self, vocabulary: int, width: int) -> float:
        """As measured (benchmarks/codecs.md); the cap k counts where it is reached."""
        entries = float((min(self.k, vocabulary) * self.mass) ** 0.85)
        return 1.0 + 2.3 * entries + 2 * len(self.temperatures)
