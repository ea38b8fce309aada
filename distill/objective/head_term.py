"""One term of the objective that reads logits.

Legend: N tokens counted, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from distill.objective.losses import Loss, on_outcomes
from teachers.signals import SparseDistribution, Target


@dataclass(frozen=True)
class HeadTerm:
    """One term of the objective that reads logits.

    scale: holds the term's weight and T^2. weight_N: float32 (N,), one factor a token, which may be
    negative; None is 1 for every token. The total and its gradient have both factors; the sum that
    is reported of a term has `weight_N` only.
    """

    loss: Loss
    scale: float
    temperature: float = 1.0
    parameters: dict[str, Any] = field(default_factory=dict)
    target: Target | None = None
    weight_N: Tensor | None = None

    @property
    def reads_nll(self) -> bool:
        """Return whether its value at a token is the label's negative log-likelihood, weighted."""
        return self.loss.name == "cross_entropy" and not any(self.parameters.values())

    def values(self, logits_NV: Tensor, labels_N: Tensor) -> Tensor:
        """Return the loss of each token (N,), before `scale`; labels and target are theirs."""
        return self.weigh(self._unweighted(logits_NV, labels_N))

    def weigh(self, values_N: Tensor) -> Tensor:
        """Return values times `weight_N`."""
        return values_N if self.weight_N is None else values_N * self.weight_N

    def _unweighted(self, logits_NV: Tensor, labels_N: Tensor) -> Tensor:
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
        if self.target is None and self.weight_N is None:
            return self
        target = None if self.target is None else self.target.rows(start, stop)
        return replace(self, target=target, weight_N=self.weight_of(start, stop))

    def weight_of(self, start: int, stop: int) -> Tensor | None:
        """Return `weight_N` of tokens start..stop, stop excluded."""
        return None if self.weight_N is None else self.weight_N[start:stop]
