"""What differs between tasks in a step: which part of a student runs, and what its terms read.

Legend: B rows, T tokens, N predictions counted, V vocabulary, H width, C classes, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from attar.models.pooling import Pooling, pooled
from attar.models.structure import head_of, run_body
from attar.models.task_heads import class_logits
from distill.data.batching import Batch
from distill.data.tokenize import IGNORE
from distill.objective.chunked_head import head_logprobs, head_losses, logit_losses
from distill.objective.head_term import HeadTerm
from distill.objective.reward_term import rewards_of_pairs


class Readout(Protocol):
    """How the terms over outcomes (ids of the vocabulary, or classes) get a student's logits.

    labelled: whether the task has labels, and so an nll. rates: whether predictions are right or
    wrong, and so have an accuracy.
    """

    labelled: ClassVar[bool]
    rates: ClassVar[bool]

    def run(self, student: nn.Module, batch: Batch) -> Tensor:
        """Run a forward; return what `losses` reads, for the N counted predictions."""

    def losses(
        self, student: nn.Module, output: Tensor, labels_N: Tensor, terms: Sequence[HeadTerm]
    ) -> tuple[Tensor, Tensor]:
        """Return (sum of scaled terms, differentiable; sum of each term, unscaled, detached)."""

    def label_logprobs(self, student: nn.Module, output: Tensor, labels_N: Tensor) -> Tensor:
        """Return the labels' log-probabilities, float32 (N,), without gradient; asked of language
        models.
        """

    def right(self, output: Tensor, labels_N: Tensor) -> Tensor:
        """Return the number of predictions that are right; asked where `rates`."""


@dataclass(frozen=True)
class LanguageReadout:
    """Next-token prediction: the body runs, and the head is applied chunk by chunk."""

    labelled: ClassVar[bool] = True
    rates: ClassVar[bool] = False  # its logits never exist all at once
    vocabulary: int
    chunk: int
    dtype: torch.dtype

    def run(self, student: nn.Module, batch: Batch) -> Tensor:
        """Return final hidden states (N, H)."""
        return run_body(student, batch.model_inputs())[batch.labels_BT != IGNORE]

    def losses(
        self, student: nn.Module, output: Tensor, labels_N: Tensor, terms: Sequence[HeadTerm]
    ) -> tuple[Tensor, Tensor]:
        """Return the losses; only the logits of one chunk exist at a time."""
        head = head_of(student, self.vocabulary)
        return head_losses(output, head, labels_N, terms, chunk=self.chunk, dtype=self.dtype)

    def label_logprobs(self, student: nn.Module, output: Tensor, labels_N: Tensor) -> Tensor:
        """Return the labels' log-probabilities, float32 (N,), without gradient, chunk by chunk."""
        head = head_of(student, self.vocabulary)
        return head_logprobs(output, head, labels_N, chunk=self.chunk, dtype=self.dtype)

    def right(self, output: Tensor, labels_N: Tensor) -> Tensor:
        """Raise `AssertionError`: it does not rate."""
        raise AssertionError("predictions of tokens are measured by their nll")


@dataclass(frozen=True)
class ClassReadout:
    """Classification of texts: the whole model runs, with its own pooling."""

    labelled: ClassVar[bool] = True
    rates: ClassVar[bool] = True

    def run(self, student: nn.Module, batch: Batch) -> Tensor:
        """Return logits (B, C): every text has one prediction."""
        return class_logits(student, batch.model_inputs())

    def losses(
        self, student: nn.Module, output: Tensor, labels_N: Tensor, terms: Sequence[HeadTerm]
    ) -> tuple[Tensor, Tensor]:
        """Return the losses on the logits."""
        return logit_losses(output, labels_N, terms)

    def label_logprobs(self, student: nn.Module, output: Tensor, labels_N: Tensor) -> Tensor:
        """Raise `AssertionError`: classes of texts have no answers to compare."""
        raise AssertionError("the recipe was checked to have no terms on preferences")

    def right(self, output: Tensor, labels_N: Tensor) -> Tensor:
        """Return the number of texts whose most likely class is their label."""
        return (output.argmax(-1) == labels_N).sum()


@dataclass(frozen=True)
class RewardReadout:
    """Rewards of texts: the whole model runs. The label of a pair is which answer is chosen."""

    labelled: ClassVar[bool] = True
    rates: ClassVar[bool] = True

    def run(self, student: nn.Module, batch: Batch) -> Tensor:
        """Return rewards (B, 1), the chosen answer's of each pair before the rejected one's."""
        return class_logits(student, batch.model_inputs())

    def losses(
        self, student: nn.Module, output: Tensor, labels_N: Tensor, terms: Sequence[HeadTerm]
    ) -> tuple[Tensor, Tensor]:
        """Return (0, nll of the pairs): -log σ of the difference of their rewards; the recipe was
        checked to have no terms over outcomes. The 0 has a gradient of zeros, so that the head
        takes part where processes exchange gradients.
        """
        assert len(terms) == 1, "a pair's nll is measured, and no outcome is learned"
        nll = -logsigmoid(_differences(output)).double().sum()
        return 0.0 * output.float().sum(), nll.detach().unsqueeze(0)

    def label_logprobs(self, student: nn.Module, output: Tensor, labels_N: Tensor) -> Tensor:
        """Raise `AssertionError`: texts are scored, and no token of them is predicted."""
        raise AssertionError("the recipe was checked to have no terms on preferences")

    def right(self, output: Tensor, labels_N: Tensor) -> Tensor:
        """Return the number of pairs whose chosen answer has the higher reward."""
        return (_differences(output) > 0).sum()


def _differences(rewards_B1: Tensor) -> Tensor:
    """Return each pair's reward of the chosen answer less that of the rejected one, (P,)."""
    rewards_P2 = rewards_of_pairs(rewards_B1)
    return rewards_P2[:, 0] - rewards_P2[:, 1]


@dataclass(frozen=True)
class VectorReadout:
    """Embedding of texts: there are no outcomes and no labels."""

    labelled: ClassVar[bool] = False
    rates: ClassVar[bool] = False
    pooling: Pooling

    def run(self, student: nn.Module, batch: Batch) -> Tensor:
        """Return vectors (B, H), before they are normalised."""
        return pooled(student, batch.model_inputs(), self.pooling)

    def losses(
        self, student: nn.Module, output: Tensor, labels_N: Tensor, terms: Sequence[HeadTerm]
    ) -> tuple[Tensor, Tensor]:
        """Raise `AssertionError`: the recipe was checked to have no terms over outcomes."""
        raise AssertionError("vectors are compared by the learner")

    def label_logprobs(self, student: nn.Module, output: Tensor, labels_N: Tensor) -> Tensor:
        """Raise `AssertionError`: vectors have no answers to compare."""
        raise AssertionError("the recipe was checked to have no terms on preferences")

    def right(self, output: Tensor, labels_N: Tensor) -> Tensor:
        """Raise `AssertionError`: vectors have no labels."""
        raise AssertionError("vectors have no labels")
