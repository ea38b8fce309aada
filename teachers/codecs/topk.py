"""`topk`: the k largest log-probabilities and the mass of the rest.

Legend: N tokens counted, K entries, V vocabulary.

Stored a token: k ids (2 bytes each for V <= 65,536, else 4), k log-probabilities (float16), and
for every temperature T the log of sum p_v^(1/T) over the other ids (float16; at T = 1 the tail's
mass): with it, entries and tail are right at that temperature too.
The tail is one outcome for whoever reads it (`bucket`): a valid, coarser divergence.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from attar.errors import RecipeError
from attar.strict import Section
from teachers.codecs import CODECS, Columns
from teachers.signals import SparseDistribution, TeacherChunk

CACHE_BYTES = 6 << 20


@CODECS.add("topk")
class TopK(Section):
    """The k largest entries and the tail's mass: good for single tokens, biased over many."""

    name: Literal["topk"] = "topk"
    k: int = Field(32, ge=1, description="entries kept a token")
    temperatures: list[float] = Field(
        [1.0], description="temperatures at which losses may read the targets"
    )

    @field_validator("temperatures")
    @classmethod
    def _positive(cls, value: list[float]) -> list[float]:
        if not value or min(value) <= 0:
            raise ValueError("temperatures must be a list of numbers above 0")
        return sorted(set(value))

    def encode(self, chunk: TeacherChunk) -> Columns:
        """Ids by falling probability, their log-probabilities, the tail. See the file's head."""
        logits_NV = chunk.logits()
        rows = len(logits_NV)
        if logits_NV.device.type == "cpu":  # as many as stay in the cache between the passes
            rows = max(8, CACHE_BYTES // (4 * logits_NV.shape[1]))
        parts = [self._encode(piece_NV) for piece_NV in logits_NV.split(max(1, rows))]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _encode(self, logits_NV: Tensor) -> Columns:
        vocabulary = logits_NV.shape[1]
        top = logits_NV.topk(min(self.k, vocabulary), dim=-1)
        others_NV = logits_NV.scatter_(-1, top.indices, -torch.inf)  # they are ours to use up
        rest_N = others_NV.logsumexp(-1)
        lse_N = torch.logaddexp(top.values.logsumexp(-1), rest_N)
        ids_type = np.uint16 if vocabulary <= 1 << 16 else np.uint32
        columns = {
            "ids": top.indices.cpu().numpy().astype(ids_type),
            "logprobs": (top.values - lse_N.unsqueeze(-1)).cpu().numpy().astype(np.float16),
        }
        for temperature in self.temperatures:
            hot = temperature != 1.0
            warmed_N = (others_NV / temperature).logsumexp(-1) if hot else rest_N
            tail_N = warmed_N - lse_N / temperature
            columns[f"tail_{temperature:g}"] = tail_N.cpu().numpy().astype(np.float16)
        return columns

    def decode(self, columns: Columns, num_tokens: int, temperature: float) -> SparseDistribution:
        """Entries and tail, scaled together to sum to one whatever float16 rounded."""
        if temperature not in self.temperatures:
            raise RecipeError(
                f"The cache holds temperatures {self.temperatures}, the objective asks for "
                f"{temperature:g}; add it to `cache.codec.temperatures`, or use a cached one."
            )
        ids_NK = torch.from_numpy(columns["ids"].reshape(num_tokens, -1).astype(np.int64))
        logprobs_NK = torch.from_numpy(
            columns["logprobs"].reshape(num_tokens, -1).astype(np.float32)
        )
        logprobs_NK = logprobs_NK / temperature
        tail_N = torch.from_numpy(columns[f"tail_{temperature:g}"].astype(np.float32))
        total_N = torch.logaddexp(logprobs_NK.logsumexp(-1), tail_N)
        return SparseDistribution(ids_NK, logprobs_NK - total_N.unsqueeze(-1), tail_N - total_N)

    def bytes_per_token(self, vocabulary: int) -> float:
        """Ids, values and one tail a temperature."""
        k = min(self.k, vocabulary)
        return k * ((2 if vocabulary <= 1 << 16 else 4) + 2) + 2 * len(self.temperatures)
