"""Columns of tables on measured models: a title, the key it needs, and how it is shown."""

from __future__ import annotations

from collections.abc import Callable

from distill.evaluation.job import Measured

Columns = dict[str, tuple[str, Callable[[Measured], str]]]


def _rate(kind: str) -> Callable[[Measured], str]:
    def show(row: Measured) -> str:
        value = row["tokens_per_second"][kind]
        return "" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"

    return show


def _until(found: Measured) -> str:
    return f"{found['same_until']:.0f}/{found['tokens']}"


# Of language models, and what all have.
COLUMNS: Columns = {
    "nll": ("nll", lambda r: f"{r['nll']:.3f}"),
    "ppl": ("perplexity", lambda r: f"{r['perplexity']:,.2f}"),
    "KL": ("kl_to_teacher", lambda r: f"{r['kl_to_teacher']:.3f}"),
    "top-1": ("top1_agreement", lambda r: f"{r['top1_agreement']:.3f}"),
    "M params": ("parameters", lambda r: f"{r['parameters'] / 1e6:.1f}"),
    "MB": ("bytes", lambda r: f"{r['bytes'] / 1e6:.1f}"),
    "prefill t/s": ("tokens_per_second", _rate("prefill")),
    "gen t/s": ("tokens_per_second", _rate("generate")),
    "peak MB": ("peak_memory_bytes", lambda r: f"{r['peak_memory_bytes'] / 1e6:,.0f}"),
}
FIRST_TOKEN: Columns = {
    "first token ms": (
        "seconds_to_first_token", lambda r: f"{1000 * r['seconds_to_first_token']:,.0f}"
    ),
}  # fmt: skip
RUN_BY: Columns = {"run by": ("runtime", lambda r: str(r["runtime"]))}
SHIPS: Columns = {
    "front": ("pareto", lambda r: ", ".join(name for name, on in r["pareto"].items() if on)),
    "ship": ("fit", lambda r: "yes" if r["fit"]["ships"] else "NO"),
}
MATRIX: Columns = {
    **RUN_BY,
    **{name: COLUMNS[name] for name in ("ppl", "KL", "top-1")},
    "ppl lost": ("fit", lambda r: f"{r['fit']['perplexity_lost']:+.1%}"),
    "same until": ("generation_agreement", lambda r: _until(r["generation_agreement"])),
    **{name: COLUMNS[name] for name in ("MB", "prefill t/s", "gen t/s")},
    **FIRST_TOKEN,
    "peak MB": COLUMNS["peak MB"],
    **SHIPS,
}

# Of models that read whole texts.
TEXT_SPEED: Columns = {
    "texts/s": ("texts_per_second", lambda r: f"{r['texts_per_second']:,.0f}"),
    "ms a text": ("seconds_a_text", lambda r: f"{1000 * r['seconds_a_text']:.1f}"),
    "peak MB": COLUMNS["peak MB"],
}


def cells(found: Measured, columns: Columns) -> list[str]:
    """What is shown of a model, empty where it has no such number."""
    return [show(found) if found.get(key) is not None else "" for key, show in columns.values()]
