"""`topk`: the k largest log-probabilities and the mass of the rest.

Stored for each token: k ids (16 bits, and 8 more where V > 65,536), k log-probabilities (float16),
and for every temperature T the log of the sum of p_v^(1/T) over the other ids (float16; at T = 1
it is the tail's mass), so that entries and tail are right at that temperature too. The tail is one
outcome (`bucket`): losses compute a valid, coarser divergence.

Legend: N tokens counted, K entries, V vocabulary.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from attar.config import Section
from teachers.codecs.codec import CODECS, Assets, Gives, SignalColumns
from teachers.codecs.top_entries import (
    Temperatures,
    TopEntries,
    check_stored_temperature,
    encode_top_entries,
    stored_tails,
)
from teachers.signals import HasLogits, SparseDistribution


@CODECS.add("topk")
class TopK(Section):
    """The k largest entries and the tail's mass, in plain columns that any program can read."""

    gives: ClassVar[Gives] = "distribution"
    tail: ClassVar[str] = "bucket"
    learns: ClassVar[bool] = False
    name: Literal["topk"] = "topk"
    k: int = Field(32, ge=1, description="entries kept a token")
    temperatures: Temperatures = Field(
        [1.0], description="temperatures at which losses may read the targets"
    )

    def learn(self, chunk: HasLogits) -> Assets:
        """Learn nothing."""
        return {}

    def encode(self, chunk: HasLogits, assets: Assets) -> SignalColumns:
        """Ids by falling probability, their log-probabilities, and the tails."""
        return encode_top_entries(self, chunk, assets)

    def encode_top(self, entries: TopEntries, vocabulary: int, assets: Assets) -> SignalColumns:
        """The same columns from entries; where there are fewer than k, unused slots follow."""
        entries = entries.first(self.k)
        ids_NK, logprobs_NK = entries.ids_NK.cpu().numpy(), entries.logprobs_NK.cpu().numpy()
        missing = min(self.k, vocabulary) - ids_NK.shape[1]
        if missing:
            ids_NK = np.pad(ids_NK, ((0, 0), (0, missing)), mode="edge")
            logprobs_NK = np.pad(logprobs_NK, ((0, 0), (0, missing)), constant_values=-np.inf)
        ids_NK = np.where(np.isinf(logprobs_NK), ids_NK[:, :1], ids_NK)
        columns = {"ids": (ids_NK & 0xFFFF).astype(np.uint16)}
        if vocabulary > 1 << 16:
            columns["ids_high"] = (ids_NK >> 16).astype(np.uint8)
        columns["logprobs"] = logprobs_NK.astype(np.float16)
        return {**columns, **entries.tail_columns(self.temperatures)}

    def decode_top(self, columns: SignalColumns, num_tokens: int, assets: Assets) -> TopEntries:
        """Entries by falling probability and every tail, as stored."""
        ids_NK = columns["ids"].reshape(num_tokens, -1).astype(np.int64)
        if "ids_high" in columns:
            ids_NK |= columns["ids_high"].reshape(num_tokens, -1).astype(np.int64) << 16
        logprobs_NK = columns["logprobs"].reshape(num_tokens, -1).astype(np.float32)
        tails = stored_tails(columns, self.temperatures)
        return TopEntries(torch.from_numpy(ids_NK), torch.from_numpy(logprobs_NK), tails)

    def decode(
        self, columns: SignalColumns, num_tokens: int, temperature: float, assets: Assets
    ) -> SparseDistribution:
        """Entries and tail, rescaled to sum to one in spite of float16 rounding."""
        self.check_temperature(temperature)
        return self.decode_top(columns, num_tokens, assets).at(temperature)

    def check_temperature(self, temperature: float) -> None:
        """Only the temperatures whose tails are stored can be read."""
        check_stored_temperature(self.temperatures, temperature)

    def bytes_per_token(self, vocabulary: int, width: int) -> float:
        """Ids, values and one tail a temperature; zstd saves about an eighth of it."""
        k = min(self.k, vocabulary)
        return k * ((2 if vocabulary <= 1 << 16 else 2.3) + 2) + 2 * len(self.temperatures)
