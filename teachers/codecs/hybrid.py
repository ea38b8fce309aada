"""`hybrid`: likely ids exactly, the others drawn: an unbiased target in few bytes.

Every id of probability 1/k or more is an entry with its probability. Of the others, systematic
sampling draws each with chance k p and gives it the weight 1/k: on average every id has its
probability. Among unbiased sparse targets with as many entries, this one has the least variance of
the gradient at the logits (inclusion proportional to size), and one threshold for all tokens
spends the entries where the teacher is unsure. There are at most k + 1 entries a token, in
practice half as many.

Weights are whole multiples of 1 / (k steps); probabilities between two multiples are rounded up or
down at random, so rounding is unbiased as well.

Legend: N tokens counted, J sampling points a token, D drawn entries, E exact entries.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from attar.config import Section
from attar.counter_random import uniforms
from teachers.codecs.codec import CODECS, Assets, Gives, SignalColumns, join_columns
from teachers.codecs.packed_entries import learn_ranks, logits_in_pieces, pack_entries, slots_of
from teachers.codecs.sampling import BlockedWeights
from teachers.codecs.unbiased_entries import (
    check_drawn_temperature,
    decode_weights,
    with_seed,
)
from teachers.signals import HasLogits, SparseDistribution


@CODECS.add("hybrid")
class Hybrid(Section):
    """Likely ids exactly, the tail drawn: unbiased, so its error averages out over a batch."""

    gives: ClassVar[Gives] = "distribution"
    tail: ClassVar[str] = "sampled"
    learns: ClassVar[bool] = True
    name: Literal["hybrid"] = "hybrid"
    k: int = Field(
        32, ge=1, le=4096, description="ids of probability 1/k or more are exact; others drawn"
    )
    steps: int = Field(4, ge=1, le=64, description="weights are multiples of 1 / (k steps)")
    seed: int = Field(0, description="of the draws")

    @property
    def unit(self) -> float:
        """Weights are multiples of this."""
        return 1 / (self.k * self.steps)

    def learn(self, chunk: HasLogits) -> Assets:
        """Learn the order of the ids."""
        return learn_ranks(chunk, 1 / self.k)

    def encode(self, chunk: HasLogits, assets: Assets) -> SignalColumns:
        """Entries, and their weights as codes."""
        parts = []
        for logits_NV, seeds_N in logits_in_pieces(chunk):
            num_tokens = len(logits_NV)
            seeds_N = with_seed(seeds_N, self.seed)
            weights = BlockedWeights(logits_NV)
            threshold_N = weights.total_N / self.k
            tokens_E, ids_E, exact_E = weights.take_above(threshold_N)
            codes_E = exact_E / threshold_N[tokens_E] * self.steps
            up_E = uniforms(seeds_N, self.k + 1, 1)[_numpy(tokens_E), slots_of(_numpy(tokens_E))]
            start_N1 = torch.from_numpy(uniforms(seeds_N, 1, 0)).to(threshold_N.device)
            columns_J = torch.arange(self.k, device=threshold_N.device)
            points_NJ = (start_N1 + columns_J) * threshold_N.double()[:, None]
            drawn_NJ = points_NJ < weights.sums_NB.double().sum(-1, keepdim=True)
            drawn_ids_D = weights.at(points_NJ, drawn_NJ)[drawn_NJ]
            drawn_tokens_D = drawn_NJ.nonzero(as_tuple=True)[0]
            parts.append(
                pack_entries(
                    np.concatenate([_numpy(tokens_E), _numpy(drawn_tokens_D)]),
                    np.concatenate([_numpy(ids_E), _numpy(drawn_ids_D)]),
                    np.concatenate(
                        [
                            np.floor(_numpy(codes_E.double()) + up_E).astype(np.int64),
                            np.full(len(drawn_ids_D), self.steps),
                        ]
                    ),
                    num_tokens,
                    self.k * self.steps,
                    assets,
                )
            )
        return join_columns(parts)

    def decode(
        self, columns: SignalColumns, num_tokens: int, temperature: float, assets: Assets
    ) -> SparseDistribution:
        """Entries with their weights; their sum is one on average."""
        return decode_weights(self, columns, temperature, assets)

    def check_temperature(self, temperature: float) -> None:
        """Ids are drawn at temperature 1 and serve no other."""
        check_drawn_temperature(self.name, temperature)

    def bytes_per_token(self, vocabulary: int, width: int) -> float:
        """As measured (benchmarks/codecs.md): about half of k entries at 1.5 bytes."""
        return 1.0 + 1.35 * float(self.k**0.83)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()
