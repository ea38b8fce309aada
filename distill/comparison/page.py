"""comparison.html: learning curves, fronts, the table, claims and advice, on one page."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

import yaml

from distill.comparison.advice import largest_point, shown_bytes
from distill.comparison.arms import FAMILIES
from distill.evaluation.job import Numbers
from distill.report.html import STYLE
from distill.report.labels import NamedPoint
from distill.report.markup import (
    Figure,
    Section,
    as_figures,
    as_section,
    as_table,
    explanation,
    table_section,
)
from distill.report.plots import as_svg, draw_quality, new_figure, new_panels
from distill.report.selection import Quality
from distill.report.tables import Table

FAMILY_COLORS = {
    "baseline": "#8c6d46", "prompting": "#c2528b", "features": "#6b7f2a", "tuning": "#d08a1d",
    "distilling": "#2c6fbb", "ceiling": "#444444",
}  # fmt: skip
PANEL_COLORS = (
    "#2c6fbb",
    "#d08a1d",
    "#2e8b57",
    "#c2528b",
    "#7b4bb3",
    "#8c6d46",
    "#3a9d9d",
    "#444444",
)
TERMS = {
    "recommended": "the cheapest to learn of those within one standard error of the leader, by the "
    "selection rows",
    "selection": "quality on the rows that choose: who leads, who is dropped",
    "test": "quality on rows that nothing but this table reads",
    "against the leader": "difference on the same test rows, over rows and seeds",
    "learning": "seconds of what this arm alone has to do before it can answer",
    "trained": "parameters that learn",
    "a task": "bytes that one more task takes beside the shared model",
    "query": "tokens that a model reads for one query",
    "one base": "whether one loaded model serves several tasks; mixed: in one batch",
    "forgets": "by how much the perplexity of general text rose",
}
Across = Callable[[Numbers], float | None]


def render_comparison(found: Numbers) -> str:
    """The page, from what comparison.json holds."""
    largest = largest_point(found)
    recipe = yaml.safe_dump(found["recipe"], sort_keys=False)
    environment = ", ".join(f"{name} {value}" for name, value in found["environment"].items())
    advice = "".join(f"<li>{escape(one['sentence'])}</li>" for one in found["advice"])
    seeds = len(found["seeds"])
    rows = found["rows"]
    lead = (
        f"{len(found['about'])} ways to do one task, learned from {_sizes(found)} rows with "
        f"{seeds} seed{'s' * (seeds != 1)}, chosen by {rows['selection']:,} selection rows and "
        f"reported on {rows['test']:,} test rows. Intervals are of 95%, over rows and seeds."
    )
    sections = [_table(found, largest), _curve_table(found), _claims(found), _left_out(found)]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>attar comparison</title>
<style>{STYLE}</style></head><body>
<h1>Which way for this task</h1><p>{escape(lead)}</p>
<ul class="verdict">{advice}</ul>
<div class="plots">{as_figures(figures(found))}</div>
{"".join(as_section(one) for one in sections if one is not None)}
<h2>Recipe</h2><details><summary>The recipe as checked, defaults filled in</summary>
<pre>{escape(recipe)}</pre></details>
<p class="legend">{escape(environment)}; {found["seconds"]:,.0f} s in all</p>
</body></html>
"""


def _sizes(found: Numbers) -> str:
    sizes = [f"{n:,}" for n in found["sizes"]]
    return sizes[0] if len(sizes) == 1 else f"{', '.join(sizes[:-1])} and {sizes[-1]}"


# Figures -----------------------------------------------------------------------------------------


def quality_of(found: Numbers) -> Quality:
    """How plots show quality."""
    if found["measure"] == "accuracy":
        return Quality("value", "accuracy, %", str, higher=True, scale=100.0)
    return Quality("value", "nll a row", str, higher=False, scale=-1.0)


def figures(found: Numbers) -> list[Figure]:
    """The curves, and quality against what is paid at the largest number of rows."""
    largest = largest_point(found)
    arms = {n: a for n, a in found["points"][largest]["arms"].items() if "test" in a}
    ways: list[tuple[str, str, Across]] = [
        ("seconds of learning", "learning", lambda arm: max(arm["cost"]["seconds"], 0.01)),
        ("seconds for one text", "serving", lambda arm: arm["serving"].get("seconds_a_text")),
        ("a further task, MB", "task", _task_megabytes),
        ("tokens a query", "query", lambda arm: arm["query_tokens"]),
    ]
    shown = [(plot_learning_curves(found), _curve_words(found))]
    for title, kind, across in ways:
        placed = {name: across(arm) for name, arm in arms.items()}
        if sum(value is not None for value in placed.values()) > 1:
            shown.append((plot_front(found, largest, title, kind, across), _front_words(kind)))
    return shown


def _task_megabytes(arm: Numbers) -> float | None:
    return None if not arm["task_bytes"] else arm["task_bytes"] / 1e6


def _curve_words(found: Numbers) -> str:
    return (
        "Quality on the test rows by the number of training rows; bars are 95% intervals. A curve "
        "ends where its arm was dropped, or its time was beyond the budget."
    )


def _front_words(kind: str) -> str:
    return (
        f"The line joins the arms of the front ({kind}): each is distinguishably better than all "
        "cheaper ones on it."
    )


def plot_learning_curves(found: Numbers) -> str:
    """Quality by number of rows, a panel a family, the other families in grey; of one number of
    rows, every arm with its interval.
    """
    if len(found["sizes"]) == 1:
        return plot_intervals(found)
    families = [one for one in FAMILIES if one in found["families"].values()]
    columns = min(3, len(families))
    figure, axes = new_panels(-(-len(families) // columns), columns)
    curves = {name: _curve(found, name) for name in found["families"]}
    for panel, family in zip(axes, families, strict=False):
        colors = iter(PANEL_COLORS)
        for name, (xs, ys, bars) in curves.items():
            if found["families"][name] != family:
                panel.plot(xs, ys, color="#d5dae1", linewidth=1, zorder=1)
            elif xs:
                panel.errorbar(
                    xs, ys, yerr=list(zip(*bars, strict=True)), color=next(colors), label=name,
                    marker="o", markersize=3, linewidth=1.5, elinewidth=0.6, zorder=2,
                )  # fmt: skip
        panel.set_title(family, fontsize=10)
        panel.set_xscale("log")
        panel.set_xticks(found["sizes"], [f"{n:,}" for n in found["sizes"]])
        panel.minorticks_off()
        if panel.get_legend_handles_labels()[1]:
            panel.legend(fontsize=7, frameon=False)
    for panel in axes[len(families) :]:
        panel.set_visible(False)
    figure.supxlabel("training rows", fontsize=10)
    figure.supylabel(quality_of(found).axis, fontsize=10)
    return as_svg(figure)


Curve = tuple[list[int], list[float], list[tuple[float, float]]]  # rows, quality, bars around it


def _curve(found: Numbers, name: str) -> Curve:
    scale = quality_of(found).scale
    points = {n: found["points"][str(n)]["arms"][name] for n in found["sizes"]}
    measured = {n: arm["test"] for n, arm in points.items() if "test" in arm}
    values = [scale * one["value"] for one in measured.values()]
    return list(measured), values, [_bar(one, scale) for one in measured.values()]


def plot_intervals(found: Numbers) -> str:
    """Every arm with its interval, the best at the top."""
    figure, axes = new_figure()
    curves = {name: _curve(found, name) for name in found["families"]}
    shown = {name: curve for name, curve in curves.items() if curve[0]}
    better = 1 if quality_of(found).higher else -1
    names = sorted(shown, key=lambda name: better * shown[name][1][0])
    figure.set_size_inches(6, 1.2 + 0.22 * len(names))
    for height, name in enumerate(names):
        _, (value,), ((below, above),) = shown[name]
        color = FAMILY_COLORS[found["families"][name]]
        axes.errorbar(value, height, xerr=[[below], [above]], color=color, marker="o", markersize=4)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel(quality_of(found).axis)
    return as_svg(figure)


def _bar(quality: Numbers, scale: float) -> tuple[float, float]:
    if quality["interval"] is None:
        return 0.0, 0.0
    value = scale * quality["value"]
    low, high = sorted(scale * bound for bound in quality["interval"])
    return max(0.0, value - low), max(0.0, high - value)


def plot_front(found: Numbers, labels: str, title: str, kind: str, across: Across) -> str:
    """Quality of the test rows against a price, the front joined."""
    point, quality = found["points"][labels], quality_of(found)
    points, optimal = [], []
    for name, arm in point["arms"].items():
        price = across(arm) if "test" in arm else None
        if price is None:
            continue
        place = (price, quality.scale * arm["test"]["value"])
        family = found["families"][name]
        marker = "s" if family == "ceiling" else "o"
        points.append(NamedPoint(name, place, FAMILY_COLORS[family], marker))
        if name in point.get("front", {}).get(kind, []):
            optimal.append(place)
    return as_svg(draw_quality(points, quality, title, optimal))


# Tables ------------------------------------------------------------------------------------------


def arm_table(found: Numbers, labels: str) -> Table:
    """Every arm that was measured at a number of rows, the best first."""
    point = found["points"][labels]
    arms = {name: arm for name, arm in point["arms"].items() if "test" in arm}
    forgets = any("forgets" in arm for arm in arms.values())
    head = [
        "", "selection", "test", "against the leader", "learning, s", "peak, MB", "trained",
        "a task", "query", "texts/s", "one base", *(["forgets"] if forgets else []),
    ]  # fmt: skip
    lines = [head]
    best = point["recommended"]
    for name in sorted(arms, key=lambda one: (one != best, -arms[one]["selection"]["value"])):
        arm = arms[name]
        mark = " (recommended)" if name == best else ""
        lines.append([f"{name}{mark}", *_cells(found, arm, forgets)])
    return lines


def _cells(found: Numbers, arm: Numbers, forgets: bool) -> list[str]:
    cost, serving = arm["cost"], arm["serving"]
    scale, digits = (100.0, 1) if found["measure"] == "accuracy" else (-1.0, 3)
    against = arm.get("against_leader", {}).get("test")
    peak, size, query = cost["peak_memory_bytes"], arm["task_bytes"], arm["query_tokens"]
    rate = serving.get("texts_per_second")
    return [
        f"{scale * arm['selection']['value']:.{digits}f}",
        _with_interval(arm["test"], scale, digits),
        "" if against is None else _difference(against, abs(scale), digits),
        f"{cost['seconds']:,.1f}",
        f"{peak / 1e6:,.0f}" if peak else "",
        f"{cost['trained']:,}" if cost["trained"] else "0",
        "" if size is None else shown_bytes(size),
        "" if query is None else f"{query:,.0f}",
        "" if rate is None else f"{rate:,.0f}",
        "mixed" if arm["mixes"] else "yes" if arm["shares_base"] else "",
        *([_forgets(arm)] if forgets else []),
    ]


def _with_interval(quality: Numbers, scale: float, digits: int) -> str:
    value = f"{scale * quality['value']:.{digits}f}"
    if quality["interval"] is None:
        return value
    low, high = sorted(scale * bound for bound in quality["interval"])
    return f"{value} ({low:.{digits}f} to {high:.{digits}f})"


def _difference(difference: Numbers, scale: float, digits: int) -> str:
    value = f"{scale * difference['difference']:+.{digits}f}"
    if difference["interval"] is None:
        return value
    low, high = (scale * bound for bound in difference["interval"])
    return f"{value} ({low:+.{digits}f} to {high:+.{digits}f})"


def _forgets(arm: Numbers) -> str:
    found = arm.get("forgets", {})
    if "perplexity_after" not in found:
        return ""
    return f"{found['perplexity_after'] / found['perplexity_before'] - 1:+.1%}"


def _table(found: Numbers, labels: str) -> Section:
    measure = "accuracy in %" if found["measure"] == "accuracy" else "nll in nats a row"
    lead = f"Quality is {measure}."
    return table_section(
        f"All arms with {int(labels):,} training rows", arm_table(found, labels), TERMS, lead=lead
    )


def curve_rows(found: Numbers) -> Table:
    """Quality of every arm on the test rows by the number of training rows."""
    scale, digits = (100.0, 1) if found["measure"] == "accuracy" else (-1.0, 3)
    lines = [["", *(f"{n:,} rows" for n in found["sizes"]), "what it is"]]
    for name, about in found["about"].items():
        cells = []
        for labels in map(str, found["sizes"]):
            arm = found["points"][labels]["arms"][name]
            cells.append(_point_cell(arm, scale, digits))
        lines.append([name, *cells, about])
    return lines


def _point_cell(arm: Numbers, scale: float, digits: int) -> str:
    if "test" in arm:
        return _with_interval(arm["test"], scale, digits)
    if "dropped" in arm:
        return f"dropped after {arm['dropped']['labels']:,}"
    return "failed" if "failed" in arm else "not run"


def _curve_table(found: Numbers) -> Section:
    return table_section("Learning curves", curve_rows(found), {}, lead="Quality on the test rows.")


def _claims(found: Numbers) -> Section:
    lines = [["what is said", *(f"{n:,} rows" for n in found["sizes"])]]
    for one in found["claims"]:
        cells = [f"{point['verdict']}: {point['words']}" for point in one["points"]]
        lines.append([one["claim"], *cells])
    body = as_table(lines, text=True) + explanation(
        {
            "holds": "the interval of the difference on the test rows says so",
            "fails": "it says the opposite",
            "open": "the interval holds 0, or there is none",
        }
    )
    return Section("What is often said, and how it came out here", body)


def _left_out(found: Numbers) -> Section | None:
    """Arms that do not fit, failed, were dropped or were not run, each with its reason."""
    lines = [["arm", "rows", "why it has no number"]]
    for name, reason in found["refused"].items():
        lines.append([name, "", f"does not fit: {reason}"])
    for labels, point in found["points"].items():
        for name, arm in point["arms"].items():
            if "failed" in arm:
                lines.append([name, labels, f"failed: {arm['failed']}"])
            elif "not_run" in arm:
                lines.append([name, labels, f"not run: {arm['not_run']}"])
            elif "dropped" in arm:
                drop = arm["dropped"]
                scale = 100.0 if found["measure"] == "accuracy" else 1.0
                words = _difference(drop, scale, 1 if scale > 1 else 3)
                lines.append([name, labels, f"dropped after {drop['labels']:,}: {words} against "
                              f"{drop['leader']} on the selection rows"])  # fmt: skip
    if len(lines) == 1:
        return None
    return Section("Without a number", as_table(lines, text=True))


def report_lines(found: Numbers) -> list[str]:
    """What the command prints below its table."""
    shown = [one["sentence"] for one in found["advice"]]
    for name, reason in found["refused"].items():
        shown.append(f"{name} was left out: {reason}.")
    return shown
