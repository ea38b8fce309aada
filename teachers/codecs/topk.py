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
from torch import Tensor

from attar.errors import RecipeError
from attar.strict import Section
from teachers.codecs import CODECS, Assets, Columns
from teachers.codecs.entries import joined, pieces
from teachers.signals import SparseDistribution, TeacherChunk


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

    def learn(self, chunk: TeacherChunk) -> Assets:
        """Nothing."""
        return {}

    def encode(self, chunk: TeacherChunk, assets: Assets) -> Columns:
        """Ids by falling probability, their log-probabilities, the tail. See the file's head."""
        return joined([self._encode(logits_NV) for logits_NV, _ in pieces(chunk)])

    def _encode(self, logits_NV: Tensor) -> Columns:
        vocabulary = logits_NV.shape[1]
        top = logits_NV.topk(min(self.k, vocabulary), dim=-1)
        others_NV = logits_NV.scatter_(-1, top.indices, -torch.inf)  # they are ours to use up
        rest_N = others_NV.logsumexp(-1)
        lse_N = torch.logaddexp(top.values.logsumexp(-1), rest_N)
        ids_NK = top.indices.cpu().numpy()
        columns = {"ids": (ids_NK & 0xFFFF).astype(np.uint16)}
        if vocabulary > 1 << 16:
            columns["ids_high"] = (ids_NK >> 16).astype(np.uint8)
        logprobs_NK = top.values - lse_N.unsqueeze(-1)
        columns["logprobs"] = logprobs_NK.cpu().numpy().astype(np.float16)
        return {**columns, **tails(others_NV, lse_N, self.temperatures, rest_N)}

    def decode(
        self, columns: Columns, num_tokens: int, temperature: float, assets: Assets
    ) -> SparseDistribution:
        """Entries and tail, scaled together to sum to one whatever float16 rounded."""
        self.check_temperature(temperature)
        ids_NK = columns["ids"].reshape(num_tokens, -1).astype(np.int64)
        if "ids_high" in columns:
            ids_NK |= columns["ids_high"].reshape(num_tokens, -1).astype(np.int64) << 16
        logprobs_NK = columns["logprobs"].reshape(num_tokens, -1).astype(np.float32)
        return with_tail(
            torch.from_numpy(ids_NK), torch.from_numpy(logprobs_NK), columns, temperature
        )

    def check_temperature(self, temperature: float) -> None:
        """Only what was captured."""
        refuse_uncached(self.temperatures, temperature)

    def bytes_per_token(self, vocabulary: int, width: int) -> float:
        """Ids, values and one tail a temperature; zstd saves about an eighth of it."""
        k = min(self.k, vocabulary)
        return k * ((2 if vocabulary <= 1 << 16 else 2.3) + 2) + 2 * len(self.temperatures)


def tails(
    others_NV: Tensor, lse_N: Tensor, temperatures: Sequence[float], rest_N: Tensor | None = None
) -> Columns:
    """`tail_T` for each T: log sum p^(1/T) over the ids whose logits are not -inf, float16."""
    columns = {}
    for temperature in temperatures:
        if temperature == 1.0 and rest_N is not None:
            warmed_N = rest_N
        else:
            hot = temperature != 1.0
            warmed_N = (others_NV / temperature if hot else others_NV).logsumexp(-1)
        tail_N = warmed_N - lse_N / temperature
        columns[f"tail_{temperature:g}"] = tail_N.cpu().numpy().astype(np.float16)
    return columns


def with_tail(
    ids_NK: Tensor, logprobs_NK: Tensor, columns: Columns, temperature: float
) -> SparseDistribution:
    """Entries at a temperature and their tail, scaled together to sum to one."""
    logprobs_NK = logprobs_NK / temperature
    tail_N = torch.from_numpy(columns[f"tail_{temperature:g}"].astype(np.float32))
    total_N = torch.logaddexp(logprobs_NK.logsumexp(-1), tail_N)
    return SparseDistribution(ids_NK, logprobs_NK - total_N.unsqueeze(-1), tail_N - total_N)


def refuse_uncached(temperatures: Sequence[float], temperature: float) -> None:
    """Raise `RecipeError` for a temperature whose tail was not stored."""
    if temperature not in temperatures:
        raise RecipeError(
            f"The cache holds temperatures {list(temperatures)}, the objective asks for "
            f"{temperature:g}; add it to `cache.codec.temperatures`, or use a cached one."
        )
