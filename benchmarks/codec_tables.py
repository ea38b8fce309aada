"""The tables of what codecs keep, and of students trained from them, for tables.py."""

from __future__ import annotations

from typing import Any


def codecs_block(found: dict[str, Any]) -> str:
    """One line a codec, cheapest first; both students' errors."""
    by_codec: dict[str, dict[str, dict[str, Any]]] = {}
    for row in found["rows"]:
        by_codec.setdefault(row["codec"], {})[row["student"]] = row
    lines = [
        "| codec | bytes/token | KL | error, one token | error, summed | top-1 kept |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, rows in sorted(by_codec.items(), key=lambda pair: _any(pair[1])["bytes/token"]):
        one = _any(rows)
        kl = one["KL"] if isinstance(one["KL"], str) else f"{one['KL']:.4f}"
        errors, sums = (
            " / ".join(f"{rows[student][measure]:.3f}" for student in rows)
            for measure in ("error", "summed error")
        )
        lines.append(
            f"| {name} | {one['bytes/token']:.1f} | {kl} | {errors} | {sums} "
            f"| {one['top-1 kept']:.3f} |"
        )
    return "\n".join(lines)


def _any(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return next(iter(rows.values()))


def layers_block(found: dict[str, Any]) -> str:
    """One line a codec of hidden states: bits a channel and cosine, means over the layers."""
    lines = ["| codec | bits/channel | cosine | worst 1% |", "|---|---:|---:|---:|"]
    for name in dict.fromkeys(row["codec"] for row in found["rows"]):
        mine = [row for row in found["rows"] if row["codec"] == name]
        bits, cosine, worst = (
            sum(row[key] for row in mine) / len(mine)
            for key in ("bits/channel", "cosine", "worst 1%")
        )
        lines.append(f"| {name} | {bits:.2f} | {cosine:.5f} | {worst:.5f} |")
    return "\n".join(lines)


def students_block(found: dict[str, Any]) -> str:
    """Perplexity relative to dense, by seed, and calibration."""
    lines = [
        "| cache | bytes/token | seed | perplexity | calibration error |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['cache']} | {row['bytes/token']:.1f} | {row['seed']} | {row['perplexity']:.3f} "
        f"| {row['calibration_error']:.4f} |"
        for row in found["rows"]
    ]
    return "\n".join(lines)
