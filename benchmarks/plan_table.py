"""The table of what `distill plan` said and what runs took, for tables.py."""

from __future__ import annotations

from typing import Any


def plan_block(found: dict[str, Any]) -> str:
    """One line a stage: its peak memory as planned and as measured."""
    lines = [
        "| setting | stage | planned MB | measured MB | planned / measured |",
        "|---|---|---:|---:|---:|",
    ]
    for row in found["rows"]:
        planned, measured = (f"{row[f'{side} MB']:,}" for side in ("planned", "measured"))
        ratio = f"{row['planned / measured']:.2f}"
        lines.append(f"| {row['setting']} | {row['stage']} | {planned} | {measured} | {ratio} |")
    return "\n".join(lines)
