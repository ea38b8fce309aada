"""The tables of benchmarks/answers.md, for tables.py."""

from __future__ import annotations

from typing import Any

QUALITY = {  # head of a column: measure
    "nll of gold answers": "gold nll",
    "KL there": "gold KL",
    "KL on the teacher's answers": "teacher's KL",
    "KL on its own answers": "own KL",
}


def answer_blocks(**results: dict[str, Any]) -> dict[str, str]:
    """Two blocks of the page for each result, by its name: what was measured, what it took."""
    blocks = {}
    for name, found in results.items():
        blocks |= {f"{name} quality": _quality(found), f"{name} costs": _costs(found)}
    return blocks


def _quality(found: dict[str, Any]) -> str:
    """A line a way: numbers of held-out problems, with intervals against the control."""
    heads = [cell for head in QUALITY for cell in (head, "less gold's")]
    lines = [
        f"| | {' | '.join(heads)} | teacher's nll of its own |",
        f"|---|{'---:|' * (len(heads) + 1)}",
    ]
    for row in found["rows"]:
        cells = []
        for name in QUALITY.values():
            itself = row["way"] == "teacher" and name.endswith("KL")
            cells += ["" if itself else f"{row[name]:.3f}", row[f"{name} - control"]]
        own = row["teacher's nll of own"]
        lines.append(f"| {row['way']} | {' | '.join(cells)} | {own:.2f} |")
    return "\n".join(lines)


def _costs(found: dict[str, Any]) -> str:
    """A line a way: what it learned, what that took, and how its own answers end."""
    lines = [
        "| | steps | answers | before, s | training, s | right | 95% | ended | less gold's |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['way']} | {row['steps']:.0f} | {row['answers']:.0f} | {row['before']:.0f} "
        f"| {row['training']:.0f} | {row['right']:.1%} | {row['right 95%']} | {row['ended']:.1%} "
        f"| {row['ended - control']} |"
        for row in found["rows"]
    ]
    return "\n".join(lines)
