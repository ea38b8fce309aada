"""report.json as tables of text: what every model measured, and the artifact matrix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from attar.files import read_json

Measured = dict[str, Any]
Columns = dict[str, tuple[str, Callable[[Measured], str]]]  # title: (key it needs, how it is shown)


def _rate(kind: str) -> Callable[[Measured], str]:
    def show(row: Measured) -> str:
        value = row["tokens_per_second"][kind]
        return "" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"

    return show


def _until(found: Measured) -> str:
    return f"{found['same_until']:.0f}/{found['tokens']}"


COLUMNS: Columns = {
    "nll": ("nll", lambda r: f"{r['nll']:.3f}"),
    "ppl": ("perplexity", lambda r: f"{r['perplexity']:,.2f}"),
    "KL": ("kl_to_teacher", lambda r: f"{r['kl_to_teacher']:.3f}"),
    "top-1": ("top1_agreement", lambda r: f"{r['top1_agreement']:.3f}"),
    "M params": ("parameters", lambda r: f"{r['parameters'] / 1e6:.1f}"),
    "MB": ("bytes", lambda r: f"{r['bytes'] / 1e6:.1f}"),
    "prefill t/s": ("tokens_per_second", _rate("prefill")),
    "gen t/s": ("tokens_per_second", _rate("generate")),
    "peak MB": ("peak_memory_bytes", lambda r: f"{r['peak_memory_bytes'] / 1e6:,.0f}"),
}
MATRIX: Columns = {
    "run by": ("runtime", lambda r: str(r["runtime"])),
    **{name: COLUMNS[name] for name in ("ppl", "KL", "top-1")},
    "ppl lost": ("fit", lambda r: f"{r['fit']['perplexity_lost']:+.1%}"),
    "same until": ("generation_agreement", lambda r: _until(r["generation_agreement"])),
    **{name: COLUMNS[name] for name in ("MB", "prefill t/s", "gen t/s")},
    "first token ms": (
        "seconds_to_first_token", lambda r: f"{1000 * r['seconds_to_first_token']:,.0f}"
    ),
    "peak MB": COLUMNS["peak MB"],
    "front": ("pareto", lambda r: ", ".join(name for name, on in r["pareto"].items() if on)),
    "ship": ("fit", lambda r: "yes" if r["fit"]["ships"] else "NO"),
}  # fmt: skip
CLASS_COLUMNS: Columns = {
    "accuracy": ("accuracy", lambda r: f"{100 * r['accuracy']:.1f}%"),
    "macro-F1": ("macro_f1", lambda r: f"{r['macro_f1']:.3f}"),
    "ECE": ("calibration_error", lambda r: f"{r['calibration_error']:.3f}"),
    "nll": COLUMNS["nll"],
    "KL": COLUMNS["KL"],
    "agree": ("top1_agreement", lambda r: f"{100 * r['top1_agreement']:.1f}%"),
    "M params": COLUMNS["M params"],
    "MB": COLUMNS["MB"],
    "texts/s": ("texts_per_second", lambda r: f"{r['texts_per_second']:,.0f}"),
    "ms a text": ("seconds_a_text", lambda r: f"{1000 * r['seconds_a_text']:.1f}"),
    "peak MB": COLUMNS["peak MB"],
}
CLASS_MATRIX: Columns = {
    "run by": MATRIX["run by"],
    **{name: CLASS_COLUMNS[name] for name in ("accuracy", "macro-F1", "ECE", "KL", "agree")},
    "lost": ("fit", lambda r: f"{100 * r['fit']['accuracy_lost']:+.1f}"),
    **{name: CLASS_COLUMNS[name] for name in ("MB", "texts/s", "ms a text", "peak MB")},
    "front": MATRIX["front"],
    "ship": MATRIX["ship"],
}


def _columns(found: Measured) -> Columns:
    """What is shown of a model: a classifier is known by its numbers."""
    return CLASS_COLUMNS if "macro_f1" in found else COLUMNS


def _cells(found: Measured, columns: Columns) -> list[str]:
    return [show(found) if found.get(key) is not None else "" for key, show in columns.values()]


def table(report: Measured) -> list[list[str]]:
    """Teacher and arms as text, header first."""
    columns = _columns(report["teacher"])
    lines = [["", *columns], ["teacher", *_cells(report["teacher"], columns)]]
    arms = report["arms"].items()
    return [*lines, *([f"arm {name}", *_cells(found, columns)] for name, found in arms)]


def matrix(report: Measured) -> list[list[str]]:
    """The artifact matrix as text, header first: every artifact by every measure."""
    artifacts = report["artifacts"]
    tasks = sorted({task for found in artifacts.values() for task in found.get("tasks", {})})
    columns = CLASS_MATRIX if "macro_f1" in report["teacher"] else MATRIX
    lines = [["artifact", *columns, *tasks]]
    for name, found in artifacts.items():
        scores = [found.get("tasks", {}).get(task, {}).get("accuracy") for task in tasks]
        shown = ["" if score is None else f"{score:.3f}" for score in scores]
        lines.append([name, *_cells(found, columns), *shown])
    return lines


def measured_table(found: Measured) -> list[list[str]]:
    """Models measured without a recipe as text, header first; the teacher on top."""
    columns = _columns(next(iter(found["models"].values())))
    if columns is COLUMNS:
        columns = {**COLUMNS, "first token ms": MATRIX["first token ms"]}
    lines = [["", *columns]]
    if "teacher" in found:
        lines.append(["teacher", *_cells(found["teacher"], columns)])
    return [*lines, *([name, *_cells(one, columns)] for name, one in found["models"].items())]


def merges(report: Measured) -> list[list[str]]:
    """What was specialised, before and after each way of merging; [] where nothing was."""
    found = (report.get("specialize") or {}).get("merges") or []
    lines = [["what was measured", "nll", "ppl"]]
    lines += [[one["path"], f"{one['nll']:.4f}", f"{one['perplexity']:.2f}"] for one in found]
    return lines if found else []


def measured_lines(numbers: Measured) -> str:
    """A model's numbers as a Markdown table, for its card."""
    lines = ["| measure | value |", "|---|---|"]
    for name, (key, show) in _columns(numbers).items():
        if numbers.get(key) is not None:
            lines.append(f"| {name} | {show(numbers)} |")
    return "\n".join(lines)


def read_report(folder: Path) -> Measured:
    """report.json of a finished run."""
    found: Measured = read_json(folder / "report.json")
    return found
