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

from attar.strict import Section
from teachers.codecs import CODECS, Assets, Columns
from teachers.codecs.entries import joined, learn_ranks, pack, pieces, unpack
from teachers.codecs.topk import Temperatures, refuse_uncached, tails, with_tail
from teachers.signals import SparseDistribution, TeacherChunk

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

    def learn(self, chunk: TeacherChunk) -> Assets:
        """The order of the ids."""
        return learn_ranks(chunk, 1 / self.k)

    def encode(self, chunk: TeacherChunk, assets: Assets) -> Columns:
        """Entries, codes and tails."""
        return joined([self._encode(logits_NV, assets) for logits_NV, _ in pieces(chunk)])

    def _encode(self, logits_NV: Tensor, assets: Assets) -> Columns:
        num_tokens, vocabulary = logits_NV.shape
        lse_N1 = logits_NV.logsumexp(-1, keepdim=True)
        top = logits_NV.topk(min(self.k, vocabulary), dim=-1)
        logprobs_NK = top.values - lse_N1
        before_NK = logprobs_NK.exp().cumsum(-1).roll(1, -1)
        before_NK[:, 0] = 0.0
        used_NK = before_NK < self.mass
        logits_NV.scatter_(-1, top.indices, top.values.masked_fill(used_NK, -torch.inf))
        codes_NK = ((-logprobs_NK).clamp(0, LOWEST) / LOWEST).sqrt() * 255
        tokens_E = used_NK.nonzero(as_tuple=True)[0].cpu().numpy()
        ids_E = top.indices[used_NK].cpu().numpy()
        codes_E = codes_NK[used_NK].round().long().cpu().numpy()
        columns = pack(tokens_E, ids_E, codes_E, num_tokens, 255, assets)
        return {**columns, **tails(logits_NV, lse_N1.squeeze(-1), self.temperatures)}

    def decode(
        self, columns: Columns, num_tokens: int, temperature: float, assets: Assets
    ) -> SparseDistribution:
        """Entries and tail, scaled together to sum to one."""
        self.check_temperature(temperature)
        ids_NK, codes_NK, used_NK = unpack(columns, assets)
        logprobs_NK = (codes_NK / 255).square() * -LOWEST
        logprobs_NK = logprobs_NK.masked_fill(~used_NK, -torch.inf)
        return with_tail(ids_NK, logprobs_NK, columns, temperature)

    def check_temperature(self, temperature: float) -> None:
        """Only what was captured."""
        refuse_uncached(self.temperatures, temperature)

    def bytes_per_token(self, vocabulary: int, width: int) -> float:
        """As measured on English text (docs/cache.md), where the cap rules."""
        entries = float((min(self.k, vocabulary) * self.mass) ** 0.85)
        return 1.0 + 2.3 * entries + 2 * len(self.temperatures)
