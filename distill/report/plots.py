"""Plots of report.html as inline SVG: curves, histograms, quality against size and speed."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.evaluation.job import Numbers
from distill.report.columns import have_one_tokenizer
from distill.report.labels import NamedPoint, name_points
from distill.report.selection import Quality
from distill.report.speeds import Speed, is_busy
from distill.report.ticks import set_axis, spans_decades, tick_words

Curves = dict[str, list[dict[str, float]]]  # the training history of every trained arm
Histograms = dict[str, tuple[np.ndarray, np.ndarray]]  # (shares, edges of the bins) by model

COLORS = {
    "teacher": "#444444", "init": "#9aa5b1", "finetune": "#d08a1d", "distill": "#2c6fbb",
    "specialized": "#7b4bb3",
}  # fmt: skip
FIT, UNFIT, BASELINE = "#2e8b57", "#c0392b", "#8c6d46"
OTHER_ARMS = ("#c2528b", "#3a9d9d", "#8a6fd1", "#6b7f2a")  # of arms that are enrolled beside these
CURVE_WORDS = "Lower is better; a ring marks the weights that were kept."
MARKER_WORDS = (
    "Squares: teacher; circles: arms; diamonds: baselines; triangles: artifacts, green where fit "
    "to ship, red where not. The untrained student is in the table only."
)
HOLLOW_WORDS = (
    " Hollow markers: timed while the machine was busy, so not to be compared by their speed."
)


def new_figure() -> Any:
    """An empty figure of matplotlib and its axes."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.hashsalt": "attar", "font.size": 10, "axes.grid": True,
                            "grid.alpha": 0.3, "axes.spines.top": False,
                            "axes.spines.right": False})  # fmt: skip
    return pyplot.subplots(figsize=(6, 3.8), layout="constrained")


def new_panels(rows: int, columns: int) -> tuple[Any, list[Any]]:
    """An empty figure of several panels with the same axes, and these from left to right."""
    figure, first = new_figure()
    first.remove()
    figure.set_size_inches(3.4 * columns, 2.7 * rows)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    return figure, list(axes.flat)


def as_svg(figure: Any) -> str:
    """A figure as inline SVG, with the same bytes for the same figure; the figure is closed."""
    from matplotlib import pyplot

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def arm_colors(arms: Iterable[str]) -> dict[str, str]:
    """The colour of each arm, the same in every plot of a report."""
    others = itertools.cycle(OTHER_ARMS)
    return {name: COLORS.get(name) or next(others) for name in arms}


def plot_curves(
    curves: Curves, kept: Mapping[str, int], key: str = "validation_nll", unit: str = ""
) -> str:
    """A number of the training history (by default the nll) by step, for every arm.

    kept: the step of each arm whose weights are the result; a ring marks it.
    """
    figure, axes = new_figure()
    colors = arm_colors(curves)
    all_steps: list[float] = []
    all_values: list[float] = []
    for name, history in curves.items():
        points = [(record["step"], record[key]) for record in history if key in record]
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, marker="o", markersize=3, label=name, color=colors[name])
            rings = [point for point in points if point[0] == kept.get(name)]
            axes.plot(
                *(zip(*rings, strict=True) if rings else ([], [])), marker="o", markersize=9,
                linestyle="", markerfacecolor="none", color=colors[name],
            )  # fmt: skip
            all_steps += steps
            all_values += values
    if all_steps and np.isfinite(all_values).all():
        set_axis(axes, "y", all_values)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    axes.set_xlabel("optimiser step")
    axes.set_ylabel(f"{key.replace('_', ' ')}{unit and f', {unit}'}")
    return as_svg(figure)


def plot_histograms(histograms: Histograms, axis: str) -> str:
    """Shares of tokens by bin, one outline a model; edges of the bins are powers of ten.

    axis: the title of what is binned.
    """
    figure, axes = new_figure()
    colors = arm_colors(histograms)
    for name, (shares, edges) in histograms.items():
        axes.stairs(shares, edges, label=name, color=colors[name], fill=False, linewidth=1.5)
    powers = range(math.ceil(edges[0]), math.floor(edges[-1]) + 1)
    axes.set_xticks(powers, tick_words([10.0**power for power in powers]))
    axes.set_xlabel(f"{axis} (log)")
    axes.set_ylabel("share of tokens")
    axes.legend()
    return as_svg(figure)


# Quality against size and speed ------------------------------------------------------------------


@dataclass(frozen=True)
class PlotAxis:
    """What models are placed by, across.

    value: None where a model has no such number; it is left out then. pareto: the key of an
    artifact's `pareto` whose optimal artifacts a line joins. artifacts: whether artifacts differ in
    the value from their student, and so are shown. doubtful: whether a value is not to be compared.
    """

    title: str
    value: Callable[[Numbers], float | None]
    pareto: str | None = None
    artifacts: bool = True
    doubtful: Callable[[Numbers], bool] = lambda _: False


def _megabytes(numbers: Numbers) -> float | None:
    return None if numbers["bytes"] is None else numbers["bytes"] / 1e6


BYTES_AXIS = PlotAxis("weights on disk, MB", _megabytes, pareto="bytes")
PARAMETERS_AXIS = PlotAxis(
    "million parameters", lambda numbers: numbers["parameters"] / 1e6, artifacts=False
)


def speed_axis(speed: Speed) -> PlotAxis:
    """Models placed by their speed, those whose speed is not withheld."""
    return PlotAxis(speed.axis, speed.rate, pareto="speed", doubtful=is_busy)


def marker_words(report: Numbers, across: PlotAxis) -> str:
    """What the markers of a plot of quality mean."""
    models = [numbers for _, numbers, _, _ in _marked_models(report, across.artifacts)]
    return f"{MARKER_WORDS}{HOLLOW_WORDS if any(map(across.doubtful, models)) else ''}"


def _marked_models(report: Numbers, artifacts: bool) -> list[tuple[str, Numbers, str, str]]:
    """(name, numbers, colour, marker) of the models that a plot shows: all but the untrained
    student, which would squeeze the others together, and a teacher of another tokenizer.
    """
    shown, colors = (
        [("teacher", report["teacher"], COLORS["teacher"], "s")],
        arm_colors(report["arms"]),
    )
    if not have_one_tokenizer([report["teacher"], *report["arms"].values()]):
        shown.clear()
    for name, arm in report["arms"].items():
        if name != "init":
            shown.append((name, arm, colors[name], "o"))
    for name, numbers in report["baselines"].items():
        shown.append((name, numbers, BASELINE, "D"))
    for name, numbers in report["artifacts"].items() if artifacts else ():
        shown.append((name, numbers, FIT if numbers["fit"]["ships"] else UNFIT, "^"))
    return [one for one in shown if "failed" not in one[1]]


def plot_quality(report: Numbers, quality: Quality, across: PlotAxis) -> str:
    """Quality of teacher, baselines, trained arms and artifacts against another number."""
    points, optimal = [], []
    for name, numbers, color, marker in _marked_models(report, across.artifacts):
        x, y = across.value(numbers), quality.scale * numbers[quality.key]
        if x is None or not np.isfinite(y):
            continue
        points.append(NamedPoint(name, (x, y), color, marker, across.doubtful(numbers)))
        if across.pareto is not None and numbers.get("pareto", {}).get(across.pareto):
            optimal.append((x, y))
    return as_svg(draw_quality(points, quality, across.title, optimal))


def draw_quality(
    points: Sequence[NamedPoint],
    quality: Quality,
    title: str,
    optimal: Sequence[tuple[float, float]] = (),
) -> Any:
    """The figure of named points. title: of the axis across. optimal: places that a line joins."""
    figure, axes = new_figure()
    if optimal:
        axes.plot(*zip(*sorted(optimal), strict=True), color=FIT, linewidth=1, alpha=0.6)
    for point in points:
        axes.scatter(
            *point.place, edgecolors=point.color, marker=point.marker, s=26, zorder=3,
            facecolors="none" if point.hollow else point.color,
        )  # fmt: skip
    if points:
        xs, ys = zip(*(point.place for point in points), strict=True)
        x_log = spans_decades(xs)
        set_axis(axes, "x", xs, log=x_log)
        set_axis(axes, "y", ys, log=quality.log)
        axes.set_xlabel(f"{title} (log)" if x_log else title)
    axes.set_ylabel(f"{quality.axis} (log)" if quality.log else quality.axis)
    name_points(axes, points)
    return figure
