"""report.html: one file a person can read without us; tables and inline SVG, nothing fetched."""

from __future__ import annotations

import io
from html import escape
from typing import Any

import numpy as np

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;
color:#1c2430}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2.2rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
td,th{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #dde3ea}
td:first-child,th:first-child{text-align:left}tr.part td{border-top:2px solid #8a97a8}
.verdict{background:#eef4fb;border-left:4px solid #2c6fbb;padding:.8rem 1rem}
.warning{background:#fdf3e1;border-left:4px solid #d08a1d;padding:.6rem 1rem}
pre{background:#f6f8fa;padding:.8rem;overflow:auto;font-size:.82rem;white-space:pre-wrap}
.plots{display:flex;flex-wrap:wrap;gap:1rem}.plots figure{margin:0;flex:1 1 28rem}
figcaption{font-size:.85rem;color:#526070}svg{width:100%;height:auto}
"""
COLORS = {
    "teacher": "#444444", "init": "#9aa5b1", "finetune": "#d08a1d", "distill": "#2c6fbb",
    "specialized": "#7b4bb3",
}  # fmt: skip
ARTIFACT, UNFIT = "#2e8b57", "#c0392b"


def render(
    report: dict[str, Any],
    table: list[list[str]],
    matrix: list[list[str]],
    merges: list[list[str]],
    curves: dict[str, list[dict[str, float]]],
    histograms: dict[str, tuple[np.ndarray, np.ndarray]],
) -> str:
    """The page, from report.json's content, its tables, the training curves and histograms."""
    plots = [
        (
            plot_curves(curves),
            "Held-out nll while training (nats a token), same tokens, same order.",
        ),
        (_histogram(histograms), "KL(teacher || student) token by token: left is closer."),
    ]
    shipped = [
        (_pareto(report, "bytes"), "Size against quality: lower and further left is better."),
        (_pareto(report, "speed"), "Speed against quality: lower and further right is better."),
    ]
    advice = "".join(f"<li>{escape(one['sentence'])}</li>" for one in report["advice"])
    merged = f"<h2>Specialising, before and after merging</h2>{as_table(merges)}" if merges else ""
    body = f"""<h2>Measured on held-out text</h2>{as_table(table)}
<p>nll in nats a token; KL(teacher || model) on the full vocabulary; top-1: share of tokens where
the most likely token is the teacher's; one stream; MB of weights on disk; peak memory of a process
that loads the model, prefills and generates. Intervals are in report.json.</p>
<div class="plots">{figures(plots)}</div>{merged}
<h2>Artifacts</h2><ul class="verdict">{advice}</ul>{as_table(matrix)}
<p>Each was loaded from disk in a fresh process by what will run it. ppl lost: against the same
student unquantised; same until: tokens of a greedy answer before it differs from that student's;
front: no other artifact is both smaller (faster) and better; ship: within the recipe's tolerance.
</p><div class="plots">{figures(shipped)}</div>
<h2>Cost</h2>{as_table(cost_rows(report["cost"]))}
<p>The cache takes {report["cost"]["cache_bytes_per_token"]:.0f} bytes a token.</p>
<h2>What the models write</h2>{_samples(report)}"""
    return page(report, body)


def page(report: dict[str, Any], body: str) -> str:
    """The whole page: the verdict above what is shown, the recipe below it."""
    import yaml

    verdict, recipe = report["verdict"], yaml.safe_dump(report["recipe"], sort_keys=False)
    warnings = "".join(f'<p class="warning">{escape(text)}</p>' for text in verdict["warnings"])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>attar report</title>
<style>{STYLE}</style></head><body>
<h1>{escape(str(report["teacher"]["model"]))}, distilled</h1>
<p class="verdict">{escape(verdict["sentence"])}</p>{warnings}
{body}
<h2>Recipe</h2><pre>{escape(recipe)}</pre>
<p>{escape(", ".join(f"{k} {v}" for k, v in report["environment"].items()))}</p>
</body></html>
"""


def figures(plots: list[tuple[str, str]]) -> str:
    """Plots side by side, each with its caption."""
    return "".join(
        f"<figure>{svg}<figcaption>{escape(text)}</figcaption></figure>" for svg, text in plots
    )


def as_table(lines: list[list[str]]) -> str:
    """Rows as a table, header first."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in lines[0])
    body, before = "", ""
    for line in lines[1:]:
        part = line[0].split(" ")[0]
        mark = ' class="part"' if before and part != before and part == "arm" else ""
        body += f"<tr{mark}>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>"
        before = part
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def cost_rows(cost: dict[str, Any]) -> list[list[str]]:
    """Seconds, tokens, bytes and memory of each stage, header first."""
    lines = [["stage", "seconds", "tokens", "MB", "peak memory, MB"]]
    for name, stage in cost["stages"].items():
        if stage["seconds"] >= 0.05 or stage["tokens"]:
            lines.append(_cost_row(name, stage))
        if name == "train":
            lines += [_cost_row(f"… {arm}", own) for arm, own in cost["arms"].items()]
    return [*lines, ["all", f"{cost['seconds']:,.1f}", "", "", ""]]


def _cost_row(name: str, own: dict[str, Any]) -> list[str]:
    size = f"{own['bytes'] / 1e6:,.1f}" if own.get("bytes") else ""
    peak = f"{own['peak_memory_bytes'] / 1e6:,.0f}" if own.get("peak_memory_bytes") else ""
    return [name, f"{own['seconds']:,.1f}", f"{own['tokens']:,}", size, peak]


def _samples(report: dict[str, Any]) -> str:
    models = {"teacher": report["teacher"], **report["arms"], **report["artifacts"]}
    lines = [["model", "continuation of the first held-out words, greedy"]]
    lines += [[name, numbers["sample"]] for name, numbers in models.items()]
    return as_table(lines).replace("<td>", '<td style="text-align:left">')


def new_figure() -> Any:
    """An empty figure of matplotlib and its axes."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.hashsalt": "attar", "font.size": 10, "axes.grid": True,
                            "grid.alpha": 0.3, "axes.spines.top": False,
                            "axes.spines.right": False})  # fmt: skip
    return pyplot.subplots(figsize=(6, 3.8), layout="constrained")


BESIDE = ((5, 4, "left"), (5, -11, "left"), (-5, 4, "right"), (-5, -11, "right"))  # of a point


def name_points(axes: Any, places: list[tuple[str, tuple[float, float]]]) -> None:
    """Write names beside points, each where it covers no other and stays inside the figure."""
    axes.margins(0.08)
    axes.figure.draw_without_rendering()
    whole: Any = axes.figure.bbox
    taken: list[Any] = []
    for name, place in places:
        for x, y, side in BESIDE:
            label = axes.annotate(
                name, place, (x, y), textcoords="offset points", ha=side, fontsize=9
            )
            box = label.get_window_extent()
            inside = whole.x0 <= box.x0 and box.x1 <= whole.x1
            if inside and not any(box.overlaps(other) for other in taken):
                break
            if (x, y, side) != BESIDE[-1]:
                label.remove()
        taken.append(box)


def as_svg(figure: Any) -> str:
    """A figure as inline SVG, the same at every run; it is closed."""
    from matplotlib import pyplot

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def plot_curves(curves: dict[str, list[dict[str, float]]], key: str = "validation_nll") -> str:
    """Validation nll, or another number of the history, by step of every arm."""
    figure, axes = new_figure()
    for name, history in curves.items():
        points = [(r["step"], r[key]) for r in history if key in r]
        if points:
            steps, values = zip(*points, strict=True)
            color = COLORS.get(name)
            axes.plot(steps, values, marker="o", markersize=3, label=name, color=color)
    axes.set_xlabel("step")
    axes.set_ylabel(key.replace("_", " "))
    axes.legend()
    return as_svg(figure)


def _pareto(report: dict[str, Any], by: str) -> str:
    """Quality of every model against its bytes or its speed; the artifacts' front as a line."""
    figure, axes = new_figure()
    points = [("teacher", report["teacher"], COLORS["teacher"], "s")]
    points += [
        (name, arm, COLORS.get(name, "#2c6fbb"), "o") for name, arm in report["arms"].items()
    ]
    points += [
        (name, found, ARTIFACT if found["fit"]["ships"] else UNFIT, "^")
        for name, found in report["artifacts"].items()
    ]
    places, line = [], []
    for name, numbers, color, marker in points:
        across = _across(numbers, by)
        if across is None:
            continue
        place = (across, numbers["perplexity"])
        axes.scatter(*place, color=color, marker=marker, zorder=3)
        places.append((name, place))
        if numbers.get("pareto", {}).get(by):
            line.append(place)
    if line:
        axes.plot(*zip(*sorted(line), strict=True), color=ARTIFACT, linewidth=1, alpha=0.6)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel("weights on disk, MB" if by == "bytes" else "generated tokens a second")
    axes.set_ylabel("held-out perplexity (log)")
    name_points(axes, places)
    return as_svg(figure)


def _across(numbers: dict[str, Any], by: str) -> float | None:
    if by == "bytes":
        return None if numbers["bytes"] is None else numbers["bytes"] / 1e6
    speed: float | None = numbers["tokens_per_second"]["generate"]
    return speed


def _histogram(histograms: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    figure, axes = new_figure()
    for name, (shares, edges) in histograms.items():
        axes.stairs(shares, edges, label=name, color=COLORS.get(name), fill=False, linewidth=1.5)
    axes.set_xlabel("log10 of the KL of a token, nats")
    axes.set_ylabel("share of tokens")
    axes.legend()
    return as_svg(figure)
