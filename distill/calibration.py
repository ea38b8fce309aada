"""Training text that a model is judged, cut or rounded on: rows of one length.

Legend: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from distill.data import Examples

T = TypeVar("T")
LONGEST = 256


def calibration_rows(examples: Examples, tokens: int, *, last: bool = False) -> Tensor:
    """Beginnings of the first, or last, training texts, all of one length, (B, T); B x T is near
    `tokens`.

    The length, up to 256, is the one at which texts that are as long hold most tokens, so a corpus
    of short texts gives short rows.
    """
    lengths = np.sort(np.minimum(examples.lengths, min(LONGEST, tokens)))[::-1]
    held = np.minimum(lengths * np.arange(1, len(lengths) + 1), tokens)
    length = int(lengths[int(held.argmax())])
    enough = np.flatnonzero(examples.lengths >= length)[:: -1 if last else 1]
    chosen = enough[: -(-tokens // length)]
    rows = [torch.from_numpy(examples[int(number)].input_ids[:length]) for number in chosen]
    return torch.stack(rows)


def halves(batches: Sequence[T], both: bool) -> tuple[Sequence[T], Sequence[T]]:
    """Batches to measure on and, where both are asked for, as many others to learn from."""
    middle = max(1, len(batches) // 2) if both else len(batches)
    return batches[:middle], batches[middle:]
