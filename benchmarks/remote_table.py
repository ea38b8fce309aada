"""The table of what asking a server costs, for tables.py."""

from __future__ import annotations

from typing import Any


def remote_block(found: dict[str, Any]) -> str:
    """A line a kind of server and k."""
    lines = [
        "| kind | k | bytes a position on the wire | stored | read, ms / 1,000 | encode | "
        "positions/s over loopback |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['kind']} | {row['k']} | {row['wire bytes/position']:,} "
        f"| {row['stored bytes/position']} | {row['read ms/1000']:.0f} "
        f"| {row['encode ms/1000']:.1f} | {row['positions/s by HTTP']:,} |"
        for row in found["rows"]
    ]
    return "\n".join(lines)
