"""The tables of students whose tokenizer is not the teacher's, for tables.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attar.files import read_json


def transport_blocks(results: Path) -> dict[str, str]:
    """The blocks of benchmarks/transport.md, from a folder of results."""
    found = read_json(results / "transport.json")
    return {
        "transport": transport_block(found),
        "fidelity": fidelity_block(results / "transport_fidelity.json"),
    }


def transport_block(found: dict[str, Any]) -> str:
    """A line a student and way: bits a byte, and the interval against fine-tuning."""
    lines = [
        "| student | way | rate | bits/byte | lowest and highest seed | less fine-tuning's "
        "| processor s |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in found["rows"]:
        trained, seconds = row["processor s"] > 0, f"{row['processor s']:.0f}"
        lines.append(
            f"| {row['student']} | {row['way']} | {format(row['lr'], 'g') if trained else ''} "
            f"| {row['bits/byte']:.3f} | {_range(row) if trained else ''} "
            f"| {_unless_itself(row)} | {seconds if trained else ''} |"
        )
    return "\n".join(lines)


def _range(row: dict[str, Any]) -> str:
    return f"{row['lowest']:.3f} to {row['highest']:.3f}"


def _unless_itself(row: dict[str, Any]) -> str:
    return "" if row["way"] == "fine-tuning" else str(row["less the control's"])


def fidelity_block(file: Path) -> str:
    """A line a pair of tokenizers and number of entries, of a result that a page can do without."""
    if not file.exists():
        return "No result is recorded yet."
    lines = [
        "| from, to | entries | served | aligned | inside | spans | nats/byte, teacher's "
        "| targets' | more | tail | ms/token | map, s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in read_json(file)["rows"]:
        shares = " | ".join(f"{row[key]:.1%}" for key in ("served", "aligned", "inside", "spans"))
        lines.append(
            f"| {row['pair']} | {row['k']} | {shares} | {row['teacher']:.4f} "
            f"| {row['target']:.4f} | {row['target'] / row['teacher'] - 1:+.1%} "
            f"| {row['tail']:.3f} | {row['ms']:.2f} | {row['map s']:.1f} |"
        )
    return "\n".join(lines)
