"""Training text that models are pruned or rounded by: rows of one length.

Legend: B rows, T tokens.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distill.data.examples import Examples

MAX_ROW_TOKENS = 256
GOLDEN_RATIO = (5**0.5 - 1) / 2  # its multiples leave no large gap between 0 and 1


def low_discrepancy_order(number: int) -> np.ndarray:
    """Numbers from 0 in an order of which every beginning is spread evenly over all of them."""
    return np.argsort(np.arange(1, number + 1) * GOLDEN_RATIO % 1.0, kind="stable")


def calibration_rows(examples: Examples, tokens: int) -> Tensor:
    """The first ids of training texts from all over the data, (B, T); B x T is near `tokens`.

    All rows have one length, up to 256: the one at which the texts that are long enough hold most
    tokens, so a corpus of short texts gives short rows. Of pairs, the chosen texts are taken.
    """
    examples = examples.preferred()
    lengths = np.sort(np.minimum(examples.lengths, min(MAX_ROW_TOKENS, tokens)))[::-1]
    held = np.minimum(lengths * np.arange(1, len(lengths) + 1), tokens)
    length = int(lengths[int(held.argmax())])
    enough = np.flatnonzero(examples.lengths >= length)
    chosen = enough[low_discrepancy_order(len(enough))[: -(-tokens // length)]]
    rows = [torch.from_numpy(examples[int(number)].input_ids[:length]) for number in chosen]
    return torch.stack(rows)
