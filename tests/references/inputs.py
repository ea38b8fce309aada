"""The tensors on which other toolkits' losses were recorded: formulas, so every version has them.

Legend: N tokens, V vocabulary; R rows of pairs, the chosen answers first, T tokens of a row.
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


# Preferences -------------------------------------------------------------------------------------

PAIRS, LENGTH, IDS = 3, 7, 6
PROMPTS = (2, 3, 1) * 2  # tokens of each row's prompt
ANSWERS = (4, 3, 5, 2, 4, 6)  # tokens of its answer; the rest is padding
RATED = (1, 0, 1, 0, 0, 1)  # where answers are rated, not compared: which rows are good


def pair_ids() -> Tensor:
    """(R, T) int64: rows of a pair begin with the same prompt."""
    r, t = torch.arange(2 * PAIRS).unsqueeze(-1), torch.arange(LENGTH)
    in_prompt = t < torch.tensor(PROMPTS).unsqueeze(-1)
    return torch.where(in_prompt, 2 * (r % PAIRS) + 5 * t, 3 * r + 2 * t + r * t) % IDS


def pair_attention() -> Tensor:
    """(R, T) int64: 1 where a row has a token, 0 where it has padding."""
    ends = torch.tensor(PROMPTS) + torch.tensor(ANSWERS)
    return (torch.arange(LENGTH) < ends.unsqueeze(-1)).long()


def pair_answers() -> Tensor:
    """(R, T) int64: 1 at the answer's tokens."""
    return pair_attention() * (torch.arange(LENGTH) >= torch.tensor(PROMPTS).unsqueeze(-1))


def _pair_waves(scale: float, phase: float) -> Tensor:
    r, t, v = (torch.arange(n, dtype=torch.float64) for n in (2 * PAIRS, LENGTH, IDS))
    angle = 1.3 * r[:, None, None] + 0.8 * t[:, None] * (1 + v) + 2.1 * v
    return scale * (torch.sin(angle + phase) + torch.cos(0.7 * angle * (1 + t[:, None]) + phase))


def reference_logits() -> Tensor:
    """(R, T, V) float64, not shifted: those at t predict the id at t + 1."""
    return _pair_waves(1.2, 0.4)


def policy_logits() -> Tensor:
    """(R, T, V) float64."""
    return reference_logits() + _pair_waves(0.8, 1.9)


def unrelated_logits() -> Tensor:
    """(R, T, V) float64: a reference's logits on answers to other prompts, for KTO."""
    return 1.1 * reference_logits().flip(0) + _pair_waves(0.3, 2.6)
