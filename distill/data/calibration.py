"""Training text that a model is judged, cut or rounded on: rows of one length.

Legend: B rows, T tokens.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from attar.errors import RecipeError
from distill.data.examples import Examples

Rows = TypeVar("Rows", Tensor, np.ndarray)
MAX_ROW_TOKENS = 256
GOLDEN_RATIO = (5**0.5 - 1) / 2  # its multiples leave no large gap between 0 and 1


def low_discrepancy_order(number: int, *, last: bool = False) -> np.ndarray:
    """Numbers from 0 in an order of which any beginning is low_discrepancy_order over all of them, as is any
    beginning of the `last`, the same order from its end.
    """
    order = np.argsort(np.arange(1, number + 1) * GOLDEN_RATIO % 1.0, kind="stable")
    return order[::-1] if last else order


def calibration_rows(examples: Examples, tokens: int, *, last: bool = False) -> Tensor:
    """Beginnings of training texts from all over the data, all of one length, (B, T); B x T is near
    `tokens`. Those of the `last` are others, where there are enough.

    The length, up to 256, is the one at which texts that are as long hold most tokens, so a corpus
    of short texts gives short rows.
    """
    lengths = np.sort(np.minimum(examples.lengths, min(MAX_ROW_TOKENS, tokens)))[::-1]
    held = np.minimum(lengths * np.arange(1, len(lengths) + 1), tokens)
    length = int(lengths[int(held.argmax())])
    enough = np.flatnonzero(examples.lengths >= length)
    chosen = enough[low_discrepancy_order(len(enough), last=last)[: -(-tokens // length)]]
    rows = [torch.from_numpy(examples[int(number)].input_ids[:length]) for number in chosen]
    return torch.stack(rows)


def split_for_healing(chosen: Rows, heals: bool) -> tuple[Rows, Rows]:
    """What is measured on and, where that is asked for, every other one to learn from instead.

    Raises `RecipeError` where there is one alone.
    """
    if not heals:
        return chosen, chosen[:0]
    if len(chosen) < 2:
        raise RecipeError(
            "`student.target.heal_steps` needs more text: beside that which shapes are measured on "
            "there is none; raise `student.target.tokens`, or leave `heal_steps` out."
        )
    return chosen[::2], chosen[1::2]
