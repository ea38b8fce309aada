"""`topk`: the k largest log-probabilities and the mass of the rest.

Legend: N tokens counted, K entries, V vocabulary.

Stored a token: k ids (16 bits, and 8 more for V > 65,536), k log-probabilities (float16), and for
every temperature T the log of sum p_v^(1/T) over the other ids (float16; at T = 1 the tail's
mass): with it, entries and tail are right at that temperature too.
The tail is one outcome for whoever reads it (`bucket`): a valid, coarser divergence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field

from attar.config import Section
from attar.errors import RecipeError
from teachers.codecs.codec import CODECS, Assets, Columns
from teachers.codecs.packed_entries import joined, pieces
from teachers.codecs.top_entries import Largest, largest_of, stored_tails
from teachers.signals import HasLogits, SparseDistribution


def _positive(value: list[float]) -> list[float]:
    if not value or min(value) <= 0:
        raise ValueError("temperatures must be a list of numbers above 0")
    return sorted(set(value))


Temperatures = Annotated[list[float], AfterValidator(_positive)]


@CODECS.add("topk")
class TopK(Section):
    """The k largest entries and the tail's mass: plain columns, any reader understands them."""

    tail: ClassVar[str] = "bucket"
    learns: ClassVar[bool] = False
    name: Literal["topk"] = "topk"
    k: int = Field(32, ge=1, description="entries kept a token")
    temperatures: Temperatures = Field(
        [1.0], description="temperatures at which losses may read the targets"
    )

    def learn(self, chunk: HasLogits) -> Assets:
        """Nothing."""
        return {}

    def encode(self, chunk: HasLogits, assets: Assets) -> Columns:
        """Ids by falling probability, their log-probabilities, the tail. See the file's head."""
        parts = []
        for logits_NV, _ in pieces(chunk):
            vocabulary = logits_NV.shape[1]
            largest = largest_of(logits_NV, self.k, self.temperatures)
            parts.append(self.encode_largest(largest, vocabulary, assets))
        return joined(parts)

    def encode_largest(self, largest: Largest, vocabulary: int, assets: Assets) -> Columns:
        """The same columns from entries; where there are too few, unused slots follow."""
        largest = largest.first(self.k)
        ids_NK, logprobs_NK = largest.ids_NK.cpu().numpy(), largest.logprobs_NK.cpu().numpy()
        missing = min(self.k, vocabulary) - ids_NK.shape[1]
        if missing:
            ids_NK = np.pad(ids_NK, ((0, 0), (0, missing)), mode="edge")
            logprobs_NK = np.pad(logprobs_NK, ((0, 0), (0, missing)), constant_values=-np.inf)
        ids_NK = np.where(np.isinf(logprobs_NK), ids_NK[:, :1], ids_NK)
        columns = {"ids": (ids_NK & 0xFFFF).astype(np.uint16)}
        if vocabulary > 1 << 16:
            columns["ids_high"] = (ids_NK >> 16).astype(np.uint8)
        columns["logprobs"] = logprobs_NK.astype(np.float16)
        return {**columns, **largest.tail_columns(self.temperatures)}

    def decode_largest(self, columns: Columns, num_tokens: int, assets: Assets) -> Largest:
        """Entries and every tail, as stored."""
        ids_NK = columns["ids"].reshape(num_tokens, -1).astype(np.int64)
        if "ids_high" in columns:
            ids_NK |= columns["ids_high"].reshape(num_tokens, -1).astype(np.int64) << 16
        logprobs_NK = columns["logprobs"].reshape(num_tokens, -1).astype(np.float32)
        tails = stored_tails(columns, self.temperatures)
        return Largest(torch.from_numpy(ids_NK), torch.from_numpy(logprobs_NK), tails)

    def decode(
        self, columns: Columns, num_tokens: int, temperature: float, assets: Assets
    ) -> SparseDistribution:
        """Entries and tail, scaled together to sum to one whatever float16 rounded."""
        self.check_temperature(temperature)
        return self.decode_largest(columns, num_tokens, assets).at(temperature)

    def check_temperature(self, temperature: float) -> None:
        """Only what was captured."""
        refuse_uncached(self.temperatures, temperature)

    def bytes_per_token(self, vocabulary: int, width: int) -> float:
        """Ids, values and one tail a temperature; zstd saves about an eighth of it."""
        k = min(self.k, vocabulary)
        return k * ((2 if vocabulary <= 1 << 16 else 2.3) + 2) + 2 * len(self.temperatures)


def refuse_uncached(temperatures: Sequence[float], temperature: float) -> None:
    """Raise `RecipeError` for a temperature whose tail was not stored."""
    if temperature not in temperatures:
        raise RecipeError(
            f"The cache holds temperatures {list(temperatures)}, the objective asks for "
            f"{temperature:g}; add it to `cache.codec.temperatures`, or use a cached one."
        )
