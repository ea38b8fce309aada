"""`label`: the log-probability of each token's own label, the id that the text has there.

One float32 a token. Sums over an answer are what preference losses read, and 16 bits are too few
for them: with beta = 0.1 the margin of a policy that equals its reference would be off by 1e-3 and
more (benchmarks/codecs.md, "Labels"). -inf, of an id that the teacher's head rules out, is stored
as it is. With `cache.labels: true` the same column stands beside what another codec stores.

Legend: N tokens counted.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from attar.config import Section
from attar.errors import RecipeError
from attar.models.structure import logprobs_of_ids
from teachers.codecs.codec import CODECS, Assets, Gives, SignalColumns
from teachers.signals import Distribution, TeacherChunk

LABEL_COLUMN = "label_logprob"
LABEL_BYTES = 4.0  # of a token, of which zstd saves little
NO_DISTRIBUTION = (
    "the codec `label` holds the probability of the text's own tokens and no distribution to "
    "compare; use another `cache.codec`, or `source: online`"
)


@CODECS.add("label")
class Label(Section):
    """The teacher's log-probability of the text's own next token, and nothing of the other ids."""

    gives: ClassVar[Gives] = "label"
    tail: ClassVar[str] = "none"
    learns: ClassVar[bool] = False
    name: Literal["label"] = "label"

    def learn(self, chunk: TeacherChunk) -> Assets:
        """Learn nothing."""
        return {}

    def encode(self, chunk: TeacherChunk, assets: Assets) -> SignalColumns:
        """Column `label_logprob` (N,), float32; the chunk must have `labels_N`."""
        assert chunk.labels_N is not None, "codec `label` needs requests with labels"
        labels_N = chunk.labels_N.to(chunk.hidden_NH.device)
        return self.columns(logprobs_of_ids(chunk.logits(), labels_N))

    def columns(self, logprobs_N: Tensor) -> SignalColumns:
        """The columns of known log-probabilities."""
        return label_columns(logprobs_N)

    def logprobs(self, columns: SignalColumns, num_tokens: int) -> Tensor:
        """Float32 log-probabilities (N,) from flat columns. Raises `ValueError` for a bad count."""
        return stored_label_logprobs(columns, num_tokens)

    def decode(
        self, columns: SignalColumns, num_tokens: int, temperature: float, assets: Assets
    ) -> Distribution:
        """Raise `RecipeError`: one id's probability is not a distribution."""
        raise RecipeError(NO_DISTRIBUTION)

    def check_temperature(self, temperature: float) -> None:
        """Raise `RecipeError`: one id's probability is not a distribution."""
        raise RecipeError(NO_DISTRIBUTION)

    def bytes_per_token(self, vocabulary: int, width: int) -> float:
        """Four bytes."""
        return LABEL_BYTES


def label_columns(logprobs_N: Tensor) -> SignalColumns:
    """Column `label_logprob` (N,), float32, from known log-probabilities."""
    return {LABEL_COLUMN: logprobs_N.float().cpu().numpy()}


def stored_label_logprobs(columns: SignalColumns, num_tokens: int) -> Tensor:
    """Float32 log-probabilities (N,) from flat columns. Raises `ValueError` for a bad count."""
    column_N = columns[LABEL_COLUMN]
    if column_N.shape != (num_tokens,):
        raise ValueError(f"{column_N.size} log-probabilities of {num_tokens} labels")
    return torch.from_numpy(np.array(column_N, np.float32))


def label_distance(one_N: Tensor, other_N: Tensor) -> float:
    """An estimate of the mean total variation distance from labels' log-probabilities.

    The distance is the mean over ids drawn from p of max(0, 1 - q / p), and over those from q of
    max(0, 1 - p / q). The labels stand for draws from either: half of 1 - min(p, q) / max(p, q).
    """
    gap_N = (one_N.double() - other_N.double()).abs()
    gap_N = torch.where(one_N == other_N, 0.0, gap_N)  # both -inf
    return float(0.5 * (1 - (-gap_N).exp()).mean())
