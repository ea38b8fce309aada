"""The tables of sweeps beside the whole grid, for tables.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attar.files import read_json


def sweep_blocks(results: Path) -> dict[str, str]:
    """The blocks of benchmarks/sweep.md, from a folder of results."""
    return {
        "sweeps": sweeps_block(read_json(results / "sweep.json")),
        "shapes": artifacts_block(results / "sweep_shapes.json"),
        "rates": artifacts_block(results / "sweep_rates.json"),
    }


def sweeps_block(found: dict[str, Any]) -> str:
    """A line a sweep: finalists, tokens, and how much of the grid's front it has."""
    lines = [
        "| grid | sweep | trials | finalists | tokens | of the grid's | front found |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in found["rows"]:
        lines.append(
            f"| {row['grid']} | {row['sweep']} | {row['trials']} | {row['finalists']} "
            f"| {row['tokens']:,} | {row['share']:.0%} | {row['found']} of {row['front']} |"
        )
    return "\n".join(lines)


def artifacts_block(file: Path) -> str:
    """A line an artifact on the grid's front, the smallest first, of a result that a page can do
    without.
    """
    if not file.exists():
        return "No result is recorded yet."
    found = read_json(file)
    names = [key.split(":")[0] for key in found["rows"][0] if key.endswith("less this")]
    heads = "".join(f"| {name}: left at | less this " for name in names)
    lines = [
        f"| student | artifact | MB | nll {heads}|",
        f"|---|---|---:|---:|{'---:|---:|' * len(names)}",
    ]
    for row in found["rows"]:
        if not row["front"]:
            continue
        cells = "".join(
            f"| {row[f'{name}: left at']} | {_bounds(row[f'{name}: less this'])} " for name in names
        )
        lines.append(
            f"| {row['student']} | {row['artifact']} | {row['MB']:.2f} | {row['nll']:.3f} {cells}|"
        )
    return "\n".join(lines)


def _bounds(interval: list[float] | None) -> str:
    return "none so small" if interval is None else f"{interval[0]:+.3f} to {interval[1]:+.3f}"
