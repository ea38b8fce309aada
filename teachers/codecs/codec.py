"""How a signal is stored: one small file a codec, enrolled by registering it.

A codec is a section of the recipe (its parameters). It may learn something from a sample of the
teacher's tokens before the first shard (an order of the ids, a basis): its assets, stored once
beside the manifest. Columns are numpy arrays whose first axis is tokens, except that those whose
name starts with `entry_` hold one number an entry, and `entries` says how many a token has.
Columns of several examples, flattened and concatenated, decode as one.

Legend: N tokens counted, H width, V vocabulary, E entries of all tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from attar.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from teachers.signals import Distribution, TeacherChunk

Columns = dict[str, np.ndarray]
Assets = dict[str, "Tensor"]


class DistributionCodec(Protocol):
    """Stores next-token distributions.

    So that caches can be converted and mixed, one whose tail is `bucket` also has `encode_largest`
    and `decode_largest` (`largest.py`), one whose tail is `sampled` has `encode_weights`.
    """

    name: str
    learns: ClassVar[bool]  # whether `learn` gives anything, and needs a sample
    tail: ClassVar[str]  # what is outside the entries: `bucket`, `sampled` (unbiased) or `none`

    def learn(self, chunk: TeacherChunk) -> Assets:
        """What all shards share, from a sample of tokens; {} where there is nothing."""

    def encode(self, chunk: TeacherChunk, assets: Assets) -> Columns:
        """Columns of N tokens, each (N,), (N, K) or, for entries, (E,)."""

    def decode(
        self, columns: Columns, num_tokens: int, temperature: float, assets: Assets
    ) -> Distribution:
        """Distributions of N tokens from the flat columns of their examples, concatenated.

        Raises `RecipeError` where the codec cannot give this temperature.
        """

    def check_temperature(self, temperature: float) -> None:
        """Raise `RecipeError` where `decode` would refuse this temperature."""

    def bytes_per_token(self, vocabulary: int, width: int) -> float:
        """Bytes a counted token takes on disk, about: for plans made before anything ran."""


class LayerCodec(Protocol):
    """Stores hidden states of one layer."""

    name: str
    learns: ClassVar[bool]

    def learn(self, hidden_NH: Tensor) -> Assets:
        """What all shards share, from a sample of tokens; {} where there is nothing."""

    def encode(self, hidden_NH: Tensor, assets: Assets) -> Columns:
        """Columns by suffix, '' for the main one; the first axis is tokens."""

    def decode(self, columns: Columns, num_tokens: int, assets: Assets) -> Tensor:
        """Float32 hidden states (N, H) from flat columns."""

    def bytes_per_token(self, width: int) -> float:
        """Bytes a counted token and layer take on disk, about."""


def split_columns(columns: Columns, tokens: Sequence[int]) -> list[Columns]:
    """The columns of consecutive examples with so many tokens each."""
    ends = np.cumsum(tokens)
    entry_ends = ends
    if "entries" in columns:
        entry_ends = np.concatenate([[0], np.cumsum(columns["entries"], dtype=np.int64)])[ends]
    parts: list[Columns] = [{} for _ in tokens]
    for name, column in columns.items():
        cuts = entry_ends if name.startswith("entry_") else ends
        for part, piece in zip(parts, np.split(column, cuts[:-1]), strict=True):
            part[name] = piece
    return parts


CODECS: Registry[type[Any]] = Registry("codec")  # of pydantic models that are DistributionCodecs
LAYER_CODECS: Registry[type[Any]] = Registry("codec of hidden states")  # ... LayerCodecs
TEXT_CODECS: Registry[type[Any]] = Registry("codec of texts")  # one signal a text
