"""Sums and means of an objective's terms: over micro-batches, processes and steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from distill.data.counted import Counted
from distill.objective.term_protocols import TermKey


@dataclass(frozen=True)
class LossMeans:
    """Means of each term before its weight, over what it counts, and of the labels' nll, if any:
    None where a step learns from the student's own answers alone.

    accuracy: the share that is right, where an evaluation rates predictions, or of the pairs of
    answers whose chosen one is put first, or of the rated answers that are on the right side of the
    baseline. margin: the mean implicit reward of chosen answers less that of rejected ones, in nats
    times the form's `beta`; None where one of the two kinds is missing.
    """

    terms: dict[TermKey, float]
    nll: float | None
    accuracy: float | None = None
    margin: float | None = None

    def named(self, prefix: str = "") -> dict[str, float]:
        """Return them by the names of the history: `0:forward_kl`, ..., `nll`, `accuracy`."""
        named = {f"{prefix}{key}": mean for key, mean in self.terms.items()}
        more = {"nll": self.nll, "accuracy": self.accuracy, "margin": self.margin}
        return named | {f"{prefix}{key}": mean for key, mean in more.items() if mean is not None}


@dataclass(frozen=True)
class LossSums:
    """Sums over what is counted of a batch, detached, in the losses' units (mostly nats).

    terms: each term before its weight. nll: of the labels; None where the task has no labels.
    tokens: how many tokens are counted. right: how many predictions are right, in an evaluation
    that rates them, or how many pairs of answers or rated answers. rewards: of chosen answers, and
    of rejected ones, (2,).
    """

    terms: dict[TermKey, Tensor]
    nll: Tensor | None
    tokens: int
    right: Tensor | None = None
    rewards: Tensor | None = None

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums(
            {key: value + other.terms[key] for key, value in self.terms.items()},
            _sum(self.nll, other.nll),
            self.tokens + other.tokens,
            _sum(self.right, other.right),
            _sum(self.rewards, other.rewards),
        )

    def __mul__(self, factor: float) -> LossSums:
        return self.map(lambda value: factor * value)

    def map(self, function: Callable[[Tensor], Tensor]) -> LossSums:
        """Return the sums with a function applied to each."""
        nll, right, rewards = (
            None if one is None else function(one) for one in (self.nll, self.right, self.rewards)
        )
        terms = {key: function(value) for key, value in self.terms.items()}
        return LossSums(terms, nll, self.tokens, right, rewards)

    def means(self, counted: Counted | int) -> LossMeans:
        """Return the sums divided by what is counted, which may be more than this batch's.

        A number stands for that many tokens of texts alone.
        """
        if not isinstance(counted, Counted):
            counted = Counted(counted)
        rated = (key.unit for key in self.terms if key.unit in ("judged", "answers"))
        return LossMeans(
            {key: float(value) / max(1, counted.of(key.unit)) for key, value in self.terms.items()},
            _mean(self.nll, counted.of("data")) if counted.of("data") else None,
            _mean(self.right, counted.of(next(rated, "chosen"))),
            _margin(self.rewards, counted),
        )


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return None if one is None or other is None else one + other


def _margin(rewards: Tensor | None, counted: Counted) -> float | None:
    if rewards is None or not counted.good or not counted.bad:
        return None
    good, bad = rewards.tolist()
    return float(good / counted.good - bad / counted.bad)


def _mean(total: Tensor | None, number: int) -> float | None:
    return None if total is None else float(total) / max(1, number)
