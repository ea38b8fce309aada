"""What the estimates of all stages are made from: numbers of examples, costs of models, speeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from distill.data.config import DataConfig
from distill.objective.terms import learns_preferences, rates_answers, reads_from
from distill.planning.data_counts import DataCounts
from distill.planning.model_cost import ModelCost
from distill.training.config import LoopConfig

WRITING = 5.0  # forwards that take as long as writing a token, 32 answers at a time
EVALUATIONS = 5  # of a training, where the recipe does not say how many


@dataclass(frozen=True)
class Quantities:
    """What the estimates of all stages are made from.

    teacher_bytes: the teacher as it runs. Speeds are floating-point operations a second.
    """

    unit: Literal["tokens", "texts"]
    teacher: ModelCost
    student: ModelCost
    counts: DataCounts
    teacher_bytes: float
    speed: float
    train_speed: float

    def amount(self, examples: float) -> int:
        """Examples in the plan's unit."""
        each = self.counts.counted if self.unit == "tokens" else self.counts.texts
        return int(examples * each)

    def holding(self, tokens: int) -> int:
        """Number of examples that hold this many counted tokens."""
        return math.ceil(tokens / self.counts.counted)

    def tokens(self, examples: float) -> float:
        """Tokens that pass through a model."""
        return examples * self.counts.length

    def teacher_tokens(self, examples: float) -> float:
        """Tokens that the teacher reads for the signals of examples."""
        return examples * self.counts.teacher_length

    def trained(self, loop: LoopConfig, data: DataConfig) -> float:
        """Examples one training passes over: its epochs, or fewer where `max_steps` ends it."""
        total = float(self.counts.train * loop.epochs)
        return (
            total
            if loop.max_steps is None
            else min(total, loop.max_steps * self._a_step(loop, data))
        )

    def _a_step(self, loop: LoopConfig, data: DataConfig) -> float:
        """Examples of one step: rows, which are full of tokens where examples are packed."""
        rows = loop.batch_size * loop.accumulate
        packed = self.unit == "tokens" and data.packing
        return rows * max(1.0, data.max_length / self.counts.length if packed else 1)

    def online_seconds(self, loops: Sequence[LoopConfig], data: DataConfig) -> float:
        """Time in which the teacher reads what is learned, where it runs in every step."""
        read = sum(self.trained(loop, data) for loop in loops)
        return self.teacher.forward(self.teacher_tokens(read)) / self.speed

    def training_seconds(self, model: ModelCost, loop: LoopConfig, data: DataConfig) -> float:
        """Time of one training and of its evaluations on the validation part."""
        examples, evaluations = self.trained(loop, data), float(EVALUATIONS)
        if loop.evaluate_every is not None:
            evaluations = examples / self._a_step(loop, data) / loop.evaluate_every
        validated = min(self.counts.validation, self.holding(loop.evaluate_tokens))
        passes = 3 * examples + evaluations * validated  # a backward costs two forwards
        operations = model.forward(self.tokens(passes))
        if learns_preferences(loop.objective):  # the head once more, without a gradient
            operations += 2.0 * model.head * self.tokens(examples + evaluations * validated)
        if reads_from(loop, "reference"):
            operations += model.forward(self.tokens(min(examples, self.counts.train) + validated))
        if rates_answers(loop.objective):  # of each answer a mismatched text, without a gradient
            operations += model.forward(self.tokens(examples + evaluations * validated))
            if reads_from(loop, "reference"):
                known = min(examples, self.counts.train) + validated
                operations += model.forward(self.tokens(known))
        if (rollouts := loop.rollouts) is not None:
            answers = examples * rollouts.share * rollouts.samples
            longer = answers * rollouts.new_tokens - examples * rollouts.share * self.counts.length
            operations += 3 * model.forward(max(0.0, longer))
            operations += WRITING * model.forward(answers * rollouts.new_tokens / rollouts.keep)
        return operations / self.train_speed
