"""One step for comparison: an objective's value and gradient, and how two steps differ.

The models are left unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import add

from torch import Tensor, nn

from distill.data.batching import Batch
from distill.objective.loss_sums import LossMeans, LossSums
from distill.objective.objective import Learner
from distill.objective.term_protocols import SignalSources


@dataclass(frozen=True)
class Step:
    """One optimiser step: the objective's value, its gradient by parameter, its terms' means."""

    value: float
    gradient: dict[str, Tensor]
    means: LossMeans

    @property
    def norm(self) -> float:
        """Return the norm of the gradient."""
        return math.sqrt(sum(float(g.float().square().sum()) for g in self.gradient.values()))


def relative_difference(one: Step, other: Step) -> tuple[float, float]:
    """Return the difference of two steps, relative to the first: (of value, of gradient)."""
    value = abs(other.value - one.value) / max(abs(one.value), 1e-12)
    if one.gradient.keys() != other.gradient.keys():
        return value, math.inf
    squares = (
        float((other.gradient[name].float() - gradient.float()).square().sum())
        for name, gradient in one.gradient.items()
    )
    return value, math.sqrt(sum(squares)) / max(one.norm, 1e-12)


def take_step(
    learner: Learner, batches: Sequence[Batch], sources: Callable[[Batch], SignalSources]
) -> Step:
    """Return a step over micro-batches, scaled as the loop does; no parameter changes."""
    learner.zero_grad(set_to_none=True)
    counted = reduce(add, (batch.counted for batch in batches))
    value, totals = 0.0, list[LossSums]()
    for batch in batches:
        loss, sums = learner(batch, sources(batch), counted.scales(1.0))
        loss.backward()
        value += loss.item()
        totals.append(sums)
    named = learner.named_parameters()
    gradient = {name: p.grad.detach() for name, p in named if p.grad is not None}
    learner.zero_grad(set_to_none=True)
    return Step(value, gradient, reduce(add, totals).means(counted))


def without_dropout(model: nn.Module) -> nn.Module:
    """Return the model with every dropout at zero, so that two forwards are the same."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]
    return model


@contextmanager
def norms_learning(model: nn.Module) -> Iterator[None]:
    """Let norms and biases get a gradient, or all floating parameters where there are none."""
    floating = [p for p in model.parameters() if p.is_floating_point()]
    chosen = [p for p in floating if p.ndim == 1] or floating
    before = [p.requires_grad for p in chosen]
    try:
        for parameter in chosen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, flag in zip(chosen, before, strict=True):
            parameter.requires_grad_(flag)
