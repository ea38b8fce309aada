"""The tables of comparisons, for tables.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attar.files import read_json


def compare_blocks(results: Path) -> dict[str, str]:
    """The blocks of benchmarks/compare.md, from a folder of results."""
    found = read_json(results / "compare.json")
    return {"cells": cells_block(found), "arms": arms_block(found)}


def cells_block(found: dict[str, Any]) -> str:
    """A line a data set and number of labels: what was recommended, and what was best."""
    lines = [
        "| rows | labels | recommended | of the test rows | best | of the test rows | difference "
        "| arms run | of the seconds |",
        "|---|---:|---|---:|---|---:|---:|---:|---:|",
    ]
    for row in found["rows"]:
        lines.append(
            f"| {row['data']} | {row['labels']:,} | `{row['recommended']}` "
            f"| {_quality(row['quality'])} | `{row['best']}` | {_quality(row['best quality'])} "
            f"| {_difference(row)} | {row['arms run']} of {row['arms']} "
            f"| {row['seconds'] / row['seconds of all']:.0%} |"
        )
    return "\n".join(lines)


def _quality(value: float) -> str:
    return f"{100 * value:.1f}%" if value >= 0 else f"nll {-value:.3f}"


def _difference(row: dict[str, Any]) -> str:
    scale, digits = (100, 1) if row["quality"] >= 0 else (1, 3)
    value = f"{scale * row['difference']:+.{digits}f}"
    if row["interval"] is None or row["recommended"] == row["best"]:
        return value if row["recommended"] != row["best"] else "the same"
    low, high = (f"{scale * bound:+.{digits}f}" for bound in row["interval"])
    mark = "" if row["within"] else ", within all" if row["within all"] else ", worse"
    return f"{value} ({low} to {high}{mark})"


def arms_block(found: dict[str, Any]) -> str:
    """A line an arm: quality on the test rows in every cell, and the most seconds of learning."""
    rows = found["arms"]
    cells = list(dict.fromkeys((row["data"], row["labels"]) for row in rows))
    known = {(row["data"], row["labels"], row["arm"]): row for row in rows}
    head = " | ".join(f"{data} {labels:,}" for data, labels in cells)
    lines = [f"| arm | {head} | learning, s |", f"|---|{'---:|' * (len(cells) + 1)}"]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [known.get((*cell, arm)) for cell in cells]
        shown = " | ".join("" if one is None else _quality(one["quality"]) for one in mine)
        seconds = max((one["seconds"] for one in mine if one is not None), default=0.0)
        lines.append(f"| `{arm}` | {shown} | {seconds:.0f} |")
    return "\n".join(lines)
