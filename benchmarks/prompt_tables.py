"""The table of searches of prompts, for tables.py."""

from __future__ import annotations

from typing import Any


def prompt_block(*found: dict[str, Any]) -> str:
    """A line a data set and search: accuracy where it chose and on unseen questions, tokens."""
    lines = [
        "| data | search | prompts | where it chose | unseen (95% interval) | tokens | computed "
        "| s | chosen |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in (row for one in found for row in one["rows"]):
        unseen = f"{row['unseen']:.3f} ({row['from']:.3f} to {row['to']:.3f})"
        searched = row["tokens"] > 0
        numbers = (
            f"{row['tokens']:,} | {row['shared']:,} | {row['seconds']:.0f}" if searched else " | | "
        )
        lines.append(
            f"| {row['data']} | {row['side']} | {row['candidates']} | {row['dev']:.3f} | {unseen} "
            f"| {numbers} | {row['chosen']} |"
        )
    first = found[0]
    return "\n".join([*lines, "", f"{first['date']}, {first['machine']}, {first['commit']}."])
