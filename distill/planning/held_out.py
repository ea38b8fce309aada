"""Whether the held-out part is large enough to tell anything, said before any work."""

from __future__ import annotations

from attar.word_lists import counted
from distill.evaluation.bootstrap import MIN_DOCUMENTS
from distill.planning.data_counts import DataCounts


def few_held_out(counts: DataCounts) -> str | None:
    """A sentence where the report will have no intervals, and so no verdict; else None."""
    number = counts.held_out_documents
    if number >= MIN_DOCUMENTS:
        return None
    return (
        f"The held-out part has {counted(number, 'document')}: below {MIN_DOCUMENTS} there are no "
        "intervals, and the report cannot tell whether distilling helped; give `data.held_out` a "
        "larger share, e.g. 0.2, or a file of its own."
    )
