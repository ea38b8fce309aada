"""`sampled`: random sampling knowledge distillation (Anshumann et al. 2025, 2503.16870).

Each token draws `draws` ids from the teacher's distribution, with replacement; an id's weight is
its share of the draws. Unbiased; `hybrid` has less variance in the same bytes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from attar.config import Section
from attar.errors import RecipeError
from teachers.codecs.codec import CODECS, Assets, Columns
from teachers.codecs.packed_entries import joined, learn_ranks, pack, pieces, slots, unpack
from teachers.codecs.sampling import Weights
from teachers.signals import HasLogits, SparseDistribution, uniforms


@CODECS.add("sampled")
class Sampled(Section):
    """Ids drawn with replacement, weight = share of the draws: unbiased, simple, noisier."""

    tail: ClassVar[str] = "sampled"
    learns: ClassVar[bool] = True
    name: Literal["sampled"] = "sampled"
    draws: int = Field(50, ge=1, le=65535, description="draws a token, with replacement")
    seed: int = Field(0, description="of the draws")

    def learn(self, chunk: HasLogits) -> Assets:
        """The order of the ids."""
        return learn_ranks(chunk, 1 / self.draws)

    def encode(self, chunk: HasLogits, assets: Assets) -> Columns:
        """Ids and how often each was drawn."""
        parts = []
        for logits_NV, seeds_N in pieces(chunk):
            weights = Weights(logits_NV)
            draws_NJ = torch.from_numpy(uniforms(with_seed(seeds_N, self.seed), self.draws, 0))
            points_NJ = draws_NJ.to(weights.total_N.device) * weights.total_N.double()[:, None]
            drawn_NJ = points_NJ.isfinite()  # no entry at all where the teacher gave NaN
            ids_E = weights.at(points_NJ, drawn_NJ)[drawn_NJ].cpu().numpy()
            tokens_E = drawn_NJ.nonzero(as_tuple=True)[0].cpu().numpy()
            ones_E = np.ones(len(ids_E), np.int64)
            parts.append(pack(tokens_E, ids_E, ones_E, len(seeds_N), self.draws, assets))
        return joined(parts)

    def encode_weights(
        self,
        tokens_E: np.ndarray,
        ids_E: np.ndarray,
        weights_E: np.ndarray,
        seeds_N: np.ndarray,
        assets: Assets,
    ) -> Columns:
        """The same columns from an unbiased estimate; tokens rise."""
        seeds_N = with_seed(seeds_N, self.seed)
        return pack_weights(tokens_E, ids_E, weights_E, seeds_N, self.unit, assets)

    @property
    def unit(self) -> float:
        """Weights are multiples of this."""
        return 1 / self.draws

    def decode(
        self, columns: Columns, num_tokens: int, temperature: float, assets: Assets
    ) -> SparseDistribution:
        """Entries with their share of the draws."""
        self.check_temperature(temperature)
        return unbiased(columns, self.unit, assets)

    def check_temperature(self, temperature: float) -> None:
        """Drawn at temperature 1, of use at no other."""
        refuse_temperature(self.name, temperature)

    def bytes_per_token(self, vocabulary: int, width: int) -> float:
        """As measured on English text (docs/cache.md)."""
        return 1.0 + 1.35 * float(self.draws**0.83)


def pack_weights(
    tokens_E: np.ndarray,
    ids_E: np.ndarray,
    weights_E: np.ndarray,
    seeds_N: np.ndarray,
    unit: float,
    assets: Assets,
) -> Columns:
    """Columns of weights as multiples of `unit`, rounded up or down at random: right on average."""
    slots_E = slots(tokens_E)
    up_E = uniforms(seeds_N, int(slots_E.max(initial=0)) + 1, 2)[tokens_E, slots_E]
    # Whole multiples stay what they are, whatever is left of float64's rounding.
    codes_E = np.floor(np.round(weights_E / unit, 6) + up_E).astype(np.int64)
    kept_E = codes_E > 0
    highest = round(1 / unit)
    return pack(tokens_E[kept_E], ids_E[kept_E], codes_E[kept_E], len(seeds_N), highest, assets)


def unbiased(columns: Columns, unit: float, assets: Assets) -> SparseDistribution:
    """Entries whose weights are codes times `unit`."""
    ids_NK, codes_NK, used_NK = unpack(columns, assets)
    used_NK &= codes_NK > 0  # a small probability may have been rounded down to nothing
    weights_NK = torch.where(used_NK, codes_NK * unit, 1.0)
    return SparseDistribution(ids_NK, weights_NK.log().masked_fill(~used_NK, -torch.inf), None)


def with_seed(seeds_N: np.ndarray, seed: int) -> np.ndarray:
    """Other draws for another seed."""
    return seeds_N ^ np.uint64((seed * 0xD1B54A32D192ED03) & (2**64 - 1))


def refuse_temperature(name: str, temperature: float) -> None:
    """Raise `RecipeError` for any temperature but 1."""
    if temperature != 1.0:
        raise RecipeError(
            f"The codec `{name}` draws at temperature 1, the objective asks for {temperature:g}; "
            "use `final_hidden` (any temperature), or `topk` or `nucleus` with that temperature in "
            "`cache.codec.temperatures`."
        )
