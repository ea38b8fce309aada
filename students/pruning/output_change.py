"""What blocks are judged by on whole texts: how far a model's readings move from what they were.

Legend: B texts, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from attar.models.task_heads import class_logits
from students.pruning.depth import LossOf, TextBatch

T = TypeVar("T")  # a batch of texts, as `read` takes it


@torch.inference_mode()
def output_change(
    model: Any,
    batches: Sequence[T],
    read: Callable[[Any, T], Tensor],
    apart: Callable[[Tensor, Tensor], Tensor],
) -> LossOf:
    """How far a model is from this one as it is now, the mean over texts.

    read: (B, C) of a batch of texts. apart: how far this model's are from the other's, (B,).
    """
    whole = [read(model, texts) for texts in batches]
    number = sum(len(one) for one in whole)

    @torch.inference_mode()
    def loss_of(cut: Any) -> float:
        found = (read(cut, texts) for texts in batches)
        return sum(float(apart(w, c).sum()) for w, c in zip(whole, found, strict=True)) / number

    return loss_of


def kl(whole_BC: Tensor, cut_BC: Tensor) -> Tensor:
    """KL(whole || cut), (B,), of log-probabilities."""
    return (whole_BC.exp() * (whole_BC - cut_BC)).sum(-1)


def class_logprobs(model: Any, texts: TextBatch) -> Tensor:
    """Log-probabilities (B, C) of a classifier."""
    return class_logits(model, texts).float().log_softmax(-1)
