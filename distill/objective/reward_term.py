"""A term on rewards, bound to a student: the scores of both answers of a pair become a loss.

Legend: S texts of a batch, which are P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from distill.objective.losses import Loss
from distill.objective.term_protocols import Needs, SignalSources, StudentOutputs, TermKey
from distill.objective.terms import Source
from teachers.signals import GivesSignals, KnownLogits


def rewards_of_pairs(rewards_S1: Tensor) -> Tensor:
    """Return float32 rewards (P, 2) of the texts of pairs, the chosen answer's first."""
    return rewards_S1.float().reshape(-1, 2)


@dataclass(frozen=True)
class RewardTerm:
    """A term on rewards. source: of the teacher's; None where the order of a pair is all it reads.

    Its value is a sum over pairs.
    """

    key: TermKey
    loss: Loss
    source: Source | None
    needs: Needs = Needs()

    def decode(self, term: Any, signals: GivesSignals) -> None:
        """Decode the teacher's rewards."""
        if self.source is not None:
            signals.distribution(1.0)

    def value(self, term: Any, outputs: StudentOutputs, sources: SignalSources) -> Tensor:
        """Return its sum over the pairs of a batch; at a temperature T, times T^2."""
        batch = outputs.batch
        assert len(batch.keys) == 2 * batch.judged, "all texts are of pairs"
        student_P2 = rewards_of_pairs(outputs.final)
        if self.source is None:
            assert batch.margins_P is not None, "a batch of pairs has their margins"
            values_P = self.loss.function(student_P2, batch.margins_P, **term.loss_parameters())
            return values_P.sum()
        stored = sources[self.source].distribution(1.0).to(student_P2.device)
        assert isinstance(stored, KnownLogits), "the recipe was checked to have codec `classes`"
        teacher_P2, t = rewards_of_pairs(stored.logits_NV), term.temperature
        values_P = self.loss.function(student_P2 / t, teacher_P2 / t, **term.loss_parameters())
        total: Tensor = t**2 * values_P.sum()
        return total
