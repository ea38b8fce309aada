"""`topk`: the k largest log-probabilities and the mass of the rest.

Legend: N tokens counted, K entries, V vocabulary.

Stored a token: k ids (2 bytes each for V <= 65,536, else 4), k log-probabilities (float16), the
log of the tail's mass (float16), and for every temperature other than 1 the log of
sum_v p_v^(1/T) (float32): with it, entries and tail are exact at that temperature too.
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


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x <= 0 without cancellation (Mächler 2012); -inf at 0."""
    x = x.clamp(max=0.0)
    near = x > -0.6931472
    return torch.where(near, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


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
        logits_NV = chunk.logits_NV
        vocabulary = logits_NV.shape[1]
        k = min(self.k, vocabulary)
        lse_N1 = logits_NV.logsumexp(-1, keepdim=True)
        top = logits_NV.topk(k, dim=-1)
        logprobs_NK = top.values - lse_N1
        tail_N = log1mexp(logprobs_NK.logsumexp(-1))
        if k == vocabulary:
            tail_N = torch.full_like(tail_N, -torch.inf)
        ids_type = np.uint16 if vocabulary <= 1 << 16 else np.uint32
        columns = {
            "ids": top.indices.cpu().numpy().astype(ids_type),
            "logprobs": logprobs_NK.cpu().numpy().astype(np.float16),
            "tail": tail_N.cpu().numpy().astype(np.float16),
        }
        for temperature in self.temperatures:
            if temperature != 1.0:
                norm_N = ((logits_NV - lse_N1) / temperature).logsumexp(-1)
                columns[f"norm_{temperature:g}"] = norm_N.cpu().numpy()
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
        if temperature == 1.0:
            tail_N = torch.from_numpy(columns["tail"].astype(np.float32))
            total_N1 = torch.logaddexp(logprobs_NK.logsumexp(-1), tail_N).unsqueeze(-1)
            return SparseDistribution(ids_NK, logprobs_NK - total_N1, tail_N - total_N1.squeeze(-1))
        norm_N1 = torch.from_numpy(np.array(columns[f"norm_{temperature:g}"])).unsqueeze(-1)
        logprobs_NK = logprobs_NK / temperature - norm_N1
        mass_N = logprobs_NK.logsumexp(-1)
        over_N1 = mass_N.clamp(min=0.0).unsqueeze(-1)  # float16 may round the head above one
        return SparseDistribution(ids_NK, logprobs_NK - over_N1, log1mexp(mass_N))

    def bytes_per_token(self, vocabulary: int) -> float:
        """Ids, values, tail and one number for each further temperature."""
        further = sum(temperature != 1.0 for temperature in self.temperatures)
        return self.k * ((2 if vocabulary <= 1 << 16 else 4) + 2) + 2 + 4 * further
