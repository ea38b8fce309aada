"""Prints the statistics of a cache: two tables, and histograms with one bar a bin."""

from __future__ import annotations

import sys
from math import inf

from distill.commands.say import say
from distill.console import print_table
from teachers.cache_tools.statistics import Histogram, Statistics

WIDTH = 40  # characters of the longest bar


def print_statistics(found: Statistics) -> None:
    """Print everything; bars are plain ASCII where standard output is not a terminal."""
    wanted = found.wanted_examples
    state = "" if found.examples == wanted else f" of {wanted:,}: unfinished" if wanted else ""
    print_table(
        [
            ["cache", ""],
            ["examples", f"{found.examples:,}{state}"],
            ["tokens", f"{found.tokens:,}"],
            ["shards", f"{found.shards:,}, {found.shard_bytes:,} bytes"],
            ["codec", found.codec],
            ["layers", ", ".join(map(str, found.layers)) or "none"],
            ["attention", ", ".join(map(str, found.attention)) or "none"],
            *label_rows(found),
        ]
    )
    say()
    print_table(part_rows(found))
    blocks = sys.stdout.isatty() and (sys.stdout.encoding or "").lower().startswith("utf")
    bar = "█" if blocks else "#"
    at = f" at temperature {found.temperature:g}" if found.temperature != 1.0 else ""
    titles = {
        f"entropy of the targets{at}, nats": found.entropy,
        f"mass of the entries{at}": found.kept,
        "entries a token": found.entries,
        "minus the log-probability of the text's own tokens, nats": found.nll,
    }
    for title, histogram in titles.items():
        if histogram is not None and histogram.tokens:
            say(f"\n{title}: mean {histogram.mean:.3g} over {histogram.tokens:,} tokens")
            for line in bar_lines(histogram, bar):
                say(line)


def label_rows(found: Statistics) -> list[list[str]]:
    """How well the teacher fits the text, where its labels' probabilities are stored."""
    if found.perplexity is None:
        return []
    rows = [["perplexity", f"{found.perplexity:.3f}"]]
    if found.impossible:
        rows.append(["tokens of probability 0", f"{found.impossible:,}, not in the perplexity"])
    return rows


def part_rows(found: Statistics) -> list[list[str]]:
    """Bytes a token by column of the shards, the largest first, and the files beside the shards."""
    total, tokens = max(1, found.shard_bytes), max(1, found.tokens)
    sizes = sorted(found.columns.items(), key=lambda pair: -pair[1])
    table = [["part", "bytes a token", "share"]]
    for name, size in [*sizes, ("headers", found.overhead)]:
        table.append([name, f"{size / tokens:.2f}", f"{size / total:.1%}"])
    table.append(["all shards", f"{found.bytes_per_token:.2f}", "100.0%"])
    for part, size in found.assets.items():
        table.append([f"once: {part}", f"{size:,} bytes", ""])
    return table


def bar_lines(histogram: Histogram, bar: str) -> list[str]:
    """One line a bin, from the first that holds a token to the last."""
    held = [i for i, count in enumerate(histogram.counts) if count]
    longest = max(histogram.counts)
    lines = []
    for i in range(held[0], held[-1] + 1):
        low, high, count = histogram.edges[i], histogram.edges[i + 1], histogram.counts[i]
        span = f"{low:g} to {high - 1 if histogram.whole else high:g}"
        if histogram.whole and high == low + 1:
            span = f"{low:g}"
        elif high == inf:
            span = f"{low:g} or more"
        length = round(WIDTH * count / longest) if count else 0
        lines.append(f"{span:>14} {count / histogram.tokens:7.2%} {bar * length}".rstrip())
    return lines
