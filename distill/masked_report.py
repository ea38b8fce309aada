"""The report of a run on masked tokens: its verdict is that of language models."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from distill.account import Account, Curves, Tables
from distill.columns import COLUMNS, MATRIX, RUN_BY, SHIPS, TEXT_SPEED, Columns
from distill.gauge import Measured
from distill.language_report import verdict
from distill.report_html import plot_curves
from distill.shipping import judge
from distill.text_report import Quality, advise, mark_fronts, text_page

if TYPE_CHECKING:
    from distill.run import Run

MASKED_COLUMNS: Columns = {
    **{name: COLUMNS[name] for name in ("nll", "ppl")},
    "accuracy": ("accuracy", lambda r: f"{100 * r['accuracy']:.1f}%"),
    **{name: COLUMNS[name] for name in ("KL", "top-1", "M params", "MB")},
    **TEXT_SPEED,
}
MASKED_MATRIX: Columns = {
    **RUN_BY,
    **{name: MASKED_COLUMNS[name] for name in ("ppl", "accuracy", "KL", "top-1")},
    "ppl lost": MATRIX["ppl lost"],
    "MB": COLUMNS["MB"],
    **TEXT_SPEED,
    **SHIPS,
}
QUALITY = Quality(
    "perplexity", "perplexity of masked tokens", lambda r: f"ppl {r['perplexity']:.2f}", 1.0, False
)


def page(run: Run, report: Measured, tables: Tables, curves: Curves) -> str:
    """report.html."""
    legend = (
        "nll (nats a masked token), perplexity and accuracy: of the tokens that were masked; "
        "KL(teacher || model) on the full vocabulary; top-1: share of masked tokens where the most "
        "likely one is the teacher's; texts/s in batches, ms for one text alone; peak memory of a "
        "process that loads the model and reads texts. Intervals are in report.json."
    )
    lost = "against the same student in full precision, of its perplexity"
    training = plot_curves(curves), "Held-out nll while training (nats a masked token)."
    return text_page(report, tables, QUALITY, [training], legend, lost)


ACCOUNT = Account(
    MASKED_COLUMNS,
    MASKED_MATRIX,
    verdict,
    judge,
    partial(mark_fronts, QUALITY),
    partial(advise, QUALITY),
    page,
)
