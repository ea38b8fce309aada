"""The tables of benchmarks/preferences.md, for tables.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attar.files import read_json

QUALITY = ("preference_quality", "preference_gsm8k")


def preference_steps_block(found: dict[str, Any]) -> str:
    """A line a side: seconds and peak memory of a step, and ours by TRL's."""
    lines = [
        "| activations | side | seconds | ours, of it | peak MiB | ours, of it |",
        "|---|---|---:|---:|---:|---:|",
    ]
    ours = {row["blocks"]: row for row in found["rows"] if row["side"] == "ours"}
    for row in found["rows"]:
        mine = ours[row["blocks"]]
        seconds, memory = row["seconds"], mine["peak MiB"] / row["peak MiB"]
        time = " | " if seconds is None else f"{seconds:.1f} | {mine['seconds'] / seconds:.2f}"
        lines.append(
            f"| {row['blocks']} | {row['side']} | {time} | {row['peak MiB']:,} | {memory:.2f} |"
        )
    return "\n".join(lines)


def preference_quality_block(results: Path) -> str:
    """A line a model, set and state: what held-out pairs say, with 95% intervals, from a folder of
    results.
    """
    found = [read_json(results / f"{name}.json") for name in QUALITY]
    lines = [
        "| model, pairs | state | ranked right | pair accuracy | chosen gained | rejected gained |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in (row for one in found for row in one["rows"]):
        pairs = f"{row['model']}, {row['data'].removeprefix('pref_')}"
        lines.append(
            f"| {pairs} | {row['state']} | {_with_bounds(row, 'ranked')} "
            f"| {_with_bounds(row, 'accuracy')} | {_gain(row['chosen gained'])} "
            f"| {_gain(row['rejected gained'])} |"
        )
    return "\n".join(lines)


def _with_bounds(row: dict[str, Any], name: str) -> str:
    if row[name] is None:
        return ""
    between = f" ({row[f'{name} 95%']})" if row[f"{name} 95%"] else ""
    return f"{row[name]:.3f}{between}"


def _gain(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"
