"""What the reports of tasks on whole texts share: fronts, advice and page by one quality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from distill.evaluation.job import Measured
from distill.report.html import (
    ARTIFACT,
    COLORS,
    UNFIT,
    as_svg,
    as_table,
    cost_rows,
    figures,
    name_points,
    new_figure,
    page,
)
from distill.report.selection import front
from distill.report.task_report import Tables


@dataclass(frozen=True)
class Quality:
    """The number that models of a task are judged by: higher is better, or lower.

    axis: its title in plots, where it is `scale` times as large. say: it in words.
    """

    key: str
    axis: str
    say: Callable[[Measured], str]
    scale: float = 1.0
    higher: bool = True

    def loss(self, found: Measured) -> float:
        """The number with the sign by which less is better."""
        return -float(found[self.key]) if self.higher else float(found[self.key])


def mark_fronts(quality: Quality, artifacts: dict[str, Measured]) -> None:
    """Set `pareto` of every artifact: is it on the front of quality against bytes, and speed?"""
    measures: dict[str, Callable[[Measured], float]] = {"bytes": _size, "speed": _slowness}
    fronts = {}
    for by, of in measures.items():
        points = {name: (of(found), quality.loss(found)) for name, found in artifacts.items()}
        fronts[by] = front(points)
    for name, found in artifacts.items():
        found["pareto"] = {by: name in names for by, names in fronts.items()}


def advise(quality: Quality, artifacts: dict[str, Measured]) -> list[Measured]:
    """Which artifact to ship for speed and for size; only what is fit is advised."""
    fit = {name: found for name, found in artifacts.items() if found["fit"]["ships"]}
    if not fit:
        sentence = "No artifact stays within the tolerance: ship the student in full precision."
        return [{"for": "any", "artifact": None, "sentence": sentence}]
    advice = []
    for place, key in (("the most texts a second here", _slowness), ("the smallest size", _size)):
        name = min(fit, key=lambda one: key(fit[one]))
        found = fit[name]
        advice.append(
            {
                "for": place,
                "artifact": name,
                "sentence": f"For {place}: {name} ({found['bytes'] / 1e6:,.1f} MB, "
                f"{quality.say(found)}, {found['texts_per_second']:,.0f} texts/s here).",
            }
        )
    return advice


def _slowness(found: Measured) -> float:
    return -float(found["texts_per_second"])


def _size(found: Measured) -> float:
    return float(found["bytes"])


# The page --------------------------------------------------------------------------------------


def text_page(
    report: Measured,
    tables: Tables,
    quality: Quality,
    plots: list[tuple[str, str]],
    legend: str,
    lost: str,
) -> str:
    """report.html, from report.json's content and its tables.

    plots: the task's own, each with its caption. legend: of the columns. lost: what the artifacts'
    column of that name holds.
    """
    models, matrix = tables
    plots = [
        *plots,
        (_against(report, quality, "parameters"), "Size against quality of the trained arms."),
        (_against(report, quality, "texts_per_second"), "Speed against quality, all models."),
    ]
    advice = "".join(f"<li>{escape(one['sentence'])}</li>" for one in report["advice"])
    body = f"""<h2>Measured on {report["teacher"]["texts"]:,} held-out texts</h2>{as_table(models)}
<p>{escape(legend)}</p>
<div class="plots">{figures(plots)}</div>
<h2>Artifacts</h2><ul class="verdict">{advice}</ul>{as_table(matrix)}
<p>Each was loaded from disk in a fresh process by what will run it. lost: {escape(lost)};
front: no other is both smaller (faster) and as good; ship: within the recipe's tolerance.</p>
<h2>Cost</h2>{as_table(cost_rows(report["cost"]))}
<p>The cache takes {report["cost"]["cache_bytes_per_token"]:.0f} bytes a row.</p>"""
    return page(report, body)


def _against(report: Measured, quality: Quality, by: str) -> str:
    """Quality of every model against its parameters or its speed."""
    figure, axes = new_figure()
    points = [("teacher", report["teacher"], COLORS["teacher"], "s")]
    # The untrained student would squeeze the others together.
    arms = [(name, arm) for name, arm in report["arms"].items() if name != "init"]
    points += [(name, arm, COLORS.get(name, "#2c6fbb"), "o") for name, arm in arms]
    if by != "parameters":  # which an artifact shares with its student
        points += [
            (name, found, ARTIFACT if found["fit"]["ships"] else UNFIT, "^")
            for name, found in report["artifacts"].items()
        ]
    places = []
    for name, numbers, color, marker in points:
        across = (1e-6 if by == "parameters" else 1.0) * numbers[by]
        place = (across, quality.scale * numbers[quality.key])
        axes.scatter(*place, color=color, marker=marker, zorder=3)
        places.append((name, place))
    axes.set_xlabel("million parameters" if by == "parameters" else "texts a second")
    axes.set_ylabel(quality.axis)
    name_points(axes, places)
    return as_svg(figure)
