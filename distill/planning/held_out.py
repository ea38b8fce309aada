"""Whether the held-out part is large enough to tell anything, said before any work."""

from __future__ import annotations

from attar.files import read_json
from distill.data.prepare import data_faults
from distill.evaluation.bootstrap import MIN_DOCUMENTS
from distill.planning.estimate import data_counts
from distill.run.context import Run


def few_held_out(run: Run) -> str | None:
    """A sentence where the report will have no intervals, and so no verdict; else None.

    Documents are counted where the data are prepared; before, no more than the examples that are
    expected.
    """
    folder = run.folder.data(run.recipe.data.section)
    if (folder / "stats.json").exists() and not data_faults(folder):
        number = read_json(folder / "stats.json")["held_out"]["documents"]
    else:
        number = data_counts(run, run.recipe.data).held_out
    if number >= MIN_DOCUMENTS:
        return None
    return (
        f"The held-out part has {number} document{'' if number == 1 else 's'}: below "
        f"{MIN_DOCUMENTS} there are no intervals, and the report cannot tell whether distilling "
        "helped; give `data.held_out` a larger share, e.g. 0.2, or a file of its own."
    )
