"""The objective: a weighted list of terms, masked and averaged once, over one optimiser step.

Legend: B rows, T tokens, N tokens counted, V vocabulary, H width, L layers.

The value of a step is  sum_terms weight x (sum over counted tokens) / (number of counted tokens of
the whole step, over micro-batches and processes).  Splitting a batch therefore changes nothing. A
term on preferences is divided by the pairs of answers, or by the answers where its form rates them
one by one; a term on some answers alone by their tokens. One number alone depends on how a step is
split: the baseline of ratings is a mean over the micro-batch of a process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attar.models.attention import capture_attention
from attar.models.structure import capture_layers, unwrap, width
from distill.data.batching import Batch
from distill.data.counted import Unit, every_unit
from distill.data.tokenize import IGNORE
from distill.objective.bound_terms import (
    OutcomeTerm,
    Pairs,
    SequenceTerm,
    bind_terms,
    make_projectors,
)
from distill.objective.head_term import HeadTerm
from distill.objective.loss_sums import LossSums
from distill.objective.losses import LOSSES
from distill.objective.model_outputs import LanguageReadout, Readout
from distill.objective.policy_term import PolicyTerm, RewardedTexts
from distill.objective.preference_term import JudgedTexts, PreferenceTerm
from distill.objective.term_protocols import SignalSources, StudentOutputs, TermKey
from distill.objective.terms import Source, TeacherSource
from teachers.signals import GivesSignals


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
        source: TeacherSource = "cache",
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
        self,
        batch: Batch,
        sources: SignalSources,
        scale: float | Mapping[Unit, float],
        terms: list[Any] | None = None,
    ) -> tuple[Tensor, LossSums]:
        """Return (scaled loss, sums).

        `scale` is processes / what is counted in the whole step, by unit (`Counted.scales`); one
        number serves where every text stands alone, so that tokens are all that is counted.
        `terms`: those of this step, from `terms_at_step`; `final_terms` when absent.
        """
        terms = terms or self.final_terms()
        scales = scale if isinstance(scale, Mapping) else every_unit(scale)
        baselines = self._baselines(batch, sources)  # first, while no activations are kept
        outputs = self._run_student(batch)
        judged = self._judge(outputs, sources, terms, baselines)
        total, sums, nll = self._outcome_terms(outputs, sources, scales, terms, judged)
        for bound, term in zip(self.bound_terms, terms, strict=True):
            if not isinstance(bound, OutcomeTerm | SequenceTerm):
                value = bound.value(term, outputs, sources)
                sums[bound.key] = value.detach()
                total = total + scales[bound.key.unit] * term.weight * value
        right, rewards = None, None
        first = next((one for one in judged.values() if isinstance(one, JudgedTexts)), None)
        if first is not None:
            right, rewards = first.right, first.rewards
        elif self.readout.rates and not self.training:
            right = self.readout.right(outputs.final.detach(), outputs.labels_N)
        return total, LossSums(sums, nll, len(outputs.labels_N), right, rewards)

    @property
    def judges(self) -> bool:
        """Return whether a term reads preferences, so that answers have rewards."""
        return any(isinstance(bound, PreferenceTerm) for bound in self.bound_terms)

    @property
    def _reads_outcomes(self) -> bool:
        """Whether a term reads logits that a pass over the head gives."""
        return any(isinstance(bound, OutcomeTerm) for bound in self.bound_terms)

    @property
    def _rating_terms(self) -> list[PreferenceTerm]:
        """The terms that rate answers against a baseline."""
        preferences = (one for one in self.bound_terms if isinstance(one, PreferenceTerm))
        return [bound for bound in preferences if bound.reads_baseline]

    @property
    def baseline_sources(self) -> set[Source]:
        """Return the sources whose log-probabilities of mismatched texts are read."""
        return {bound.source for bound in self._rating_terms if bound.source is not None}

    @torch.no_grad()
    def _baselines(self, batch: Batch, sources: SignalSources) -> dict[TermKey, Tensor]:
        """Return, by term, the baselines that are read, from a forward on mismatched texts."""
        rating = self._rating_terms if batch.judged else []
        if not rating:
            return {}
        assert batch.mismatched is not None, "judged answers come with mismatched texts"
        labels_N = batch.mismatched.labels_BT[batch.mismatched.labels_BT != IGNORE]
        with self.autocast():
            final = self.readout.run(self.student, batch.mismatched)
        logprobs_N = self.readout.label_logprobs(self.student, final, labels_N)
        return {
            bound.key: bound.baseline(batch.mismatched, labels_N, sources, logprobs_N)
            for bound in rating
        }

    def _judge(
        self,
        outputs: StudentOutputs,
        sources: SignalSources,
        terms: Sequence[Any],
        baselines: Mapping[TermKey, Tensor],
    ) -> dict[TermKey, JudgedTexts | RewardedTexts]:
        """Return, by term, what the terms on whole answers say of a batch; its logits are read once
        for all of them, without a gradient.
        """
        if not any(isinstance(bound, SequenceTerm) for bound in self.bound_terms):
            return {}
        logprobs_N = self.readout.label_logprobs(self.student, outputs.final, outputs.labels_N)
        found: dict[TermKey, JudgedTexts | RewardedTexts] = {}
        for bound, term in zip(self.bound_terms, terms, strict=True):
            if isinstance(bound, PolicyTerm):
                found[bound.key] = bound.judge(term, outputs, logprobs_N)
            elif isinstance(bound, PreferenceTerm):
                baseline = baselines.get(bound.key, 0.0)
                found[bound.key] = bound.judge(term, outputs, sources, logprobs_N, baseline)
        return found

    def _run_student(self, batch: Batch) -> StudentOutputs:
        with ExitStack() as stack:
            stack.enter_context(self.autocast())
            captured = stack.enter_context(capture_layers(self.student, self.layers))
            attended = stack.enter_context(capture_attention(self.student, self.blocks))
            stack.enter_context(_rows_of_tied_embedding(self.student))
            final = self.readout.run(self.student, batch)
        labels_N = batch.labels_BT[batch.labels_BT != IGNORE]
        return StudentOutputs(batch, final, labels_N, captured.layers, attended.blocks)

    def autocast(self) -> torch.autocast:
        """Return the context in which its forwards compute."""
        device, enabled = next(self.student.parameters()).device, self.dtype != torch.float32
        return torch.autocast(device.type, self.dtype, enabled=enabled)

    def _outcome_terms(
        self,
        outputs: StudentOutputs,
        sources: SignalSources,
        scales: Mapping[Unit, float],
        terms: Sequence[Any],
        judged: Mapping[TermKey, JudgedTexts | RewardedTexts],
    ) -> tuple[Tensor, dict[TermKey, Tensor], Tensor | None]:
        """Return (scaled loss, sum of each term, nll) of all terms that read logits, from one pass;
        the nll is that of chosen answers and texts alone that the data have.

        A term on whole answers has its value already; the pass adds its gradient, that of the
        labels' log-probabilities with a weight a token. Where there is nothing to add, there is
        no pass.
        """
        if not self.readout.labelled:
            return torch.zeros((), device=outputs.final.device), {}, None
        if judged and not torch.is_grad_enabled() and not self._reads_outcomes:
            return self._evaluated(outputs, scales, terms, judged)
        found: list[tuple[TermKey | None, HeadTerm]] = []
        for bound, term in zip(self.bound_terms, terms, strict=True):
            if isinstance(bound, OutcomeTerm):
                scale = scales[bound.key.unit]
                found.append((bound.key, bound.head_term(term, outputs, sources, scale)))
        same = ("data",) if outputs.batch.rollouts else ("data", "chosen")
        of_data = (
            i
            for i, (key, one) in enumerate(found)
            if one.reads_nll and key is not None and key.unit in same
        )
        nll = next(of_data, len(found))
        if nll == len(found):  # measured, not learned
            data_N = outputs.batch.on("data")
            found.append((None, HeadTerm(LOSSES["cross_entropy"], 0.0, weight_N=data_N)))
        sums: dict[TermKey, Tensor] = {}
        more = torch.zeros((), device=outputs.final.device)
        first_gradient = len(found)
        for bound, term in zip(self.bound_terms, terms, strict=True):
            if isinstance(bound, SequenceTerm):
                mine, scale = judged[bound.key], scales[bound.key.unit] * term.weight
                sums[bound.key] = mine.value
                more = more + scale * mine.value.float()
                if torch.is_grad_enabled():
                    labels_alone = LOSSES["cross_entropy"]
                    found.append((None, HeadTerm(labels_alone, scale, weight_N=mine.weight_N)))
        head_terms = [one for _, one in found]
        total, values = self.readout.losses(
            self.student, outputs.final, outputs.labels_N, head_terms
        )
        for one, value in zip(head_terms[first_gradient:], values[first_gradient:], strict=True):
            more = more - one.scale * value.float()
        sums |= {
            key: value * one.temperature**2
            for (key, one), value in zip(found, values, strict=True)
            if key is not None
        }
        return total + more.detach(), sums, values[nll]

    def _evaluated(
        self,
        outputs: StudentOutputs,
        scales: Mapping[Unit, float],
        terms: Sequence[Any],
        judged: Mapping[TermKey, JudgedTexts | RewardedTexts],
    ) -> tuple[Tensor, dict[TermKey, Tensor], Tensor]:
        """Return what `_outcome_terms` does where nothing learns and no term reads logits: from the
        log-probabilities that answers were judged by.
        """
        nll_N = -next(iter(judged.values())).logprobs_N
        data_N = outputs.batch.on("data")
        nll_N = nll_N if data_N is None else nll_N.masked_fill(data_N == 0, 0.0)
        total = torch.zeros((), device=nll_N.device)
        for bound, term in zip(self.bound_terms, terms, strict=True):
            if bound.key in judged:
                total = (
                    total + scales[bound.key.unit] * term.weight * judged[bound.key].value.float()
                )
        return total, {key: one.value for key, one in judged.items()}, nll_N.double().sum()


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
