"""How each model was trained: steps, passes over the data, and whose weights were kept."""

from __future__ import annotations

from distill.evaluation.job import Numbers
from distill.report.markup import Section, table_section

TITLE = "How they were trained"
TERMS = {
    "steps": "optimiser steps: updates of the weights",
    "passes": "how often the training part was learned from, 1.0 being all of it once",
    "learned from": "counted tokens (of labelled texts: texts) of all steps, repeats counted",
    "kept weights": "the step whose weights are the result; with `keep: best` the one with the "
    "lowest validation objective",
    "validated": "how often the training was held against the validation part",
}


def training_entry(result: Numbers, keep: str, tokens_a_pass: int) -> Numbers:
    """One training in report.json.

    result: `steps`, `tokens`, `seconds`, `best_step` and `history` of a training. keep: which
    weights it keeps, `best` or `last`. tokens_a_pass: counted tokens of its training part.
    """
    steps, best = result["steps"], result["best_step"]
    return {
        "steps": steps,
        "tokens": result["tokens"],
        "passes": result["tokens"] / tokens_a_pass if tokens_a_pass else None,
        "seconds": result["seconds"],
        "keep": keep,
        "kept_step": best if keep == "best" and best else steps,
        "validated": sum("validation" in record for record in result["history"]),
    }


def training_section(report: Numbers) -> Section | None:
    """The section of report.html; None where nothing was trained."""
    trainings = report.get("training") or {}
    if not trainings:
        return None
    lines = [["", "steps", "passes", "learned from", "kept weights", "validated", "seconds"]]
    for name, one in trainings.items():
        passes = "" if one["passes"] is None else f"{one['passes']:.1f}"
        kept = f"step {one['kept_step']:,} of {one['steps']:,} ({one['keep']})"
        lines.append(
            [
                name, f"{one['steps']:,}", passes, f"{one['tokens']:,}", kept,
                f"{one['validated']:,} times", f"{one['seconds']:,.1f}",
            ]
        )  # fmt: skip
    return table_section(TITLE, lines, TERMS)


def kept_steps(report: Numbers) -> dict[str, int]:
    """By model, the step whose weights are the result."""
    return {name: one["kept_step"] for name, one in (report.get("training") or {}).items()}
