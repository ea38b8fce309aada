"""The tables of what asking a server costs, and of what kills cost there, for tables.py."""

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


def kills_block(found: dict[str, Any]) -> str:
    """A line a kind of work that asks a server, and where and when it was measured."""
    lines = [
        "| work | killed: client, server | requests | finished at the kills | of these asked again "
        "| asked again in flight | shards lost | files equal |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| `{row['of']}` | {row['client killed']}, {row['server killed']} | {row['requests']:,} "
        f"| {row['finished']:,} | {row['asked again']} | {row['in flight']} "
        f"| {row['shards lost']} | {'yes' if row['equal'] else 'NO'} |"
        for row in found["rows"]
    ]
    return "\n".join([*lines, "", f"{found['date']}, {found['machine']}, {found['commit']}."])
