"""Signals: what a teacher gives at a token, in the form that losses read.

Legend: N tokens counted, K entries, V vocabulary, H width, C channels of all query heads, D of all
key-value heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from attar.models.structure import Head

Tail = Literal["drop", "renormalize", "renormalize_both"]


@dataclass(frozen=True)
class SparseDistribution:
    """Next-token distributions given by some entries, and the meaning of the mass outside them.

    ids_NK: int64, distinct in a row except for unused slots, which repeat a used id (or 0 where a
    row has none). logprobs_NK: float32, natural log of the entries' weights; -inf marks an unused
    slot. With tail_N (float32, log of the mass outside the entries, -inf if there is none) the
    rest is one more outcome (`bucket`): entries and tail sum to one. Without it (`sampled`) the
    weights are an unbiased estimate of the whole distribution: their sum is one on average.
    closed: the distribution is over the entries only, for the student as well.
    """

    ids_NK: Tensor
    logprobs_NK: Tensor
    tail_N: Tensor | None
    closed: bool = False

    def rows(self, start: int, stop: int) -> SparseDistribution:
        """The distributions of tokens start..stop."""
        tail_N = None if self.tail_N is None else self.tail_N[start:stop]
        ids_NK, logprobs_NK = self.ids_NK[start:stop], self.logprobs_NK[start:stop]
        return SparseDistribution(ids_NK, logprobs_NK, tail_N, self.closed)

    def to(self, device: torch.device) -> SparseDistribution:
        """A copy on a device."""
        tail_N = None if self.tail_N is None else self.tail_N.to(device)
        ids_NK, logprobs_NK = self.ids_NK.to(device), self.logprobs_NK.to(device)
        return SparseDistribution(ids_NK, logprobs_NK, tail_N, self.closed)

    def without_tail(self, tail: Tail) -> SparseDistribution:
        """Remove the tail, as other toolkits do: see `tail` in docs/reference/losses.md.

        `drop`: keep the weights. `renormalize`: scale them to sum to one, so that the teacher gives
        all other ids no mass. `renormalize_both`: renormalise the student over the entries too.
        """
        if tail == "drop":
            return SparseDistribution(self.ids_NK, self.logprobs_NK, None)
        logprobs_NK = self.logprobs_NK - self.logprobs_NK.logsumexp(-1, keepdim=True)
        no_mass_N = torch.full_like(logprobs_NK[:, 0], -torch.inf)
        closed = tail == "renormalize_both"
        return SparseDistribution(self.ids_NK, logprobs_NK, None if closed else no_mass_N, closed)


@dataclass(frozen=True)
class KnownLogits:
    """Full distributions from known logits: over classes, or over a small vocabulary."""

    logits_NV: Tensor
    temperature: float = 1.0

    def rows(self, start: int, stop: int) -> KnownLogits:
        """The distributions of tokens (or labelled texts) start..stop."""
        return KnownLogits(self.logits_NV[start:stop], self.temperature)

    def to(self, device: torch.device) -> KnownLogits:
        """A copy on a device."""
        return KnownLogits(self.logits_NV.to(device), self.temperature)

    def logprobs(self) -> Tensor:
        """Float32 log-probabilities of shape (N, V). Never differentiated."""
        return (self.logits_NV.detach().float() / self.temperature).log_softmax(-1)


@dataclass(frozen=True)
class DenseDistribution:
    """Full next-token distributions, from final hidden states and the frozen head."""

    hidden_NH: Tensor
    head: Head
    temperature: float = 1.0

    def rows(self, start: int, stop: int) -> DenseDistribution:
        """The distributions of tokens start..stop."""
        return DenseDistribution(self.hidden_NH[start:stop], self.head, self.temperature)

    def to(self, device: torch.device) -> DenseDistribution:
        """A copy on a device."""
        return DenseDistribution(self.hidden_NH.to(device), self.head.to(device), self.temperature)

    def logprobs(self) -> Tensor:
        """Float32 log-probabilities of shape (N, V). Never differentiated."""
        logits_NV = self.head.logits(self.hidden_NH).detach()
        return (logits_NV / self.temperature).log_softmax(-1)


Distribution = SparseDistribution | DenseDistribution | KnownLogits
Target = Distribution  # the same as an input of a loss


@dataclass(frozen=True)
class Attention:
    """Queries, keys and values of one block: float32, before norms and rotary embedding.

    queries_NC: `num_heads` heads, concatenated. keys_ND, values_ND: `num_kv_heads` heads, which may
    be fewer; head h of the queries reads head h * num_kv_heads // num_heads of them.
    """

    queries_NC: Tensor
    keys_ND: Tensor
    values_ND: Tensor
    num_heads: int
    num_kv_heads: int

    def to(self, device: torch.device) -> Attention:
        """A copy on a device."""
        states = self.queries_NC, self.keys_ND, self.values_ND
        query, key, value = (one.to(device) for one in states)
        return Attention(query, key, value, self.num_heads, self.num_kv_heads)


class GivesSignals(Protocol):
    """The signals of some tokens, from a cache or from a teacher that runs beside the student.

    A layer or block that was not requested raises `RecipeError`.
    """

    def distribution(self, temperature: float) -> Distribution:
        """Next-token distributions at a temperature, or distributions over classes, one a text.

        Repeated calls return the same object.
        """

    def label_logprobs(self, labels_N: Tensor) -> Tensor:
        """The teacher's log-probability of the tokens' own labels, float32 (N,), natural log.

        labels_N: the ids predicted at the tokens, int64. At temperature 1 over the tokenizer's ids;
        -inf where the teacher rules an id out. On the device of `labels_N`; repeated calls return
        the same tensor. Raises `RecipeError` where the signals do not hold it.
        """

    def hidden(self, layer: int) -> Tensor:
        """Float32 hidden states (N, H) of a layer."""

    def attention(self, block: int) -> Attention:
        """Queries, keys and values of a block."""


class GivesVectors(Protocol):
    """The vectors of some texts, from a cache that holds them."""

    def vectors(self) -> Tensor:
        """Float32 vectors (B, H), one a text. Repeated calls return the same object."""


class HasLogits(Protocol):
    """Some tokens whose full distribution is known: the input of sparse codecs."""

    @property
    def seeds_N(self) -> np.ndarray:
        """A seed for each token, see `TeacherChunk`."""

    def logits(self) -> Tensor:
        """Float32 logits (N, V), a new tensor at each call, so that callers may overwrite it."""

    def rows(self, start: int, stop: int) -> HasLogits:
        """Tokens start..stop."""


@dataclass(frozen=True)
class TeacherChunk:
    """Some tokens of a teacher's run, as codecs read them: final hidden states and the head.

    seeds_N: uint64, one a token, made from the example's key and the token's position, so that
    draws depend on neither order nor batch. known_NV: precomputed logits, for several codecs.
    labels_N: the ids predicted at the tokens, int64, for the codec that reads them.
    """

    hidden_NH: Tensor
    head: Head
    seeds_N: np.ndarray
    known_NV: Tensor | None = None
    labels_N: Tensor | None = None

    def logits(self) -> Tensor:
        """Float32 logits (N, V), a new tensor at each call, so that callers may overwrite it."""
        return self.head.logits(self.hidden_NH) if self.known_NV is None else self.known_NV.clone()

    def rows(self, start: int, stop: int) -> TeacherChunk:
        """Tokens start..stop."""
        known_NV = None if self.known_NV is None else self.known_NV[start:stop]
        labels_N = None if self.labels_N is None else self.labels_N[start:stop]
        hidden_NH, seeds_N = self.hidden_NH[start:stop], self.seeds_N[start:stop]
        return TeacherChunk(hidden_NH, self.head, seeds_N, known_NV, labels_N)


def seeds_of(key: str, num_tokens: int) -> np.ndarray:
    """A seed for each token, uint64: the key's first 16 hex digits plus multiples of a constant."""
    start = np.uint64(int(key[:16], 16))
    return start + np.arange(num_tokens, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
