"""The policy gradient of answers that the student wrote, one value an answer.

Legend: A answers written by the student.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from distill.objective.losses import loss


@loss(
    "rloo",
    reads="rollouts",
    divergence=False,
    source="Ahmadian et al. 2024, arXiv 2402.14740; clipping: Schulman et al. 2017, 1707.06347",
)
def rloo(
    logprob_A: Tensor,
    written_A: Tensor,
    advantage_A: Tensor,
    *,
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2,
) -> Tensor:
    """-min(r A, clamp(r, 1 - clip, 1 + clip) A), one value an answer: r is its probability under
    the student over that under the student that wrote it, A its reward less the mean reward of the
    other answers to its prompt.

    logprob_A, written_A: log-probability of each answer now, differentiable, and as it was written.
    """
    ratio_A = (logprob_A - written_A).exp()
    clipped_A = ratio_A.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratio_A * advantage_A, clipped_A * advantage_A)
