"""The objective: a weighted list of terms, masked and averaged once, over one optimiser step.

Legend: B rows, T tokens, N tokens counted, V vocabulary, H width, L layers.

The value of a step is  sum_terms weight x (sum over counted tokens) / (number of counted tokens of
the whole step, over micro-batches and processes).  Splitting a batch therefore changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from attar.models.attention import (
    attention_heads,
    attention_projections,
    capture_attention,
    reads_both_ways,
)
from attar.models.structure import capture_layers, unwrap, width
from distill.data.batching import Batch
from distill.data.tokenize import IGNORE
from distill.objective.attention_relations import relation_values
from distill.objective.head_term import HeadTerm
from distill.objective.losses import LOSSES
from distill.objective.model_outputs import LanguageReadout, Readout, VectorReadout
from distill.objective.terms import Source, source_of
from teachers.signals import GivesSignals, GivesVectors, SparseDistribution

OF_TEXTS = ("vector", "similarity")  # what terms read that compare vectors of texts
Pairs = list[tuple[int, int]]
SignalSources = dict[
    Source, GivesSignals
]  # the teacher's signals of a batch, by where they come from


@dataclass
class Sums:
    """Sums over counted tokens, in nats, by term; `tokens` is how many."""

    terms: dict[str, Tensor]
    tokens: int


@dataclass
class CapturedStates:
    """What a forward of the student left for the terms on layers; `where` marks tokens that have
    signals.
    """

    layers: dict[int, Tensor]
    blocks: dict[int, tuple[Tensor, Tensor, Tensor]]
    where_BT: Tensor
    counts: list[int]
    text: slice


class Learner(nn.Module):
    """A student, its objective and its projectors: a batch and its signals in, a loss out.

    It is what data-parallel wrappers wrap. Projectors (teacher and student of different width)
    are linear and never part of the student's checkpoint; at first orthogonal, or, where the
    student was cut from a wider teacher, the way back: `channel_map` (teacher's channels,
    student's). `pairs`: layers or blocks of every term on them, by the term's number. `readout`:
    of another task than predicting the next token.
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
        self.student, self.terms, self.source = student, terms, source
        self.dtype = dtype
        self.readout = readout or LanguageReadout(vocabulary, chunk, dtype)
        self.pairs = pairs or {}
        layers, reads = self._used("hidden"), {LOSSES[term.loss].reads for term in terms}
        self.layers = sorted({s for s, _ in layers})
        self.blocks = sorted({s for s, _ in self._used("relation")})
        for block in self.blocks:
            attention_projections(student, block)  # refused now, not in the first step
        self.both_ways = bool(self.blocks) and reads_both_ways(student)
        self.projectors = nn.ModuleDict()
        if teacher_width is not None and teacher_width != width(student):
            names = [f"{s}_{t}" for s, t in layers] + ["vector"] * ("vector" in reads)
            for name in names:
                projector = nn.Linear(width(student), teacher_width, bias=False)
                nn.init.orthogonal_(projector.weight)
                if channel_map is not None and channel_map.shape == projector.weight.shape:
                    projector.weight.data.copy_(channel_map)
                self.projectors[name] = projector

    def _used(self, reads: str) -> Pairs:
        mine = (p for i, p in self.pairs.items() if LOSSES[self.terms[i].loss].reads == reads)
        return sorted({pair for pairs in mine for pair in pairs})

    def terms_at_step(self, step: int, total: int) -> list[Any]:
        """The terms of one step of so many, from 0: every schedule a number."""
        return [term.at(step, total) for term in self.terms]

    def final_terms(self) -> list[Any]:
        """The terms as they end: what evaluations use, so that they compare."""
        return self.terms_at_step(1, 1)

    def decode(self, signals: GivesSignals, terms: list[Any] | None = None) -> None:
        """Decode what the terms will ask the cache for: done ahead, by another thread."""
        for i, term in enumerate(terms or self.final_terms()):
            reads = LOSSES[term.loss].reads
            if source_of(term, self.source) != "cache":
                continue
            if reads == "distribution":
                signals.distribution(term.temperature)
            if reads in OF_TEXTS:
                cast(GivesVectors, signals).vectors()
            for _, t in self.pairs.get(i, []):
                if reads == "hidden":
                    signals.hidden(t)
                else:
                    signals.attention(t)

    def _signals(self, term: Any, given: SignalSources) -> GivesSignals:
        source = source_of(term, self.source)
        assert source is not None
        return given[source]

    def forward(
        self, batch: Batch, given: SignalSources, scale: float, terms: list[Any] | None = None
    ) -> tuple[Tensor, Sums]:
        """(scaled loss, sums). `scale` is processes / counted tokens of the whole step.

        `terms`: those of this step, from `at`; the values they end with when absent.
        """
        terms = terms or self.final_terms()
        device = batch.labels_BT.device
        enabled = self.dtype != torch.float32
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(device.type, self.dtype, enabled=enabled))
            captured = stack.enter_context(capture_layers(self.student, self.layers))
            attended = stack.enter_context(capture_attention(self.student, self.blocks))
            stack.enter_context(_rows_of_tied_embedding(self.student))
            output = self.readout.run(self.student, batch)
        labels_N = batch.labels_BT[batch.labels_BT != IGNORE]
        # Learned positions before the text are nobody's token.
        text = slice(-batch.labels_BT.shape[1], None)
        layers = {s: layer[:, text] for s, layer in captured.layers.items()}
        seen = CapturedStates(layers, attended.blocks, batch.signals_BT, batch.counts, text)
        sums: dict[str, Tensor] = {}
        total = torch.zeros((), device=device)
        if self.readout.labelled:
            total = self._outcome_terms(output, labels_N, given, terms, scale, sums)
        for i, term in enumerate(terms):
            if LOSSES[term.loss].reads in OF_TEXTS:
                value = self._vectors(term, output, given).sum()
                sums[f"{i}:{term.loss}"] = value.detach()
                total = total + scale * term.weight * value
        for i, pairs in self.pairs.items():
            term = terms[i]
            of = self._hidden if LOSSES[term.loss].reads == "hidden" else self._relation
            signals = self._signals(term, given)
            parts = [batch.total(of(term, s, t, seen, signals)) for s, t in pairs]
            value = torch.stack(parts).mean()
            sums[f"{i}:{term.loss}"] = value.detach()
            total = total + scale * term.weight * value
        return total, Sums(sums, len(labels_N))

    def _outcome_terms(
        self,
        output: Tensor,
        labels_N: Tensor,
        given: SignalSources,
        terms: list[Any],
        scale: float,
        sums: dict[str, Tensor],
    ) -> Tensor:
        """All terms over outcomes in one pass; nll rides along wherever it is not a term."""
        parts, names, squared = [], [], []
        for i, term in enumerate(terms):
            found = LOSSES[term.loss]
            if i in self.pairs or found.reads in OF_TEXTS:
                continue
            names.append(f"{i}:{term.loss}")
            squared.append(1.0)
            if found.reads == "labels":
                parts.append(
                    HeadTerm(found, scale * term.weight, parameters=term.loss_parameters())
                )
                continue
            target = self._signals(term, given).distribution(term.temperature)
            target = target.to(output.device)
            if term.tail is not None:
                assert isinstance(target, SparseDistribution), "the recipe was checked"
                target = target.without_tail(term.tail)
            squared[-1] = term.temperature**2
            weight = scale * term.weight * squared[-1]
            parts.append(HeadTerm(found, weight, term.temperature, term.loss_parameters(), target))
        if not any(part.is_nll for part in parts):
            names.append("nll")
            squared.append(1.0)
            parts.append(HeadTerm(LOSSES["cross_entropy"], 0.0))
        total, values = self.readout.losses(self.student, output, labels_N, parts)
        for name, factor, part, value in zip(names, squared, parts, values, strict=True):
            sums[name] = value * factor
            if part.is_nll:
                sums["nll"] = value
        return total

    def _vectors(self, term: Any, output_BH: Tensor, given: SignalSources) -> Tensor:
        """Values (B,) of a term on vectors of texts."""
        assert isinstance(self.readout, VectorReadout)
        signals = cast(GivesVectors, self._signals(term, given))
        found, teacher_BH = LOSSES[term.loss], signals.vectors().to(output_BH.device)
        if found.reads == "vector" and "vector" in self.projectors:
            output_BH = self.projectors["vector"](output_BH)
        student_BH = self.readout.pooling.finish(output_BH)
        values_B: Tensor = found.function(student_BH, teacher_BH, **term.loss_parameters())
        return values_B

    def _hidden(
        self, term: Any, s: int, t: int, seen: CapturedStates, signals: GivesSignals
    ) -> Tensor:
        """Values (N,) of a pair of layers."""
        student_NH = seen.layers[s][seen.where_BT].float()
        if f"{s}_{t}" in self.projectors:
            student_NH = self.projectors[f"{s}_{t}"](student_NH)
        teacher_NH = signals.hidden(t).to(student_NH.device)
        values_N: Tensor = LOSSES[term.loss].function(
            student_NH, teacher_NH, **term.loss_parameters()
        )
        return values_N

    def _relation(
        self, term: Any, s: int, t: int, seen: CapturedStates, signals: GivesSignals
    ) -> Tensor:
        """Values (N,) of a pair of attention blocks."""
        query, key, value = (vectors[:, seen.text][seen.where_BT] for vectors in seen.blocks[s])
        return relation_values(
            (query, key, value),
            signals.attention(t).to(query.device),
            seen.counts,
            term,
            LOSSES[term.loss].function,
            attention_heads(self.student)[1],
            self.both_ways,
        )


@contextmanager
def _rows_of_tied_embedding(student: nn.Module) -> Iterator[None]:
    """Where head and embedding are one matrix, the embedding's gradient is its rows alone.

    They are added into the head's gradient, which is dense and always there: a second matrix of
    V x H, mostly zero, is neither made nor added.
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
