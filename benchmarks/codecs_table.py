"""Write what the codecs' benchmarks found into docs/cache.md; with --check, fail where it is stale.

python benchmarks/codecs_table.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from attar.files import read_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "cache.md"


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


def page() -> str:
    """docs/cache.md as the results want it."""
    blocks = {
        "codecs": codecs_block(read_json(RESULTS / "cache_codecs.json")),
        "layers": layers_block(read_json(RESULTS / "layer_codecs.json")),
        "students": students_block(read_json(RESULTS / "cache_students.json")),
    }
    text = PAGE.read_text(encoding="utf8")
    for name, block in blocks.items():
        pattern = rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)"
        assert re.search(pattern, text, re.S), f"docs/cache.md has no place for {name}"
        text = re.sub(pattern, rf"\g<1>{block}\n\g<2>", text, flags=re.S)
    return text


def main() -> None:
    """Write or check."""
    wanted = page()
    if "--check" in sys.argv:
        if wanted != PAGE.read_text(encoding="utf8"):
            sys.exit("docs/cache.md is stale: python benchmarks/codecs_table.py writes it.")
        return
    PAGE.write_text(wanted, encoding="utf8")


if __name__ == "__main__":
    main()
