"""Batches with the student's own answers, which it writes in rounds between steps.

A step has the examples that the plan from the seed gives it. Those that the rounds chose have an
answer of the student instead of the data's. A round is written by the student of its first step,
kept as a file, given its teacher's signals, and learned from like all texts; so a training that is
stopped anywhere goes on with the same texts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch

from distill.data.batching import Batch, pack_rows
from distill.data.counted import Counted
from distill.data.examples import Example, counted_in
from distill.data.prefetch import Prefetch
from distill.objective.objective import Learner
from distill.objective.terms import TeacherSource
from distill.rollouts.config import RolloutsConfig
from distill.rollouts.measures import check_answers, measurable, teacher_measures
from distill.rollouts.plan import RolloutPlan
from distill.rollouts.rewards import leave_one_out
from distill.rollouts.written import Round, Written, example_of_answer
from distill.training.batch_source import Plan, StepBatch, share_out
from distill.training.round_writer import RoundWriter
from distill.training.teacher_signals import TeacherSignals

log = logging.getLogger(__name__)
SignalsOfRound = Callable[[int, Sequence[Example]], TeacherSignals]
MEASURED_ROUNDS, MEASURED_ANSWERS = 20, 8  # of a training, and of a round: the teacher reads them


@dataclass(frozen=True)
class Rows:
    """How examples become rows: packed up to `max_length` tokens or not, `batch_size` rows each."""

    max_length: int
    packing: bool
    batch_size: int

    def batches(self, examples: Sequence[Example]) -> list[list[list[Example]]]:
        """Micro-batches of rows of examples, in their order."""
        rows = [[i] for i in range(len(examples))]
        if self.packing:
            lengths = [sum(len(text.input_ids) for text in one.texts) for one in examples]
            rows = pack_rows(range(len(examples)), lengths, self.max_length)
        texts = [[examples[i] for i in row] for row in rows]
        return [texts[i : i + self.batch_size] for i in range(0, len(texts), self.batch_size)]


@dataclass
class _Current:
    """A round that is learned from: its micro-batches and what they count by step, its signals,
    what reads ahead.
    """

    number: int
    micro: dict[int, list[list[list[Example]]]]
    counted: dict[int, Counted]
    signals: TeacherSignals
    ahead: Prefetch[list[StepBatch]]


class RoundBatches:
    """A `BatchSource` whose rounds the student writes.

    signals_of: gives the signals of a round's steps, from the round's number and its new texts.
    source: of the teacher's distributions; None where no term reads any. chunk: tokens whose logits
    exist at once where the teacher's opinion of answers is measured.
    """

    def __init__(
        self,
        plan: Plan,
        rounds: RolloutPlan,
        writer: RoundWriter,
        signals_of: SignalsOfRound,
        rows: Rows,
        *,
        source: TeacherSource | None,
        section: str,
        rank: int,
        chunk: int,
    ) -> None:
        self.plan, self.rounds, self.writer, self.rank = plan, rounds, writer, rank
        self.learner: Learner = writer.learner
        self.config: RolloutsConfig = writer.config
        self._records: dict[int, dict[str, Any]] = {}
        self._signals_of, self._rows, self._source = signals_of, rows, source
        self._section, self._chunk = section, chunk
        self._examples: dict[int, list[list[Example]]] = {}  # of the rounds that are kept
        self._now: _Current | None = None

    @property
    def records(self) -> list[dict[str, Any]]:
        """Return the numbers of each round so far, those before a restart included."""
        found = (self._record_of(number) for number in range(self.rounds.num_rounds))
        return [one for one in found if one is not None]

    def _record_of(self, number: int) -> dict[str, Any] | None:
        if number not in self._records and (kept := self.writer.record(number)) is not None:
            self._records[number] = kept
        return self._records.get(number)

    @property
    def num_steps(self) -> int:
        """Return how many optimiser steps the plan has."""
        return len(self.plan.steps)

    @property
    def num_tokens(self) -> int:
        """Return the counted tokens of all steps where every answer is as long as it may be."""
        longest = self.config.samples * (self.config.count_tokens or self.config.new_tokens)
        total = 0
        for step, numbers in enumerate(self.rounds.numbers):
            sources = self.rounds.sources(step)
            data = [i for place, i in enumerate(numbers) if place not in sources]
            total += self.plan.examples.counted(data).tokens + longest * len(sources)
        return total

    def counted(self, step: int) -> Counted:
        """Return what a step counts, over all micro-batches and processes."""
        return self._entered(step).counted[step]

    def batches(self, step: int) -> list[StepBatch]:
        """Return this process's micro-batches of a step; the round's first step writes it."""
        return self._entered(step).ahead.get(step)

    def close(self) -> None:
        """Stop reading ahead."""
        if self._now is not None:
            self._now.ahead.close()
            self._now = None

    def _entered(self, step: int) -> _Current:
        """The round of a step, written if it is not there."""
        number = self.rounds.round_of(step)
        if self._now is None or self._now.number != number:
            self.close()
            self._now = self._enter(number)
        return self._now

    def _enter(self, number: int) -> _Current:
        oldest = number - self.config.keep + 1
        self._examples = {n: one for n, one in self._examples.items() if n >= oldest}
        written: Round | None = None
        signals: TeacherSignals | None = None
        for n in range(max(0, oldest), number + 1):
            if n not in self._examples:
                prompts = self.rounds.prompts(n)
                written = self.writer.round(n, prompts)
                texts = [
                    [self._example(one, self.plan.examples[i]) for one in samples]
                    for i, samples in zip(prompts, written.answers, strict=True)
                ]
                signals = self._signals_of(n, [one for samples in texts for one in samples])
                self._examples[n] = self._with_advantages(written.answers, texts, signals)
        assert written is not None  # the last of them is new
        assert signals is not None
        self._record(number, written.record, signals)
        steps = self.rounds.steps_of(number)
        micro = {step: self._micro(step) for step in steps}
        counted = {step: counted_in(chain(*chain(*rows))) for step, rows in micro.items()}
        return _Current(number, micro, counted, signals, Prefetch(self._read, steps.stop))

    def _example(self, written: Written, asked: Example) -> Example:
        example = example_of_answer(written, self.config.count_tokens, asked)
        if self.config.every > 1 or self.config.keep > 1 or example.rollout is None:
            return example
        return replace(example, rollout=replace(example.rollout, logprob=None))

    def _with_advantages(
        self,
        answers: Sequence[Sequence[Written]],
        texts: list[list[Example]],
        signals: TeacherSignals,
    ) -> list[list[Example]]:
        """The texts with what their answers' rewards, less their KL, are above the others'."""
        reward = self.config.reward
        if reward is None:
            return texts
        found = []
        for samples, examples in zip(answers, texts, strict=True):
            worth = np.asarray([one.reward or 0.0 for one in samples])
            if reward.kl:
                kls = _kls(samples, examples, signals, self.config.count_tokens)
                worth = worth - reward.kl * np.asarray(kls)
            gains = leave_one_out(worth[None])[0].tolist()
            pairs = zip(examples, gains, strict=True)
            found.append([_with_advantage(example, gain) for example, gain in pairs])
        return found

    def _micro(self, step: int) -> list[list[list[Example]]]:
        """The micro-batches of a step over all processes, as rows of examples."""
        sources, examples = self.rounds.sources(step), self.plan.examples
        if not sources:
            return [[[examples[i] for i in row] for row in rows] for rows in self.plan.steps[step]]
        texts: list[Example] = []
        for place, i in enumerate(self.rounds.numbers[step]):
            source = sources.get(place)
            texts += [examples[i]] if source is None else self._examples[source.round][source.index]
        return self._rows.batches(texts)

    def _read(self, step: int) -> list[StepBatch]:
        assert self._now is not None
        now, terms = self._now, self.learner.terms_at_step(step, self.num_steps)
        found = []
        for rows, share in share_out(now.micro[step], self.rank, self.plan.world):
            batch = self.plan.collate(rows)
            found.append(StepBatch(batch, share, now.signals.read(batch, self.learner, terms)))
        return found

    # What a round was like ---------------------------------------------------------------------

    def _record(self, number: int, record: dict[str, Any], signals: TeacherSignals) -> None:
        """Add a round's numbers to the records, and keep them; stop where answers collapsed."""
        if self._record_of(number) is None:
            found = {**record, "step": self.rounds.steps_of(number).start}
            stride = -(-self.rounds.num_rounds // MEASURED_ROUNDS)
            if number % stride == 0:
                found |= self._teacher_measures(number, signals)
                log.info("%s: round %d: %s", self._section, number + 1, _words(found))
            self._records[number] = found
            self.writer.keep_record(number, found)
        before = (self._record_of(n) for n in range(number + 1))
        check_answers([one for one in before if one is not None], self._section)

    def _teacher_measures(self, number: int, signals: TeacherSignals) -> dict[str, float]:
        """What the teacher says of the first answers of a round; nothing where there is none that
        gives distributions.
        """
        texts = [one for samples in self._examples[number] for one in samples][:MEASURED_ANSWERS]
        if self._source is None or not texts:
            return {}
        batch: Batch = self.plan.collate([[one] for one in texts])
        reader = signals.read(batch, self.learner, self.learner.final_terms())
        batch = batch.to(next(self.learner.parameters()).device)
        said = reader(batch)[self._source]
        if not measurable(said):
            return {}
        return teacher_measures(self.learner, batch, said, self.writer.vocabulary, self._chunk)


def _with_advantage(example: Example, advantage: float) -> Example:
    assert example.rollout is not None
    return replace(example, rollout=replace(example.rollout, advantage=advantage))


def _kls(
    samples: Iterable[Written],
    examples: Iterable[Example],
    signals: TeacherSignals,
    count_tokens: int | None,
) -> list[float]:
    """log p of each answer under the student that wrote it, less that under the reference."""
    assert signals.of_written is not None, "the recipe's reward reads a reference"
    found = []
    for written, example in zip(samples, examples, strict=True):
        labels = torch.from_numpy(example.counted_labels)
        reference = signals.of_written.signals([example.key]).label_logprobs(labels)
        own = written.answer.logprobs[:count_tokens].astype(np.float64).sum()
        found.append(float(own) - float(reference.double().sum()))
    return found


def _words(record: dict[str, Any]) -> str:
    """A round's numbers for the log."""
    parts = [f"{record['answers']} answers of {record['tokens']:.0f} tokens"]
    parts += [f"{record['ended']:.0%} ended", f"{record['repeated']:.0%} of 4-grams repeated"]
    if "reward" in record:
        parts.append(f"reward {record['reward']:.3f}")
    if "reverse_kl" in record:
        parts.append(
            f"reverse KL {record['reverse_kl']:.3f}, teacher's nll {record['teacher_nll']:.3f}, "
            f"top-1 agreement {record['top1']:.0%}, kept mass {record['kept']:.3f}"
        )
    return ", ".join(parts)
