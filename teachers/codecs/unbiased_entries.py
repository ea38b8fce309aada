"""Unbiased sparse targets as entries: what `hybrid` and `sampled` share.

An entry's weight is a whole number (its code) times the codec's `unit`. On average over the draws
every id has its probability, at temperature 1.

Legend: N tokens, K entries of the longest token, E entries of all tokens.
"""

from __future__ import annotations

from typing import Protocol, TypeGuard

import numpy as np
import torch

from attar.counter_random import uniforms
from attar.errors import RecipeError
from teachers.codecs.codec import Assets, SignalCodec, SignalColumns, SparseCodec
from teachers.codecs.packed_entries import pack_entries, slots_of, unpack_entries
from teachers.signals import SparseDistribution


class SampledCodec(SparseCodec, Protocol):
    """Stores an unbiased estimate of the distribution: entries with whole multiples of a unit."""

    @property
    def unit(self) -> float:
        """Weights are multiples of this."""

    @property
    def seed(self) -> int:
        """Seed of the random draws."""


def is_sampled_codec(codec: SignalCodec) -> TypeGuard[SampledCodec]:
    """Whether the codec stores random draws."""
    return codec.tail == "sampled"


def encode_weights(
    codec: SampledCodec,
    tokens_E: np.ndarray,
    ids_E: np.ndarray,
    weights_E: np.ndarray,
    seeds_N: np.ndarray,
    assets: Assets,
) -> SignalColumns:
    """Columns from any unbiased estimate, such as a mixture's; `tokens_E` must be rising.

    Weights are rounded to multiples of the unit, up or down at random: unbiased as well.
    """
    slots_E = slots_of(tokens_E)
    seeds_N = with_seed(seeds_N, codec.seed)
    up_E = uniforms(seeds_N, int(slots_E.max(initial=0)) + 1, 2)[tokens_E, slots_E]
    # `round` first: float64 noise must not turn a whole multiple into the one below it.
    codes_E = np.floor(np.round(weights_E / codec.unit, 6) + up_E).astype(np.int64)
    kept_E = codes_E > 0
    return pack_entries(
        tokens_E[kept_E],
        ids_E[kept_E],
        codes_E[kept_E],
        len(seeds_N),
        round(1 / codec.unit),
        assets,
    )


def decode_weights(
    codec: SampledCodec, columns: SignalColumns, temperature: float, assets: Assets
) -> SparseDistribution:
    """Entries whose weights are codes times the unit; their sum is one on average."""
    codec.check_temperature(temperature)
    ids_NK, codes_NK, used_NK = unpack_entries(columns, assets)
    used_NK &= codes_NK > 0  # a small probability may have been rounded down to 0
    weights_NK = torch.where(used_NK, codes_NK * codec.unit, 1.0)
    return SparseDistribution(ids_NK, weights_NK.log().masked_fill(~used_NK, -torch.inf), None)


def with_seed(seeds_N: np.ndarray, seed: int) -> np.ndarray:
    """The tokens' seeds for a codec's own `seed`."""
    return seeds_N ^ np.uint64((seed * 0xD1B54A32D192ED03) & (2**64 - 1))


def check_drawn_temperature(name: str, temperature: float) -> None:
    """Raise `RecipeError` for any temperature but 1, at which the ids were drawn."""
    if temperature != 1.0:
        raise RecipeError(
            f"The codec `{name}` draws at temperature 1, the objective asks for {temperature:g}; "
            "use `final_hidden` (any temperature), or `topk` or `nucleus` with that temperature in "
            "`cache.codec.temperatures`."
        )
