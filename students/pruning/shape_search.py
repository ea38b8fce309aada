"""The best shape under a target: blocks, heads, neurons and channels weighed against each other.

First each axis is cut alone at a few places and measured; between them the divergence is interpolated,
and that of a shape is taken as the sum of its axes'. Then shapes under the target are measured in
the order of what is expected of them, and every one corrects what is expected of shapes like it.
Neurons fill up what the other axes leave of the target.

The divergence of a cut is KL(teacher || student) on calibration text, in nats, right after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Literal

from students.pruning.architectures import PrunableArchitecture, Sizes
from students.pruning.width import channel_step, neuron_step

Axis = Literal["layers", "heads", "feed_forward", "hidden"]
SIZE_FIELDS: dict[Axis, str] = {
    "layers": "blocks", "heads": "groups", "feed_forward": "neurons", "hidden": "channels",
}  # fmt: skip
PROBED_SHARES = (0.125, 0.25, 0.5)  # shares of an axis that are removed to learn what that does
MIN_KEPT_SHARE = 0.25  # share of heads, neurons, channels that stays at least
CHANNEL_MULTIPLE = 8  # of channels are what processors like
CHANNEL_LEVELS = 16  # of channels, between all and the least
MAX_REJECTED = 12  # shapes that may turn out to cost too much once that is measured
SIMILAR_SHARE = 0.08  # shapes whose shares differ by so much tell much of each other


@dataclass(frozen=True)
class MeasuredShape:
    """A shape that was measured: its cost, what was expected of it, and its divergence (nats)."""

    sizes: Sizes
    cost: float
    expected: float
    divergence: float


@dataclass(frozen=True)
class ShapeSpace:
    """What may be cut: the teacher's sizes, its family, the axes that a recipe allows.

    `min_blocks`: blocks that stay at least.
    """

    whole: Sizes
    family: PrunableArchitecture
    axes: tuple[Axis, ...]
    min_blocks: int = 1

    def sized(self, blocks: int, groups: int, neurons: int, channels: int) -> Sizes:
        """Sizes with heads to match; of an encoder, heads are the width."""
        if not self.family.head_size_key:
            groups = channels // self.whole.head_size
        heads = groups * self.whole.heads_per_group
        return replace(
            self.whole,
            blocks=blocks,
            heads=heads,
            groups=groups,
            neurons=neurons,
            channels=channels,
        )

    def levels(self, axis: Axis, groups: int | None = None) -> list[int]:
        """Numbers of an axis that may stay, from all of them down; of channels beside so many
        groups, since some configs want the width to be a multiple of the heads.
        """
        most: int = getattr(self.whole, SIZE_FIELDS[axis])
        own = 1
        if axis == "hidden":
            groups = groups or self.whole.groups
            own = channel_step(self.family, self.whole, groups * self.whole.heads_per_group)
            own = (
                math.lcm(own, CHANNEL_MULTIPLE)
                if most % math.lcm(own, CHANNEL_MULTIPLE) == 0
                else own
            )
        if axis not in self.axes or (axis == "heads" and not self.family.head_size_key):
            return [most] if most % own == 0 else []
        if axis == "layers":
            return list(range(most, self.min_blocks - 1, -1))
        least = max(1, math.ceil(most * MIN_KEPT_SHARE))
        step = 1
        if axis == "feed_forward":
            step = neuron_step(most)
        elif axis == "hidden":
            step = own * max(1, round((most - least) / CHANNEL_LEVELS / own))
            most -= most % own
        numbers = list(range(most, least - 1, -step))
        if axis == "heads":
            return [groups for groups in numbers if self.levels("hidden", groups)]
        return numbers

    def smallest(self) -> Sizes:
        """The least of everything."""
        groups = self.levels("heads")[-1]
        return self.sized(
            self.levels("layers")[-1], groups, self.levels("feed_forward")[-1],
            self.levels("hidden", groups)[-1],
        )  # fmt: skip

    def alone(self, axis: Axis, removed: float) -> Sizes | None:
        """The shape with about this share of one axis gone; None where that is nothing."""
        whole = self.whole
        most: int = getattr(whole, SIZE_FIELDS[axis])
        levels = self.levels(axis)
        number = min(levels, key=lambda n: abs(n - most * (1 - removed)))
        if number == most:
            return None
        parts = {
            **{field: getattr(whole, field) for field in SIZE_FIELDS.values()},
            SIZE_FIELDS[axis]: number,
        }
        if axis == "heads":
            parts["channels"] = self.levels("hidden", number)[0]
        return self.sized(**parts)

    def filled(self, cost: Callable[[Sizes], float], limit: float) -> list[Sizes]:
        """Shapes under the limit with as many neurons as it allows, by every other axis.

        Of those that keep all neurons only the deepest.
        """
        found = []
        neurons, depths = self.levels("feed_forward"), self.levels("layers")
        for groups in self.levels("heads"):
            for channels in self.levels("hidden", groups):
                for blocks in depths:
                    shape = partial(self.sized, blocks, groups, channels=channels)
                    fullest = _first_that_fits(shape, neurons, lambda one: cost(one) <= limit)
                    if fullest is not None:
                        found.append(fullest)
                    if fullest is not None and fullest.neurons == neurons[0]:
                        break
        return found

    def within(self, cost: Callable[[Sizes], float], limit: float) -> ShapeSpace:
        """The same without depths that are never needed: blocks alone reach the limit before."""
        depths, shape = self.levels("layers"), partial(_of_blocks, self.whole)
        deepest = _first_that_fits(shape, depths, lambda one: cost(one) <= limit)
        return replace(self, min_blocks=depths[-1] if deepest is None else deepest.blocks)

    def removed(self, sizes: Sizes) -> dict[Axis, float]:
        """The share of each axis that is gone."""
        return {
            axis: 1 - getattr(sizes, field) / getattr(self.whole, field)
            for axis, field in SIZE_FIELDS.items()
        }

    def cut_along(self, sizes: Sizes) -> list[Axis]:
        """The axes of which something is gone."""
        return [axis for axis, gone in self.removed(sizes).items() if gone]


def _of_blocks(whole: Sizes, blocks: int) -> Sizes:
    return replace(whole, blocks=blocks)


def _first_that_fits(
    shape: Callable[[int], Sizes], numbers: list[int], fits: Callable[[Sizes], bool]
) -> Sizes | None:
    """The shape of the first number that fits, of numbers from large to small; by halving."""
    if not fits(shape(numbers[-1])):
        return None
    low, high = 0, len(numbers) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(shape(numbers[middle])) else (middle + 1, high)
    return shape(numbers[low])


class DivergenceEstimate:
    """What a shape's divergence is expected to be, from axes cut alone and shapes measured so far."""

    def __init__(self, space: ShapeSpace) -> None:
        self.space = space
        self.curves: dict[Axis, list[tuple[float, float]]] = {axis: [(0.0, 0.0)] for axis in SIZE_FIELDS}
        self.errors: list[tuple[Sizes, float]] = []  # log of measured over summed

    def learn_axis(self, axis: Axis, sizes: Sizes, divergence: float) -> None:
        """What an axis cut alone did."""
        self.curves[axis].append((self.space.removed(sizes)[axis], divergence))
        self.curves[axis].sort()

    def learn(self, sizes: Sizes, divergence: float) -> None:
        """What a shape did."""
        self.errors.append(
            (sizes, math.log(max(divergence, 1e-9) / max(self._summed(sizes), 1e-9)))
        )

    def _summed(self, sizes: Sizes) -> float:
        removed = self.space.removed(sizes)
        return sum(_on_curve(self.curves[axis], removed[axis]) for axis in self.space.axes)

    def of(self, sizes: Sizes) -> float:
        """The sum of the axes' divergence, times how far such sums were off for shapes like it."""
        total = weight = 0.0
        here = self.space.removed(sizes)
        for other, error in self.errors:
            there = self.space.removed(other)
            distance = sum((here[axis] - there[axis]) ** 2 for axis in here)
            near = math.exp(-distance / SIMILAR_SHARE**2)
            total, weight = total + near * error, weight + near
        return self._summed(sizes) * math.exp(total / (weight + 0.1))


def _on_curve(points: list[tuple[float, float]], x: float) -> float:
    """Between points a line; behind the last, as steep as before it, squared in how far."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    last_x, last_y = points[-1]
    return last_y * (x / last_x) ** 2 if last_x else 0.0


@dataclass(frozen=True)
class ShapeMeasures:
    """How costs and divergence are had. `exact`: costs by measuring, where `cost` only expects them,
    better with every one that was measured.
    """

    cost: Callable[[Sizes], float]
    divergence: Callable[[Sizes], float]
    exact: Callable[[Sizes], float] | None = None


def search_shapes(
    space: ShapeSpace,
    measures: ShapeMeasures,
    limit: float,
    candidates: int,
    on_candidate: Callable[[MeasuredShape], None] = lambda candidate: None,
) -> list[MeasuredShape]:
    """Measured shapes that cost at most `limit`, the least harmful first.

    `candidates`: how many shapes under the limit are measured, after at most three an axis that
    are cut along it alone. Empty where none of those that were tried keeps the limit.
    """
    expectation = _probe_axes(space, measures)
    found: list[MeasuredShape] = []
    tried: set[Sizes] = set()
    shapes = space.filled(measures.cost, limit)
    while shapes and len(found) < candidates and len(tried) < candidates + MAX_REJECTED:
        first = _untried_single_axis(space, shapes, tried) or min(shapes, key=expectation.of)
        tried.add(first)
        exact = (measures.exact or measures.cost)(first)
        if measures.exact is not None:
            shapes = space.filled(measures.cost, limit)
        shapes = [one for one in shapes if one not in tried]
        if exact > limit * 1.01:
            continue  # what it cost is known now, and what others cost is told better by it
        candidate = MeasuredShape(first, exact, expectation.of(first), measures.divergence(first))
        expectation.learn(first, candidate.divergence)
        found.append(candidate)
        on_candidate(candidate)
    return sorted(found, key=lambda one: one.divergence)


def _probe_axes(space: ShapeSpace, measures: ShapeMeasures) -> DivergenceEstimate:
    expectation = DivergenceEstimate(space)
    for axis in space.axes:
        shapes = dict.fromkeys(space.alone(axis, removed) for removed in PROBED_SHARES)
        for sizes in filter(None, shapes):
            if measures.exact is not None:
                measures.exact(sizes)
            expectation.learn_axis(axis, sizes, measures.divergence(sizes))
    return expectation


def _untried_single_axis(space: ShapeSpace, shapes: Iterable[Sizes], tried: set[Sizes]) -> Sizes | None:
    """Blocks alone, then neurons alone: what a search has to beat."""
    for axis in ("layers", "feed_forward"):
        alone = [one for one in shapes if space.cut_along(one) == [axis]]
        if alone and not any(space.cut_along(one) == [axis] for one in tried):
            return max(alone, key=lambda one: (one.blocks, one.neurons))
    return None
