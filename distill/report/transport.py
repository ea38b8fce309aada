"""The report on signals that were carried to another tokenizer: what was kept of them."""

from __future__ import annotations

from html import escape

from distill.evaluation.job import Numbers
from distill.report.markup import Section, as_table, explanation
from distill.report.tables import Table

TITLE = "Signals transported to the student's tokenizer"
TERMS = {
    "served": "share of the student's tokens, in the validation part, that have a target",
    "aligned": "tokens that begin where a token of the teacher begins",
    "inside": "tokens that begin within a token of the teacher",
    "spans": "tokens that cover several of the teacher's",
    "mass kept": "mean probability on entries; the rest is one outcome, the tail",
    "nats/byte": "of the text under the targets, and under the teacher itself on the same text",
}


def transport_section(report: Numbers) -> Section | None:
    """The section of report.html; None where nothing was transported."""
    found = report.get("transport")
    if found is None:
        return None
    shown = f"<p>{escape(sentence_of(found))}</p>{as_table(_table(found))}"
    return Section(TITLE, shown + explanation(TERMS))


def sentence_of(found: Numbers) -> str:
    """How much worse than the teacher the targets predict the text, in words."""
    if found["lost"] is None:
        return "The teacher's cache has no log-probabilities of the text's own tokens to compare."
    worse = "worse" if found["lost"] >= 0 else "better"
    return (
        f"Carried to the student's ids, the teacher's distributions predict the text "
        f"{abs(found['lost']):.1%} {worse}, by nats a byte, than in its own."
    )


def _table(found: Numbers) -> Table:
    its = found["teacher_nats_per_byte"]
    rows = [
        ("entries a token, at most", f"{found['k']:,}"),
        ("tokens measured", f"{found['tokens']:,}"),
        *((name, f"{found[name]:.1%}") for name in ("served", "aligned", "inside", "spans")),
        ("mass kept", f"{found['kept']:.1%}"),
        ("nats/byte, targets", f"{found['nats_per_byte']:.4f}"),
        ("nats/byte, teacher", "" if its is None else f"{its:.4f}"),
    ]
    return [["", ""], *([name, value] for name, value in rows)]
