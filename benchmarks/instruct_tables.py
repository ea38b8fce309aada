"""The table of benchmarks/instruct.md, for tables.py."""

from __future__ import annotations

from typing import Any


def instruct_block(*found: dict[str, Any]) -> str:
    """A line a model and measure, with 95% intervals; of several seeds means, and in brackets the
    difference of each.
    """
    lines = ["| model | measure | questions | before | after | difference |",
             "|---|---|---:|---:|---:|---:|"]  # fmt: skip
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in (row for one in found for row in one["rows"]):
        groups.setdefault((row["model"], row["measure"]), []).append(row)
    for (model, measure), rows in groups.items():
        first, questions = rows[0], rows[0]["questions"] or ""
        before, after, change = (_mean(rows, key) for key in ("before", "after", "difference"))
        if len(rows) == 1:
            before, after = (f"{first[key]:.3f} ({first[f'{key} 95%']})"
                             for key in ("before", "after"))  # fmt: skip
            change = f"{change} ({first['difference 95%']})"
        else:
            each = ", ".join(f"{row['difference']:+.3f}" for row in rows)
            change = f"{change} ({each})"
        lines.append(f"| {model} | {measure} | {questions} | {before} | {after} | {change} |")
    return "\n".join(lines)


def _mean(rows: list[dict[str, Any]], key: str) -> str:
    value = sum(row[key] for row in rows) / len(rows)
    return f"{value:+.3f}" if key == "difference" else f"{value:.3f}"
