"""Axes of plots that a reader can read: few ticks, plain numbers, limits that hold all points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

MOST_TICKS = 6
MARGIN = 0.12  # of the axis beyond the outermost points: room for names
LEAST_SPAN = 0.04  # of the middle value: narrower, differences by chance would look large
LOG_FROM = 20.0  # a largest value that is so many times the smallest is shown on a log axis
MANTISSAS = ((1, 2, 3, 5), (1, 2, 5), (1, 3), (1,))  # of ticks on a log axis, the densest first


def set_axis(axes: Any, which: str, values: Sequence[float], *, log: bool = False) -> None:
    """Give the axis `x` or `y` limits around the values and ticks in plain numbers.

    log: a logarithmic axis; every value must then be above 0.
    """
    from matplotlib.ticker import NullLocator

    low, high = axis_limits(values, log=log)
    ticks = tick_values(low, high, log=log)
    if log:
        getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(low, high)
    getattr(axes, f"set_{which}ticks")(ticks, tick_words(ticks))
    getattr(axes, f"{which}axis").set_minor_locator(NullLocator())


def spans_decades(values: Sequence[float]) -> bool:
    """Whether values, all above 0, are so far apart that a linear axis would hide the small."""
    return min(values) > 0 and max(values) / min(values) >= LOG_FROM


def axis_limits(values: Sequence[float], *, log: bool = False) -> tuple[float, float]:
    """(low, high) of an axis that holds the values with a margin on both sides.

    Values that are nearly equal stay nearly equal to the eye. Values that are not below 0 get no
    limit below 0.
    """
    low, high = min(values), max(values)
    middle = (low + high) / 2
    short = LEAST_SPAN * abs(middle) - (high - low)
    if short > 0 or low == high:
        wider = short / 2 if middle else 0.5
        low, high = low - wider, high + wider
    if log:
        margin = (high / low) ** MARGIN
        return low / margin, high * margin
    margin = MARGIN * (high - low)
    return max(low - margin, 0.0) if min(values) >= 0 else low - margin, high + margin


def tick_values(low: float, high: float, *, log: bool = False) -> list[float]:
    """At most about `MOST_TICKS` round numbers between two limits, at least two."""
    if log and high / low > 4:
        for mantissas in MANTISSAS:
            ticks = _log_ticks(low, high, mantissas, 1)
            if 2 <= len(ticks) <= MOST_TICKS:
                return ticks
        decades = math.log10(high / low)
        if decades > MOST_TICKS:
            return _log_ticks(low, high, (1,), math.ceil(decades / MOST_TICKS))
    from matplotlib.ticker import MaxNLocator

    found = MaxNLocator(MOST_TICKS, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(tick) for tick in found if low <= tick <= high]


def _log_ticks(low: float, high: float, mantissas: Sequence[int], every: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**power for power in powers if power % every == 0 for m in mantissas]
    return [tick for tick in found if low <= tick <= high]


def tick_words(ticks: Sequence[float]) -> list[str]:
    """Ticks as plain numbers: `0.5`, `1,200`, `3 M`; with equally many digits behind the point
    where the ticks are equally far apart.
    """
    words = [_plain(tick) for tick in ticks]
    steps = [b - a for a, b in pairwise(ticks)]
    even = len(steps) > 1 and max(steps) - min(steps) < 1e-6 * max(steps)
    if not even or any(word[-1] not in "0123456789" or "e" in word for word in words):
        return words
    digits = max(len(word.partition(".")[2]) for word in words)
    return [f"{tick:,.{digits}f}" for tick in ticks]


def _plain(value: float) -> str:
    value = float(f"{value:.6g}")  # without what floating point left: 0.30000000000000004
    size = abs(value)
    for unit, name in ((1e12, " T"), (1e9, " G"), (1e6, " M")):
        if size >= unit:
            return f"{value / unit:,g}{name}"
    if 0 < size < 1e-5:
        return f"{value:g}"
    text = f"{value:,.8f}".rstrip("0").rstrip(".")
    return text or "0"
