"""How each model was trained: steps, passes over the data, and whose weights were kept."""

from __future__ import annotations

from collections.abc import Mapping

from distill.evaluation.job import Numbers
from distill.report.markup import Section, table_section
from distill.report.rounds import rounds_entry

OVERFITTED = 0.1  # share of the best validation objective by which the last one is much worse
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

    result: `steps`, `tokens`, `seconds`, `best_step` and `history` of a training, and the `rounds`
    that its student wrote. keep: which
    weights it keeps, `best` or `last`. tokens_a_pass: counted tokens of its training part.
    """
    steps, best = result["steps"], result["best_step"]
    values = [one["validation"] for one in result["history"] if "validation" in one]
    return {
        "steps": steps,
        "tokens": result["tokens"],
        "passes": result["tokens"] / tokens_a_pass if tokens_a_pass else None,
        "seconds": result["seconds"],
        "keep": keep,
        "kept_step": best if keep == "best" and best else steps,
        "validated": len(values),
        "best_validation": min(values, default=None),
        "last_validation": values[-1] if values else None,
        "rounds": rounds_entry(result.get("rounds", []), result["seconds"]),
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


def overfitted_warnings(trainings: Mapping[str, Numbers]) -> list[str]:
    """A sentence for each training that kept its last step though its validation objective had been
    much lower before: it overfitted, so that what is compared with it wins too easily. Where the
    student learned from text of its own, the objective on the data's text does not say so.
    """
    return [
        f"The training of `{name}` kept its last step, whose validation objective, "
        f"{one['last_validation']:.3f}, is {_excess(one):.0%} above the lowest that it reached, "
        f"{one['best_validation']:.3f}: it overfitted. `keep: best` keeps the best step; fewer "
        "`epochs` end nearer to it."
        for name, one in trainings.items()
        if one["keep"] == "last"
        and one["validated"]
        and _excess(one) > OVERFITTED
        and not one["rounds"]
    ]


def _excess(training: Numbers) -> float:
    """The share by which the last validation objective is above the lowest."""
    best = training["best_validation"]
    return (training["last_validation"] - best) / best if best > 0 else 0.0


def kept_steps(report: Numbers) -> dict[str, int]:
    """By model, the step whose weights are the result."""
    return {name: one["kept_step"] for name, one in (report.get("training") or {}).items()}
