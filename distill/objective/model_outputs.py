"""What differs between tasks in a step: what of a student is run, and what its terms read.

Legend: B rows, T tokens, N predictions counted, V vocabulary, H width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from attar.models.pooling import Pooling, pooled
from attar.models.structure import head_of, run_body
from attar.models.task_heads import class_logits
from distill.data.batching import Batch
from distill.data.tokenize import IGNORE
from distill.objective.chunked_head import head_losses, logit_losses
from distill.objective.head_term import HeadTerm


class Readout(Protocol):
    """How the terms over outcomes (ids of the vocabulary, or classes) get a student's logits.

    labelled: whether labels say what is right, so that there is an nll.
    """

    labelled: ClassVar[bool]

    def run(self, student: nn.Module, batch: Batch) -> Tensor:
        """A forward: what `losses` reads, of the N predictions counted."""

    def losses(
        self, student: nn.Module, output: Tensor, labels_N: Tensor, terms: Sequence[HeadTerm]
    ) -> tuple[Tensor, Tensor]:
        """(sum of scaled terms, differentiable; sums of each term, unscaled, detached)."""


@dataclass(frozen=True)
class LanguageReadout:
    """Next tokens: the body is run, and the head is applied chunk by chunk."""

    labelled: ClassVar[bool] = True
    vocabulary: int
    chunk: int
    dtype: torch.dtype

    def run(self, student: nn.Module, batch: Batch) -> Tensor:
        """Final hidden states (N, H)."""
        return run_body(student, batch.model_inputs())[batch.labels_BT != IGNORE]

    def losses(
        self, student: nn.Module, output: Tensor, labels_N: Tensor, terms: Sequence[HeadTerm]
    ) -> tuple[Tensor, Tensor]:
        """From the head over the vocabulary; the logits of a chunk exist at once."""
        head = head_of(student, self.vocabulary)
        return head_losses(output, head, labels_N, terms, chunk=self.chunk, dtype=self.dtype)


@dataclass(frozen=True)
class ClassReadout:
    """Classes of texts: the whole model is run, however it pools."""

    labelled: ClassVar[bool] = True

    def run(self, student: nn.Module, batch: Batch) -> Tensor:
        """Logits (B, C): every text has one prediction."""
        return class_logits(student, batch.model_inputs())

    def losses(
        self, student: nn.Module, output: Tensor, labels_N: Tensor, terms: Sequence[HeadTerm]
    ) -> tuple[Tensor, Tensor]:
        """From the logits as they are."""
        return logit_losses(output, labels_N, terms)


@dataclass(frozen=True)
class VectorReadout:
    """Vectors of texts: they have no outcomes, and no labels."""

    labelled: ClassVar[bool] = False
    pooling: Pooling

    def run(self, student: nn.Module, batch: Batch) -> Tensor:
        """Vectors (B, H), before they are normalised."""
        return pooled(student, batch.model_inputs(), self.pooling)

    def losses(
        self, student: nn.Module, output: Tensor, labels_N: Tensor, terms: Sequence[HeadTerm]
    ) -> tuple[Tensor, Tensor]:
        """Refused: the recipe was checked."""
        raise AssertionError("vectors are compared by the learner")
