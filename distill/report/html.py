"""report.html: one file without links to others, with tables and inline SVG.

`render_report` writes the page of every task; a task fills it with a `PageContent`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import Any

from distill.evaluation.job import Numbers
from distill.report.columns import TableColumns, legend
from distill.report.selection import failed_lines
from distill.report.speeds import report_models, speed_notes
from distill.report.tables import Table, artifact_table, model_table

Figure = tuple[str, str]  # inline SVG and its caption

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;
color:#1c2430}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2.2rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
td,th{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #dde3ea}
td:first-child,th:first-child,table.text td{text-align:left}tr.arm td{border-top:2px solid #8a97a8}
.verdict{background:#eef4fb;border-left:4px solid #2c6fbb;padding:.8rem 1rem}
.warning{background:#fdf3e1;border-left:4px solid #d08a1d;padding:.6rem 1rem}
pre{background:#f6f8fa;padding:.8rem;overflow:auto;font-size:.82rem;white-space:pre-wrap}
.plots{display:flex;flex-wrap:wrap;gap:1rem}.plots figure{margin:0;flex:1 1 28rem}
figcaption,.legend{font-size:.85rem;color:#526070}svg{width:100%;height:auto}
"""


@dataclass(frozen=True)
class TableSection:
    """A heading and a table of a task's own; `text`: whether its cells are sentences."""

    title: str
    table: Table
    text: bool = False


@dataclass(frozen=True)
class PageContent:
    """What a task puts into its report, beside what the reports of all tasks hold.

    measured_on: as in "Measured on held-out text". model_figures: below the table of teacher and
    arms. artifact_figures: below the table of artifacts. middle: sections between models and
    artifacts. end: sections behind the costs. cache_unit: what the cache counts, `token` or `row`.
    """

    measured_on: str
    model_figures: list[Figure]
    artifact_figures: list[Figure]
    middle: list[TableSection] = field(default_factory=list)
    end: list[TableSection] = field(default_factory=list)
    cache_unit: str = "token"


def render_report(
    report: Numbers,
    columns: TableColumns,
    artifact_columns: TableColumns,
    content: PageContent,
) -> str:
    """report.html, from report.json's content.

    columns: of the table of teacher and arms. artifact_columns: of the table of artifacts.
    """
    import yaml

    verdict, recipe = report["verdict"], yaml.safe_dump(report["recipe"], sort_keys=False)
    environment = ", ".join(f"{name} {value}" for name, value in report["environment"].items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>attar report</title>
<style>{STYLE}</style></head><body>
<h1>{escape(str(report["teacher"]["model"]))}, distilled</h1>
<p class="verdict">{escape(verdict["sentence"])}</p>{_warnings(verdict["warnings"])}
{_selection(report["selection"])}
{_models(report, columns, content)}{_sections(content.middle)}
{_artifacts(report, artifact_columns, content)}
<h2>Cost</h2>{as_table(cost_rows(report["cost"]))}
<p>The cache takes {report["cost"]["cache_bytes_per_token"]:.0f} bytes a {content.cache_unit}.</p>
{_sections(content.end)}
<h2>Recipe</h2><pre>{escape(recipe)}</pre>
<p>{escape(environment)}</p>
</body></html>
"""


def _warnings(warnings: list[str]) -> str:
    return "".join(f'<p class="warning">{escape(text)}</p>' for text in warnings)


def _selection(selection: Numbers | None) -> str:
    return "" if selection is None else f"<p>{escape(selection['sentence'])}</p>"


def _models(report: Numbers, columns: TableColumns, content: PageContent) -> str:
    baselines = report["baselines"]
    models = [report["teacher"], *baselines.values(), *report["arms"].values()]
    meanings = legend(columns, models)
    kinds = "".join(f" Baseline {name}: {one['about']}." for name, one in baselines.items())
    return f"""<h2>Measured on {escape(content.measured_on)}</h2>
{as_table(model_table(report, columns))}{_speeds(report_models(report))}
<p class="legend">{escape(meanings)}. 95% intervals are in report.json.{escape(kinds)}</p>
<div class="plots">{as_figures(content.model_figures)}</div>"""


def _artifacts(report: Numbers, columns: TableColumns, content: PageContent) -> str:
    advice = "".join(f"<li>{escape(one['sentence'])}</li>" for one in report["advice"])
    meanings = legend(columns, report["artifacts"].values())
    return f"""<h2>Artifacts</h2><ul class="verdict">{advice}</ul>
{as_table(artifact_table(report, columns))}{_speeds(report["artifacts"])}
{_warnings(failed_lines(report))}
<p class="legend">Each artifact was loaded from disk in a fresh process by what its users run it
with. {escape(meanings)}.</p>
<div class="plots">{as_figures(content.artifact_figures)}</div>"""


def _speeds(models: dict[str, Numbers]) -> str:
    notes = " ".join(speed_notes(models))
    return f'<p class="legend">{escape(notes)}</p>' if notes else ""


def _sections(sections: list[TableSection]) -> str:
    return "".join(
        f"<h2>{escape(section.title)}</h2>{as_table(section.table, text=section.text)}"
        for section in sections
    )


def as_figures(figures: list[Figure]) -> str:
    """Plots side by side, each with its caption."""
    return "".join(
        f"<figure>{svg}<figcaption>{escape(text)}</figcaption></figure>" for svg, text in figures
    )


def as_table(lines: Table, *, text: bool = False) -> str:
    """Rows as a table, header first; a line is drawn above the first arm. `text`: align left."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in lines[0])
    body, seen_arm = "", False
    for line in lines[1:]:
        is_arm = line[0].startswith("arm ")
        mark = ' class="arm"' if is_arm and not seen_arm else ""
        seen_arm = seen_arm or is_arm
        body += f"<tr{mark}>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>"
    kind = ' class="text"' if text else ""
    return f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def cost_rows(cost: Numbers) -> Table:
    """Seconds, tokens, bytes and memory of each stage, header first."""
    lines = [["stage", "seconds", "tokens", "MB", "peak memory, MB"]]
    for name, stage in cost["stages"].items():
        if stage["seconds"] >= 0.05 or stage["tokens"]:
            lines.append(_cost_row(name, stage))
        if name == "train":
            lines += [_cost_row(f"… {arm}", own) for arm, own in cost["arms"].items()]
    return [*lines, ["all", f"{cost['seconds']:,.1f}", "", "", ""]]


def _cost_row(name: str, stage: dict[str, Any]) -> list[str]:
    size = f"{stage['bytes'] / 1e6:,.1f}" if stage.get("bytes") else ""
    peak = f"{stage['peak_memory_bytes'] / 1e6:,.0f}" if stage.get("peak_memory_bytes") else ""
    return [name, f"{stage['seconds']:,.1f}", f"{stage['tokens']:,}", size, peak]
