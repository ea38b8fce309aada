"""`classes`: all logits of a classifier, stored exactly, since a text has few classes.

For each text its C logits (float32) are stored as entries of the first of its tokens: `entries` is
C there and 0 at its other tokens, which are kept only for their hidden states. Exact at every
temperature.

Legend: B texts, N tokens kept, C classes, E entries of all tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from attar.config import Section
from teachers.codecs.codec import TEXT_CODECS, Assets, Gives, SignalColumns
from teachers.signals import KnownLogits


def entries_of_texts(values_BC: Tensor, tokens: Sequence[int]) -> np.ndarray:
    """Column `entries`: C at the first token of each text, 0 at the others.

    tokens: how many tokens of each text the cache keeps.
    """
    entries = np.zeros(sum(tokens), np.uint16)
    entries[np.cumsum([0, *tokens[:-1]])] = values_BC.shape[1]
    return entries


def values_of_texts(columns: SignalColumns, name: str) -> Tensor:
    """Float32 values (B, C) of the texts. Raises `ValueError` where texts differ in their C."""
    counts = columns["entries"][columns["entries"] > 0]
    if not len(counts) or (counts != counts[0]).any():
        raise ValueError(f"texts with {sorted(set(counts.tolist()))} values")
    values_BC = columns[name].reshape(len(counts), int(counts[0]))
    return torch.from_numpy(np.array(values_BC, np.float32))


@TEXT_CODECS.add("classes")
class ClassLogits(Section):
    """All logits of every text, unrounded."""

    gives: ClassVar[Gives] = "distribution"
    tail: ClassVar[str] = "none"
    learns: ClassVar[bool] = False
    name: Literal["classes"] = "classes"

    def encode_texts(self, values_BC: Tensor, tokens: Sequence[int]) -> SignalColumns:
        """Columns of B texts; `tokens` says how many tokens of each text the cache keeps."""
        logits = values_BC.float().cpu().numpy().reshape(-1)
        return {"entries": entries_of_texts(values_BC, tokens), "entry_logit": logits}

    def decode(
        self, columns: SignalColumns, num_tokens: int, temperature: float, assets: Assets
    ) -> KnownLogits:
        """Logits (B, C) of the texts, in their order."""
        return KnownLogits(values_of_texts(columns, "entry_logit"), temperature)

    def check_temperature(self, temperature: float) -> None:
        """Accept every temperature: logits are exact at all of them."""

    def bytes_per_token(self, vocabulary: int, width: int) -> float:
        """Four bytes a class; `vocabulary` is the number of classes."""
        return 4.0 * vocabulary + 2.0
