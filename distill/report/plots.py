"""Plots of report.html as inline SVG: curves, histograms, quality against size and speed."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.evaluation.job import Numbers
from distill.report.selection import Quality
from distill.report.speeds import Speed

Curves = dict[str, list[dict[str, float]]]  # the training history of every trained arm
Histograms = dict[str, tuple[np.ndarray, np.ndarray]]  # (shares, edges of the bins) by model

COLORS = {
    "teacher": "#444444", "init": "#9aa5b1", "finetune": "#d08a1d", "distill": "#2c6fbb",
    "specialized": "#7b4bb3",
}  # fmt: skip
OTHER_ARM, FIT, UNFIT, BASELINE = "#2c6fbb", "#2e8b57", "#c0392b", "#8c6d46"
# Where a point's name may stand: offset in points, and the side of the text that is at the point.
LABEL_PLACES = ((5, 4, "left"), (5, -11, "left"), (-5, 4, "right"), (-5, -11, "right"))


def new_figure() -> Any:
    """An empty figure of matplotlib and its axes."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.hashsalt": "attar", "font.size": 10, "axes.grid": True,
                            "grid.alpha": 0.3, "axes.spines.top": False,
                            "axes.spines.right": False})  # fmt: skip
    return pyplot.subplots(figsize=(6, 3.8), layout="constrained")


def as_svg(figure: Any) -> str:
    """A figure as inline SVG, with the same bytes for the same figure; the figure is closed."""
    from matplotlib import pyplot

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def name_points(axes: Any, points: list[tuple[str, tuple[float, float]]]) -> None:
    """Write names beside points, each where it covers no other and stays inside the figure."""
    axes.margins(0.08)
    axes.figure.draw_without_rendering()
    figure_box: Any = axes.figure.bbox
    taken: list[Any] = []
    for name, point in points:
        for x, y, alignment in LABEL_PLACES:
            label = axes.annotate(
                name, point, (x, y), textcoords="offset points", ha=alignment, fontsize=9
            )
            box = label.get_window_extent()
            is_inside = figure_box.x0 <= box.x0 and box.x1 <= figure_box.x1
            if is_inside and not any(box.overlaps(other) for other in taken):
                break
            if (x, y, alignment) != LABEL_PLACES[-1]:
                label.remove()
        taken.append(box)


def plot_curves(curves: Curves, key: str = "validation_nll") -> str:
    """A number of the training history (by default the nll) by step, for every arm."""
    figure, axes = new_figure()
    for name, history in curves.items():
        points = [(record["step"], record[key]) for record in history if key in record]
        if points:
            steps, values = zip(*points, strict=True)
            color = COLORS.get(name)
            axes.plot(steps, values, marker="o", markersize=3, label=name, color=color)
    axes.set_xlabel("step")
    axes.set_ylabel(key.replace("_", " "))
    axes.legend()
    return as_svg(figure)


def plot_histograms(histograms: Histograms, axis: str) -> str:
    """Shares of tokens by bin, one outline a model; `axis`: the title of what is binned."""
    figure, axes = new_figure()
    for name, (shares, edges) in histograms.items():
        axes.stairs(shares, edges, label=name, color=COLORS.get(name), fill=False, linewidth=1.5)
    axes.set_xlabel(axis)
    axes.set_ylabel("share of tokens")
    axes.legend()
    return as_svg(figure)


# Quality against size and speed ------------------------------------------------------------------


@dataclass(frozen=True)
class PlotAxis:
    """What models are placed by, across.

    value: None where a model has no such number; it is left out then. pareto: the key of an
    artifact's `pareto` whose optimal artifacts a line joins. artifacts: whether artifacts differ in
    the value from their student, and so are shown.
    """

    title: str
    value: Callable[[Numbers], float | None]
    pareto: str | None = None
    artifacts: bool = True


def _megabytes(numbers: Numbers) -> float | None:
    return None if numbers["bytes"] is None else numbers["bytes"] / 1e6


BYTES_AXIS = PlotAxis("weights on disk, MB", _megabytes, pareto="bytes")
PARAMETERS_AXIS = PlotAxis(
    "million parameters", lambda numbers: numbers["parameters"] / 1e6, artifacts=False
)


def speed_axis(speed: Speed) -> PlotAxis:
    """Models placed by their speed, those whose speed is not withheld."""
    return PlotAxis(speed.axis, speed.rate, pareto="speed")


def _marked_models(
    report: Numbers, untrained: bool, artifacts: bool
) -> list[tuple[str, Numbers, str, str]]:
    """(name, numbers, colour, marker) of the models that a plot shows."""
    shown = [("teacher", report["teacher"], COLORS["teacher"], "s")]
    for name, arm in report["arms"].items():
        if untrained or name != "init":
            shown.append((name, arm, COLORS.get(name, OTHER_ARM), "o"))
    for name, numbers in report["baselines"].items():
        shown.append((name, numbers, BASELINE, "D"))
    for name, numbers in report["artifacts"].items() if artifacts else ():
        shown.append((name, numbers, FIT if numbers["fit"]["ships"] else UNFIT, "^"))
    return [one for one in shown if "failed" not in one[1]]


def plot_quality(report: Numbers, quality: Quality, across: PlotAxis) -> str:
    """Quality of teacher, baselines, arms and artifacts against another number.

    The untrained student is shown on a logarithmic axis only: on a linear one it would squeeze the
    others together.
    """
    figure, axes = new_figure()
    shown = _marked_models(report, untrained=quality.log, artifacts=across.artifacts)
    points, optimal = [], []
    for name, numbers, color, marker in shown:
        x = across.value(numbers)
        if x is None:
            continue
        point = (x, quality.scale * numbers[quality.key])
        axes.scatter(*point, color=color, marker=marker, zorder=3)
        points.append((name, point))
        if across.pareto is not None and numbers.get("pareto", {}).get(across.pareto):
            optimal.append(point)
    if optimal:
        axes.plot(*zip(*sorted(optimal), strict=True), color=FIT, linewidth=1, alpha=0.6)
    if quality.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel(across.title)
    axes.set_ylabel(f"{quality.axis} (log)" if quality.log else quality.axis)
    name_points(axes, points)
    return as_svg(figure)
