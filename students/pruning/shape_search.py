"""Search the best shape under a target: how many blocks, heads, neurons and channels to keep.

First each axis is cut alone to a few sizes and the divergence is measured. Between these sizes it
is interpolated, and the divergence of a shape is estimated as the sum over its axes. Then shapes
under the target are cut and measured, always the one with the lowest estimate next, and each
measurement corrects the estimates of similar shapes. Neurons use what the other axes leave of the
target.

The divergence of a cut is KL(teacher || student) on calibration text, in nats, right after the cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Literal

from attar.progress import Work, progress
from students.pruning.architectures import PrunableArchitecture, Sizes
from students.pruning.width import channel_step, neuron_step

Axis = Literal["layers", "heads", "feed_forward", "hidden"]
SIZE_FIELDS: dict[Axis, str] = {
    "layers": "blocks", "heads": "groups", "feed_forward": "neurons", "hidden": "channels",
}  # fmt: skip
PROBED_SHARES = (0.125, 0.25, 0.5)  # shares of one axis that are removed to measure its effect
MIN_KEPT_SHARE = 0.25  # of heads, neurons and channels
CHANNEL_MULTIPLE = 8  # channels are kept in multiples of it, for aligned matrix products
CHANNEL_LEVELS = 16  # numbers of channels tried between all and the smallest
MAX_REJECTED = 12  # shapes whose measured cost may exceed the limit before the search ends
SIMILAR_SHARE = 0.08  # distance in shares within which shapes correct each other's estimates


@dataclass(frozen=True)
class MeasuredShape:
    """A shape that was cut and measured: cost, estimated and measured divergence (nats)."""

    sizes: Sizes
    cost: float
    expected: float
    divergence: float


@dataclass(frozen=True)
class ShapeSpace:
    """The shapes that may be searched: the teacher's sizes and family, and the axes allowed."""

    whole: Sizes
    family: PrunableArchitecture
    axes: tuple[Axis, ...]
    min_blocks: int = 1

    def sized(self, blocks: int, groups: int, neurons: int, channels: int) -> Sizes:
        """Return sizes with matching query heads; in an encoder the width decides the heads."""
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
        """Return the sizes of an axis that may be kept, in descending order.

        groups: key-value heads of the student; some configs need a width that is a multiple of its
        heads.
        """
        most: int = getattr(self.whole, SIZE_FIELDS[axis])
        own = 1
        if axis == "hidden":
            groups = groups or self.whole.groups
            own = channel_step(self.family, self.whole, groups * self.whole.heads_per_group)
            aligned = math.lcm(own, CHANNEL_MULTIPLE)
            own = aligned if most % aligned == 0 else own
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
        """Return the smallest shape along every axis."""
        groups = self.levels("heads")[-1]
        return self.sized(
            self.levels("layers")[-1], groups, self.levels("feed_forward")[-1],
            self.levels("hidden", groups)[-1],
        )  # fmt: skip

    def alone(self, axis: Axis, removed: float) -> Sizes | None:
        """Return the shape with about this share of one axis removed; None if none is removed."""
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
        """Return shapes under the limit, each with as many neurons as it allows.

        Of shapes that keep all neurons, only the one with most blocks is included.
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
        """Return this space without depths below the one that meets the limit by blocks alone."""
        depths, shape = self.levels("layers"), partial(_of_blocks, self.whole)
        deepest = _first_that_fits(shape, depths, lambda one: cost(one) <= limit)
        return replace(self, min_blocks=depths[-1] if deepest is None else deepest.blocks)

    def removed(self, sizes: Sizes) -> dict[Axis, float]:
        """Return the share of each axis that is removed."""
        return {
            axis: 1 - getattr(sizes, field) / getattr(self.whole, field)
            for axis, field in SIZE_FIELDS.items()
        }

    def cut_along(self, sizes: Sizes) -> list[Axis]:
        """Return the axes along which something is removed."""
        return [axis for axis, gone in self.removed(sizes).items() if gone]


def _of_blocks(whole: Sizes, blocks: int) -> Sizes:
    return replace(whole, blocks=blocks)


def _first_that_fits(
    shape: Callable[[int], Sizes], numbers: list[int], fits: Callable[[Sizes], bool]
) -> Sizes | None:
    """Return the shape of the largest number that fits, by bisection; `numbers` descend."""
    if not fits(shape(numbers[-1])):
        return None
    low, high = 0, len(numbers) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(shape(numbers[middle])) else (middle + 1, high)
    return shape(numbers[low])


class DivergenceEstimate:
    """Estimates the divergence of a shape from single-axis cuts and shapes measured so far."""

    def __init__(self, space: ShapeSpace) -> None:
        self.space = space
        self.curves: dict[Axis, list[tuple[float, float]]] = {
            axis: [(0.0, 0.0)] for axis in SIZE_FIELDS
        }
        self.errors: list[tuple[Sizes, float]] = []  # log(measured / sum over axes)

    def learn_axis(self, axis: Axis, sizes: Sizes, divergence: float) -> None:
        """Add a measurement of a shape cut along one axis."""
        self.curves[axis].append((self.space.removed(sizes)[axis], divergence))
        self.curves[axis].sort()

    def learn(self, sizes: Sizes, divergence: float) -> None:
        """Add a measurement of a shape."""
        self.errors.append(
            (sizes, math.log(max(divergence, 1e-9) / max(self._summed(sizes), 1e-9)))
        )

    def _summed(self, sizes: Sizes) -> float:
        removed = self.space.removed(sizes)
        return sum(_on_curve(self.curves[axis], removed[axis]) for axis in self.space.axes)

    def of(self, sizes: Sizes) -> float:
        """Return the estimate: the sum over axes, corrected by the errors at similar shapes."""
        total = weight = 0.0
        removed = self.space.removed(sizes)
        for other, error in self.errors:
            known = self.space.removed(other)
            distance = sum((removed[axis] - known[axis]) ** 2 for axis in removed)
            near = math.exp(-distance / SIMILAR_SHARE**2)
            total, weight = total + near * error, weight + near
        return self._summed(sizes) * math.exp(total / (weight + 0.1))


def _on_curve(points: list[tuple[float, float]], x: float) -> float:
    """Interpolate linearly between points; beyond the last, grow with the square of x."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    last_x, last_y = points[-1]
    return last_y * (x / last_x) ** 2 if last_x else 0.0


@dataclass(frozen=True)
class ShapeMeasures:
    """Functions of a shape: its cost and its divergence.

    exact: measures the cost where `cost` only predicts it; predictions improve with each
    measurement.
    """

    cost: Callable[[Sizes], float]
    divergence: Callable[[Sizes], float]
    exact: Callable[[Sizes], float] | None = None


def search_shapes(
    space: ShapeSpace,
    measures: ShapeMeasures,
    limit: float,
    candidates: int,
    on_measured: Callable[[MeasuredShape], None] = lambda shape: None,
) -> list[MeasuredShape]:
    """Return measured shapes that cost at most `limit`, the lowest divergence first.

    candidates: how many shapes under the limit are measured, after at most three per axis that are
    cut along that axis alone. The list is empty if every shape tried exceeds the limit.
    """
    with progress("shapes to measure", None, "shapes") as work:
        return _search(space, measures, limit, candidates, on_measured, work)


def _search(
    space: ShapeSpace,
    measures: ShapeMeasures,
    limit: float,
    candidates: int,
    on_measured: Callable[[MeasuredShape], None],
    work: Work,
) -> list[MeasuredShape]:
    estimate = _probe_axes(space, measures, work, candidates)
    found: list[MeasuredShape] = []
    tried: set[Sizes] = set()
    shapes = space.filled(measures.cost, limit)
    while shapes and len(found) < candidates and len(tried) < candidates + MAX_REJECTED:
        first = _untried_single_axis(space, shapes, tried) or min(shapes, key=estimate.of)
        tried.add(first)
        exact = (measures.exact or measures.cost)(first)
        if measures.exact is not None:
            shapes = space.filled(measures.cost, limit)
        shapes = [one for one in shapes if one not in tried]
        if exact > limit * 1.01:
            work.advance()
            continue  # its cost is now known and improves the predictions of other costs
        shape = MeasuredShape(first, exact, estimate.of(first), measures.divergence(first))
        estimate.learn(first, shape.divergence)
        found.append(shape)
        on_measured(shape)
        work.advance(note=f"{len(found)} of {candidates} under the limit")
    return sorted(found, key=lambda one: one.divergence)


def _probe_axes(
    space: ShapeSpace, measures: ShapeMeasures, work: Work, candidates: int
) -> DivergenceEstimate:
    """Measure the cuts along one axis alone."""
    estimate = DivergenceEstimate(space)
    probes = {
        axis: list(dict.fromkeys(filter(None, (space.alone(axis, r) for r in PROBED_SHARES))))
        for axis in space.axes
    }
    work.report(total=sum(map(len, probes.values())) + candidates)
    for axis, shapes in probes.items():
        for sizes in shapes:
            if measures.exact is not None:
                measures.exact(sizes)
            estimate.learn_axis(axis, sizes, measures.divergence(sizes))
            work.advance(note=f"{axis} alone")
    return estimate


def _untried_single_axis(
    space: ShapeSpace, shapes: Iterable[Sizes], tried: set[Sizes]
) -> Sizes | None:
    """Return the next untried shape cut along blocks alone, then along neurons alone, if any."""
    for axis in ("layers", "feed_forward"):
        alone = [one for one in shapes if space.cut_along(one) == [axis]]
        if alone and not any(space.cut_along(one) == [axis] for one in tried):
            return max(alone, key=lambda one: (one.blocks, one.neurons))
    return None
