"""Names beside points of a plot, none of which covers another name or another point.

Where there is no room for all names, points get numbers, and a legend beside the plot says which
model each number is. The same points always give the same plot.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from attar.word_lists import number_ranges

NAME_SIZE, NUMBER_SIZE = 9, 8  # of the font, in points
MARKER_RADIUS = 4.0  # points of length around a point that no name covers
NEAR = 3.0  # points of length between a marker and its name
APART = 2.0  # points of length between two names
ANGLES = (0, 180, 45, -45, 135, -135, 90, -90)  # degrees around a point where a name may stand
RINGS = (0.0, 8.0, 16.0, 26.0, 38.0, 52.0, 68.0, 90.0, 120.0)  # farther ones have a line
RINGS_OF_NAMES = RINGS[:3]  # names farther from their points are harder to find than numbers
LONGEST_NAME = 36  # characters; of a longer one the middle is left out
LEGEND_WIDTH, LEGEND_LINE = 1.4, 0.165  # inches by which a legend widens a plot; of one line
SAME_PLACE = 6.0  # points of length within which markers cover each other, and share a label


@dataclass(frozen=True)
class NamedPoint:
    """One model in a plot: its place in the data's units, and how its marker looks; a hollow one
    has a place that is not compared with others'.
    """

    name: str
    place: tuple[float, float]
    color: str
    marker: str
    hollow: bool = False


def name_points(axes: Any, points: Sequence[NamedPoint]) -> None:
    """Write the name of each point beside it; numbers and a legend where names find no room.

    The limits of both axes and their titles must be set; markers are drawn by the caller.
    """
    _lay_out(axes.figure)
    named = [(short_name(point.name), [point.place]) for point in points]
    if _place_labels(axes, named, NAME_SIZE, RINGS_OF_NAMES):
        return
    _add_legend(axes, points)
    _lay_out(axes.figure)  # the legend has made the axes narrower
    numbers = {point: number for number, point in enumerate(points, start=1)}
    labels = [
        (number_ranges([numbers[point] for point in group]), [point.place for point in group])
        for group in _groups(axes, points)
    ]
    _place_labels(axes, labels, NUMBER_SIZE, RINGS, anyhow=True)


def _lay_out(figure: Any) -> None:
    """Give axes and titles their final places, without the cost of drawing."""
    figure.get_layout_engine().execute(figure)


def short_name(name: str) -> str:
    """A name without its middle where it is too long for a plot."""
    if len(name) <= LONGEST_NAME:
        return name
    half = (LONGEST_NAME - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def _add_legend(axes: Any, points: Sequence[NamedPoint]) -> None:
    """The numbers and names of all points, right of the axes."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker=point.marker,
            color=point.color,
            markersize=5,
            markerfacecolor="none" if point.hollow else point.color,
        )
        for point in points
    ]
    names = [f"{number}  {short_name(p.name)}" for number, p in enumerate(points, start=1)]
    width, height = axes.figure.get_size_inches()
    taller = max(height, LEGEND_LINE * (len(points) + 3))
    axes.figure.set_size_inches(width + LEGEND_WIDTH, taller)
    axes.legend(
        handles, names, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=NUMBER_SIZE,
        frameon=False, handletextpad=0.2, borderaxespad=0.2,
    )  # fmt: skip


# Places ------------------------------------------------------------------------------------------


def _groups(axes: Any, points: Sequence[NamedPoint]) -> list[list[NamedPoint]]:
    """Points whose markers cover each other, directly or by others between them."""
    reach = _pixels(axes, SAME_PLACE)
    groups: list[list[NamedPoint]] = []
    for point in points:
        here = axes.transData.transform(point.place)
        near = [
            group
            for group in groups
            if any(math.dist(here, axes.transData.transform(one.place)) <= reach for one in group)
        ]
        groups = [group for group in groups if group not in near]
        groups.append([*(one for group in near for one in group), point])
    return groups


def _pixels(axes: Any, points: float) -> float:
    return float(points * axes.figure.dpi / 72)


def _place_labels(
    axes: Any,
    labels: Sequence[tuple[str, list[tuple[float, float]]]],
    size: float,
    rings: Sequence[float],
    *,
    anyhow: bool = False,
) -> bool:
    """Write each label beside its points; whether all found room. Where one did not, none is
    written, or with `anyhow` that one where it covers others.
    """
    taken = [_marker_box(axes, place) for _, places in labels for place in places]
    found = []
    for text, places in labels:
        center = sum(x for x, _ in places) / len(places), sum(y for _, y in places) / len(places)
        spots = list(_spots(axes, text, center, size, rings))
        free = [spot for spot in spots if _is_free(axes, spot, taken)]
        if not free and not anyhow:
            return False
        spot = (free or spots)[0]
        taken += [box.padded(_pixels(axes, APART)) for box in (spot.box, *spot.line)]
        found.append((text, center, spot))
    for text, center, spot in found:
        _write(axes, text, center, size, spot)
    return True


@dataclass(frozen=True)
class _Spot:
    """Where a label stands: its offset from the point in points of length, and its box in pixels.

    across, up: on which side of the point it is, -1, 0 or 1. line: boxes of the line that leads to
    it, outside of the point's own; empty where the label is near.
    """

    offset: tuple[float, float]
    across: int
    up: int
    box: Any
    line: Sequence[Any]


def _is_free(axes: Any, spot: _Spot, taken: Sequence[Any]) -> bool:
    """Whether a label, and the line to it, cover nothing and stay where labels may be."""
    boxes = (spot.box, *spot.line)
    return _fits(axes, spot.box) and not any(b.overlaps(other) for b in boxes for other in taken)


def _spots(
    axes: Any, text: str, place: tuple[float, float], size: float, rings: Sequence[float]
) -> Iterator[_Spot]:
    """Places around a point, the nearest first."""
    from matplotlib.transforms import Bbox

    measured = axes.text(0, 0, text, fontsize=size)
    box = measured.get_window_extent()
    measured.remove()
    x, y = axes.transData.transform(place)
    for ring in rings:
        distance = MARKER_RADIUS + NEAR + ring
        for angle in ANGLES:
            toward = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            across, up = (round(one * 1.2) for one in toward)
            offset = distance * toward[0], distance * toward[1]
            left = x + _pixels(axes, offset[0]) - box.width * (1 - across) / 2
            low = y + _pixels(axes, offset[1]) - box.height * (1 - up) / 2
            here = Bbox.from_bounds(left, low, box.width, box.height)
            along = range(math.ceil(MARKER_RADIUS * 1.5), int(distance) if ring else 0, 3)
            line = [
                Bbox.from_bounds(
                    x + _pixels(axes, far * toward[0]), y + _pixels(axes, far * toward[1]), 0.5, 0.5
                )
                for far in along
            ]
            yield _Spot(offset, across, up, here, line)


def _write(axes: Any, text: str, place: tuple[float, float], size: float, spot: _Spot) -> None:
    """Write a label at its spot, on white, with a line to its point where it is far."""
    line = {"arrowstyle": "-", "color": "#8a97a8", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2}
    label = axes.annotate(
        text, place, spot.offset, textcoords="offset points", fontsize=size, zorder=4,
        ha=("center", "left", "right")[spot.across], va=("center", "bottom", "top")[spot.up],
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
        arrowprops=line if spot.line else None,
    )  # fmt: skip
    label.set_in_layout(False)


def text_box(label: Any) -> Any:
    """The box of a label's text in pixels, without the line to its point."""
    from matplotlib.text import Text

    label.get_window_extent()  # puts the label where it belongs
    return Text.get_window_extent(label)


def _marker_box(axes: Any, place: tuple[float, float]) -> Any:
    from matplotlib.transforms import Bbox

    x, y = axes.transData.transform(place)
    radius = _pixels(axes, MARKER_RADIUS)
    return Bbox.from_extents(x - radius, y - radius, x + radius, y + radius)


def _fits(axes: Any, box: Any) -> bool:
    """Whether a label covers no ticks and stays inside the figure, left of a legend."""
    inner, outer, legend = axes.bbox, axes.figure.bbox, axes.get_legend()
    right = outer.x1 if legend is None else inner.x1
    return bool(
        inner.x0 <= box.x0 and box.x1 <= right and inner.y0 <= box.y0 and box.y1 <= outer.y1
    )
