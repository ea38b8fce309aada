"""sweep.html: one file without links to others; the tables, the fronts, the sentences."""

from __future__ import annotations

from html import escape

from distill.evaluation.job import Numbers
from distill.report.columns import shown_columns, terms
from distill.report.html import INTERVALS, STYLE
from distill.report.labels import NamedPoint
from distill.report.markup import (
    Figure,
    Section,
    as_figures,
    as_list,
    as_section,
    as_table,
    explanation,
    table_section,
)
from distill.report.plots import (
    BYTES_AXIS,
    FIT,
    HOLLOW_WORDS,
    UNFIT,
    PlotAxis,
    as_svg,
    draw_quality,
    speed_axis,
)
from distill.report.task_report import TaskReport
from distill.sweep.tables import TRIAL_TERMS, front_table, trial_table

CAPTION = (
    "Every artifact of every finalist, by its number in the table; green where fit to ship against "
    "its own student, red where not. The line joins those that no other one beats."
)


def render_page(found: Numbers, of: TaskReport | type[TaskReport]) -> str:
    """sweep.html, from sweep.json's content. of: the report of the recipe's task."""
    import yaml

    recipe = yaml.safe_dump(found["recipe"], sort_keys=False)
    teacher = found["recipe"]["teacher"]["model"]
    sections = [
        _artifacts(found, of),
        table_section("Trials", trial_table(found), TRIAL_TERMS, lead=_cost_words(found)),
    ]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>attar sweep</title>
<style>{STYLE}</style></head><body>
<h1>Students of {escape(teacher)}</h1>
<div class="verdict">{as_list("What to take:", found["advice"])}</div>
{"".join(as_section(one) for one in sections)}
<h2>Recipe</h2><details><summary>The recipe as checked, defaults filled in</summary>
<pre>{escape(recipe)}</pre></details>
</body></html>
"""


def training_words(found: Numbers) -> str:
    """What the trials were trained on, against training all of them to the end."""
    cost = found["training"]
    return (
        f"All trials together learned from {cost['tokens']:,} tokens, {cost['share']:.0%} of what "
        f"training every one to its end would take (about {cost['whole']:,})."
    )


def _cost_words(found: Numbers) -> str:
    failed = sum(one["failed"] is not None for one in found["trials"].values())
    more = f" {failed} failed; the reason is in its row." if failed else ""
    return training_words(found) + more


def _artifacts(found: Numbers, of: TaskReport | type[TaskReport]) -> Section:
    """The artifacts of all finalists with two plots: by size, and by speed."""
    rows = list(found["artifacts"].values())
    columns = shown_columns(of.artifact_columns, rows)
    table = front_table(found, columns, intervals=True)
    numbered = [["", *table[0]], *([f"{i}", *row] for i, row in enumerate(table[1:], start=1))]
    figures = [_figure(found, of, BYTES_AXIS), _figure(found, of, speed_axis(of.speed))]
    meanings = explanation(terms(columns, rows))
    return Section(
        "Artifacts of the finalists",
        f'{as_table(numbered)}<p class="legend">Measured on the held-out part. {INTERVALS}</p>'
        f'{meanings}<div class="plots">{as_figures(figures)}</div>',
    )


def _figure(found: Numbers, of: TaskReport | type[TaskReport], across: PlotAxis) -> Figure:
    """Quality of every artifact against another number, by its number in the table."""
    points, optimal, quality = [], [], of.quality
    order = sorted(found["artifacts"].values(), key=lambda one: one.get("bytes") or 0)
    for number, one in enumerate(order, start=1):
        x = None if "failed" in one else across.value(one)
        if x is None:
            continue
        place = x, quality.scale * one[quality.key]
        color = FIT if one["fit"]["ships"] else UNFIT
        points.append(NamedPoint(f"{number}", place, color, "^", across.doubtful(one)))
        if one["pareto"].get(across.pareto):
            optimal.append(place)
    hollow = HOLLOW_WORDS if any(point.hollow for point in points) else ""
    return as_svg(draw_quality(points, quality, across.title, optimal)), f"{CAPTION}{hollow}"
