"""The tables of a sweep: its trials, and the artifacts of its finalists."""

from __future__ import annotations

from typing import Any

from distill.evaluation.job import Numbers
from distill.report.columns import TableColumns
from distill.report.tables import Table, artifact_table
from distill.sweep.state import steps_at

TRIAL_TERMS = {
    "M parameters": "million parameters of the student as built",
    "tokens": "counted tokens that it was trained on, of labelled texts texts",
    "seconds": "wall-clock time of all work on it",
    "finalist": "it was trained to the end, exported and measured on held-out text",
    "left": "after this share of its steps others were better by size and quality, and it could be "
    "told from the last of them",
}


def trial_table(found: Numbers) -> Table:
    """The trials, header first: what each is, its rungs, what became of it."""
    shares = found["recipe"]["sweep"]["rungs"]
    heads = [f"{found['compared']} at {share:.0%}" for share in shares]
    lines = [["trial", "M parameters", *heads, "tokens", "seconds", ""]]
    order = sorted(found["trials"].values(), key=_place)
    for one in order:
        values = [_value_at(one, share) for share in shares]
        tokens = f"{one['rungs'][-1]['tokens']:,}" if one["rungs"] else ""
        size = f"{one['parameters'] / 1e6:.3g}" if one["parameters"] else ""
        seconds, became = f"{one['seconds']:,.0f}", outcome(one, shares)
        lines.append([one["words"], size, *values, tokens, seconds, became])
    return lines


def _value_at(trial: Numbers, share: float) -> str:
    """What a trial was worth at a rung; empty where it did not reach it."""
    found = (one for one in trial["rungs"] if one["step"] == steps_at(share, one["total"]))
    return next((f"{one['value']:.4f}" for one in found), "")


def _place(trial: Numbers) -> tuple[Any, ...]:
    """Finalists first, then by the rung at which a trial was left, then by its last value."""
    left = trial["left_at"]
    value = trial["rungs"][-1]["value"] if trial["rungs"] else 0.0
    return (0 if left is None else 1, 0 if left is None else -left, value, trial["name"])


def outcome(trial: Numbers, shares: list[float]) -> str:
    """What became of a trial, in words."""
    if trial["failed"] is not None:
        return f"failed: {trial['failed']}"
    left = trial["left_at"]
    return "finalist" if left is None else f"left at {shares[left]:.0%}"


def front_table(found: Numbers, columns: TableColumns, *, intervals: bool = False) -> Table:
    """The artifacts of all finalists, header first, the smallest first."""
    shown = {
        f"{found['trials'][one['trial']]['words']}, {one['artifact']}": one
        for one in sorted(found["artifacts"].values(), key=lambda one: one.get("bytes") or 0)
    }
    return artifact_table({"artifacts": shown}, columns, intervals=intervals)
