"""One term of the objective that reads logits."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from distill.objective.losses import Loss, on_outcomes
from teachers.signals import SparseDistribution, Target


@dataclass(frozen=True)
class HeadTerm:
    """One term of the objective that reads logits: `scale` holds its weight and T^2."""

    loss: Loss
    scale: float
    temperature: float = 1.0
    parameters: dict[str, Any] = field(default_factory=dict)
    target: Target | None = None

    @property
    def is_nll(self) -> bool:
        """Return whether its value is the plain negative log-likelihood of the labels."""
        return self.loss.name == "cross_entropy" and not any(self.parameters.values())

    def values(self, logits_NV: Tensor, labels_N: Tensor) -> Tensor:
        """Return the loss of each token (N,), before `scale`; labels and target are theirs."""
        if self.loss.reads == "labels":
            return self.loss.function(logits_NV.log_softmax(-1), labels_N, **self.parameters)
        assert self.target is not None
        sides = on_outcomes(logits_NV, self.target, self.temperature)
        if not self.loss.ordered:
            return self.loss.function(*sides, **self.parameters)
        has_rest = isinstance(self.target, SparseDistribution) and self.target.tail_N is not None
        return self.loss.function(*sides, has_rest, **self.parameters)

    def rows(self, start: int, stop: int) -> HeadTerm:
        """Return the term for tokens start..stop, stop excluded."""
        return replace(self, target=self.target.rows(start, stop)) if self.target else self
