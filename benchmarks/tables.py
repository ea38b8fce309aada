"""Write what the benchmarks found into the docs that name them; --check: fail where stale.

python benchmarks/tables.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from attar.files import read_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


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


def steps_block(*found: dict[str, Any]) -> str:
    """A line a side and shape: seconds and peak memory, and both by the plain step's."""
    lines = [
        "| shape | side | seconds | of `hf` | peak MiB | of `hf` |",
        "|---|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['shape']} | {row['side']} | {_number(row['seconds'], 2)} "
        f"| {_number(row['time / hf'], 3)} | {row['peak MiB']:,} | {_number(row['peak / hf'], 3)} |"
        for one in found
        for row in one["rows"]
    ]
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None or value != value else f"{value:.{digits}f}"


def gradients_block(found: dict[str, Any]) -> str:
    """Relative error of the gradients at hidden states and at the head's weight."""
    rows = found["rows"]
    names = [name for name in rows[0] if name not in ("seconds",)]
    lines = ["| " + " | ".join(names) + " |", "|---" * 3 + "|---:" * (len(names) - 3) + "|"]
    for row in rows:
        cells = (f"{v:.1e}" if isinstance(v, float) else str(v) for v in row.values())
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def trainable_block(found: dict[str, Any]) -> str:
    """A line a choice of what learns: numbers, how far down gradients go, time and memory."""
    lines = [
        "| `trainable` | learn | gradients down to | seconds a step | of `all` "
        "| peak MiB | of `all` |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| `{row['trainable']}` | {row['learn']:,} | {row['down to']} | {row['seconds']:.2f} "
        f"| {row['time / all']:.2f} | {row['peak MiB']:,} | {row['peak / all']:.2f} |"
        for row in found["rows"]
    ]
    return "\n".join(lines)


def _result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = read_json(RESULTS / f"{name}.json")
    return found


def classification_block(*found: dict[str, Any]) -> str:
    """A line a data set and student: what is kept of the teacher, mean and range over seeds. Of
    students that several records hold, the last one's.
    """
    lines = [
        "| texts | student | parameters | fewer in blocks | texts/s | one text "
        "| distilled keeps | fine-tuned keeps |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in found:
        keys = [(row["data"], row["student"]) for row in record["rows"]]
        groups |= {key: [] for key in keys}
        for key, row in zip(keys, record["rows"], strict=True):
            groups[key].append(row)
    for (name, student), mine in groups.items():
        one = mine[0]
        kept, tuned = (
            _mean_and_range([row[key] for row in mine]) for key in ("kept", "kept, fine-tuned")
        )
        lines.append(
            f"| {name} | {student} | {one['parameters'] / 1e6:.1f} M "
            f"| x {one['fewer in blocks, x']:.1f} | x {one['faster, x']:.1f} "
            f"| x {one['one text, x']:.1f} | {kept} | {tuned} |"
        )
    return "\n".join(lines)


def pruning_block(*found: dict[str, Any]) -> str:
    """A line a student and state: perplexity by the teacher's and KL, on both texts."""
    lines = [
        "| student | blocks x heads x neurons x channels | parameters | state | lm_wiki89 | KL "
        "| WikiText-2 | KL |",
        "|---|---|---:|---|---:|---:|---:|---:|",
    ]
    rows = {(row["student"], row["state"]): row for one in found for row in one["rows"]}
    order = {student: i for i, student in enumerate(dict.fromkeys(key[0] for key in rows))}
    lines += [
        f"| {row['student']} | {row.get('shape', '')} | {row['parameters'] / 1e6:.1f} M "
        f"| {row['state']} | x {row['wiki ratio']:.2f} | {row['wiki KL']:.3f} "
        f"| x {row['WikiText-2 ratio']:.2f} | {row['WikiText-2 KL']:.3f} |"
        for row in sorted(rows.values(), key=lambda row: order[row["student"]])
    ]
    return "\n".join(lines)


def _mean_and_range(values: list[float]) -> str:
    return f"{sum(values) / len(values):.1%} ({min(values):.1%} to {max(values):.1%})"


def pages() -> dict[Path, str]:
    """The pages as the results want them."""
    blocks = {
        "cache.md": {
            "codecs": codecs_block(_result("cache_codecs")),
            "layers": layers_block(_result("layer_codecs")),
            "students": students_block(_result("cache_students")),
        },
        "classification.md": {
            "students": classification_block(
                _result("classification"), _result("classification_narrow")
            )
        },
        "speed.md": {
            "steps": steps_block(_result("step"), _result("step_8x1024")),
            "memory": steps_block(_result("step_memory_bf16")),
            "gradients": gradients_block(_result("gradients")),
        },
        "pruning.md": {
            "pruning": pruning_block(
                _result("pruning"),
                _result("pruning_heal"),
                _result("soup_shrink"),
                _result("soup_heal"),
            )
        },
        "transfer.md": {"trainable": trainable_block(_result("trainable"))},
    }
    return {ROOT / "docs" / name: _filled(name, own) for name, own in blocks.items()}


def _filled(page: str, blocks: dict[str, str]) -> str:
    text = (ROOT / "docs" / page).read_text(encoding="utf8")
    for name, block in blocks.items():
        pattern = rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)"
        assert re.search(pattern, text, re.S), f"docs/{page} has no place for {name}"
        text = re.sub(pattern, rf"\g<1>{block}\n\g<2>", text, flags=re.S)
    return text


def main() -> None:
    """Write or check."""
    for page, wanted in pages().items():
        if "--check" not in sys.argv:
            page.write_text(wanted, encoding="utf8")
        elif wanted != page.read_text(encoding="utf8"):
            sys.exit(f"docs/{page.name} is stale: python benchmarks/tables.py writes it.")


if __name__ == "__main__":
    main()
