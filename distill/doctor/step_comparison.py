"""A step tried out: value and gradient of an objective, and how far two of them are apart.

The models are left as they were. Legend: B rows, T tokens.
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
from distill.objective.bound_terms import SignalSources
from distill.objective.objective import Learner, LossMeans, LossSums


@dataclass(frozen=True)
class Step:
    """One optimiser step: the objective's value, its gradient by parameter, its terms' means."""

    value: float
    gradient: dict[str, Tensor]
    means: LossMeans

    @property
    def norm(self) -> float:
        """Length of the gradient."""
        return math.sqrt(sum(float(g.float().square().sum()) for g in self.gradient.values()))


def apart(one: Step, other: Step) -> tuple[float, float]:
    """How far another step is from one: of the value and of the gradient, relative to its size."""
    value = abs(other.value - one.value) / max(abs(one.value), 1e-12)
    if one.gradient.keys() != other.gradient.keys():
        return value, math.inf
    squares = (
        float((other.gradient[name].float() - gradient.float()).square().sum())
        for name, gradient in one.gradient.items()
    )
    return value, math.sqrt(sum(squares)) / max(one.norm, 1e-12)


def take_step(
    learner: Learner, batches: Sequence[Batch], given: Callable[[Batch], SignalSources]
) -> Step:
    """A step over micro-batches as the loop scales it; parameters are left as they were."""
    learner.zero_grad(set_to_none=True)
    counted = sum(batch.num_counted for batch in batches)
    value, totals = 0.0, list[LossSums]()
    for batch in batches:
        loss, sums = learner(batch, given(batch), 1 / counted)
        loss.backward()
        value += loss.item()
        totals.append(sums)
    named = learner.named_parameters()
    gradient = {name: p.grad.detach() for name, p in named if p.grad is not None}
    learner.zero_grad(set_to_none=True)
    return Step(value, gradient, reduce(add, totals).means(counted))


def without_dropout(model: nn.Module) -> nn.Module:
    """The model with every dropout at zero: the same value twice needs the same network twice."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]
    return model


@contextmanager
def norms_learning(model: nn.Module) -> Iterator[None]:
    """Let norms and biases take a gradient (all floating parameters where there are none)."""
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
