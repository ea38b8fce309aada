"""How a signal is stored: one small file a codec, enrolled by registering it.

A distribution codec is a section of the recipe (its parameters) with three methods; columns are
numpy arrays whose first axis is tokens, or, flattened, what one example's row stores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from attar.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from teachers.signals import Distribution, TeacherChunk

Columns = dict[str, np.ndarray]


class DistributionCodec(Protocol):
    """Stores next-token distributions."""

    name: str

    def encode(self, chunk: TeacherChunk) -> Columns:
        """Columns of N tokens, each (N,) or (N, K)."""

    def decode(self, columns: Columns, num_tokens: int, temperature: float) -> Distribution:
        """Distributions of N tokens from the flat columns of their examples, concatenated.

        Raises `RecipeError` where the codec cannot give this temperature.
        """

    def bytes_per_token(self, vocabulary: int) -> float:
        """Bytes a counted token takes on disk, for plans."""


class LayerCodec(Protocol):
    """Stores hidden states of one layer."""

    def encode(self, hidden_NH: Tensor) -> Columns:
        """Columns by suffix; '' is the codes, (N, H)."""

    def decode(self, columns: Columns, width: int) -> Tensor:
        """Float32 hidden states (N, H) from flat columns."""

    def bytes_per_token(self, width: int) -> float:
        """Bytes a counted token and layer take on disk."""


CODECS: Registry[type[Any]] = Registry("codec")  # of pydantic models that are DistributionCodecs
LAYER_CODECS: Registry[LayerCodec] = Registry("codec of hidden states")

from teachers.codecs import layers, topk  # noqa: E402, F401  (registering enrols)
