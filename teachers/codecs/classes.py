"""`classes`: a classifier's logits in full; texts have few classes, so nothing is lost.

Legend: B texts, N tokens kept, C classes, E entries of all tokens.

Stored a text: its C logits (float32), as entries of the first of its tokens: `entries` counts C
there and 0 at its others, which are there for the hidden states. Exact at every temperature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from attar.config import Section
from teachers.codecs.codec import TEXT_CODECS, Assets, Columns
from teachers.signals import KnownLogits


def entries_of(values_BC: Tensor, tokens: Sequence[int]) -> np.ndarray:
    """Column `entries` of texts that keep so many tokens each: C at the first, 0 at others."""
    entries = np.zeros(sum(tokens), np.uint16)
    entries[np.cumsum([0, *tokens[:-1]])] = values_BC.shape[1]
    return entries


def rows_of(columns: Columns, name: str) -> Tensor:
    """Float32 values (B, C) of the texts. Raises `ValueError` where they differ in number."""
    counts = columns["entries"][columns["entries"] > 0]
    if not len(counts) or (counts != counts[0]).any():
        raise ValueError(f"texts with {sorted(set(counts.tolist()))} values")
    values_BC = columns[name].reshape(len(counts), int(counts[0]))
    return torch.from_numpy(np.array(values_BC, np.float32))


@TEXT_CODECS.add("classes")
class ClassLogits(Section):
    """All logits of every text, as they are."""

    tail: ClassVar[str] = "none"
    learns: ClassVar[bool] = False
    name: Literal["classes"] = "classes"

    def encode_texts(self, logits_BC: Tensor, tokens: Sequence[int]) -> Columns:
        """Columns of B texts that keep so many tokens each, from their logits."""
        logits = logits_BC.float().cpu().numpy().reshape(-1)
        return {"entries": entries_of(logits_BC, tokens), "entry_logit": logits}

    def decode(
        self, columns: Columns, num_tokens: int, temperature: float, assets: Assets
    ) -> KnownLogits:
        """Logits (B, C) of the texts, in their order."""
        return KnownLogits(rows_of(columns, "entry_logit"), temperature)

    def check_temperature(self, temperature: float) -> None:
        """Every temperature is exact."""

    def bytes_per_token(self, vocabulary: int, width: int) -> float:
        """Four bytes a class; `vocabulary` is their number."""
        return 4.0 * vocabulary + 2.0
