"""An objective's terms bound to a student: what each needs of a forward, and its summed value.

Legend: B rows, T tokens, N tokens with signals, H width.

Terms over outcomes (ids of the vocabulary, or classes) go through one chunked pass over the head
together, so each of them gives a `HeadTerm`. Every other term gives its summed value itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from attar.models.attention import attention_heads, attention_projections, reads_both_ways
from attar.models.pooling import Pooling
from distill.objective.attention_relations import relation_values
from distill.objective.head_term import HeadTerm
from distill.objective.losses import LOSSES, Loss
from distill.objective.model_outputs import Readout, VectorReadout
from distill.objective.policy_term import PolicyTerm
from distill.objective.preference_forms import FORMS
from distill.objective.preference_term import PreferenceTerm
from distill.objective.reward_term import RewardTerm
from distill.objective.term_protocols import (
    Needs,
    SignalSources,
    StateTerm,
    StudentOutputs,
    TermKey,
)
from distill.objective.terms import Source, TeacherSource, source_of
from teachers.signals import GivesSignals, GivesVectors, SparseDistribution

Pairs = list[tuple[int, int]]  # (student, teacher) layers or blocks
SequenceTerm = PreferenceTerm | PolicyTerm  # terms on log-probabilities of whole answers


@dataclass(frozen=True)
class OutcomeTerm:
    """A term over outcomes. It reads the teacher's distribution, or the labels alone."""

    key: TermKey
    loss: Loss
    source: Source | None
    needs: Needs = field(default_factory=Needs)

    def decode(self, term: Any, signals: GivesSignals) -> None:
        """Decode the distribution at the term's temperature."""
        if self.source is not None:
            signals.distribution(term.temperature)

    def head_term(
        self, term: Any, outputs: StudentOutputs, sources: SignalSources, scale: float
    ) -> HeadTerm:
        """Return what the pass over the head takes; `scale` is the whole objective's."""
        parameters, weight_N = term.loss_parameters(), outputs.batch.on(term.on)
        if self.source is None:
            weight = scale * term.weight
            return HeadTerm(self.loss, weight, parameters=parameters, weight_N=weight_N)
        target = sources[self.source].distribution(term.temperature).to(outputs.final.device)
        if term.tail is not None:
            assert isinstance(target, SparseDistribution), "the recipe was checked"
            target = target.without_tail(term.tail)
        weight = scale * term.weight * term.temperature**2
        return HeadTerm(self.loss, weight, term.temperature, parameters, target, weight_N)


@dataclass(frozen=True)
class HiddenTerm:
    """A term on pairs of layers; its value is the mean over the pairs.

    projectors: from the student's width to the teacher's, by `projector_name`; none where the
    widths are equal.
    """

    key: TermKey
    loss: Loss
    source: Source
    pairs: Pairs
    projectors: nn.ModuleDict

    @property
    def needs(self) -> Needs:
        """Return the student's layers of all pairs."""
        return Needs(layers=frozenset(s for s, _ in self.pairs))

    def decode(self, term: Any, signals: GivesSignals) -> None:
        """Decode the teacher's layers of all pairs."""
        for _, layer in self.pairs:
            signals.hidden(layer)

    def value(self, term: Any, outputs: StudentOutputs, sources: SignalSources) -> Tensor:
        """Return its sum over the tokens of a batch, or over the texts of a batch of texts."""
        signals, parts = sources[self.source], []
        for s, t in self.pairs:
            student_NH, name = outputs.hidden(s), projector_name(s, t)
            if name in self.projectors:
                student_NH = self.projectors[name](student_NH)
            teacher_NH = signals.hidden(t).to(student_NH.device)
            values_N = self.loss.function(student_NH, teacher_NH, **term.loss_parameters())
            parts.append(outputs.batch.total(values_N, term.on))
        return torch.stack(parts).mean()


@dataclass(frozen=True)
class RelationTerm:
    """A term on pairs of attention blocks; its value is the mean over the pairs.

    num_kv_heads: the student's key-value heads. both_ways: whether its tokens attend to later ones.
    """

    key: TermKey
    loss: Loss
    source: Source
    pairs: Pairs
    num_kv_heads: int
    both_ways: bool

    @property
    def needs(self) -> Needs:
        """Return the student's blocks of all pairs."""
        return Needs(blocks=frozenset(s for s, _ in self.pairs))

    def decode(self, term: Any, signals: GivesSignals) -> None:
        """Decode the teacher's blocks of all pairs."""
        for _, block in self.pairs:
            signals.attention(block)

    def value(self, term: Any, outputs: StudentOutputs, sources: SignalSources) -> Tensor:
        """Return its sum over the tokens of a batch, or over the texts of a batch of texts."""
        signals, parts = sources[self.source], []
        for s, t in self.pairs:
            states = outputs.attention(s)
            values_N = relation_values(
                states,
                signals.attention(t).to(states[0].device),
                outputs.batch.counts,
                term,
                self.loss.function,
                self.num_kv_heads,
                self.both_ways,
            )
            parts.append(outputs.batch.total(values_N, term.on))
        return torch.stack(parts).mean()


@dataclass(frozen=True)
class VectorTerm:
    """A term on vectors of texts. projector: from the student's width to the teacher's, or None."""

    key: TermKey
    loss: Loss
    source: Source
    pooling: Pooling
    projector: nn.Module | None
    needs: Needs = field(default_factory=Needs)

    def decode(self, term: Any, signals: GivesSignals) -> None:
        """Decode the teacher's vectors."""
        cast(GivesVectors, signals).vectors()

    def value(self, term: Any, outputs: StudentOutputs, sources: SignalSources) -> Tensor:
        """Return its sum over the texts of a batch."""
        output_BH = outputs.final
        teacher_BH = cast(GivesVectors, sources[self.source]).vectors().to(output_BH.device)
        if self.projector is not None:
            output_BH = self.projector(output_BH)
        student_BH = self.pooling.finish(output_BH)
        values_B = self.loss.function(student_BH, teacher_BH, **term.loss_parameters())
        return values_B.sum()


def projector_name(student_layer: int, teacher_layer: int) -> str:
    """Return the name of a pair's projector among the learner's parameters."""
    return f"{student_layer}_{teacher_layer}"


def bind_terms(
    terms: Sequence[Any],
    student: nn.Module,
    *,
    pairs: Mapping[int, Pairs],
    projectors: nn.ModuleDict,
    source: TeacherSource,
    readout: Readout,
) -> list[OutcomeTerm | SequenceTerm | StateTerm]:
    """Bind an objective's terms to a student, in the recipe's order.

    pairs: layers or blocks of the terms that read some, by the term's index. source: where signals
    come from if the term does not say. Raises `ModelError` where the student's attention cannot be
    read.
    """
    bound: list[OutcomeTerm | SequenceTerm | StateTerm] = []
    for index, term in enumerate(terms):
        loss, its_source = LOSSES[term.loss], source_of(term, source)
        if loss.reads == "sequence":
            rated = not FORMS[term.form].pairs
            key = TermKey(index, term.loss, "answers" if rated else "judged")
            bound.append(PreferenceTerm(key, its_source, reads_baseline=rated))
            continue
        if loss.reads == "rollouts":
            bound.append(PolicyTerm(TermKey(index, term.loss, "written")))
            continue
        if loss.reads in ("order", "rewards"):
            bound.append(RewardTerm(TermKey(index, term.loss, "judged"), loss, its_source))
            continue
        key = TermKey(index, term.loss, getattr(term, "on", "chosen"))
        if loss.reads in ("distribution", "labels"):
            bound.append(OutcomeTerm(key, loss, its_source))
            continue
        assert its_source is not None, "only terms on labels have no signals"
        if loss.reads in ("vector", "similarity"):
            assert isinstance(readout, VectorReadout), "the recipe was checked"
            wanted = loss.reads == "vector" and VECTOR in projectors
            projector = projectors[VECTOR] if wanted else None
            bound.append(VectorTerm(key, loss, its_source, readout.pooling, projector))
        elif loss.reads == "hidden":
            bound.append(HiddenTerm(key, loss, its_source, pairs[index], projectors))
        else:
            for block, _ in pairs[index]:
                attention_projections(student, block)  # refused now, not in the first step
            heads, both_ways = attention_heads(student)[1], reads_both_ways(student)
            bound.append(RelationTerm(key, loss, its_source, pairs[index], heads, both_ways))
    return bound


VECTOR = "vector"  # name of the projector of texts' vectors


def make_projectors(
    terms: Sequence[Any],
    student_width: int,
    teacher_width: int | None,
    *,
    pairs: Mapping[int, Pairs],
    channel_map: Tensor | None,
) -> nn.ModuleDict:
    """Make the linear maps from the student's width to the teacher's; none where they are equal.

    They are orthogonal at first, or `channel_map` (teacher's channels, student's) where it fits.
    """
    projectors = nn.ModuleDict()
    if teacher_width is None or teacher_width == student_width:
        return projectors
    reads = {index: LOSSES[term.loss].reads for index, term in enumerate(terms)}
    layers = {pair for i, found in pairs.items() if reads[i] == "hidden" for pair in found}
    names = [projector_name(s, t) for s, t in sorted(layers)]
    for name in names + [VECTOR] * ("vector" in reads.values()):
        projector = nn.Linear(student_width, teacher_width, bias=False)
        nn.init.orthogonal_(projector.weight)
        if channel_map is not None and channel_map.shape == projector.weight.shape:
            projector.weight.data.copy_(channel_map)
        projectors[name] = projector
    return projectors
