"""The loss that ranks blocks on whole texts: how far a model's outputs move when it is cut.

Legend: B texts, C classes or channels of an output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from attar.models.task_heads import class_logits
from students.pruning.depth import LossOf, TextBatch

T = TypeVar("T")  # a batch of texts


@torch.inference_mode()
def output_change(
    model: Any,
    batches: Sequence[T],
    read: Callable[[Any, T], Tensor],
    divergence: Callable[[Tensor, Tensor], Tensor],
) -> LossOf:
    """Return a loss: the mean divergence of a model's outputs from this model's current ones.

    read: gives the outputs (B, C) of a batch of texts. divergence: of outputs before and after the
    cut, (B,).
    """
    whole = [read(model, texts) for texts in batches]
    number = sum(len(one) for one in whole)

    @torch.inference_mode()
    def loss_of(cut: Any) -> float:
        found = (read(cut, texts) for texts in batches)
        return (
            sum(float(divergence(w, c).sum()) for w, c in zip(whole, found, strict=True)) / number
        )

    return loss_of


def kl(whole_BC: Tensor, cut_BC: Tensor) -> Tensor:
    """Return KL(whole || cut), (B,), of log-probabilities, in nats."""
    return (whole_BC.exp() * (whole_BC - cut_BC)).sum(-1)


def class_logprobs(model: Any, texts: TextBatch) -> Tensor:
    """Return the log-probabilities (B, C) of a classifier."""
    return class_logits(model, texts).float().log_softmax(-1)
