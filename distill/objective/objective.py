"""The objective: a weighted list of terms, masked and averaged once, over one optimiser step.

Legend: B rows, T tokens, N tokens counted, V vocabulary, H width, L layers.

The value of a step is  sum_terms weight x (sum over counted tokens) / (number of counted tokens of
the whole step, over micro-batches and processes).  Splitting a batch therefore changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attar.models.attention import capture_attention
from attar.models.structure import capture_layers, unwrap, width
from distill.data.batching import Batch
from distill.data.tokenize import IGNORE
from distill.objective.bound_terms import (
    OutcomeTerm,
    Pairs,
    SignalSources,
    StudentOutputs,
    TermKey,
    bind_terms,
    make_projectors,
)
from distill.objective.head_term import HeadTerm
from distill.objective.losses import LOSSES
from distill.objective.model_outputs import LanguageReadout, Readout
from distill.objective.terms import Source
from teachers.signals import GivesSignals


@dataclass(frozen=True)
class LossMeans:
    """Means over counted tokens: of each term before its weight, and of the labels' nll, if any;
    accuracy: the share that is right, where an evaluation rates predictions.
    """

    terms: dict[TermKey, float]
    nll: float | None
    accuracy: float | None = None

    def named(self, prefix: str = "") -> dict[str, float]:
        """Return them by the names of the history: `0:forward_kl`, ..., `nll`, `accuracy`."""
        named = {f"{prefix}{key}": mean for key, mean in self.terms.items()}
        more = {"nll": self.nll, "accuracy": self.accuracy}
        return named | {f"{prefix}{key}": mean for key, mean in more.items() if mean is not None}


@dataclass(frozen=True)
class LossSums:
    """Sums over the counted tokens of a batch, detached, in the losses' units (mostly nats).

    terms: each term before its weight. nll: of the labels; None where the task has no labels.
    tokens: how many tokens are counted. right: how many predictions are right, in an evaluation
    that rates them.
    """

    terms: dict[TermKey, Tensor]
    nll: Tensor | None
    tokens: int
    right: Tensor | None = None

    def __add__(self, other: LossSums) -> LossSums:
        terms = {key: value + other.terms[key] for key, value in self.terms.items()}
        tokens = self.tokens + other.tokens
        return LossSums(terms, _sum(self.nll, other.nll), tokens, _sum(self.right, other.right))

    def __mul__(self, factor: float) -> LossSums:
        return self.map(lambda value: factor * value)

    def map(self, function: Callable[[Tensor], Tensor]) -> LossSums:
        """Return the sums with a function applied to each."""
        terms = {key: function(value) for key, value in self.terms.items()}
        nll = None if self.nll is None else function(self.nll)
        right = None if self.right is None else function(self.right)
        return LossSums(terms, nll, self.tokens, right)

    def means(self, tokens: int) -> LossMeans:
        """Return the sums divided by a number of tokens, which may be more than this batch's."""
        terms = {key: float(value) / tokens for key, value in self.terms.items()}
        nll, right = (None if x is None else float(x) / tokens for x in (self.nll, self.right))
        return LossMeans(terms, nll, right)


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return None if one is None or other is None else one + other


class Learner(nn.Module):
    """A student, its objective and its projectors: a batch and its signals in, a loss out.

    It is what data-parallel wrappers wrap. Projectors (where teacher and student differ in width)
    are linear and never part of the student's checkpoint. They start orthogonal or, where the
    student was cut from a wider teacher, as `channel_map` (teacher's channels, student's).
    `pairs`: layers or blocks of every term that reads some, by the term's index. `readout`: that of
    a task other than predicting the next token.
    """

    def __init__(
        self,
        student: nn.Module,
        terms: list[Any],
        *,
        vocabulary: int,
        dtype: torch.dtype,
        chunk: int,
        pairs: dict[int, Pairs] | None = None,
        teacher_width: int | None = None,
        channel_map: Tensor | None = None,
        source: Source = "cache",
        readout: Readout | None = None,
    ) -> None:
        super().__init__()
        self.student, self.terms, self.dtype = student, terms, dtype
        self.readout = readout or LanguageReadout(vocabulary, chunk, dtype)
        pairs = pairs or {}
        self.projectors = make_projectors(
            terms, width(student), teacher_width, pairs=pairs, channel_map=channel_map
        )
        self.bound_terms = bind_terms(
            terms, student, pairs=pairs, projectors=self.projectors, source=source,
            readout=self.readout,
        )  # fmt: skip
        needs = [bound.needs for bound in self.bound_terms]
        self.layers = sorted({layer for need in needs for layer in need.layers})
        self.blocks = sorted({block for need in needs for block in need.blocks})

    def terms_at_step(self, step: int, total: int) -> list[Any]:
        """Return the terms of one step of `total`, from 0, with every schedule as a number."""
        return [term.at(step, total) for term in self.terms]

    def final_terms(self) -> list[Any]:
        """Return the terms as they end: all evaluations use these, so that they compare."""
        return self.terms_at_step(1, 1)

    def decode(self, signals: GivesSignals, terms: list[Any] | None = None) -> None:
        """Decode what the terms will ask the cache for; another thread calls this ahead of time."""
        for bound, term in zip(self.bound_terms, terms or self.final_terms(), strict=True):
            if bound.source == "cache":
                bound.decode(term, signals)

    def forward(
        self, batch: Batch, sources: SignalSources, scale: float, terms: list[Any] | None = None
    ) -> tuple[Tensor, LossSums]:
        """Return (scaled loss, sums). `scale` is processes / counted tokens of the whole step.

        `terms`: those of this step, from `terms_at_step`; `final_terms` when absent.
        """
        terms = terms or self.final_terms()
        outputs = self._run_student(batch)
        total, sums, nll = self._outcome_terms(outputs, sources, scale, terms)
        for bound, term in zip(self.bound_terms, terms, strict=True):
            if not isinstance(bound, OutcomeTerm):
                value = bound.value(term, outputs, sources)
                sums[bound.key] = value.detach()
                total = total + scale * term.weight * value
        right = None
        if self.readout.rates and not self.training:
            right = self.readout.right(outputs.final.detach(), outputs.labels_N)
        return total, LossSums(sums, nll, len(outputs.labels_N), right)

    def _run_student(self, batch: Batch) -> StudentOutputs:
        device_type, enabled = batch.labels_BT.device.type, self.dtype != torch.float32
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(device_type, self.dtype, enabled=enabled))
            captured = stack.enter_context(capture_layers(self.student, self.layers))
            attended = stack.enter_context(capture_attention(self.student, self.blocks))
            stack.enter_context(_rows_of_tied_embedding(self.student))
            final = self.readout.run(self.student, batch)
        labels_N = batch.labels_BT[batch.labels_BT != IGNORE]
        return StudentOutputs(batch, final, labels_N, captured.layers, attended.blocks)

    def _outcome_terms(
        self, outputs: StudentOutputs, sources: SignalSources, scale: float, terms: Sequence[Any]
    ) -> tuple[Tensor, dict[TermKey, Tensor], Tensor | None]:
        """Return (scaled loss, sum of each term, nll) of all terms over outcomes, from one pass."""
        device = outputs.final.device
        if not self.readout.labelled:
            return torch.zeros((), device=device), {}, None
        keys, head_terms = [], []
        for bound, term in zip(self.bound_terms, terms, strict=True):
            if isinstance(bound, OutcomeTerm):
                keys.append(bound.key)
                head_terms.append(bound.head_term(term, sources, scale, device))
        if not any(head_term.is_nll for head_term in head_terms):
            head_terms.append(HeadTerm(LOSSES["cross_entropy"], 0.0))  # measured, not learned
        total, values = self.readout.losses(
            self.student, outputs.final, outputs.labels_N, head_terms
        )
        sums = {
            key: value * head_term.temperature**2
            for key, head_term, value in zip(keys, head_terms, values, strict=False)
        }
        nll = next(v for term, v in zip(head_terms, values, strict=True) if term.is_nll)
        return total, sums, nll


@contextmanager
def _rows_of_tied_embedding(student: nn.Module) -> Iterator[None]:
    """Make the embedding's gradient sparse where head and embedding are one matrix.

    Its rows are added to the head's gradient, which is dense and always there. A second, mostly
    zero matrix of V x H is neither made nor added.
    """
    model: Any = unwrap(student)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = isinstance(embedding, nn.Embedding) and head is not None
    if not tied or embedding.weight is not head.weight or embedding.sparse:
        yield
        return
    embedding.sparse = True
    try:
        yield
    finally:
        embedding.sparse = False
