"""The table of searches of prompts, for tables.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attar.files import read_json

PARTS = ("", "_banking77", "_dspy")  # of the results: those that are recorded make the table


def prompt_results(folder: Path) -> list[dict[str, Any]]:
    """The results that there are."""
    files = [folder / f"prompt_search{part}.json" for part in PARTS]
    return [read_json(file) for file in files if file.exists()]


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
