"""The tensors on which other toolkits' losses were recorded: formulas, so every version has them.

Legend: N tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOKENS, VOCABULARY, TOP = 7, 29, 5
IGNORED = -100


def _waves(scale: float, *, across: float, along: float, phase: float) -> Tensor:
    """(N, V) float64, of the size of logits, without ties."""
    n = torch.arange(TOKENS, dtype=torch.float64).unsqueeze(-1)
    v = torch.arange(VOCABULARY, dtype=torch.float64)
    return scale * (torch.sin(across * v + along * n + phase) + torch.cos(0.37 * n * v + 2 * phase))


def teacher_logits() -> Tensor:
    """(N, V) float32."""
    return _waves(2.1, across=1.7, along=0.9, phase=0.3).float()


def student_logits() -> Tensor:
    """(N, V) float32: the teacher's at seven tenths, and something else."""
    return (
        0.7 * teacher_logits().double() + _waves(0.9, across=0.61, along=2.3, phase=1.1)
    ).float()


def labels() -> Tensor:
    """(N,) int64, aligned with the logits; the first and the fifth token are not counted."""
    return torch.tensor([IGNORED, 4, 17, 8, IGNORED, 28, 0])
