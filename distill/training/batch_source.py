"""Where a training's batches come from, step by step; here, from examples that are known ahead.

A training needs to know no more than `BatchSource` says. Texts that the student writes between
steps come from `round_batches.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from attar.distributed import process_state
from distill.data.batching import TOKEN_BATCHING, Batch, Batching
from distill.data.counted import Counted
from distill.data.examples import Examples
from distill.data.prefetch import Prefetch
from distill.objective.objective import Learner
from distill.training.config import LoopConfig
from distill.training.teacher_signals import SignalReader, TeacherSignals

T = TypeVar("T")


@dataclass(frozen=True)
class StepBatch:
    """One micro-batch of a step, on the CPU, with the way to its signals.

    share: how much it counts, 1 or 0. It is 0 for a batch that only fills a process's place in an
    exchange of gradients.
    """

    batch: Batch
    share: float
    signals: SignalReader


class BatchSource(Protocol):
    """The batches of every step of a training, for this process."""

    @property
    def num_steps(self) -> int:
        """Return how many optimiser steps the training has."""

    @property
    def num_tokens(self) -> int:
        """Return the counted tokens of all steps, for the progress bar; may be an estimate."""

    def counted(self, step: int) -> Counted:
        """Return exactly what a step counts, over all micro-batches and processes."""

    def batches(self, step: int) -> Sequence[StepBatch]:
        """Return this process's micro-batches of a step, one or more; as many in every process."""

    def close(self) -> None:
        """Stop what runs ahead; the training is over or was stopped."""


class Plan:
    """Which examples are in which micro-batch of every step, for every process.

    It follows from the seed alone, so it is the same on every machine and after a restart.
    """

    def __init__(
        self,
        examples: Examples,
        config: LoopConfig,
        *,
        max_length: int,
        packing: bool,
        seed: int,
        world: int,
        batching: Batching = TOKEN_BATCHING,
    ) -> None:
        self.examples, self.world, self.collate = examples, world, batching.collate
        self.steps = batching.steps(
            examples.lengths,
            config,
            max_length=max_length,
            packing=packing,
            seed=seed,
            world=world,
        )
        self.counted: list[Counted] = [
            examples.counted(i for rows in step for row in rows for i in row) for step in self.steps
        ]

    @property
    def numbers(self) -> list[int]:
        """Return the numbers of the examples that any step learns from."""
        return sorted({i for step in self.steps for rows in step for row in rows for i in row})

    def batches(self, step: int, rank: int) -> Iterator[tuple[Batch, float]]:
        """Yield a process's micro-batches of a step, and how much each counts (1 or 0).

        Where the last step has none left for it, a process repeats a row that counts nothing, so
        that all take part in every exchange of gradients.
        """
        for rows, share in share_out(self.steps[step], rank, self.world):
            yield self.collate([[self.examples[i] for i in row] for row in rows]), share


def share_out(micro: Sequence[list[T]], rank: int, world: int) -> Iterator[tuple[list[T], float]]:
    """Yield a process's micro-batches, each a list of rows, and how much each counts (1 or 0); as
    many to every process.
    """
    for m in range(0, len(micro), world):
        mine = m + rank < len(micro)
        yield (micro[m + rank] if mine else micro[m][:1]), float(mine)


class PlannedBatches:
    """A `BatchSource` of examples known ahead; the next step is read while one computes."""

    def __init__(self, plan: Plan, learner: Learner, signals: TeacherSignals, rank: int) -> None:
        self.plan, self.rank = plan, rank
        self._learner, self._signals = learner, signals
        self._ahead: Prefetch[list[StepBatch]] | None = None

    @property
    def num_steps(self) -> int:
        """Return how many optimiser steps the plan has."""
        return len(self.plan.steps)

    @property
    def num_tokens(self) -> int:
        """Return the counted tokens of all steps."""
        return sum(one.tokens for one in self.plan.counted)

    def counted(self, step: int) -> Counted:
        """Return what a step counts, over all micro-batches and processes."""
        return self.plan.counted[step]

    def batches(self, step: int) -> list[StepBatch]:
        """Return this process's micro-batches of a step; begins to read the next step's."""
        if self._ahead is None:
            self._ahead = Prefetch(self._read, self.num_steps)
        return self._ahead.get(step)

    def close(self) -> None:
        """Stop reading ahead."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _read(self, step: int) -> list[StepBatch]:
        terms = self._learner.terms_at_step(step, self.num_steps)
        return [
            StepBatch(batch, share, self._signals.read(batch, self._learner, terms))
            for batch, share in self.plan.batches(step, self.rank)
        ]


def planned_batches(
    examples: Examples,
    learner: Learner,
    signals: TeacherSignals,
    config: LoopConfig,
    *,
    max_length: int,
    packing: bool,
    seed: int,
    batching: Batching = TOKEN_BATCHING,
) -> PlannedBatches:
    """Return this process's batches of examples, in an order drawn from the seed."""
    processes = process_state()
    plan = Plan(
        examples,
        config,
        max_length=max_length,
        packing=packing,
        seed=seed,
        world=processes.num_processes,
        batching=batching,
    )
    return PlannedBatches(plan, learner, signals, processes.process_index)
