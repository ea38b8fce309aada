"""What a codec is: how one kind of signal is stored in a cache. One small file for each codec.

A codec is a section of the recipe (its parameters), and registering it is all that is needed. It
may learn something from a sample of the teacher's tokens before the first shard (an order of the
ids, a basis): its assets, stored once beside the manifest.

Columns are numpy arrays whose first axis is tokens, except that columns whose name starts with
`entry_` hold one number for each entry; the column `entries` then counts each token's entries.
Columns of several examples, flattened and concatenated, decode like those of one example.

Legend: B texts, C values of a text, N tokens counted, H width, V vocabulary, E entries of all
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeGuard

import numpy as np

from attar.errors import RecipeError
from attar.registry import Registry
from attar.word_lists import listed

if TYPE_CHECKING:
    from torch import Tensor

    from teachers.signals import Distribution, HasLogits, TeacherChunk

SignalColumns = dict[str, np.ndarray]
Assets = dict[str, "Tensor"]
Gives = Literal["distribution", "label", "vector"]


class SignalCodec(Protocol):
    """What the codecs of next-token distributions and those of whole texts share."""

    learns: ClassVar[bool]  # whether `learn` returns assets, and so needs a sample
    gives: ClassVar[Gives]  # what is stored; `decode` refuses all but `distribution`
    tail: ClassVar[str]  # how the mass outside the entries is kept: `bucket`, `sampled` or `none`

    @property
    def name(self) -> str:
        """The name under which the recipe and the manifest know the codec."""

    def decode(
        self, columns: SignalColumns, num_tokens: int, temperature: float, assets: Assets
    ) -> Distribution:
        """Distributions from the flat columns of some examples, concatenated.

        Raises `RecipeError` where the codec cannot give this temperature, or no distribution.
        """

    def check_temperature(self, temperature: float) -> None:
        """Raise `RecipeError` where `decode` would refuse this temperature."""

    def bytes_per_token(self, vocabulary: int, width: int) -> float:
        """Approximate bytes on disk per counted token (or text), for plans made before a run."""

    def model_dump(self) -> dict[str, Any]:
        """Name and parameters, as the manifest stores them."""


class DistributionCodec(SignalCodec, Protocol):
    """Stores next-token distributions, or what is read from one at each token.

    A codec with a tail is also a `SparseCodec`. So that caches can be converted and mixed, one
    whose tail is `bucket` is a `BucketCodec` (top_entries.py), and one whose tail is `sampled` is
    a `SampledCodec` (unbiased_entries.py).
    """

    def learn(self, chunk: TeacherChunk) -> Assets:
        """What all shards share, from a sample of tokens; {} if the codec learns nothing."""

    def encode(self, chunk: TeacherChunk, assets: Assets) -> SignalColumns:
        """Columns of N tokens, each (N,), (N, K) or, for entries, (E,)."""


class SparseCodec(DistributionCodec, Protocol):
    """Stores some entries of a distribution, so it needs no more than the logits."""

    def learn(self, chunk: HasLogits) -> Assets:
        """What all shards share, from a sample of tokens; {} if the codec learns nothing."""

    def encode(self, chunk: HasLogits, assets: Assets) -> SignalColumns:
        """Columns of N tokens, each (N,), (N, K) or, for entries, (E,)."""


class LabelCodec(DistributionCodec, Protocol):
    """Stores the log-probability of each token's own label; chunks must have `labels_N`."""

    def columns(self, logprobs_N: Tensor) -> SignalColumns:
        """The columns that `encode` gives, from known log-probabilities (N,)."""

    def logprobs(self, columns: SignalColumns, num_tokens: int) -> Tensor:
        """Float32 log-probabilities (N,) from flat columns. Raises `ValueError` for a bad count."""


class TextCodec(SignalCodec, Protocol):
    """Stores one signal for each whole text: class logits, or a vector."""

    def encode_texts(self, values_BC: Tensor, tokens: Sequence[int]) -> SignalColumns:
        """Columns of B texts; `tokens` says how many tokens of each text the cache keeps."""


class LayerCodec(Protocol):
    """Stores the hidden states of one layer."""

    learns: ClassVar[bool]

    @property
    def name(self) -> str:
        """The name under which the recipe and the manifest know the codec."""

    def learn(self, hidden_NH: Tensor) -> Assets:
        """What all shards share, from a sample of tokens; {} if the codec learns nothing."""

    def encode(self, hidden_NH: Tensor, assets: Assets) -> SignalColumns:
        """Columns by suffix, '' for the main one; the first axis is tokens."""

    def decode(self, columns: SignalColumns, num_tokens: int, assets: Assets) -> Tensor:
        """Float32 hidden states (N, H) from flat columns."""

    def bytes_per_token(self, width: int) -> float:
        """Approximate bytes on disk per counted token and layer."""

    def model_dump(self) -> dict[str, Any]:
        """Name and parameters, as the manifest stores them."""


CODECS: Registry[type[DistributionCodec]] = Registry("codec")
LAYER_CODECS: Registry[type[LayerCodec]] = Registry("codec of hidden states")
TEXT_CODECS: Registry[type[TextCodec]] = Registry("codec of texts")


def is_text_codec(codec: SignalCodec) -> TypeGuard[TextCodec]:
    """Whether the codec stores one signal for each whole text."""
    return codec.name in TEXT_CODECS


def is_token_codec(codec: SignalCodec) -> TypeGuard[DistributionCodec]:
    """Whether the codec stores a signal of each next token."""
    return codec.name in CODECS


def is_label_codec(codec: SignalCodec) -> TypeGuard[LabelCodec]:
    """Whether the codec stores the labels' log-probabilities and no distribution."""
    return codec.gives == "label"


def is_full_codec(codec: SignalCodec | type[SignalCodec]) -> bool:
    """Whether the codec stores full next-token distributions, by final states and the head."""
    return codec.gives == "distribution" and codec.tail == "none"


def check_gives_label_logprobs(codec: SignalCodec, labels: bool = False) -> None:
    """Raise `RecipeError` for a cache from which labels' log-probabilities are not known exactly.

    Stored entries need not hold the label's id, so they do not serve. labels: whether the cache
    keeps the labels' log-probabilities beside the codec (`cache.labels`).
    """
    serve = [name for name, one in CODECS.items() if one.gives == "label" or is_full_codec(one)]
    if not labels and codec.name not in serve:
        beside = "write `cache.labels: true`, or " if is_token_codec(codec) else ""
        raise RecipeError(
            f"The codec `{codec.name}` does not hold the log-probability of every label; {beside}"
            f"use {listed([f'`{name}`' for name in serve], 'or')} in `cache.codec`, or "
            "`source: online`."
        )


def is_sparse_codec(codec: SignalCodec) -> TypeGuard[SparseCodec]:
    """Whether the codec stores some entries of a distribution."""
    return codec.tail != "none"


def split_columns(columns: SignalColumns, tokens: Sequence[int]) -> list[SignalColumns]:
    """Split columns into those of consecutive examples; `tokens` is the length of each example."""
    ends = np.cumsum(tokens)
    entry_ends = ends
    if "entries" in columns:
        entry_ends = np.concatenate([[0], np.cumsum(columns["entries"], dtype=np.int64)])[ends]
    parts: list[SignalColumns] = [{} for _ in tokens]
    for name, column in columns.items():
        cuts = entry_ends if name.startswith("entry_") else ends
        for part, piece in zip(parts, np.split(column, cuts[:-1]), strict=True):
            part[name] = piece
    return parts


def join_columns(parts: Sequence[SignalColumns]) -> SignalColumns:
    """Concatenate the columns of consecutive tokens or examples."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
