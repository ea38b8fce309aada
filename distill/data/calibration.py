"""Calibration text: rows of one length that a model is scored, pruned or rounded on.

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
GOLDEN_RATIO = (5**0.5 - 1) / 2  # fractional parts of its multiples leave no large gap


def low_discrepancy_order(number: int, *, last: bool = False) -> np.ndarray:
    """Numbers from 0 to `number` - 1 in an order whose every beginning is spread over all of them.

    last: the same order from its end, whose beginnings are spread as well.
    """
    order = np.argsort(np.arange(1, number + 1) * GOLDEN_RATIO % 1.0, kind="stable")
    return order[::-1] if last else order


def calibration_rows(examples: Examples, tokens: int, *, last: bool = False) -> Tensor:
    """Beginnings of training texts spread over the data, all of one length, (B, T).

    B x T is about `tokens`. The length, up to `MAX_ROW_TOKENS`, is the one at which the texts that
    are long enough give most tokens, so a corpus of short texts gives short rows. last: choose from
    the other end of the order, so that the rows differ where there is enough text.
    """
    lengths = np.sort(np.minimum(examples.lengths, min(MAX_ROW_TOKENS, tokens)))[::-1]
    held = np.minimum(lengths * np.arange(1, len(lengths) + 1), tokens)
    length = int(lengths[int(held.argmax())])
    enough = np.flatnonzero(examples.lengths >= length)
    chosen = enough[low_discrepancy_order(len(enough), last=last)[: -(-tokens // length)]]
    rows = [torch.from_numpy(examples[int(number)].input_ids[:length]) for number in chosen]
    return torch.stack(rows)


def split_for_healing(chosen: Rows, heals: bool) -> tuple[Rows, Rows]:
    """Split rows into those that shapes are measured on, and those that candidates are healed on.

    Every other row is for healing, or none where nothing heals. Raises `RecipeError` for one row.
    """
    if not heals:
        return chosen, chosen[:0]
    if len(chosen) < 2:
        raise RecipeError(
            "`student.target.heal_steps` needs more text: there is none beside the text that "
            "shapes are measured on; raise `student.target.tokens`, or leave `heal_steps` out."
        )
    return chosen[::2], chosen[1::2]
