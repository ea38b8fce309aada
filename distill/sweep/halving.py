"""Which trials of a rung go on: the best fronts, by non-dominated rank and then by crowding.

A front holds the trials that no other trial beats in every number (Deb et al. 2002, NSGA-II,
sections III.A and III.B). Numbers of a rung are estimates, so a trial whose quality cannot be told
from that of the last one kept is never dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

Points = Mapping[str, tuple[float, ...]]  # by name; less is better in every number
Overlaps = Callable[[str, str], bool]  # whether two trials cannot be told apart


def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether a point is no worse than another in every number, and better in one."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def fronts(points: Points) -> list[list[str]]:
    """Names by non-dominated rank, the best front first; in a front in order of name."""
    left, found = sorted(points), []
    while left:
        front = [n for n in left if not any(beats(points[other], points[n]) for other in left)]
        found.append(front)
        left = [name for name in left if name not in front]
    return found


def crowding(front: list[str], points: Points) -> dict[str, float]:
    """How much room each point of a front has: the sum over numbers of the distance between its
    neighbours, as a share of the range; infinite at both ends of a number.
    """
    found = dict.fromkeys(front, 0.0)
    for axis in range(len(points[front[0]])):
        order = sorted(front, key=lambda name: (points[name][axis], name))
        low, high = points[order[0]][axis], points[order[-1]][axis]
        found[order[0]] = found[order[-1]] = math.inf
        for before, name, after in zip(order, order[1:], order[2:], strict=False):
            if high > low:
                found[name] += (points[after][axis] - points[before][axis]) / (high - low)
    return found


def ranked(points: Points) -> list[str]:
    """All names, the best first: by front, in a front those with the most room, of equals those
    with the least first number, then by name.
    """
    order = []
    for front in fronts(points):
        room = crowding(front, points)
        order += sorted(front, key=lambda name: (-room[name], points[name], name))
    return order


def survivors(
    points: Points, halve: int, overlaps: Overlaps, *, keep_front: bool = False
) -> list[str]:
    """Names of the trials that go on, the best first: one of `halve`, rounded up, and every other
    one that cannot be told from the last of these.

    keep_front: also all that no other one beats.
    """
    order = ranked(points)
    number = math.ceil(len(order) / halve)
    if keep_front:
        number = max(number, len(fronts(points)[0]))
    kept, others = order[:number], order[number:]
    return kept + [name for name in others if overlaps(name, kept[-1])]
