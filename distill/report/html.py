"""report.html: one file without links to others, with tables and inline SVG.

`render_report` writes the page of every task; a task fills it with a `PageContent`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from typing import Any

from distill.evaluation.job import Numbers
from distill.report.columns import (
    TableColumns,
    shown_columns,
    terms,
)
from distill.report.data_parts import data_section
from distill.report.markup import (
    Figure,
    Section,
    as_figures,
    as_section,
    as_table,
    explanation,
    table_section,
)
from distill.report.rounds import rounds_section
from distill.report.seed_means import seeds_section
from distill.report.selection import failed_lines
from distill.report.speeds import report_models, speed_notes
from distill.report.student_shape import shape_section
from distill.report.tables import (
    Table,
    artifact_table,
    downstream_tasks,
    model_table,
    tokenizer_notes,
)
from distill.report.trainings import training_section
from distill.report.transport import transport_section
from distill.report.tuning import tuning_section
from distill.training.arms import ARMS

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
summary{cursor:pointer}h3{font-size:1rem;margin:1.4rem 0 .4rem}.wide{overflow-x:auto}
td small{display:block;color:#526070;white-space:nowrap}details ul{margin:.3rem 0}
.prompt,.written,.data{white-space:pre-wrap;overflow-wrap:anywhere}
.prompt{background:#e3e8ef;border-left:4px solid #8a97a8;padding:.5rem .8rem;margin:.3rem 0}
.legend .prompt{display:inline;padding:0 .3rem}
.samples th{vertical-align:top;font-weight:600}.samples td.data{color:#526070;font-style:italic}
"""


INTERVALS = (
    "Below a number, in brackets, is its 95% interval: how far the number may be off because these "
    "texts were measured and not others of the same kind. Where none is shown, there were too few "
    "texts, or none is known."
)
OVER_SEEDS = " Of arms with several seeds, it holds what another seed may change, too."
ARM_WORDS = {
    "init": "the student before it learned",
    "distill": "the distilled student: it learned by the recipe's objective",
    "specialized": "the distilled student after `specialize`",
}
COST_TERMS = {
    "seconds": "wall-clock time of the command that finished the stage",
    "tokens": "what the stage read or learned from, repeats counted; of labelled texts, texts",
    "MB": "what the stage left on disk",
    "peak memory": "the most that the process held: of a CPU with libraries, of a GPU by torch",
    "…": "one training of the stage above it",
}


@dataclass(frozen=True)
class PageContent:
    """What a task puts into its report, beside what the reports of all tasks hold.

    measured_on: as in "Measured on held-out text". model_figures: below the table of teacher and
    arms. artifact_figures: below the table of artifacts. middle: sections between models and
    artifacts. end: sections behind the artifacts. cache_unit: what the cache counts, `token` or
    `text`.
    """

    measured_on: str
    model_figures: list[Figure]
    artifact_figures: list[Figure]
    middle: list[Section] = field(default_factory=list)
    end: list[Section] = field(default_factory=list)
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
{_specialising(report)}{_models(report, columns, content)}
{_sections([seeds_section(report, columns), tuning_section(report)])}{_sections(content.middle)}
{_artifacts(report, artifact_columns, content)}
{_sections(content.end)}
{_sections([training_section(report), rounds_section(report)])}
{_sections([data_section(report), transport_section(report), shape_section(report)])}
{as_section(_cost(report["cost"], content.cache_unit))}
<h2>Recipe</h2><details><summary>The recipe as checked, defaults filled in</summary>
<pre>{escape(recipe)}</pre></details>
<p class="legend">{escape(environment)}</p>
</body></html>
"""


def _warnings(warnings: list[str]) -> str:
    return "".join(f'<p class="warning">{escape(text)}</p>' for text in warnings)


def _specialising(report: Numbers) -> str:
    """What specialising did, where the recipe specialises."""
    special = report.get("specialize")
    return f'<p class="verdict">{escape(special["sentence"])}</p>' if special else ""


def _models(report: Numbers, columns: TableColumns, content: PageContent) -> str:
    models = [report["teacher"], *report["baselines"].values(), *report["arms"].values()]
    shown = shown_columns(columns, models, report["teacher"])
    meanings = {**_row_terms(report), **terms(shown, models), **_task_terms(models)}
    return f"""<h2>Measured on {escape(content.measured_on)}</h2>
{as_table(model_table(report, columns, intervals=True))}{_legend(tokenizer_notes(report))}
{_speeds(report_models(report))}
<p class="legend">{INTERVALS}{OVER_SEEDS if report.get("seeds") else ""}</p>{explanation(meanings)}
<div class="plots">{as_figures(content.model_figures)}</div>"""


def _row_terms(report: Numbers) -> dict[str, str]:
    """What the models of the first table are, by their names there."""
    found = {"teacher": "the model that is learned from, as the recipe runs it"}
    for name, one in report["baselines"].items():
        found[f"baseline {name}"] = str(one["about"])
    for name in report["arms"]:
        found[f"arm {name}"] = ARM_WORDS.get(name) or ARMS[name].about
        if seeds := report["arms"][name].get("seeds"):
            found[f"arm {name}"] += f" (mean of {len(seeds)} seeds)"
    return found


def _task_terms(models: Iterable[Numbers]) -> dict[str, str]:
    """What the columns of downstream tasks are."""
    return dict.fromkeys(downstream_tasks(models), "accuracy on that downstream task, a share")


def _artifacts(report: Numbers, columns: TableColumns, content: PageContent) -> str:
    advice = "".join(f"<li>{escape(one['sentence'])}</li>" for one in report["advice"])
    artifacts = report["artifacts"].values()
    meanings = {**terms(columns, artifacts), **_task_terms(artifacts)}
    return f"""<h2>Artifacts</h2><ul class="verdict">{advice}</ul>
{as_table(artifact_table(report, columns, intervals=True))}{_speeds(report["artifacts"])}
{_warnings(failed_lines(report))}
<p class="legend">Each artifact was loaded from disk in a fresh process by what its users run it
with. {INTERVALS}</p>{explanation(meanings)}
<div class="plots">{as_figures(content.artifact_figures)}</div>"""


def _speeds(models: dict[str, Numbers]) -> str:
    return _legend(speed_notes(models))


def _legend(notes: list[str]) -> str:
    return f'<p class="legend">{escape(" ".join(notes))}</p>' if notes else ""


def _sections(sections: list[Section] | list[Section | None]) -> str:
    return "".join(as_section(section) for section in sections if section is not None)


def _cost(cost: Numbers, cache_unit: str) -> Section:
    lead = f"The cache takes {cost['cache_bytes_per_token']:.0f} bytes a {cache_unit}."
    return table_section("Cost", cost_rows(cost), COST_TERMS, lead=lead)


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
