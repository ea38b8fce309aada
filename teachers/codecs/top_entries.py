"""The likeliest ids of some tokens and the mass outside them: what `topk` and `nucleus` store.

They are made from logits, or from what one of the two codecs has stored before (then with at most
as many entries). The mass of every id that is not an entry belongs to the tail, at every
temperature.

Legend: N tokens, K entries, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeGuard, TypeVar

import numpy as np
import torch
from pydantic import AfterValidator
from torch import Tensor

from attar.errors import RecipeError
from teachers.codecs.codec import (
    Assets,
    SignalCodec,
    SignalColumns,
    SparseCodec,
    join_columns,
)
from teachers.codecs.packed_entries import logits_in_pieces
from teachers.signals import HasLogits, SparseDistribution


def _sorted_temperatures(value: list[float]) -> list[float]:
    if not value or min(value) <= 0:
        raise ValueError("temperatures must be a list of numbers above 0")
    return sorted(set(value))


Codec = TypeVar("Codec")
Temperatures = Annotated[list[float], AfterValidator(_sorted_temperatures)]


@dataclass(frozen=True)
class TopEntries:
    """Entries by falling probability, and a tail for every temperature T.

    ids_NK: int64. logprobs_NK: float32, at temperature 1; -inf marks an unused slot. tails: by T,
    float32 (N,), the log of the sum of p^(1/T) over all other ids.
    """

    ids_NK: Tensor
    logprobs_NK: Tensor
    tails: dict[float, Tensor]

    def keep(self, kept_NK: Tensor) -> TopEntries:
        """Keep only the marked entries; the others join the tails."""
        dropped_NK = self.logprobs_NK.masked_fill(kept_NK, -torch.inf)
        tails = {
            temperature: torch.logaddexp(tail_N, (dropped_NK / temperature).logsumexp(-1))
            for temperature, tail_N in self.tails.items()
        }
        return TopEntries(self.ids_NK, self.logprobs_NK.masked_fill(~kept_NK, -torch.inf), tails)

    def first(self, k: int) -> TopEntries:
        """Keep the k likeliest entries."""
        if self.ids_NK.shape[1] <= k:
            return self
        slots_K = torch.arange(self.ids_NK.shape[1], device=self.ids_NK.device)
        kept = self.keep((slots_K < k).expand_as(self.ids_NK))
        return TopEntries(kept.ids_NK[:, :k], kept.logprobs_NK[:, :k], kept.tails)

    def at(self, temperature: float) -> SparseDistribution:
        """Entries and tail at a temperature, rescaled together so that they sum to one."""
        logprobs_NK, tail_N = self.logprobs_NK / temperature, self.tails[temperature]
        total_N = torch.logaddexp(logprobs_NK.logsumexp(-1), tail_N)
        return SparseDistribution(
            self.ids_NK, logprobs_NK - total_N.unsqueeze(-1), tail_N - total_N
        )

    def tail_columns(self, temperatures: Sequence[float]) -> SignalColumns:
        """`tail_T` for each T, float16."""
        return {
            tail_column(t): self.tails[t].cpu().numpy().astype(np.float16) for t in temperatures
        }


class BucketCodec(SparseCodec, Protocol):
    """Stores the largest entries, and the mass of all other ids as one outcome."""

    @property
    def k(self) -> int:
        """The largest number of entries that a token may have."""

    @property
    def temperatures(self) -> list[float]:
        """The temperatures for which a tail is stored."""

    @property
    def model_fields_set(self) -> set[str]:
        """Names of the parameters that were given, not left at their defaults."""

    def model_copy(self: Codec, *, update: Mapping[str, Any] | None = None) -> Codec:
        """The same codec with other parameters."""

    def encode_top(self, entries: TopEntries, vocabulary: int, assets: Assets) -> SignalColumns:
        """The columns that `encode` gives, from entries; those beyond its limits join the tail."""

    def decode_top(self, columns: SignalColumns, num_tokens: int, assets: Assets) -> TopEntries:
        """Entries by falling probability and every tail, as stored."""


def is_bucket_codec(codec: SignalCodec) -> TypeGuard[BucketCodec]:
    """Whether the codec stores the largest entries and the mass of the rest."""
    return codec.tail == "bucket"


def encode_top_entries(codec: BucketCodec, chunk: HasLogits, assets: Assets) -> SignalColumns:
    """Columns of tokens from their logits, a piece of the tokens at a time."""
    parts = []
    for logits_NV, _ in logits_in_pieces(chunk):
        vocabulary = logits_NV.shape[1]
        entries = top_entries_of(logits_NV, codec.k, codec.temperatures)
        parts.append(codec.encode_top(entries, vocabulary, assets))
    return join_columns(parts)


def top_entries_of(logits_NV: Tensor, k: int, temperatures: Sequence[float]) -> TopEntries:
    """The k likeliest ids of logits; `logits_NV` is overwritten."""
    top = logits_NV.topk(min(k, logits_NV.shape[1]), dim=-1)
    others_NV = logits_NV.scatter_(-1, top.indices, -torch.inf)
    rest_N = others_NV.logsumexp(-1)
    lse_N = torch.logaddexp(top.values.logsumexp(-1), rest_N)
    tails = {}
    for temperature in temperatures:
        warm_N = rest_N if temperature == 1.0 else (others_NV / temperature).logsumexp(-1)
        tails[temperature] = warm_N - lse_N / temperature
    return TopEntries(top.indices, top.values - lse_N.unsqueeze(-1), tails)


def sort_entries(ids_NK: Tensor, logprobs_NK: Tensor, tails: dict[float, Tensor]) -> TopEntries:
    """Sort entries by falling probability; unused slots (-inf) come last."""
    order = logprobs_NK.sort(dim=-1, descending=True, stable=True)
    return TopEntries(ids_NK.gather(-1, order.indices), order.values, tails)


def tail_column(temperature: float) -> str:
    """The column that holds the tail at a temperature: `tail_1`, `tail_1.5`."""
    return f"tail_{temperature:g}"


def stored_tails(columns: SignalColumns, temperatures: Sequence[float]) -> dict[float, Tensor]:
    """The tails by temperature, from their columns."""
    return {t: torch.from_numpy(columns[tail_column(t)].astype(np.float32)) for t in temperatures}


def check_stored_temperature(temperatures: Sequence[float], temperature: float) -> None:
    """Raise `RecipeError` for a temperature whose tail was not stored."""
    if temperature not in temperatures:
        raise RecipeError(
            f"The cache holds temperatures {list(temperatures)}, the objective asks for "
            f"{temperature:g}; add it to `cache.codec.temperatures`, or use a cached one."
        )
