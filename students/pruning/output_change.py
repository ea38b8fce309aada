"""The loss that ranks blocks on whole texts: how far a model's outputs move when it is cut.

Legend: B texts, C classes or channels of an output, P pairs of answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

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


def pair_logprobs(difference_P: Tensor) -> Tensor:
    """Return log-probabilities (P, 2) that the first answer of a pair is better, and the second.

    difference_P: the first one's reward less the second one's.
    """
    return torch.stack([logsigmoid(difference_P), logsigmoid(-difference_P)], -1)


def preference_logprobs(model: Any, texts: TextBatch) -> Tensor:
    """Return `pair_logprobs` (P, 2) of a reward model; the texts of a pair follow each other."""
    rewards_P2 = class_logits(model, texts).float().reshape(-1, 2)
    return pair_logprobs(rewards_P2[:, 0] - rewards_P2[:, 1])
